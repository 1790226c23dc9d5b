from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_groups import group

from rm.evaluate import Bootstrap, Relevance, evaluate, tabulate
from rm.evaluate.accuracy import accuracy_row, separation
from rm.evaluate.diagnostics import length_correlation, margin_bins

FAST = Bootstrap(resamples=200)


def sizes(groups):
    return [[len(response) for response in g.responses] for g in groups]


def row(groups, rewards):
    return accuracy_row("all", tabulate(groups, rewards, sizes(groups)), bootstrap=FAST)


@pytest.mark.parametrize(
    ("edge", "rewards", "expected"),
    [
        ((0, 1), [2.0, 1.0], 1.0),
        ((0, 1), [1.0, 2.0], 0.0),
        ((1, 0), [1.0, 2.0], 1.0),
        ((0, 1), [1.0, 1.0], 0.5),
        ((0, 1, 0.7), [2.0, 1.0], 1.0),
        ((0, 1, 0.3), [2.0, 1.0], 0.0),
        ((0, 1, 0.3), [1.0, 2.0], 1.0),
    ],
)
def test_one_comparison(edge, rewards, expected):
    got = row([group(edges=[edge])], [rewards])
    assert (got.model.value, got.comparisons, got.prompts) == (expected, 1, 1)


def test_ties_are_left_out_and_unscored_comparisons_counted():
    groups = [group("a", [(0, 1, 0.5), (1, 2), (0, 2)], responses=3)]
    got = row(groups, [[1.0, 3.0, 2.0]])
    assert (got.comparisons, got.ties, got.unscored, got.model.value) == (2, 1, 0, 0.5)
    got = row(groups, [[1.0, math.nan, 2.0]])
    assert (got.comparisons, got.ties, got.unscored, got.model.value) == (1, 0, 2, 0.0)


@given(st.data())
def test_equals_a_plain_loop(data):
    """Accuracy of the model and of length, their difference, and the matched share; and no edge is lost."""
    count = data.draw(st.integers(1, 4))
    groups, rewards = [], []
    for number in range(count):
        k = data.draw(st.integers(2, 5))
        index = st.integers(0, k - 1)
        pair = st.tuples(index, index, st.sampled_from([0.0, 0.2, 0.5, 0.8, 1.0])).filter(lambda e: e[0] != e[1])
        lengths = data.draw(st.lists(st.integers(4, 12), min_size=k, max_size=k))
        groups.append(group(number % 2, data.draw(st.lists(pair, max_size=6)), responses=k, lengths=lengths))
        rewards.append(data.draw(st.lists(st.integers(-2, 2).map(float) | st.just(math.nan), min_size=k, max_size=k)))
    model, length, matched, ties, unscored = [], [], [], 0, 0
    for g, r in zip(groups, rewards, strict=True):
        for edge in g.edges:
            i, j = (edge.preferred, edge.other) if edge.probability > 0.5 else (edge.other, edge.preferred)
            if math.isnan(r[i]) or math.isnan(r[j]):
                unscored += 1
            elif edge.probability == 0.5:
                ties += 1
            else:
                a, b = len(g.responses[i]), len(g.responses[j])
                model.append(1.0 if r[i] > r[j] else 0.5 if r[i] == r[j] else 0.0)
                length.append(1.0 if a > b else 0.5 if a == b else 0.0)
                if 0.8 <= a / b <= 1.25:
                    matched.append(model[-1])
    got = row(groups, rewards)
    assert (got.comparisons, got.ties, got.unscored) == (len(model), ties, unscored)
    assert got.matched_comparisons == len(matched)
    if model:
        assert got.model.value == pytest.approx(np.mean(model))
        best = max(np.mean(length), 1 - np.mean(length))
        assert got.length.value == pytest.approx(best)
        assert got.rule == ("shorter" if np.mean(length) < 0.5 else "longer")
        assert got.difference.value == pytest.approx(np.mean(model) - best)
    if matched:
        assert got.matched.value == pytest.approx(np.mean(matched))


