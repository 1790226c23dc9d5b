"""`random` and `longest`, the rules that others are compared with; ranks, margins and rivals."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    chosen,
    prompt_groups,
    reward_of,
    small_lengths,
    tables,
)

from pipelines.config import BestOfN, Longest, Random
from pipelines.select.rules import add_ranks, add_rivals, best_of_n, longest, random


@settings(max_examples=200)
@given(tables(), st.integers(1, 3))
def test_longest(rows, keep):
    lengths = dict(zip([row[4:] for row in rows], small_lengths(rows), strict=True))
    expected = set()
    for group in prompt_groups(rows):
        order = sorted(group, key=lambda row: (-lengths[row[4:]], *row[3:]))
        expected |= {row[4:] for row in order[:keep]}
    table = candidates(rows, length=small_lengths(rows))
    assert chosen(rows, longest(table, Longest(keep=keep))) == expected


@settings(max_examples=200)
@given(tables().flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), st.integers(1, 3))
def test_random_takes_so_many_of_each_prompt_whatever_the_order_and_the_reward(pair, keep):
    rows, other = pair
    got = chosen(rows, random(candidates(rows), Random(keep=keep)))
    assert len(got) == sum(min(keep, len(group)) for group in prompt_groups(rows))
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
    lengths = dict(zip([row[4:] for row in rows], small_lengths(rows), strict=True))
    table = add_ranks(candidates(rows, length=small_lengths(rows)))
    by_place = {row[4:]: (int(n), float(m)) for row, n, m in zip(rows, table.rank, table.margin, strict=True)}
    kept = add_rivals(table.take(best_of_n(table, BestOfN(keep=2, min_candidates=2))), table)
    rivals = {place: float(v) for place, v in zip(_places(kept), kept.rival, strict=True)}
    for group in prompt_groups(rows):
        by_length = sorted(group, key=lambda row: (-lengths[row[4:]], *row[3:]))
        for rank, row in enumerate(group):
            number, margin = by_place[row[4:]]
            assert number == rank + 1
            last = rank == len(group) - 1
            assert math.isnan(margin) if last else margin == np.float32(reward_of(row) - reward_of(group[rank + 1]))
            if len(group) >= 2 and rank < 2:
                assert rivals[row[4:]] == reward_of(by_length[rank])


def _places(kept):
    return list(zip(*(getattr(kept, name).tolist() for name in ("file", "unit", "row", "response")), strict=True))
