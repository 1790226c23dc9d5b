"""`on_topic` against brute force over rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates, chosen, prompt_groups, tables

from pipelines.config import RunConfig
from pipelines.config.prompt_rules import OnTopic
from pipelines.select.on_topic import behind_others, on_topic

VALUES = (-0.25, 0.0, 0.3, 0.5, 0.50000006, 0.8, 1.0, math.nan)


def relevance_of(row):
    return float(np.float32(VALUES[(row[3] * 5 + row[6] * 3 + row[7] + row[4]) % len(VALUES)]))


def with_relevance(rows):
    return candidates(rows).with_values({"near": np.array([relevance_of(row) for row in rows], dtype=np.float32)})


@settings(max_examples=200)
@given(tables(), st.sampled_from([0.0, 0.2, 0.25, 0.3, 0.5, 1.0]))
def test_a_loop_over_prompts_keeps_the_same(rows, gap):
    expected = set()
    for group in prompt_groups(rows):
        known = sorted((relevance_of(row) for row in group if not math.isnan(relevance_of(row))), reverse=True)
        for row in group:
            reference = known[1 if len(known) > 2 else 0] if known else math.nan
            if reference - relevance_of(row) <= gap:
                expected.add(row[4:])
    assert chosen(rows, on_topic(with_relevance(rows), OnTopic(signal="near", gap=gap))) == expected


def table(values):
    rows = [(1, 1, 0.0, at, 0, 0, at, 0) for at in range(len(values))]
    return candidates(rows).with_values({"relevance": np.array(values, dtype=np.float32)})


@pytest.mark.parametrize(
    ("values", "behind"),
    [
        ([0.5], [0.0]),
        ([0.25, 0.75], [0.5, 0.0]),
        ([0.5, 1.0, 0.25], [0.0, -0.5, 0.25]),  # one repeats the prompt
        ([0.5, math.nan, 0.25], [0.0, math.inf, 0.25]),  # two are known
        ([math.nan, math.nan], [math.inf, math.inf]),
        ([], []),
    ],
)
def test_how_far_responses_lie_behind(values, behind):
    assert behind_others(table(values), "relevance").tolist() == behind


def test_a_gap_is_kept_and_what_is_beyond_it_dropped():
    assert on_topic(table([0.75, 0.5, 0.25]), OnTopic(gap=0.25)).tolist() == [True, True, True]
    assert on_topic(table([0.75, 0.5, 0.24]), OnTopic(gap=0.25)).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("signals", "message"),
    [
        ({}, r"on_topic\.signal names 'relevance', and there are no signals; name one: signals="),
        ({"relevanz": {"column": "a"}}, r"signals has relevanz; did you mean 'relevanz'\?"),
    ],
)
def test_a_signal_that_is_not_there_is_told(signals, message):
    values = {"input": {"path": "x"}, "model": {"path": "m"}, "output": {"path": "o"}, "signals": signals}
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(values | {"select": [{"on_topic": {"gap": 0.1}}]})
