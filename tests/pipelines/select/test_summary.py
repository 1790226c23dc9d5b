from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.score.exact_sum import ExactSum
from pipelines.select.summary import FragmentFacts, SelectionSummary, StepSum, merge_summaries

floats = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30)


def exact(values):
    return sum((Fraction(float(value)) for value in values), Fraction(0))


@given(floats, floats)
def test_sums_are_exact_in_any_split(left, right):
    values = np.array(left + right, dtype=np.float32)
    parts = ExactSum.of(np.array(left, dtype=np.float32)) + ExactSum.of(np.array(right, dtype=np.float32))
    whole = ExactSum.of(values)
    expected = float(exact(values) / len(values)) if len(values) else None
    assert parts.mean() == whole.mean() == expected
    assert parts.count == len(values)


@given(floats, floats)
def test_squares_are_exact_in_any_split(left, right):
    values = np.array(left + right, dtype=np.float32)
    squares = ExactSum.of_squares(values[: len(left)]) + ExactSum.of_squares(values[len(left) :])
    assert squares.total() == sum((Fraction(float(value)) ** 2 for value in values), Fraction(0))
    assert squares.count == len(values)


@given(floats, st.data())
def test_taking_a_part_away_leaves_the_rest(values, data):
    array = np.array(values, dtype=np.float32)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), dtype=bool)
    rest = ExactSum.of(array) - ExactSum.of(array[mask])
    assert rest.count == int((~mask).sum())
    if rest.count:
        assert rest.mean() == float(exact(array[~mask]) / rest.count)


def test_many_equal_values_do_not_overflow():
    many = ExactSum.of(np.full(1_000_000, np.float32(3.0e38)))
    assert many.mean() == float(np.float32(3.0e38))
    odd = np.float32(16777215.0)  # 2**24 - 1: every bit of the mantissa
    assert ExactSum.of_squares(np.full(1_000_000, odd)).total() == 1_000_000 * (2**24 - 1) ** 2


def test_summaries_merge_step_by_step():
    one = SelectionSummary(candidates=3, prompts=2, steps={0: StepSum("best_of_n", 2, 2, 7)}, kept_prompts=2)
    two = SelectionSummary(candidates=5, prompts=1, steps={0: StepSum("best_of_n", 1, 1, 5)}, kept_prompts=1)
    merged = merge_summaries([one, SelectionSummary(steps={1: StepSum("top", 1, None, 3)}), two])
    assert (merged.candidates, merged.prompts, merged.kept_prompts) == (8, 3, 2 + 1)
    assert merged.steps == {0: ("best_of_n", 3, 3, 12), 1: ("top", 1, None, 3)}


def test_facts_of_a_fragment_travel_as_a_list_and_sort_by_place():
    facts = FragmentFacts(1, 0, "hash", rows=3, responses=5, scored=4, text_bytes=70)
    assert facts.to_bytes() == b'[1, 0, "hash", 3, 5, 4, 70]'
    assert FragmentFacts.from_bytes(facts.to_bytes()) == facts
    assert sorted([facts, facts._replace(unit=0, fragment=2)])[0].unit == 0
