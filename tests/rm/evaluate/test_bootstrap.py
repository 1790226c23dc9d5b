from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.evaluate.bootstrap import (
    Bootstrap,
    Estimate,
    average_ranks,
    clustered_means,
    equal_mass_bins,
    paired_difference,
)

FAST = Bootstrap(resamples=300)


def width(estimate: Estimate) -> float:
    return estimate.high - estimate.low


def test_a_thousand_comparisons_of_one_prompt_are_one_observation():
    """20 prompts, one of them with 1,000 comparisons: nearly all is known from one prompt, so little is known."""
    values = np.array([1.0] * 1000 + [1.0, 0.0] * 9 + [1.0])
    clusters = np.array([0] * 1000 + list(range(1, 20)))
    clustered = clustered_means(values[:, None], clusters, bootstrap=Bootstrap())[0]
    naive = clustered_means(values[:, None], np.arange(len(values)), bootstrap=Bootstrap())[0]
    assert clustered.value == naive.value == pytest.approx(values.mean())
    assert width(naive) < 0.015
    assert clustered.low < 0.8  # where the large prompt is not drawn, 10 of 19 remain


def test_identical_comparisons_do_not_narrow_the_interval():
    once = clustered_means([[1.0], [0.0], [1.0], [1.0], [0.0]], [0, 1, 2, 3, 4], bootstrap=FAST)[0]
    values = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0], 1000)
    many = clustered_means(values[:, None], np.repeat(np.arange(5), 1000), bootstrap=FAST)[0]
    assert many == pytest.approx(once)


def test_the_interval_is_that_of_all_resamples_enumerated():
    """Three clusters of sizes 1, 2 and 3: the 27 equally likely resamples give the exact distribution of the ratio."""
    clusters = [0, 1, 1, 2, 2, 2]
    values = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])
    by = {0: (1.0, 1), 1: (1.0, 2), 2: (1.0, 3)}
    exact = sorted(
        sum(by[k][0] for k in draw) / sum(by[k][1] for k in draw) for draw in itertools.product(range(3), repeat=3)
    )
    got = clustered_means(values[:, None], clusters, bootstrap=Bootstrap(20_000, seed=3))[0]
    assert got.value == 0.5
    assert got.low == pytest.approx(exact[0])  # 1/27 of the resamples are the largest cluster thrice: 1/3
    assert got.high == pytest.approx(exact[-1])


def test_order_and_numbering_do_not_matter_and_the_seed_does():
    rng = np.random.default_rng(0)
    values, clusters = rng.random((60, 2)), rng.integers(12, size=60)
    order = rng.permutation(60)
    first = clustered_means(values, clusters, bootstrap=FAST)
    again = clustered_means(values[order], 7 * clusters[order] + 3, bootstrap=FAST)
    np.testing.assert_allclose(again, first, rtol=1e-12)
    assert clustered_means(values, clusters, bootstrap=Bootstrap(300, seed=1)) != first


def test_about_ninety_five_of_a_hundred_intervals_hold_the_truth():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(150):
        skill = np.repeat(rng.beta(3, 2, size=80), rng.integers(1, 9, size=80))
        clusters = np.searchsorted(np.unique(skill), skill)
        got = clustered_means((rng.random(len(skill)) < skill)[:, None], clusters, bootstrap=Bootstrap(300, trial))[0]
        held += got.low <= 0.6 <= got.high
    assert 0.88 < held / 150 <= 1.0


def test_one_prompt_has_no_interval_and_none_has_no_value():
    one = clustered_means([[1.0], [0.0]], [4, 4], bootstrap=FAST)[0]
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert math.isnan(clustered_means(np.empty((0, 1)), [], bootstrap=FAST)[0].value)


def test_rows_that_do_not_fit_or_are_not_finite_are_errors():
    with pytest.raises(ValueError, match="expected"):
        clustered_means([[1.0], [0.0]], [0], bootstrap=FAST)
    with pytest.raises(ValueError, match="NaN"):
        clustered_means([[math.nan]], [0], bootstrap=FAST)


def test_paired_difference_is_narrower_than_its_sides_and_has_their_sign():
    rng = np.random.default_rng(1)
    b = (rng.random(300) < 0.6).astype(float)
    a = b.copy()
    a[:12] = 1.0 - b[:12]
    a[:30] = np.maximum(a[:30], b[:30])
    got = paired_difference(a, b, np.arange(300))
    assert got.value == pytest.approx(a.mean() - b.mean())
    assert got.value > 0
    assert width(got) < 0.5 * width(clustered_means(a[:, None], np.arange(300), bootstrap=Bootstrap())[0])
    assert paired_difference(b, a, np.arange(300)).value == -got.value


def test_paired_difference_averages_each_item_over_seeds():
    a = [[1, 1, 0], [1, 0, 0]]  # two seeds, three items: 1, 1/2, 0
    got = paired_difference(a, [1, 0, 1], [0, 0, 1])
    assert got.value == pytest.approx((0 + 0.5 - 1) / 3)
    # two clusters, (sum, size) (1/2, 2) and (-1, 1): resamples give 1/4, -1/6 and -1
    assert (got.low, got.high) == pytest.approx((-1.0, 0.25))
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1, 0], [1, 0, 1], [0, 1, 2])


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_ranks_by_counting(values):
    expected = [sum(v < x for v in values) + (1 + sum(v == x for v in values)) / 2 for x in values]
    assert average_ranks(np.array(values, dtype=float)).tolist() == expected


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 15))
def test_bins_part_the_values_in_order_and_keep_equals_together(values, bins):
    array = np.array(values, dtype=float)
    parts = equal_mass_bins(array, bins)
    assert sorted(int(i) for part in parts for i in part) == list(range(len(values)))
    assert len(parts) <= bins
    for left, right in itertools.pairwise(parts):
        assert array[left].max() < array[right].min()
    if len(set(values)) == len(values) >= bins:
        sizes = [len(part) for part in parts]
        assert len(parts) == bins
        assert max(sizes) - min(sizes) <= 1


def test_json_has_null_for_what_is_not_finite():
    from rm.evaluate.reward_bench import TiesParts

    got = TiesParts(1.0, 0.5, math.nan, math.inf, 0.0, 0.25).to_json()
    assert json.loads(json.dumps(got, allow_nan=False)) == {
        "ref_accuracy": 1.0,
        "tied_accuracy": 0.5,
        "correctness_preferred": None,
        "correctness_preferred_hard": None,
        "margin_score": 0.0,
        "score": 0.25,
    }
