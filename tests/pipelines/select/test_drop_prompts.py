"""`drop_prompts` against brute force over rows."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    chosen,
    prompt_groups,
    reward_of,
    tables,
)

from pipelines.config import DropPrompts
from pipelines.select.rules import drop_prompts

conditions = st.sampled_from([{"min_best": 0.5}, {"min_spread": 0.5}, {"max_spread": 0.5}, {"min_candidates": 3}])


@settings(max_examples=200)
@given(tables(), conditions, conditions)
def test_drop_prompts(rows, first, second):
    settings_ = {**first, **second}
    expected = set()
    for group in prompt_groups(rows):
        spread = reward_of(group[0]) - reward_of(group[-1])
        drop = len(group) < settings_.get("min_candidates", 1) or reward_of(group[0]) < settings_.get(
            "min_best", -math.inf
        )
        drop |= spread < settings_.get("min_spread", 0) or spread > settings_.get("max_spread", math.inf)
        expected |= set() if drop else {row[4:] for row in group}
    assert chosen(rows, drop_prompts(candidates(rows), DropPrompts(**settings_))) == expected
