from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.packing import plan_batches

lengths = st.lists(st.integers(1, 50), max_size=60)


@given(lengths, st.integers(1, 200))
def test_every_row_once_within_the_budget_longest_first(rows, budget):
    batches = plan_batches(rows, tokens_per_batch=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(rows[index] for index in batch) <= budget
    flat = [rows[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


@given(lengths, st.integers(1, 200))
def test_batches_are_as_full_as_the_order_allows(rows, budget):
    batches = plan_batches(rows, tokens_per_batch=budget)
    for batch, _following in itertools.pairwise(batches):
        longest = rows[batch[0]]
        assert (len(batch) + 1) * longest > budget  # one row more would have broken the budget


@given(lengths.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), st.integers(1, 200))
def test_shape_does_not_depend_on_input_order(pair, budget):
    def shapes(rows):
        return [[rows[index] for index in batch] for batch in plan_batches(rows, tokens_per_batch=budget)]

    assert shapes(pair[0]) == shapes(pair[1])


def test_no_budget_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        plan_batches([1], tokens_per_batch=0)
