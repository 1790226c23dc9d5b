"""The other rules against brute force over rows."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import best_order, candidates, chosen, kept_places, tables

from pipelines.config import BestOfN, DropPrompts, Longest, Pairs, Random, Threshold
from pipelines.select import prefilter
from pipelines.select.candidates import hash_rows
from pipelines.select.columns import Needs
from pipelines.select.prefilter import shrink
from pipelines.select.rules import add_ranks, add_rivals, best_of_n, drop_prompts, longest, pairs, random, threshold


def groups(rows):
    found = defaultdict(list)
    for row in rows:
        found[row[:2]].append(row)
    return [sorted(group, key=best_order) for group in found.values()]


def r(row) -> float:
    return float(np.float32(row[2]))


def sigma(gap: float) -> float:
    return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0


def some_lengths(rows):
    return [(row[3] * 7 + row[6]) % 3 for row in rows]


@settings(max_examples=200)
@given(tables(), st.integers(1, 2), st.sampled_from([0.5, 0.6, 0.9]), st.sampled_from([0.5, 1.0, 4.0]))
def test_min_probability(rows, keep, least, temperature):
    rule = BestOfN(keep=keep, min_candidates=1, min_probability=least)
    expected = set()
    for group in groups(rows):
        gap = r(group[keep - 1]) - r(group[keep]) if len(group) > keep else math.inf
        if sigma(gap / temperature) >= least:
            expected |= {row[4:] for row in group[:keep]}
    assert chosen(rows, best_of_n(candidates(rows), rule, temperature=temperature)) == expected


def test_a_probability_without_a_temperature_is_an_error():
    rows = [(1, 1, 0.5, 0, 0, 0, n, 0) for n in range(2)]
    with pytest.raises(ValueError, match="temperature"):
        best_of_n(candidates(rows), BestOfN(min_probability=0.7))


@settings(max_examples=200)
@given(tables(), st.data(), st.sampled_from([0.3, 0.5, 0.6]), st.sampled_from([1.0, 3.0]))
def test_a_reference_response(rows, data, least, temperature):
    names = data.draw(st.lists(st.sampled_from(["gpt4", "b", None]), min_size=len(rows), max_size=len(rows)))
    by_place = {row[4:]: name for row, name in zip(rows, names, strict=True)}
    expected = set()
    for group in groups(rows):
        references = [r(row) for row in group if by_place[row[4:]] == "gpt4"]
        if references:
            expected |= {row[4:] for row in group if sigma((r(row) - max(references)) / temperature) >= least}
    rule = Threshold(reference="generator=gpt4", min_probability=least)
    table = candidates(rows, labels={"generator": names})
    assert chosen(rows, threshold(table, rule, temperature=temperature)) == expected


def test_a_reference_column_alone_means_true():
    rows = [(1, 1, reward, 0, 0, 0, n, 0) for n, reward in enumerate([0.1, 0.2, 0.3])]
    table = candidates(rows, labels={"is_reference": ["false", "true", None]})
    assert threshold(table, Threshold(reference="is_reference"), temperature=1.0).tolist() == [False, True, True]


@settings(max_examples=200)
@given(tables(), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
def test_z_scores(rows, least):
    rows = [row for row in rows if row[2] < 1e30]  # squares of the largest rewards are another test's matter
    expected = set()
    for group in groups(rows):
        values = np.array([r(row) for row in group])
        scale = values.std()
        for row in group:
            z = (r(row) - values.mean()) / scale if values.max() > values.min() else 0.0
            if z >= least:
                expected.add(row[4:])
    got = chosen(rows, threshold(candidates(rows), Threshold(min_z=least)))
    assert {place for place in got ^ expected if not _near(rows, place, least)} == set()


def _near(rows, place, least):
    """Within rounding of the bound: sums in another order differ there."""
    group = next(group for group in groups(rows) if place in {row[4:] for row in group})
    values = np.array([r(row) for row in group])
    own = next(r(row) for row in group if row[4:] == place)
    return abs((own - values.mean()) / max(values.std(), 1e-300) - least) < 1e-9


def test_z_scores_by_hand():
    rows = [(1, 1, reward, 0, 0, 0, n, 0) for n, reward in enumerate([1.0, 2.0, 3.0])]
    kept = threshold(candidates(rows), Threshold(min_z=1.2)).tolist()  # z = -1.22, 0, 1.22
    assert kept == [False, False, True]
    assert threshold(candidates(rows), Threshold(min_z=1.3)).tolist() == [False] * 3


bounds = st.sampled_from([(0.0, None), (0.5, None), (0.0, 0.75), (0.25, 1.0)])


@settings(max_examples=300)
@given(tables(), st.sampled_from(["worst", "nearest", "random"]), bounds, st.integers(0, 2))
def test_pairs(rows, rejected, bounds, seed):
    least, most = bounds
    more = {"seed": seed} if rejected == "random" else {}
    table = candidates(rows)
    by_chance = {row[4:]: chance for row, chance in zip(rows, hash_rows(table, seed).tolist(), strict=True)}
    expected = {}
    for group in groups(rows):
        fits = [row for row in group[1:] if (gap := r(group[0]) - r(row)) > 0 and gap >= least]
        fits = [row for row in fits if most is None or r(group[0]) - r(row) <= most]
        if fits:
            place = {row[4:]: n for n, row in enumerate(group)}
            order = {
                "worst": lambda row, place=place: -place[row[4:]],
                "nearest": lambda row, place=place: place[row[4:]],
                "random": lambda row, place=place: (by_chance[row[4:]], place[row[4:]]),
            }[rejected]
            expected[group[0][4:]] = min(fits, key=order)
    kept = pairs(table, Pairs(rejected=rejected, min_gap=least, max_gap=most, **more))
    assert kept_places(kept) == set(expected)
    for at in range(len(kept)):
        other = expected[tuple(int(getattr(kept, name)[at]) for name in ("file", "unit", "row", "response"))]
        names = ("other_file", "other_unit", "other_row", "other_response", "other_hash", "other_raw")
        assert [getattr(kept, name)[at] for name in names] == [*other[4:], other[3], np.float32(other[2])]


conditions = st.sampled_from([{"min_best": 0.5}, {"min_spread": 0.5}, {"max_spread": 0.5}, {"min_candidates": 3}])


@settings(max_examples=200)
@given(tables(), conditions, conditions)
def test_drop_prompts(rows, first, second):
    settings_ = {**first, **second}
    expected = set()
    for group in groups(rows):
        spread = r(group[0]) - r(group[-1])
        drop = len(group) < settings_.get("min_candidates", 1) or r(group[0]) < settings_.get("min_best", -math.inf)
        drop |= spread < settings_.get("min_spread", 0) or spread > settings_.get("max_spread", math.inf)
        expected |= set() if drop else {row[4:] for row in group}
    assert chosen(rows, drop_prompts(candidates(rows), DropPrompts(**settings_))) == expected


@settings(max_examples=200)
@given(tables(), st.integers(1, 3))
def test_longest(rows, keep):
    lengths = dict(zip([row[4:] for row in rows], some_lengths(rows), strict=True))
    expected = set()
    for group in groups(rows):
        order = sorted(group, key=lambda row: (-lengths[row[4:]], *row[3:]))
        expected |= {row[4:] for row in order[:keep]}
    table = candidates(rows, length=some_lengths(rows))
    assert chosen(rows, longest(table, Longest(keep=keep))) == expected


@settings(max_examples=200)
@given(tables().flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), st.integers(1, 3))
def test_random_takes_so_many_of_each_prompt_whatever_the_order_and_the_reward(pair, keep):
    rows, other = pair
    got = chosen(rows, random(candidates(rows), Random(keep=keep)))
    assert len(got) == sum(min(keep, len(group)) for group in groups(rows))
    changed = [(*row[:2], 9.0 - row[2], *row[3:]) for row in other]
    assert chosen(changed, random(candidates(changed), Random(keep=keep))) == got


def test_random_is_even_over_positions_and_changes_with_the_seed():
    rng = np.random.default_rng(0)
    rows = [(n, n * 3, 0.5, int(rng.integers(2**63)), 0, 0, 4 * n + k, 0) for n in range(4000) for k in range(4)]
    masks = [random(candidates(rows), Random(seed=seed)).reshape(-1, 4) for seed in (0, 1)]
    for mask in masks:
        assert mask.sum(axis=1).tolist() == [1] * 4000
        assert np.abs(mask.mean(axis=0) - 0.25).max() < 0.035  # 5 standard deviations
    assert abs((masks[0] & masks[1]).sum() / 4000 - 0.25) < 0.035


@settings(max_examples=200)
@given(tables())
def test_ranks_margins_and_the_longest_instead(rows):
    lengths = dict(zip([row[4:] for row in rows], some_lengths(rows), strict=True))
    table = add_ranks(candidates(rows, length=some_lengths(rows)))
    by_place = {row[4:]: (int(n), float(m)) for row, n, m in zip(rows, table.rank, table.margin, strict=True)}
    kept = add_rivals(table.take(best_of_n(table, BestOfN(keep=2, min_candidates=2))), table)
    rivals = {place: float(v) for place, v in zip(_places(kept), kept.rival, strict=True)}
    for group in groups(rows):
        by_length = sorted(group, key=lambda row: (-lengths[row[4:]], *row[3:]))
        for rank, row in enumerate(group):
            number, margin = by_place[row[4:]]
            assert number == rank + 1
            last = rank == len(group) - 1
            assert math.isnan(margin) if last else margin == np.float32(r(row) - r(group[rank + 1]))
            if len(group) >= 2 and rank < 2:
                assert rivals[row[4:]] == r(by_length[rank])


def _places(kept):
    return list(zip(*(getattr(kept, name).tolist() for name in ("file", "unit", "row", "response")), strict=True))


@settings(max_examples=300)
@given(
    tables(),
    st.integers(1, 2),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5]),
    st.lists(st.integers(0, 24), max_size=3),
    st.booleans(),
)
def test_what_a_bundle_rules_out_does_not_change_the_end(rows, keep, least, margin, cuts, with_length):
    """Any split into bundles, each shrunk by itself, and once more together; also where it hardly pays."""
    rule = BestOfN(keep=keep, min_candidates=least, min_margin=margin)
    needs = Needs(length=with_length)
    table = candidates(rows, length=some_lengths(rows))
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    left = []
    for start, end in itertools.pairwise(edges):
        part = shrunk(table.take(np.arange(start, end)), rule, needs)
        left += [row for row in rows if row[4:] in kept_places(part)]
    again = candidates(left, length=some_lengths(left))
    again_left = kept_places(shrunk(again, rule, needs))
    for remaining in (left, [row for row in left if row[4:] in again_left]):
        small = candidates(remaining, length=some_lengths(remaining))
        assert chosen(remaining, best_of_n(small, rule)) == chosen(rows, best_of_n(table, rule))
        if with_length:
            expected, got = (longest(whole, Longest(keep=keep)) for whole in (table, small))
            assert chosen(rows, expected) == chosen(remaining, got)


def shrunk(table, rule, needs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefilter, "_WORTH", np.inf)
        return shrink(table, rule, needs=needs)


def test_shrinking_does_shrink_where_it_pays():
    rows = [(n % 3, 0, float(n), 0, 0, 0, n, 0) for n in range(300)]
    assert len(shrink(candidates(rows, length=[1] * 300), BestOfN(), needs=Needs(length=True))) <= 3 * 2
    alone = candidates([(n, 0, float(n), 0, 0, 0, n, 0) for n in range(300)], length=[1] * 300)
    assert shrink(alone, BestOfN(), needs=Needs(length=True)) is alone


def test_the_sample_of_keys_tells_how_much_would_be_left():
    rng = np.random.default_rng(0)
    high = rng.integers(0, 2**64, 4000, dtype=np.uint64)
    rows = [(int(high[n % 4000]), 0, float(n), 0, 0, 0, n, 0) for n in range(40_000)]
    table = candidates(rows, length=[1] * len(rows))
    assert prefilter._left(table, 2) == pytest.approx(8000, rel=0.02)  # every prompt has ten, as in the sample
    assert prefilter._left(table.take(np.arange(4000)), 2) == 4000