@given(st.data())
def test_the_nearer_or_longer_one_equals_a_plain_loop(data):
    groups, rewards, cosines, gated, model = [], [], [], [], []
    gap = data.draw(st.sampled_from([0.0, 0.25, 0.5]))
    for number in range(data.draw(st.integers(1, 5))):
        lengths = data.draw(st.lists(st.integers(4, 7), min_size=2, max_size=2))
        groups.append(group(number, [(0, 1)], lengths=lengths))
        rewards.append(data.draw(st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=2, max_size=2)))
        near = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), min_size=2, max_size=2))
        cosines.append(near)
        if not any(map(math.isnan, rewards[-1])):
            ahead, longer = near[0] - near[1], lengths[0] - lengths[1]
            sign = ahead if abs(ahead) > gap else longer
            gated.append(0.5 + 0.5 * np.sign(sign))
            model.append(0.5 + 0.5 * np.sign(rewards[-1][0] - rewards[-1][1]))
    table = tabulate(groups, rewards, sizes(groups), Relevance(cosines, gap))
    got = accuracy_row("all", table, bootstrap=FAST)
    plain = accuracy_row("all", tabulate(groups, rewards, sizes(groups)), bootstrap=FAST)
    assert plain.rule != "nearer or longer"
    if gated:
        better = np.mean(gated) > plain.length.value
        assert (got.rule == "nearer or longer") == better
        assert got.length.value == pytest.approx(max(np.mean(gated), plain.length.value))
        assert got.difference.value == pytest.approx(np.mean(model) - got.length.value)


@pytest.mark.parametrize(
    ("lengths", "count"), [([8, 10], 1), ([10, 8], 1), ([79, 100], 0), ([100, 79], 0), ([4, 5], 1)]
)
def test_matched_lengths_are_within_four_fifths_either_way(lengths, count):
    assert row([group(edges=[(0, 1)], lengths=lengths)], [[1.0, 0.0]]).matched_comparisons == count


def test_groups_of_one_prompt_are_one_cluster():
    """Two judges of the same prompt are not two prompts."""
    groups = [group("a", [(0, 1)], origin="human"), group("a", [(1, 0)], origin="model")]
    got = row(groups, [[1.0, 0.0]] * 2)
    assert (got.prompts, got.comparisons, got.model.value) == (1, 2, 0.5)
    assert math.isnan(got.model.low)


def test_by_origin_source_and_subset():
    groups = [
        group("a", [(0, 1)], origin="human", source="x"),
        group("b", [(0, 1)], origin="model", source="y", subset="s"),
        group("c", [(0, 1)], origin="model"),
    ]
    got = evaluate(groups, [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], bootstrap=FAST).accuracy
    values = {
        kind: {r.name: (r.comparisons, r.model.value) for r in getattr(got, f"by_{kind}")}
        for kind in ("origin", "source", "subset")
    }
    assert values == {
        "origin": {"human": (1, 1.0), "model": (2, 0.5)},
        "source": {"x": (1, 1.0), "y": (1, 0.0), "(none)": (1, 1.0)},
        "subset": {"s": (1, 0.0), "(none)": (2, 1.0)},
    }
    assert got.overall.model.value == pytest.approx(2 / 3)


def test_data_that_name_no_source_have_no_rows_by_source():
    assert evaluate([group("a", [(0, 1)])], [[1.0, 0.0]], bootstrap=FAST).accuracy.by_source == ()


def test_accept_and_reject_become_comparisons_of_one_prompt():
    groups = [
        group("a", responses=4, labels=[(0, 1.0), (1, 0.0), (2, 1.0), (3, 0.0)]),
        group("b", responses=2, labels=[(0, 1.0), (1, 1.0)]),  # nothing to compare
    ]
    got = row(groups, [[3.0, 1.0, 0.0, 2.0], [9.0, 8.0]])
    assert (got.comparisons, got.model.value) == (4, 0.5)  # 0 beats 1 and 3, 2 loses to both


def test_a_response_labelled_by_several_has_their_mean():
    groups = [group("a", responses=2, labels=[(0, 1.0), (0, 1.0), (0, 0.0), (1, 0.0), (1, 1.0)])]
    assert row(groups, [[1.0, 0.0]]).comparisons == 0  # 2/3 against 1/2: the second is neither


