"""The length curve against LOWESS written out as loops, values derived by hand, and lengths at the ends of what there is."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.selection_tables import candidates

from pipelines.config.rules import LengthCorrection
from pipelines.select import length_correction
from pipelines.select.length_correction import Curve, HashSample, fit, merge_samples

LARGEST = 2**31 - 1


def sample(lengths, rewards) -> HashSample:
    count = len(lengths)
    chance, tokens = np.arange(count, dtype=np.uint64), np.ones(count, np.int32)
    return HashSample(chance, np.array(lengths, np.int32), tokens, np.array(rewards, np.float32))


def at(curve: Curve, *lengths: float) -> list[float]:
    return curve(np.array(lengths, dtype=np.float64)).tolist()


def plain_lowess(knot: float, lengths, rewards, nearest: int) -> float:
    """One value of Cleveland's local line by the normal equations, around the knot, summed exactly."""
    rows = [(float(x) - knot, float(np.float32(y))) for x, y in zip(lengths, rewards, strict=True)]
    width = sorted(abs(x) for x, _ in rows)[nearest - 1]
    if width == 0:
        weights = [1.0 if x == 0 else 0.0 for x, _ in rows]
    else:
        weights = [(1 - min(1.0, abs(x) / width) ** 3) ** 3 for x, _ in rows]
    if sum(weights) == 0:
        reached = [y for x, y in rows if abs(x) <= width]
        return math.fsum(reached) / len(reached)
    exact = [(Fraction(w), Fraction(x), Fraction(y)) for w, (x, y) in zip(weights, rows, strict=True)]
    s0, s1, s2 = (sum(w * x**power for w, x, _ in exact) for power in range(3))
    t0, t1 = (sum(w * x**power * y for w, x, y in exact) for power in range(2))
    if s0 * s2 - s1 * s1 <= Fraction(1, 10**12) * s0 * s0:  # one length has all of the weight
        return float(t0 / s0)
    return float((s2 * t0 - s1 * t1) / (s0 * s2 - s1 * s1))


rows = st.lists(st.tuples(st.integers(0, 40), st.floats(-10, 10, width=32)), min_size=1, max_size=30)
spans = st.one_of(st.sampled_from([1e-9, 0.5, 2 / 3, 1.0]), st.floats(0.01, 1.0))


@settings(max_examples=300)
@given(rows, spans, st.data())
def test_each_knot_is_the_local_line_of_the_plain_loops(rows, span, data):
    lengths, rewards = zip(*rows, strict=True)
    nearest = min(len(rows), max(2, math.ceil(span * len(rows))))
    curve = fit(sample(lengths, rewards), span=span)
    some = data.draw(st.lists(st.integers(0, len(curve.lengths) - 1), min_size=9, max_size=9))
    expected = [plain_lowess(curve.lengths[at], lengths, rewards, nearest) for at in some]
    assert [curve.rewards[at] for at in some] == pytest.approx(expected, abs=1e-6)
    assert (curve.lengths[0], curve.lengths[-1]) == (min(lengths), max(lengths))
    assert (np.diff(curve.lengths) > 0).all()


@given(rows, spans, st.randoms())
def test_the_order_of_the_sample_changes_no_bit(rows, span, random):
    shuffled = random.sample(rows, len(rows))
    one, other = (fit(sample(*zip(*table, strict=True)), span=span) for table in (rows, shuffled))
    assert one == other


def test_by_hand():
    """Of five, the nearest four. At length 0 the fourth is 3 away: tricubes 1, (26/27)^3, (19/27)^3, 0. At length 2 it is 2 away:
    0, (7/8)^3, 1, (7/8)^3, 0, and what is symmetric has the mean."""
    curve = fit(sample([0, 1, 2, 3, 4], [1, 3, 2, 0, 5]), span=0.8)
    w = [27**3, 26**3, 19**3]
    s0, s1, s2 = sum(w), w[1] + 2 * w[2], w[1] + 4 * w[2]
    t0, t1 = w[0] + 3 * w[1] + 2 * w[2], 3 * w[1] + 4 * w[2]
    intercept = (s2 * t0 - s1 * t1) / (s0 * s2 - s1 * s1)
    assert intercept == pytest.approx(1.3593, abs=1e-4), "between the first reward and the second"
    middle = (3 * 343 + 2 * 512 + 0 * 343) / (343 + 512 + 343)
    assert at(curve, 0, 2) == pytest.approx([intercept, middle], abs=1e-12)
    assert at(curve, -7, 99) == at(curve, 0, 4), "constant outside"
    low, high = curve.lengths[:2]
    assert at(curve, (low + high) / 2) == pytest.approx([sum(curve.rewards[:2]) / 2], abs=1e-12), "linear between"


def test_knots_are_the_quantiles():
    curve = fit(sample([*range(129)][::-1], [0.0] * 129), span=1.0)
    assert curve.lengths == tuple(range(129))
    skewed = fit(sample([0] * 96 + [128] * 33, [0.0] * 129), span=1.0)
    assert skewed.lengths == (0.0, 128.0), "few knots where few lengths are"


