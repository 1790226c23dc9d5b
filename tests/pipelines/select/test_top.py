"""The global cut against sorting everything; in any split, with ties, denormals and extremes."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.selection_tables import best_order, candidates, chosen, tables, top

from pipelines.config import Top
from pipelines.select import top as cuts
from pipelines.select.candidates import ascending_bits
from pipelines.select.top import (
    PASSES,
    Cut,
    Strata,
    count_bins,
    keep,
    list_ties,
    measure_edges,
    merge_bins,
    merge_edges,
    merge_ties,
    refine,
    settle,
)

amounts = st.one_of(
    st.sampled_from([{"fraction": f} for f in (0.0, 0.1, 0.29, 0.5, 1.0)]),
    st.integers(0, 9).map(lambda n: {"rows": n}),
    st.integers(0, 40).map(lambda n: {"tokens": n}),
)
strata = st.sampled_from(["a", "b", None])


def brute_force(rows, names, tokens, rule):
    kept = set()
    by_place = {row[4:]: (name, n) for row, name, n in zip(rows, names, tokens, strict=True)}
    for stratum in {None} if rule.per is None else set(names):
        own = sorted((row for row in rows if rule.per is None or by_place[row[4:]][0] == stratum), key=best_order)
        if rule.tokens is not None:
            left = rule.tokens
            for row in own:
                left -= by_place[row[4:]][1]
                if left < 0:
                    break
                kept.add(row[4:])
            continue
        count = rule.rows if rule.rows is not None else int(Fraction(str(rule.fraction)) * len(own))
        count = max(count, rule.min_rows)
        if stratum in rule.quotas:
            count = rule.quotas[stratum]
        kept |= {row[4:] for row in own[:count]}
    return kept


def in_parts(table, rule, edges):
    """The cut as the graph makes it: parts counted apart and merged in any order."""
    parts = [table.take(np.arange(start, end)) for start, end in itertools.pairwise(edges)][::-1]
    cut = Cut(rule)
    for _ in range(PASSES):
        if not cut.decided:
            left, right = merge_bins(count_bins(p, cut) for p in parts[::2]), [count_bins(p, cut) for p in parts[1::2]]
            cut = refine(cut, merge_bins([left, *right]))
    return settle(cut, merge_ties(list_ties(part, cut) for part in parts))


@pytest.fixture(params=["few strata", "many strata"])
def counted(request, monkeypatch):
    """Bins counted in an array, or by sorting where strata are too many for one."""
    if request.param == "many strata":
        monkeypatch.setattr(cuts, "_DENSE", 0)


@pytest.mark.usefixtures("counted")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables(), st.data(), amounts, st.sampled_from([{}, {"per": "source"}]), st.booleans())
def test_top_equals_sorting(rows, data, amount, per, with_quota):
    count = len(rows)
    names = data.draw(st.lists(strata, min_size=count, max_size=count))
    tokens = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    more = {"quotas": {"a": 3}, "min_rows": 2} if per and with_quota and "tokens" not in amount else {}
    rule = Top(**amount, **per, **more)
    table = candidates(rows, labels={"source": names}, tokens=tokens)
    expected = brute_force(rows, names, tokens, rule)
    assert chosen(rows, top(table, rule)) == expected
    edges = sorted({0, count, *data.draw(st.lists(st.integers(0, count), max_size=3))})
    assert chosen(rows, keep(table, in_parts(table, rule, edges))) == expected


@settings(max_examples=200)
@given(tables(), st.data(), amounts, st.sampled_from([{}, {"per": "source"}]))
def test_edges_are_the_worst_kept_and_the_best_dropped(rows, data, amount, per):
    count = len(rows)
    names = data.draw(st.lists(strata, min_size=count, max_size=count))
    rule = Top(**amount, **per)
    table = candidates(rows, labels={"source": names}, tokens=[1] * count)
    cut = in_parts(table, rule, [0, count])
    at = data.draw(st.integers(0, count))
    edges = merge_edges(measure_edges(table.take(np.arange(*part)), cut) for part in ((at, count), (0, at)))
    kept = brute_force(rows, names, [1] * count, rule)
    strata_here = names if per else [None] * count
    assert Strata.of(table, rule).at(np.arange(len(table))) == strata_here
    assert edges.keys() == set(strata_here)
    for stratum, edge in edges.items():
        own = [row for row, name in zip(rows, strata_here, strict=True) if name == stratum]
        inside = [float(np.float32(row[2])) for row in own if row[4:] in kept]
        outside = [float(np.float32(row[2])) for row in own if row[4:] not in kept]
        assert (edge.rows, edge.kept) == (len(own), len(inside))
        assert (edge.lowest_kept, edge.highest_dropped) == (min(inside, default=np.inf), max(outside, default=-np.inf))


@settings(max_examples=100)
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40), st.integers(0, 41)
)
def test_any_float_is_cut_where_sorting_cuts(values, count):
    rng = np.random.default_rng(len(values))
    rows = [(n, 0, v, int(rng.integers(2**63)), 0, 0, n, 0) for n, v in enumerate(values)]
    expected = {row[4:] for row in sorted(rows, key=best_order)[:count]}
    assert chosen(rows, top(candidates(rows), Top(rows=count))) == expected


def test_bits_are_in_the_order_of_the_floats():
    values = np.array(
        [-3.4e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, np.nextafter(np.float32(1), 2), 3.4e38], np.float32
    )
    bits = ascending_bits(values)
    assert bits[3] == bits[4]
    assert (np.diff(np.delete(bits, 3).astype(np.int64)) > 0).all()


@pytest.mark.parametrize("same_hash", [False, True])
def test_equal_rewards_are_cut_by_the_hash_then_the_place(same_hash):
    rng = np.random.default_rng(1)
    rows = [(n, 0, 0.5, 7 if same_hash else int(rng.integers(2**63)), n % 3, 0, n, 0) for n in range(5000)]
    kept = chosen(rows, top(candidates(rows), Top(fraction=0.3)))
    assert kept == {row[4:] for row in sorted(rows, key=best_order)[:1500]}


def test_a_pass_sends_counts_not_rows():
    rows = [(n, 0, float(n % 7), n, 0, 0, n, 0) for n in range(10_000)]
    (bins,) = count_bins(candidates(rows), Cut(Top(rows=10))).values()
    assert len(bins[0]) == 7
    assert bins[1].sum() == 10_000


def test_a_fraction_counts_as_the_decimal_that_it_is_written_as():
    assert Top(fraction=0.29).target_rows(None, 100) == 29  # 0.29 * 100 is 28.999999999999996
    assert Top(fraction=1.0).target_rows(None, 7) == 7
    assert Top(rows=9).target_rows(None, 7) == 7
    rule = Top(fraction=0.1, per="source", quotas={"a": 50}, min_rows=3)
    assert [rule.target_rows(name, 20) for name in ("a", "b", None)] == [20, 3, 3]