def test_auc_by_counting_pairs_across_prompts():
    groups = [group("a", labels=[(0, 1.0), (1, 0.0)]), group("b", labels=[(0, 1.0), (1, 0.0)])]
    got = separation(groups, [[1.0, 0.0], [3.0, 1.0]])
    # accepted 1, 3; rejected 0, 1: 1>0, 1=1, 3>0, 3>1
    assert (got.accepted, got.rejected, got.auc) == (2, 2, pytest.approx(3.5 / 4))
    assert separation([group("a", [(0, 1)])], [[1.0, 0.0]]) is None
    assert separation([group("a", labels=[(0, 1.0), (1, 1.0)])], [[1.0, 0.0]]) is None
    assert separation(groups, [[1.0, math.nan], [3.0, 1.0]]).rejected == 1


def test_arrays_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="1 groups, 2 arrays"):
        evaluate([group()], [[0.0, 1.0]] * 2)
    with pytest.raises(ValueError, match="2 responses, 3 rewards"):
        evaluate([group()], [[0.0, 1.0, 2.0]])


def test_side_i_is_told_by_content_and_not_by_who_won():
    groups = [group(number, [(0, 1)]) for number in range(3)]
    swapped = [group(number, [(1, 0)]) for number in range(3)]
    kept, turned = (tabulate(g, [[1.0, 0.0]] * 3, sizes(g)) for g in (groups, swapped))
    np.testing.assert_array_equal(kept.gap, turned.gap)
    np.testing.assert_array_equal(kept.probability, 1 - turned.probability)
    texts = [group(number, [(0, 1)], lengths=[10 + number, 40]) for number in range(60)]
    stated = tabulate(texts, [[1.0, 0.0]] * 60, sizes(texts)).probability
    assert 10 < stated.sum() < 50  # winners stand on both sides


def test_length_correlation_by_hand():
    groups = [
        group("a", responses=3, lengths=[5, 10, 20]),
        group("b", responses=3, lengths=[5, 10, 20]),
        group("c", responses=3, lengths=[7, 7, 7]),  # lengths do not vary: says nothing
    ]
    rewards = [[1.0, 2.0, 9.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]]
    got = length_correlation(groups, rewards, sizes(groups), bootstrap=FAST)
    assert (got.groups, got.responses) == (2, 9)
    assert got.within_prompt.value == pytest.approx((1.0 + 0.5) / 2)  # rho of (1,2,3) with (1,3,2): 1 - 6*2/24
    x = [r for reward in rewards for r in reward]
    y = [s for size in sizes(groups) for s in size]
    assert got.overall == pytest.approx(np.corrcoef(x, y)[0, 1])
    flipped = length_correlation(groups, [[-r for r in reward] for reward in rewards], sizes(groups), bootstrap=FAST)
    assert flipped.overall == pytest.approx(-got.overall)


def test_margins_by_hand():
    """Twenty comparisons with gaps 1..20, right where the gap exceeds 10: ten bins of two."""
    groups = [group(k, [(0, 1) if k > 10 else (1, 0)]) for k in range(1, 21)]
    got = margin_bins(tabulate(groups, [[float(k), 0.0] for k in range(1, 21)], sizes(groups)))
    assert [bin.comparisons for bin in got] == [2] * 10
    assert [bin.gap for bin in got] == [1.5 + 2 * k for k in range(10)]
    assert [bin.accuracy for bin in got] == [0.0] * 5 + [1.0] * 5
    assert got[0].predicted == pytest.approx((1 / (1 + math.exp(-1)) + 1 / (1 + math.exp(-2))) / 2)
    assert all(0.5 <= bin.predicted_after <= 1 for bin in got)
    assert margin_bins(tabulate([group("a", [(0, 1, 0.5)])], [[1.0, 0.0]], [[1, 1]])) == ()


def test_nothing_to_say_is_said_without_an_error():
    got = evaluate([group("a", [(0, 1)])], [[math.nan, 1.0]], bootstrap=FAST)
    assert got.accuracy.overall.unscored == 1
    assert (got.unscored_responses, got.calibration, got.best_of_n, got.margins) == (1, None, None, ())
    assert got.to_json()["accuracy"]["overall"]["model"] == {"value": None, "low": None, "high": None}