def test_no_row_and_one_row():
    assert at(fit(sample([], []), span=0.5), 0, 17) == [0.0, 0.0]
    for span in (1e-9, 1.0):
        one = fit(sample([12], [0.75]), span=span)
        assert (one.lengths, at(one, 0, 12, LARGEST)) == ((12.0,), [0.75] * 3)


@pytest.mark.parametrize("span", [1e-9, 2 / 3, 1.0])
def test_equal_lengths_have_their_mean(span):
    curve = fit(sample([7] * 5, [1, 2, 3, 4, -2]), span=span)
    assert at(curve, 0, 7, 8) == pytest.approx([1.6] * 3, abs=1e-12)


def test_one_length_among_equal_ones():
    """The nearest five of ten: up to half way to the lone one, the nine lie on the rim together; beyond, it alone counts."""
    curve = fit(sample([5] * 9 + [50], [*range(9), 100]), span=0.5)
    assert curve.rewards == pytest.approx([4.0 if knot < 27.5 else 100.0 for knot in curve.lengths], abs=1e-12)
    assert len(curve.lengths) > 10


@pytest.mark.parametrize("span", [0.1, 2 / 3, 1.0])
@pytest.mark.parametrize("start", [0, LARGEST - 50 * 49])
def test_a_line_is_a_line_at_any_length(span, start):
    lengths = start + np.arange(50) ** 2
    curve = fit(sample(lengths, 0.5 * (lengths - start) - 3), span=span)
    seen = np.linspace(lengths[0], lengths[-1], 1000)
    assert curve(seen).tolist() == pytest.approx((0.5 * (seen - start) - 3).tolist(), abs=1e-4)


def test_the_shortest_and_the_longest_there_are():
    """Two rows reach each other and no further: each has its own half, and the middle, where both lie on the rim, the mean."""
    curve = fit(sample([LARGEST, 0], [3.0e38, -3.0e38]), span=0.01)
    expected = [3.0e38 * np.sign(knot - LARGEST / 2) for knot in curve.lengths]
    assert curve.rewards == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (expected[0], expected[64], expected[-1]) == (-3.0e38, 0.0, 3.0e38)
    assert at(curve, 0, LARGEST) == [curve.rewards[0], curve.rewards[-1]]


def test_the_whole_span_sees_every_row_and_the_least_one_two():
    lengths, rewards = [0, 1, 2, 3, 10], [0.0, 1.0, 0.0, 1.0, 50.0]
    narrow = fit(sample(lengths, rewards), span=1e-9)
    assert at(narrow, *lengths) == rewards, "the second nearest lies on the rim"
    whole = fit(sample(lengths, rewards), span=1.0)
    assert at(whole, 0, 10) == pytest.approx([plain_lowess(x, lengths, rewards, 5) for x in (0, 10)], abs=1e-12)
    assert at(fit(sample(lengths, rewards), span=0.8), 0) != at(whole, 0)
    assert at(fit(sample(lengths, rewards), span=0.81), 0) == at(whole, 0), "4.05 rows are five"
    for span in (0.0, -0.5, 1.0001, math.nan):
        with pytest.raises(ValidationError, match="span"):
            LengthCorrection(span=span)


def table(count: int):
    rewards = [((n * 37) % 101) / 8 for n in range(count)]
    return candidates(
        [(n, n * 3, rewards[n], n * 0x9E3779B97F4A7C15 % 2**64, 0, 0, n, 0) for n in range(count)],
        length=[n * n % 83 for n in range(count)],
    )


def test_correcting_takes_the_curve_off_and_leaves_the_raw_reward():
    rows = table(30)
    curve = Curve((10.0, 20.0), (1.0, 3.0))
    expected = [
        r - (1 if n < 10 else 3 if n > 20 else 1 + (n - 10) / 5) for r, n in zip(rows.reward, rows.length, strict=True)
    ]
    corrected = curve.correct(rows)
    assert corrected.reward.tolist() == pytest.approx(expected, abs=1e-6)
    assert corrected.reward.dtype == np.float32
    assert corrected.raw.tolist() == rows.reward.tolist()


@pytest.mark.parametrize("edges", [[0, 300], [0, 1, 2, 150, 300], [0, 0, 40, 299, 300]])
def test_a_sample_merges_from_any_parts(monkeypatch, edges):
    """The rows of the smallest chance, as one sort of all of them gives them."""
    monkeypatch.setattr(length_correction, "SAMPLE", 64)
    rows = table(300)
    chance = length_correction.hash_rows(rows)
    wanted = np.argsort(chance)[:64]
    parts = [HashSample.of(rows.take(np.arange(*edge))) for edge in pairwise(edges)][::-1]
    merged = merge_samples(parts)
    assert len(set(chance.tolist())) == 300
    assert merged.chance.tolist() == chance[wanted].tolist()
    assert merged.length.tolist() == rows.length[wanted].tolist()
    assert merged.reward.tolist() == rows.reward[wanted].tolist()
    assert len(merge_samples([])) == 0
