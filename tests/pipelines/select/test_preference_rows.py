"""`preferences` against brute force over rows."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates, reward_of, sigmoid, tables

from pipelines.config import Preferences, Step
from pipelines.select.rules import apply_rule

rules = st.fixed_dictionaries(
    {
        "keep": st.sampled_from(["agree", "disagree", "all"]),
        "min_margin": st.sampled_from([0.0, 0.5, 1.5]),
        "flip": st.booleans(),
        "drop": st.sampled_from([None, [-0.5, 0.5], [0.25, 0.25], [-9.0, -0.5]]),
        "min_probability": st.sampled_from([None, 0.5, 0.6, 0.7]),
    }
)


def brute(rows, rule, temperature):
    by_row = defaultdict(list)
    for row in rows:
        by_row[row[4:7]].append(row)
    made = []
    for group in by_row.values():
        group.sort(key=lambda row: row[7])
        if len(group) < 2 or group[0][7] != 0:
            continue
        chosen, rejected = group[0], group[-1]
        margin = reward_of(chosen) - reward_of(rejected)
        sure = margin != 0 and abs(margin) >= rule.min_margin
        if rule.min_probability is not None:
            sure &= sigmoid(abs(margin) / temperature) >= rule.min_probability
        disagrees = sure and margin < 0
        keep = {"agree": sure and (margin > 0 or rule.flip), "disagree": disagrees, "all": True}[rule.keep]
        if rule.drop is not None and rule.drop[0] <= margin <= rule.drop[1]:
            keep = False
        if keep:
            sides = (rejected, chosen) if disagrees and rule.flip else (chosen, rejected)
            made.append((sides[0][4:], sides[1][4:], np.float32(sides[1][2])))
    return sorted(made)


@settings(max_examples=300)
@given(tables(), rules, st.randoms())
def test_preferences(rows, values, shuffle):
    rule = Preferences(**values)
    expected = brute(rows, rule, 2.0)
    for _ in range(2):
        kept = apply_rule(candidates(rows), Step(preferences=rule), temperature=2.0)
        names = ("file", "unit", "row", "response")
        columns = [getattr(kept, name).tolist() for name in (*names, *(f"other_{name}" for name in names))]
        made = [(values[:4], values[4:]) for values in zip(*columns, strict=True)]
        assert sorted((*pair, raw) for pair, raw in zip(made, kept.other_raw, strict=True)) == expected
        shuffle.shuffle(rows)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"drop": [1.0, 0.0]}, "expected .LOW, HIGH., the lower number first"),
        ({"drop": [1.0]}, "at least 2 items"),
        ({"temperature": 2.0}, "temperature has no effect without min_probability"),
        ({"keep": "some"}, "agree"),
    ],
)
def test_settings_that_mean_nothing(values, message):
    with pytest.raises(ValueError, match=message):
        Preferences(**values)
