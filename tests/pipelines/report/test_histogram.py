"""Histograms: exact counts in bins that depend on the whole range alone, however the parts were cut."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.histogram import BINS, Histogram, merge_histograms, scale_of

values = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -3.4e38, 3.4e38, 20.0, 20.000002]),
    st.floats(-4, 4, width=32),
)
rows = st.lists(st.tuples(values, st.integers(0, 2**31 - 1), st.integers(0, 3)), max_size=40)


def of(part) -> Histogram:
    reward, size, group = zip(*part, strict=True) if part else ((), (), ())
    return Histogram.of(np.array(reward, np.float32), np.array(size, np.int32), np.array(group, np.int64))


def plain(histogram: Histogram) -> dict[tuple[int, float], tuple[int, int]]:
    """(group, lower edge) → rows and size, of the bins that have any."""
    return {
        (group, float(edge)): (int(count), int(size))
        for group, counts in histogram.counts.items()
        for edge, count, size in zip(histogram.edges[:-1], counts, histogram.sizes[group], strict=True)
        if count
    }


@given(rows)
def test_every_row_is_in_the_bin_that_holds_it(part):
    histogram = of(part)
    expected: dict[tuple[int, float], tuple[int, int]] = {}
    for reward, size, group in part:
        width = 2.0**histogram.scale
        key = (group, math.floor(float(np.float32(reward)) / width) * width)
        count, total = expected.get(key, (0, 0))
        expected[key] = (count + 1, total + size)
    assert plain(histogram) == expected
    assert histogram.bins <= BINS


@given(rows, st.randoms(use_true_random=False))
def test_parts_in_any_order_are_the_whole(part, random):
    pieces, rest = [], list(part)
    random.shuffle(rest)
    while rest:
        cut = random.randint(1, len(rest))
        pieces.append(of(rest[:cut]))
        rest = rest[cut:]
    while len(pieces) > 1:
        pieces = [merge_histograms(pieces[:2]), *pieces[2:]]
        random.shuffle(pieces)
    merged, whole = pieces[0] if pieces else Histogram(), of(part)
    assert (plain(merged), merged.edges.tolist()) == (plain(whole), whole.edges.tolist())


@given(st.lists(values, min_size=1, max_size=20))
def test_the_scale_is_the_finest_that_has_room(some):
    low, high = min(some), max(some)
    scale = scale_of(low, high)

    def bins(at: int) -> int:
        return math.floor(math.ldexp(high, -at)) - math.floor(math.ldexp(low, -at)) + 1

    assert bins(scale) <= BINS
    largest = max(abs(low), abs(high))
    finest = (math.frexp(largest)[1] if largest else -148) - 40
    assert scale == finest or bins(scale - 1) > BINS


def test_coarser_bins_add_up_and_finer_ones_are_refused():
    histogram = of([(0.5, 3, 0), (1.5, 4, 0), (-0.5, 5, 0)]).coarsen(0)
    assert (histogram.edges.tolist(), histogram.counts[0].tolist(), histogram.sizes[0].tolist()) == (
        *([-1.0, 0.0, 1.0, 2.0], [1, 1, 1], [5, 3, 4]),
    )
    wide = histogram.coarsen(2)
    assert (wide.edges.tolist(), wide.counts[0].tolist(), wide.sizes[0].tolist()) == ([-4.0, 0.0, 4.0], [1, 2], [5, 7])
    with pytest.raises(ValueError, match="cannot be made finer, to -1"):
        histogram.coarsen(-1)


def test_groups_under_one_number_are_added_up():
    histogram = of([(0.25, 1, 0), (0.25, 2, 1), (0.75, 4, 2)]).regroup({0: 5, 1: 5, 2: 0})
    assert {group: int(own.sum()) for group, own in histogram.counts.items()} == {5: 2, 0: 1}
    assert {group: int(own.sum()) for group, own in histogram.sizes.items()} == {5: 3, 0: 4}
