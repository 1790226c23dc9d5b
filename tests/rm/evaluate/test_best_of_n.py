from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_groups import group

from rm.evaluate import Bootstrap, expected_best, kl_best_of_n
from rm.evaluate.best_of_n import _weights, best_of_n

FAST = Bootstrap(resamples=200)


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=7), st.data())
def test_equals_the_mean_over_all_subsets(rows, data):
    """Every subset of n responses; among equal keys each one is as likely to be kept."""
    n = data.draw(st.integers(1, len(rows)))
    kept = []
    for subset in itertools.combinations(rows, n):
        top = max(key for key, _ in subset)
        kept.append(np.mean([value for key, value in subset if key == top]))
    keys, values = zip(*rows, strict=True)
    assert expected_best(values, keys, n=n) == pytest.approx(np.mean(kept), abs=1e-9)


def test_by_hand():
    # N=3, n=2: subsets of values 10, 20, 60 by key 1, 2, 3 keep 20, 60, 60
    assert expected_best([10, 20, 60], [1, 2, 3], n=2) == pytest.approx((20 + 60 + 60) / 3)
    assert expected_best([10, 20, 60], [1, 2, 3], n=1) == pytest.approx(30)
    assert expected_best([10, 20, 60], [3, 2, 1], n=3) == pytest.approx(10)
    assert expected_best([10, 20, 60], [1, 1, 1], n=3) == pytest.approx(30)


@pytest.mark.parametrize("total", [1, 2, 7, 30])
def test_weights_are_ratios_of_binomials(total):
    for n in range(1, total + 1):
        exact = [Fraction(math.comb(i - 1, n - 1), math.comb(total, n)) for i in range(1, total + 1)]
        np.testing.assert_allclose(_weights(total, n), [float(w) for w in exact], rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("n", [1, 2, 64, 5000, 9999, 10_000])
def test_ten_thousand_responses_stay_stable(n):
    weights = _weights(10_000, n)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(1.0, rel=1e-9)
    assert weights[-1] == pytest.approx(n / 10_000)
    # the mean rank of the best of n among N is n(N+1)/(n+1)
    assert weights @ np.arange(1, 10_001) == pytest.approx(n * 10_001 / (n + 1), rel=1e-9)


def test_n_must_fit():
    for n in (0, 4):
        with pytest.raises(ValueError, match="1 <= n <= 3"):
            expected_best([1, 2, 3], [1, 2, 3], n=n)


def test_kl_by_hand():
    assert kl_best_of_n(1) == 0.0
    assert kl_best_of_n(2) == pytest.approx(0.693147 - 0.5, abs=1e-6)
    assert kl_best_of_n(16) == pytest.approx(2.772589 - 0.9375, abs=1e-6)


def curve(groups, rewards):
    lengths = [[len(response) for response in g.responses] for g in groups]
    return best_of_n(groups, rewards, lengths, bootstrap=FAST)


def test_curves_by_hand():
    """Two prompts of four, gold 0..3: the reward finds the second best, length the worst."""
    gold = [0.0, 1.0, 2.0, 3.0]
    groups = [group(k, responses=4, scores=gold, lengths=[40, 30, 20, 10]) for k in range(2)]
    got = curve(groups, [[0.0, 1.0, 3.0, 2.0]] * 2)
    assert got.measured_by == "gold"
    assert [(point.n, point.prompts) for point in got.points] == [(1, 2), (2, 2), (4, 2)]
    last = got.points[-1]
    assert (last.model.value, last.random.value, last.longest.value, last.oracle.value) == (2.0, 1.5, 0.0, 3.0)
    assert (last.over_random.value, last.over_longest.value) == (0.5, 2.0)
    first = got.points[0]
    assert first.model.value == first.random.value == first.longest.value == first.oracle.value == 1.5
    # n = 2 by reward order 0, 1, 3, 2: weights 0, 1/6, 2/6, 3/6
    assert got.points[1].model.value == pytest.approx((1 + 2 * 3 + 3 * 2) / 6)


def test_responses_without_gold_or_reward_do_not_count():
    groups = [group("a", responses=4, scores=[1.0, None, 5.0, 3.0]), group("b", responses=3, scores=[1.0, None, None])]
    got = curve(groups, [[1.0, 9.0, 2.0, math.nan], [1.0, 2.0, 3.0]])
    assert [(point.n, point.prompts) for point in got.points] == [(1, 1), (2, 1)]
    assert got.points[1].model.value == 5.0


def test_prompts_with_too_few_responses_leave_a_point_and_half_must_stay():
    groups = [group(k, responses=size, scores=range(size)) for k, size in enumerate([3, 5, 5, 16])]
    got = curve(groups, [list(range(len(g.responses))) for g in groups])
    assert [(point.n, point.prompts) for point in got.points] == [(1, 4), (2, 4), (3, 4), (4, 3)]
    for point in got.points:
        assert point.model == point.oracle


def test_a_clustered_interval_of_the_curve():
    groups = [group(k, responses=2, scores=[0.0, 1.0]) for k in range(10)]
    rewards = [[0.0, 1.0] if k < 5 else [1.0, 0.0] for k in range(10)]
    point = curve(groups, rewards).points[-1]
    assert point.model.value == 0.5
    assert 0.05 < point.model.low < 0.4 < 0.6 < point.model.high < 0.95


def test_without_gold_the_reward_itself_is_measured():
    got = curve([group("a", [(0, 1)], responses=2), group("b", responses=1)], [[1.0, 3.0], [2.0]])
    assert got.measured_by == "reward"
    assert [point.model.value for point in got.points] == [2.0, 3.0]
    assert curve([group("a", responses=1)], [[1.0]]) is None


def test_accepted_shares_are_gold_where_there_are_no_scores():
    groups = [group("a", responses=3, labels=[(0, 0.0), (1, 1.0), (2, 0.0)])]
    got = curve(groups, [[0.0, 2.0, 1.0]])
    assert got.measured_by == "gold"
    assert got.points[-1].model.value == 1.0
    assert got.points[0].model.value == pytest.approx(1 / 3)


def test_two_judges_of_one_prompt_are_one_prompt():
    groups = [group("a", responses=2, scores=[0.0, 1.0], origin=origin) for origin in ("human", "model")]
    got = curve(groups, [[0.0, 1.0], [1.0, 0.0]])
    assert [(point.n, point.prompts, point.model.value) for point in got.points] == [(1, 1, 0.5), (2, 1, 0.5)]
    assert math.isnan(got.points[0].model.low)
