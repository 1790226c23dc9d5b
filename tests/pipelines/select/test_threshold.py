"""`threshold` against brute force over rows: rewards, z-scores and reference responses."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    chosen,
    prompt_groups,
    reward_of,
    sigmoid,
    tables,
)

from pipelines.config import Threshold
from pipelines.select.rules import threshold


@given(tables(), st.sampled_from([-1.0, 0.0, 0.5, 0.75]))
def test_threshold_equals_brute_force(rows, least):
    assert chosen(rows, threshold(candidates(rows), Threshold(min_reward=least))) == {
        row[4:] for row in rows if row[2] >= least
    }


@settings(max_examples=200)
@given(tables(), st.data(), st.sampled_from([0.3, 0.5, 0.6]), st.sampled_from([1.0, 3.0]))
def test_a_reference_response(rows, data, least, temperature):
    names = data.draw(st.lists(st.sampled_from(["gpt4", "b", None]), min_size=len(rows), max_size=len(rows)))
    by_place = {row[4:]: name for row, name in zip(rows, names, strict=True)}
    expected = set()
    for group in prompt_groups(rows):
        references = [reward_of(row) for row in group if by_place[row[4:]] == "gpt4"]
        if references:
            expected |= {row[4:] for row in group if sigmoid((reward_of(row) - max(references)) / temperature) >= least}
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
    for group in prompt_groups(rows):
        values = np.array([reward_of(row) for row in group])
        scale = values.std()
        for row in group:
            z = (reward_of(row) - values.mean()) / scale if values.max() > values.min() else 0.0
            if z >= least:
                expected.add(row[4:])
    got = chosen(rows, threshold(candidates(rows), Threshold(min_z=least)))
    assert {place for place in got ^ expected if not _near(rows, place, least)} == set()


def _near(rows, place, least):
    """Within rounding of the bound: sums in another order differ there."""
    group = next(group for group in prompt_groups(rows) if place in {row[4:] for row in group})
    values = np.array([reward_of(row) for row in group])
    own = next(reward_of(row) for row in group if row[4:] == place)
    return abs((own - values.mean()) / max(values.std(), 1e-300) - least) < 1e-9


def test_z_scores_by_hand():
    rows = [(1, 1, reward, 0, 0, 0, n, 0) for n, reward in enumerate([1.0, 2.0, 3.0])]
    kept = threshold(candidates(rows), Threshold(min_z=1.2)).tolist()  # z = -1.22, 0, 1.22
    assert kept == [False, False, True]
    assert threshold(candidates(rows), Threshold(min_z=1.3)).tolist() == [False] * 3
