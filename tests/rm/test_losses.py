from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm.losses import bradley_terry


def tensors(rewards, edges, probabilities, weights):
    return (
        torch.tensor(rewards, dtype=torch.float64, requires_grad=True),
        torch.tensor(edges),
        torch.tensor(probabilities, dtype=torch.float64),
        torch.tensor(weights, dtype=torch.float64),
    )


def test_one_pair_by_hand():
    # gap ln 3: P = 3/4, loss = -ln 0.75; derivative by the preferred reward: -(1 - P) = -1/4
    rewards, *rest = tensors([math.log(3), 0.0], [[0, 1]], [1.0], [1.0])
    loss = bradley_terry(rewards, *rest)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(0.75), abs=1e-12)
    assert rewards.grad.tolist() == pytest.approx([-0.25, 0.25], abs=1e-12)


def test_soft_label_by_hand():
    # p = 1/4 at gap ln 3: -(1/4 ln 3/4 + 3/4 ln 1/4)
    loss = bradley_terry(*tensors([math.log(3), 0.0], [[0, 1]], [0.25], [1.0]))
    assert loss.item() == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)), abs=1e-12)


def test_tie_is_least_at_equal_rewards():
    rewards, *rest = tensors([1.0, 1.0], [[0, 1]], [0.5], [1.0])
    loss = bradley_terry(rewards, *rest)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert rewards.grad.tolist() == [0.0, 0.0]


def test_weights_make_each_group_count_once():
    # a group of one comparison at gap 0, and one of three at gap ln 3, each of them a third
    edges = [[0, 1], [2, 3], [2, 4], [2, 5]]
    values = tensors([0.0, 0.0, math.log(3), 0.0, 0.0, 0.0], edges, [1.0] * 4, [1.0, 1 / 3, 1 / 3, 1 / 3])
    assert bradley_terry(*values).item() == pytest.approx((math.log(2) - math.log(0.75)) / 2, abs=1e-12)


def test_extreme_gaps_stay_finite():
    loss = bradley_terry(*tensors([-1e4, 1e4], [[0, 1]], [1.0], [1.0]))
    assert loss.item() == pytest.approx(2e4)


def test_no_comparison_is_an_error():
    with pytest.raises(ValueError, match="at least one comparison"):
        bradley_terry(torch.zeros(2), torch.zeros((0, 2), dtype=torch.long), torch.zeros(0), torch.zeros(0))


finite = st.floats(-8, 8)


@settings(max_examples=60)
@given(st.lists(finite, min_size=2, max_size=6), st.data())
def test_equals_a_naive_loop(rewards, data):
    index = st.integers(0, len(rewards) - 1)
    edge = st.tuples(index, index, st.floats(0, 1), st.floats(0.1, 2))
    drawn = data.draw(st.lists(edge, min_size=1, max_size=8))
    total = weight_sum = 0.0
    for i, j, p, w in drawn:
        probability = 1 / (1 + math.exp(-(rewards[i] - rewards[j])))
        total -= w * (p * math.log(probability) + (1 - p) * math.log(1 - probability))
        weight_sum += w
    got = bradley_terry(
        *tensors(rewards, [[i, j] for i, j, *_ in drawn], [p for *_, p, _ in drawn], [w for *_, w in drawn])
    )
    assert got.item() == pytest.approx(total / weight_sum, rel=1e-6, abs=1e-9)
