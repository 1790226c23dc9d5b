"""`pairs` against brute force over rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    kept_places,
    prompt_groups,
    reward_of,
    tables,
)

from pipelines.config import Pairs
from pipelines.select.candidates import hash_rows
from pipelines.select.rules import pairs

bounds = st.sampled_from([(0.0, None), (0.5, None), (0.0, 0.75), (0.25, 1.0)])


@settings(max_examples=300)
@given(tables(), st.sampled_from(["worst", "nearest", "random"]), bounds, st.integers(0, 2))
def test_pairs(rows, rejected, bounds, seed):
    least, most = bounds
    more = {"seed": seed} if rejected == "random" else {}
    table = candidates(rows)
    by_chance = {row[4:]: chance for row, chance in zip(rows, hash_rows(table, seed).tolist(), strict=True)}
    expected = {}
    for group in prompt_groups(rows):
        fits = [row for row in group[1:] if (gap := reward_of(group[0]) - reward_of(row)) > 0 and gap >= least]
        fits = [row for row in fits if most is None or reward_of(group[0]) - reward_of(row) <= most]
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
