"""Best-of-N on a part of the rows: it leaves all that can matter for the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    chosen,
    kept_places,
    small_lengths,
    tables,
)

from pipelines.config import BestOfN, Longest
from pipelines.select import prefilter
from pipelines.select.columns import Needs
from pipelines.select.prefilter import shrink
from pipelines.select.rules import best_of_n, longest


@settings(max_examples=300)
@given(
    tables(),
    st.integers(1, 2),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5]),
    st.lists(st.integers(0, 24), max_size=3),
    st.booleans(),
)
def test_rows_dropped_within_a_bundle_do_not_change_what_is_kept(rows, keep, least, margin, cuts, with_length):
    """Any split into bundles, each shrunk by itself, and once more together."""
    rule = BestOfN(keep=keep, min_candidates=least, min_margin=margin)
    needs = Needs(length=with_length)
    table = candidates(rows, length=small_lengths(rows))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    left = []
    for start, end in itertools.pairwise(edges):
        part = shrunk(table.take(np.arange(start, end)), rule, needs)
        left += [row for row in rows if row[4:] in kept_places(part)]
    again = candidates(left, length=small_lengths(left))
    again_left = kept_places(shrunk(again, rule, needs))
    for remaining in (left, [row for row in left if row[4:] in again_left]):
        small = candidates(remaining, length=small_lengths(remaining))
        assert chosen(remaining, best_of_n(small, rule)) == chosen(rows, best_of_n(table, rule))
        if with_length:
            expected, got = (longest(whole, Longest(keep=keep)) for whole in (table, small))
            assert chosen(rows, expected) == chosen(remaining, got)


def shrunk(table, rule, needs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefilter, "_MOST_REMAINING", np.inf)
        return shrink(table, rule, needs=needs)


def test_shrinking_does_shrink_where_it_pays():
    rows = [(n % 3, 0, float(n), 0, 0, 0, n, 0) for n in range(300)]
    assert len(shrink(candidates(rows, length=[1] * 300), BestOfN(), needs=Needs(length=True))) <= 3 * 2
    alone = candidates([(n, 0, float(n), 0, 0, 0, n, 0) for n in range(300)], length=[1] * 300)
    assert shrink(alone, BestOfN(), needs=Needs(length=True)) is alone


def test_a_sample_of_keys_estimates_how_many_rows_remain():
    rng = np.random.default_rng(0)
    high = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    rows = [(int(high[n % 4000]), 0, float(n), 0, 0, 0, n, 0) for n in range(40_000)]
    table = candidates(rows, length=[1] * len(rows))
    assert prefilter._estimate_remaining(table, 2) == pytest.approx(
        8000, rel=0.02
    )  # every prompt has ten, as in the sample
    assert prefilter._estimate_remaining(table.take(np.arange(4000)), 2) == 4000


def test_the_sample_is_one_of_any_partition(monkeypatch):
    """The keys of a partition share their highest bits, and still about a share of them is sorted."""
    rng, sizes = np.random.default_rng(0), []
    high = rng.integers(2**63, 2**63 + 2**60, 4000, dtype=np.uint64)
    low = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    rows = [(int(high[n % 4000]), int(low[n % 4000]), float(n), 0, 0, 0, n, 0) for n in range(40_000)]
    real = np.sort
    monkeypatch.setattr(prefilter.np, "sort", lambda keys: (sizes.append(len(keys)), real(keys))[1])
    assert prefilter._estimate_remaining(candidates(rows, length=[1] * 40_000), 2) == pytest.approx(8000, rel=0.05)
    assert sizes[0] < 4000
