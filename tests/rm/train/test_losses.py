"""Every loss against a value derived by hand, a gradient derived by hand, and a loop over its terms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm.train.losses import accept_reject, bradley_terry, centring_penalty, plackett_luce, smooth

LN3 = math.log(3)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def tensors(rewards, edges, probabilities, weights, margins=None):
    """The arguments of `bradley_terry`; the rewards ask for their gradient."""
    return (
        real(*rewards).requires_grad_(),
        torch.tensor(edges).reshape(-1, 2),
        real(*probabilities),
        real(*weights),
        None if margins is None else real(*margins),
    )


def picks(rewards, edges, stages, *, probabilities=None, weights=None, margins=None):
    """The arguments of `plackett_luce`."""
    whole = [1.0] * len(edges)
    values = tensors(rewards, edges, probabilities or whole, weights or whole, margins)
    return (*values, torch.tensor(stages))


def value_and_gradient(loss, arguments):
    value = loss(*arguments)
    value.backward()
    return value.item(), arguments[0].grad.tolist()


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


class TestBradleyTerry:
    def test_one_pair_by_hand(self):
        # gap ln 3: P = 3/4, loss = -ln 0.75; derivative by the preferred reward: -(1 - P) = -1/4
        value, gradient = value_and_gradient(bradley_terry, tensors([LN3, 0.0], [[0, 1]], [1.0], [1.0]))
        assert value == pytest.approx(-math.log(0.75), abs=1e-12)
        assert gradient == pytest.approx([-0.25, 0.25], abs=1e-12)

    def test_the_index_that_comes_first_is_preferred(self):
        value, gradient = value_and_gradient(bradley_terry, tensors([LN3, 0.0], [[1, 0]], [1.0], [1.0]))
        assert value == pytest.approx(-math.log(0.25), abs=1e-12)
        assert gradient == pytest.approx([0.75, -0.75], abs=1e-12)

    def test_soft_label_by_hand(self):
        # p = 1/4 at gap ln 3: -(1/4 ln 3/4 + 3/4 ln 1/4); derivative sigmoid(d) - p = 3/4 - 1/4
        value, gradient = value_and_gradient(bradley_terry, tensors([LN3, 0.0], [[0, 1]], [0.25], [1.0]))
        assert value == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)), abs=1e-12)
        assert gradient == pytest.approx([0.5, -0.5], abs=1e-12)

    def test_margin_by_hand(self):
        # what must be exceeded is ln 3: at a gap of 2 ln 3 the margin leaves ln 3, at a gap of 0 it leaves -ln 3
        arguments = tensors([2 * LN3, 0.0], [[0, 1]], [1.0], [1.0], [LN3])
        value, gradient = value_and_gradient(bradley_terry, arguments)
        assert value == pytest.approx(-math.log(0.75), abs=1e-12)
        assert gradient == pytest.approx([-0.25, 0.25], abs=1e-12)
        even = tensors([0.0, 0.0], [[0, 1]], [1.0], [1.0], [LN3])
        assert bradley_terry(*even).item() == pytest.approx(-math.log(0.25), abs=1e-12)

    def test_tie_is_least_at_equal_rewards(self):
        value, gradient = value_and_gradient(bradley_terry, tensors([1.0, 1.0], [[0, 1]], [0.5], [1.0]))
        assert value == pytest.approx(math.log(2))
        assert gradient == [0.0, 0.0]

    def test_weights_make_each_group_count_once(self):
        # a group of one comparison at gap 0, and one of three at gap ln 3, each of them a third
        edges = [[0, 1], [2, 3], [2, 4], [2, 5]]
        values = tensors([0.0, 0.0, LN3, 0.0, 0.0, 0.0], edges, [1.0] * 4, [1.0, 1 / 3, 1 / 3, 1 / 3])
        assert bradley_terry(*values).item() == pytest.approx((math.log(2) - math.log(0.75)) / 2, abs=1e-12)

    def test_scaled_by_the_size_of_the_preference(self):
        # sizes 3 and 1 as weights: (3 * -ln 3/4 + 1 * ln 2) / 4, a mean and not a sum
        values = tensors([LN3, 0.0, 0.0], [[0, 1], [1, 2]], [1.0, 1.0], [3.0, 1.0])
        value, gradient = value_and_gradient(bradley_terry, values)
        assert value == pytest.approx((-3 * math.log(0.75) + math.log(2)) / 4, abs=1e-12)
        assert gradient == pytest.approx([-3 / 16, 3 / 16 - 1 / 8, 1 / 8], abs=1e-12)

    def test_extreme_gaps_stay_finite(self):
        value, gradient = value_and_gradient(bradley_terry, tensors([-1e4, 1e4], [[0, 1]], [1.0], [1.0]))
        assert value == pytest.approx(2e4)
        assert gradient == [-1.0, 1.0]
        assert bradley_terry(*tensors([1e4, -1e4], [[0, 1]], [1.0], [1.0])).item() == 0.0


class TestPlackettLuce:
    def test_a_strict_ranking_of_three_by_hand(self):
        # rewards ln 4, ln 2, 0: the first of {4, 2, 1} is 4/7, then of {2, 1} it is 2/3
        edges, stages = [[0, 1], [0, 2], [1, 2]], [0, 0, 1]
        value, gradient = value_and_gradient(plackett_luce, picks([math.log(4), math.log(2), 0.0], edges, stages))
        # each edge weighs 1, so the first pick weighs 2 and the second 1
        assert value == pytest.approx(-(2 * math.log(4 / 7) + math.log(2 / 3)) / 3, abs=1e-12)
        expected = [2 * (4 / 7 - 1), 2 * 2 / 7 + (2 / 3 - 1), 2 * 1 / 7 + 1 / 3]
        assert gradient == pytest.approx([part / 3 for part in expected], abs=1e-12)

    def test_picks_of_equal_weight_are_the_likelihood_of_the_ranking(self):
        edges, stages, weights = [[0, 1], [0, 2], [1, 2]], [0, 0, 1], [0.5, 0.5, 1.0]
        arguments = picks([math.log(4), math.log(2), 0.0], edges, stages, weights=weights)
        assert plackett_luce(*arguments).item() == pytest.approx(-math.log(4 / 7 * 2 / 3) / 2, abs=1e-12)

    def test_a_choice_is_the_cross_entropy_of_a_softmax(self):
        rewards = [0.3, -1.2, 2.0, 0.7]
        edges = [[1, 0], [1, 2], [1, 3]]
        value, gradient = value_and_gradient(plackett_luce, picks(rewards, edges, [0, 0, 0]))
        softmax = np.exp(rewards) / np.exp(rewards).sum()
        assert value == pytest.approx(-math.log(softmax[1]), abs=1e-12)
        assert gradient == pytest.approx((softmax - [0, 1, 0, 0]).tolist(), abs=1e-12)

    def test_a_stage_of_one_edge_is_bradley_terry(self):
        rewards, edges, margins, weights = [0.4, -1.0, 2.0], [[0, 1], [1, 2]], [0.3, -0.2], [1.0, 2.5]
        got = value_and_gradient(plackett_luce, picks(rewards, edges, [3, 0], margins=margins, weights=weights))
        expected = value_and_gradient(bradley_terry, tensors(rewards, edges, [1.0, 1.0], weights, margins))
        assert got[0] == pytest.approx(expected[0], abs=1e-12)
        assert got[1] == pytest.approx(expected[1], abs=1e-12)

    def test_lone_edges_beside_stages_keep_probability_and_weight(self):
        # a pick of 0 over 1 and 2 (weight 1/2 + 1/2), a tie of 1 and 2 at gap ln 3 (weight 3)
        arguments = picks(
            [0.0, LN3, 0.0],
            [[1, 2], [0, 1], [0, 2]],
            [-1, 4, 4],
            probabilities=[0.5, 1.0, 1.0],
            weights=[3.0, 0.5, 0.5],
        )
        tie = -(math.log(0.75) + math.log(0.25)) / 2
        assert plackett_luce(*arguments).item() == pytest.approx((3 * tie + math.log(5)) / 4, abs=1e-12)

    def test_lone_edges_alone(self):
        edges, probabilities = [[1, 0], [0, 1]], [0.5, 0.25]
        got = plackett_luce(*picks([LN3, 0.0], edges, [-1, -1], probabilities=probabilities))
        assert got.item() == pytest.approx(bradley_terry(*tensors([LN3, 0.0], edges, probabilities, [1, 1])).item())

    def test_margins_in_a_stage_by_hand(self):
        # softplus(log(e^(m1 - d1) + e^(m2 - d2))), gaps 0: -log 1 / (1 + 3 + 1)
        arguments = picks([0.0, 0.0, 0.0], [[0, 1], [0, 2]], [0, 0], margins=[LN3, 0.0])
        assert plackett_luce(*arguments).item() == pytest.approx(math.log(5), abs=1e-12)

    def test_extreme_gaps_stay_finite(self):
        value, gradient = value_and_gradient(plackett_luce, picks([-1e4, 1e4, 9e3], [[0, 1], [0, 2]], [0, 0]))
        assert value == pytest.approx(2e4)
        assert gradient == pytest.approx([-1.0, 1.0, 0.0])
        value, gradient = value_and_gradient(plackett_luce, picks([1e4, -1e4, -9e3], [[0, 1], [0, 2]], [0, 0]))
        assert (value, gradient) == (0.0, [0.0, 0.0, 0.0])


class TestAcceptReject:
    def test_by_hand(self):
        # r + b = ln 3: accepted with 3/4; r + b = 0, half accepted; the third response has no label
        rewards, offset = real(LN3 - 1, -1.0, 9.0).requires_grad_(), torch.tensor(1.0).double().requires_grad_()
        labelled, accepted, weights = torch.tensor([1, 0, 0]), real(0.5, 1.0, 0.0), real(4.0, 1.0, 1.0)
        loss = accept_reject(rewards, offset, labelled, accepted, weights)
        loss.backward()
        assert loss.item() == pytest.approx((4 * math.log(2) - math.log(0.75) - math.log(0.25)) / 6, abs=1e-12)
        # derivative by r and b: sigmoid(r + b) - a
        assert rewards.grad.tolist() == pytest.approx([(-0.25 + 0.75) / 6, 0.0, 0.0], abs=1e-12)
        assert offset.grad.item() == pytest.approx((-0.25 + 0.75) / 6, abs=1e-12)

    def test_extremes_stay_finite(self):
        arguments = (torch.tensor([0, 1]), real(0.0, 1.0), real(1.0, 1.0))
        assert accept_reject(real(1e4, -1e4), torch.tensor(0.0), *arguments).item() == pytest.approx(1e4)


def test_centring_by_hand():
    # sums 3 and -3 at weights 1 and 3, then 1: the loss is of sums, not of differences
    rewards, edges, _, weights, _ = tensors([2.0, 1.0, -4.0], [[0, 1], [1, 2]], [1.0, 1.0], [1.0, 3.0])
    value, gradient = value_and_gradient(lambda r: centring_penalty(r, edges, weights), (rewards,))
    assert value == pytest.approx((9 + 3 * 9) / 4)
    assert gradient == pytest.approx([2 * 3 / 4, 2 * 3 / 4 - 3 * 2 * 3 / 4, -3 * 2 * 3 / 4])


def test_smoothing_by_hand():
    assert smooth(real(1.0, 0.0, 0.5, 0.75), 0.1).tolist() == pytest.approx([0.9, 0.1, 0.5, 0.7])
    assert smooth(real(1.0, 0.3), 0.0).tolist() == [1.0, 0.3]


@pytest.mark.parametrize(
    "loss",
    [
        lambda none, indices: bradley_terry(none, indices, none, none),
        lambda none, indices: plackett_luce(none, indices, none, none, None, indices[:, 0]),
        lambda none, indices: accept_reject(none, torch.tensor(0.0), indices[:, 0], none, none),
        lambda none, indices: centring_penalty(none, indices, none),
    ],
)
def test_no_judgement_is_an_error(loss):
    with pytest.raises(ValueError, match="at least one judgement"):
        loss(torch.zeros(0), torch.zeros((0, 2), dtype=torch.long))


@st.composite
def judgements(draw):
    """Rewards, and edges (i, j, p, w, m, stage) of lone comparisons and of picks under scattered stage numbers."""
    rewards = draw(st.lists(st.floats(-8, 8), min_size=3, max_size=6))
    index = st.integers(0, len(rewards) - 1)
    weight, margin = st.floats(0.1, 2), st.floats(-2, 2)
    edges = draw(st.lists(st.tuples(index, index, st.floats(0, 1), weight, margin, st.just(-1)), max_size=6))
    for stage in draw(st.lists(st.integers(0, 40), max_size=3, unique=True)):
        winner = draw(index)
        others = draw(st.lists(index.filter(lambda other, winner=winner: other != winner), min_size=1, unique=True))
        edges += [(winner, other, 1.0, draw(weight), draw(margin), stage) for other in others]
    return rewards, draw(st.permutations(edges))


def edge_loss(rewards, i, j, p, m):
    probability = sigmoid(rewards[i] - rewards[j] - m)
    return -(p * math.log(probability) + (1 - p) * math.log(1 - probability))


@settings(max_examples=80)
@given(judgements().filter(lambda drawn: drawn[1]))
def test_bradley_terry_equals_a_loop(drawn):
    rewards, edges = drawn
    total = sum(w * edge_loss(rewards, i, j, p, m) for i, j, p, w, m, _ in edges)
    i, j, p, w, m, _ = zip(*edges, strict=True)
    got = bradley_terry(*tensors(rewards, list(zip(i, j, strict=True)), p, w, m))
    assert got.item() == pytest.approx(total / sum(w), rel=1e-6, abs=1e-9)


@settings(max_examples=80)
@given(judgements().filter(lambda drawn: drawn[1]))
def test_plackett_luce_equals_a_loop_over_stages(drawn):
    rewards, edges = drawn
    total = 0.0
    for i, j, p, w, m, stage in edges:
        if stage == -1:
            total += w * edge_loss(rewards, i, j, p, m)
    for stage in {edge[5] for edge in edges} - {-1}:
        members = [edge for edge in edges if edge[5] == stage]
        won = math.exp(rewards[members[0][0]])
        lost = sum(math.exp(rewards[j] + m) for _, j, _, _, m, _ in members)
        total -= sum(edge[3] for edge in members) * math.log(won / (won + lost))
    i, j, p, w, m, stages = zip(*edges, strict=True)
    got = plackett_luce(*tensors(rewards, list(zip(i, j, strict=True)), p, w, m), torch.tensor(stages))
    assert got.item() == pytest.approx(total / sum(w), rel=1e-6, abs=1e-9)


label = st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0.1, 2))


@settings(max_examples=40)
@given(st.lists(st.floats(-8, 8), min_size=3, max_size=3), st.floats(-4, 4), st.lists(label, min_size=1))
def test_accept_reject_equals_a_loop(rewards, offset, labels):
    total = 0.0
    for index, accepted, weight in labels:
        probability = sigmoid(rewards[index] + offset)
        total -= weight * (accepted * math.log(probability) + (1 - accepted) * math.log(1 - probability))
    labelled, accepted, weights = zip(*labels, strict=True)
    got = accept_reject(real(*rewards), torch.tensor(offset), torch.tensor(labelled), real(*accepted), real(*weights))
    assert got.item() == pytest.approx(total / sum(weights), rel=1e-6, abs=1e-9)
