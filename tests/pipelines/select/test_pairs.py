"""`pairs` against brute force over rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    kept_places,
    prompt_groups,
    reward_of,
    tables,
)

from pipelines.config import Pairs, Step
from pipelines.select.candidates import hash_rows, place_order
from pipelines.select.rules import apply_rule, pairs

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


_PLACE = ("file", "unit", "row", "response")
_OTHER = ("other_file", "other_unit", "other_row", "other_response")


def pairs_of(kept):
    """(place of the chosen one, place of the rejected one) of each pair, in order."""
    columns = [getattr(kept, name).tolist() for name in (*_PLACE, *_OTHER)]
    return [(values[:4], values[4:]) for values in zip(*columns, strict=True)]


def brute(rows, rule, *, eligible, chances):
    """All pairs, by prompt, by the words of the settings."""
    made = []
    for group in prompt_groups(rows):
        able = [row for row in group if row[4:] in eligible]
        if not able:
            continue
        best, rewards = reward_of(able[0]), np.array([reward_of(row) for row in group])
        fits = [
            (rank, row)
            for rank, row in enumerate(group, start=1)
            if (gap := best - reward_of(row)) > 0 and rule.min_gap <= gap <= (rule.max_gap or np.inf)
        ]
        word, most = rule.rejected, rule.pairs_per_prompt or 1
        if isinstance(word, dict) and "rank" in word:
            ranked = [entry for entry in fits if word["rank"] <= entry[0] < word["rank"] + most]
        elif isinstance(word, dict):
            mean = np.add.reduceat(rewards, [0])[0] / len(rewards)
            scale = np.sqrt(np.add.reduceat((rewards - mean) ** 2, [0])[0] / len(rewards))
            target = mean + word["sigma"] * scale
            ranked = sorted(fits, key=lambda e: (abs(reward_of(e[1]) - target), reward_of(e[1]), e[0]))
        else:
            keys = {"worst": lambda e: -e[0], "nearest": lambda e: e[0], "random": lambda e: (chances[e[1][4:]], e[0])}
            ranked = sorted(fits, key=keys[word])
        distinct = {}
        for _, row in ranked:
            distinct.setdefault(row[3], row)
        made += [(able[0][4:], row[4:]) for row in [*distinct.values()][:most]]
    return sorted(made)


PLACES = ["worst", "nearest", "random", {"sigma": -2}, {"sigma": -0.5}, {"sigma": 0.25}, {"rank": 2}, {"rank": 3}]


@settings(max_examples=400)
@given(tables(), st.sampled_from(PLACES), st.integers(1, 3), bounds, st.integers(0, 15), st.randoms())
def test_places_several_pairs_and_chosen_ones_that_fit(rows, rejected, most, bounds, marks, shuffle):
    rule = Pairs(rejected=rejected, pairs_per_prompt=most, min_gap=bounds[0], max_gap=bounds[1])
    eligible = {row[4:] for row in rows if marks >> (row[6] % 4) & 1}
    table = candidates(rows)
    chances = {row[4:]: chance for row, chance in zip(rows, hash_rows(table, 0).tolist(), strict=True)}
    expected = brute(rows, rule, eligible=eligible, chances=chances)
    for _ in range(2):  # the same in any order of the rows
        mask = np.array([row[4:] in eligible for row in rows], dtype=bool)
        kept = pairs(candidates(rows), rule, eligible=mask)
        assert sorted(pairs_of(kept)) == expected
        shuffle.shuffle(rows)


def test_pairs_of_one_chosen_response_have_an_order_of_their_own():
    rows = [(1, 1, reward, at, 0, 0, at, 0) for at, reward in enumerate([0.5, 3.0, 1.0, 2.0, 0.0])]
    kept = pairs(candidates(rows), Pairs(pairs_per_prompt=9))
    assert kept.other_row[place_order(kept)].tolist() == [0, 2, 3, 4]
    backwards = kept.take(np.arange(len(kept))[::-1])
    assert backwards.other_row[place_order(backwards)].tolist() == [0, 2, 3, 4]
    assert pairs(candidates(rows), Pairs(rejected={"rank": 2}, pairs_per_prompt=2)).other_row.tolist() == [3, 2]


def test_equal_texts_are_rejected_once():
    rows = [(1, 1, reward, text, 0, 0, at, 0) for at, (reward, text) in enumerate([(3, 9), (1, 5), (1, 5), (2, 6)])]
    assert pairs(candidates(rows), Pairs(pairs_per_prompt=3)).other_row.tolist() == [2, 3]


def test_the_chosen_response_is_the_best_that_fits():
    rows = [(1, 1, reward, at, 0, 0, at, 0) for at, reward in enumerate([3.0, 2.0, 1.0])] + [(2, 2, 5, 0, 0, 0, 9, 0)]
    table = candidates(rows, labels={"ok": ["false", "true", "true", "false"]})
    kept = apply_rule(table, Step(pairs={"chosen": {"where": "ok"}}))
    assert pairs_of(kept) == [((0, 0, 1, 0), (0, 0, 2, 0))]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"rejected": "worse"}, "expected one of worst, random, nearest, or .* did you mean 'worst'"),
        ({"rejected": {"sigma": -2, "rank": 3}}, "expected one entry, sigma or rank"),
        ({"rejected": {"sgima": -2}}, "expected one entry, sigma or rank"),
        ({"rejected": {"sigma": "low"}}, "sigma is 'low'; expected a number"),
        ({"rejected": {"rank": 1}}, "rank is 1; expected an integer of at least 2"),
        ({"rejected": {"rank": 2.5}}, "rank is 2.5; expected an integer of at least 2"),
        ({"chosen": "best"}, "expected {where: "),
        ({"chosen": {"where": "reward >"}}, "this is not an expression"),
        ({"pairs_per_prompt": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_mean_nothing(settings_, message):
    with pytest.raises(ValueError, match=message):
        Pairs(**settings_)
