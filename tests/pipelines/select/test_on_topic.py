"""`on_topic` against brute force over rows."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.selection_tables import candidates, chosen, prompt_groups, tables

from pipelines.config import RunConfig
from pipelines.config.prompt_rules import OnTopic
from pipelines.errors import InputError
from pipelines.select.on_topic import behind_others, foreign_column, measure_distances, on_topic
from rm import relevance_gap
from rm.relevance_gap import Distances, merge_distances, settle_gap

VALUES = (-0.25, 0.0, 0.3, 0.5, 0.50000006, 0.8, 1.0, math.nan)


def relevance_of(row):
    return float(np.float32(VALUES[(row[3] * 5 + row[6] * 3 + row[7] + row[4]) % len(VALUES)]))


def with_relevance(rows):
    return candidates(rows).with_values({"near": np.array([relevance_of(row) for row in rows], dtype=np.float32)})


@settings(max_examples=100)
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


def measured(rows, relevance, foreign):
    """(distances of all responses, distances of those to other prompts), row by row."""
    distances, others = [], []
    for group in prompt_groups(rows):
        known = sorted((relevance[row[4:]] for row in group if not math.isnan(relevance[row[4:]])), reverse=True)
        if len(known) > 1:
            reference = known[1 if len(known) > 2 else 0]
            distances += [reference - relevance[row[4:]] for row in group if not math.isnan(relevance[row[4:]])]
            others += [reference - foreign[row[4:]] for row in group if not math.isnan(foreign[row[4:]])]
    return distances, others


def settle_by_search(distances, others, most):
    """The gap, the share that it catches, and the share of responses taken for off topic."""
    gaps = [step / 1024 for step in range(2049)]

    def beyond(values):
        counts = [sum(value > gap for value in values) for gap in gaps[:-1]] + [0]
        return [Fraction(count, max(1, len(values))) for count in counts]

    reached, caught = beyond(distances), beyond(others)
    telling = [r / c for r, c in zip(reached, caught, strict=True) if c >= Fraction(1, 2)]
    share = min([Fraction(1, 2), *telling]) if telling else Fraction(0)
    own = [(r - share * c) / (1 - share) for r, c in zip(reached, caught, strict=True)]
    at = next(at for at in range(2049) if all(one <= Fraction(str(most)) for one in own[at:]))
    return gaps[at], float(caught[at]) if others else None, float(share) if telling else None


@settings(max_examples=60)
@given(tables(), st.sampled_from([0.05, 0.2, 0.4]), st.integers(1, 3), st.booleans())
def test_the_gap_that_a_corpus_settles(rows, most, parts, with_foreign):
    relevance = {row[4:]: relevance_of(row) for row in rows}
    foreign = {row[4:]: relevance_of((*row[:3], row[3] + 1, *row[4:])) - 0.25 for row in rows}
    foreign = {place: float(np.float32(value)) for place, value in foreign.items()}

    def part(number):
        table = [row for row in rows if hash(row[:2]) % parts == number]
        values = {"near": np.array([relevance[row[4:]] for row in table], dtype=np.float32)}
        if with_foreign:
            values[foreign_column("near")] = np.array([foreign[row[4:]] for row in table], dtype=np.float32)
        return candidates(table).with_values(values)

    rule = OnTopic(signal="near", max_touched=most)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevance_gap, "_FEWEST", 0)
        gap = settle_gap(merge_distances([measure_distances(part(number), "near") for number in range(parts)]), most)
    distances, others = measured(rows, relevance, foreign)
    expected = settle_by_search(distances, others if with_foreign else [], most)
    assert (gap.gap, gap.measured) == (expected[0], len(distances))
    assert gap.caught == pytest.approx(expected[1])
    assert gap.off_topic == (None if expected[2] is None else pytest.approx(expected[2]))
    with pytest.raises(ValueError, match="needs the gap"):
        on_topic(with_relevance(rows), rule)


@pytest.mark.parametrize("planted", [0.0, 0.05])
def test_responses_to_other_prompts_in_the_corpus_do_not_widen_the_gap(planted):
    """Of 1,000 prompts with 8 responses, a share answers other prompts: it is estimated, and nearly all of them are caught."""
    rng = np.random.default_rng(0)
    rows = [(prompt, 0, 0.0, at, 0, 0, prompt, at) for prompt in range(1000) for at in range(8)]
    is_foreign = rng.random(len(rows)) < planted
    near, far = rng.normal(0.7, 0.06, len(rows)), rng.normal(0.1, 0.1, len(rows))
    values = {"relevance": np.where(is_foreign, far, near), "foreign(relevance)": rng.normal(0.1, 0.1, len(rows))}
    table = candidates(rows).with_values({name: one.astype(np.float32) for name, one in values.items()})
    rule = OnTopic()
    gap = settle_gap(measure_distances(table, "relevance"), rule.max_touched)
    assert gap.off_topic == pytest.approx(planted, abs=0.0075)
    assert gap.caught > 0.95
    kept = on_topic(table, rule, gap)
    assert (~kept[~is_foreign]).mean() < 0.0125
    assert not planted or (~kept[is_foreign]).mean() > 0.95


def test_a_word_for_a_gap_is_refused_in_one_sentence():
    with pytest.raises(ValidationError, match="expected a number of at least 0, or auto") as caught:
        OnTopic(gap="wide")
    assert caught.value.error_count() == 1


def test_a_share_without_auto_is_refused():
    with pytest.raises(ValueError, match="max_touched has no effect without gap: auto"):
        OnTopic(gap=0.1, max_touched=0.05)


def test_a_share_that_is_just_the_most_is_not_above_it():
    """Of 2,000 responses 350 are off topic, and 2 % of the others lie 0.29 behind: in floating point that is more than 2 %."""
    responses, foreign = np.zeros(2049, dtype=np.int64), np.zeros(2049, dtype=np.int64)
    responses[0], responses[300], responses[900], foreign[900] = 1617, 33, 350, 1000
    assert settle_gap(Distances(responses, foreign), 0.02).gap == 0


def test_an_automatic_gap_is_for_cosines():
    with pytest.raises(InputError, match="apart for one prompt; set gap to a number"):
        measure_distances(table([0, 50, 100]), "relevance")
