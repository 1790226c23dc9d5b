from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.engine.layout import Layout, Segment, common_prefix, cut_rows, lay_out, plan_batches, plan_even, plan_groups

lengths = st.lists(st.integers(1, 50), max_size=60)
grouped = st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=6), max_size=20)
budgets = st.integers(1, 300)


def cost(groups, batch, *, padded):
    rows = [length for index in batch for length in groups[index]]
    return len(rows) * max(rows) if padded else sum(rows)


@given(lengths, budgets)
def test_every_row_once_within_the_budget_longest_first(rows, budget):
    batches = plan_batches(rows, tokens_per_batch=budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or len(batch) * max(rows[index] for index in batch) <= budget
    flat = [rows[index] for batch in batches for index in batch]
    assert flat == sorted(flat, reverse=True)


@given(lengths, budgets)
def test_batches_are_as_full_as_the_order_allows(rows, budget):
    batches = plan_batches(rows, tokens_per_batch=budget)
    for batch, _following in itertools.pairwise(batches):
        longest = rows[batch[0]]
        assert (len(batch) + 1) * longest > budget  # one row more would have broken the budget


@given(lengths.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), budgets)
def test_shape_does_not_depend_on_input_order(pair, budget):
    def shapes(rows):
        return [[rows[index] for index in batch] for batch in plan_batches(rows, tokens_per_batch=budget)]

    assert shapes(pair[0]) == shapes(pair[1])


@given(grouped, budgets, st.booleans())
def test_every_group_once_whole_and_within_the_budget(groups, budget, padded):
    batches = plan_groups(groups, tokens_per_batch=budget, padded=padded)
    assert sorted(index for batch in batches for index in batch) == list(range(len(groups)))
    for batch in batches:
        assert len(batch) == 1 or cost(groups, batch, padded=padded) <= budget
    longest = [max(groups[index]) for batch in batches for index in batch]
    assert longest == sorted(longest, reverse=True)
    for batch, following in itertools.pairwise(batches):  # as full as the order allows
        assert cost(groups, [*batch, following[0]], padded=padded) > budget


@given(lengths, budgets)
def test_a_row_is_a_group_of_one(rows, budget):
    assert plan_batches(rows, tokens_per_batch=budget) == plan_groups(
        [[row] for row in rows], tokens_per_batch=budget, padded=True
    )


def test_plans_by_hand():
    groups = [[2, 3], [5], [3, 1]]
    # longest first: 1 (5 tokens), 0 and 2 (5 and 4 tokens; padded to 5: 1 and 2 rows more)
    assert plan_groups(groups, tokens_per_batch=10, padded=False) == [[1, 0], [2]]
    assert plan_groups(groups, tokens_per_batch=14, padded=False) == [[1, 0, 2]]
    assert plan_groups(groups, tokens_per_batch=14, padded=True) == [[1], [0, 2]]
    assert plan_groups(groups, tokens_per_batch=15, padded=True) == [[1, 0], [2]]
    assert plan_groups(groups, tokens_per_batch=1, padded=True) == [[1], [0], [2]]
    assert plan_groups([[4], [4], [4]], tokens_per_batch=8, padded=True) == [[0, 1], [2]]  # equal ones keep their order
    assert plan_groups([], tokens_per_batch=8, padded=True) == []


@pytest.mark.parametrize(
    "plan",
    [
        plan_batches,
        lambda rows, **rest: plan_groups([rows], padded=True, **rest),
        lambda rows, **rest: cut_rows(rows, prefix=0, **rest),
        lambda rows, **rest: plan_even(rows, full=1, **rest),
    ],
)
def test_no_budget_is_an_error(plan):
    with pytest.raises(ValueError, match="at least 1"):
        plan([1], tokens_per_batch=0)


@given(lengths.filter(len), st.integers(0, 50), budgets)
def test_every_row_in_one_run_within_the_budget(rows, prefix, budget):
    prefix = min(prefix, *rows)
    runs = cut_rows(rows, prefix=prefix, tokens_per_batch=budget)
    assert sorted(index for run in runs for index in run) == list(range(len(rows)))

    def tokens(run):
        return prefix + sum(rows[index] - prefix for index in run)

    assert all(len(run) == 1 or tokens(run) <= budget for run in runs)
    for run, following in itertools.pairwise(runs):  # as full as the order allows
        assert tokens([*run, following[0]]) > budget
    flat = [rows[index] for run in runs for index in run]
    assert flat == sorted(flat, reverse=True)


@given(lengths.filter(len).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), budgets)
def test_runs_do_not_depend_on_input_order(pair, budget):
    def shapes(rows):
        return [[rows[index] for index in run] for run in cut_rows(rows, prefix=1, tokens_per_batch=budget)]

    assert shapes(pair[0]) == shapes(pair[1])


def test_runs_by_hand():
    # prefix 4; own tokens 3, 1, 6, 1: a run of 10 tokens has 6 of them
    assert cut_rows([7, 5, 10, 5], prefix=4, tokens_per_batch=10) == [[2], [0, 1, 3]]
    assert cut_rows([7, 5, 10, 5], prefix=4, tokens_per_batch=15) == [[2, 0, 1, 3]]
    assert cut_rows([7, 5, 10, 5], prefix=4, tokens_per_batch=9) == [[2], [0, 1, 3]]
    assert cut_rows([7, 5, 10, 5], prefix=4, tokens_per_batch=8) == [[2], [0, 1], [3]]
    assert cut_rows([4, 4, 4], prefix=4, tokens_per_batch=4) == [[0, 1, 2]]  # nothing of their own
    assert cut_rows([], prefix=0, tokens_per_batch=4) == []
    with pytest.raises(ValueError, match="prefix is 5 tokens, and the shortest row has 4"):
        cut_rows([7, 4], prefix=5, tokens_per_batch=10)


@given(lengths, budgets, st.integers(1, 100))
def test_even_batches_hold_every_run_within_the_budget(costs, budget, full):
    batches = plan_even(costs, tokens_per_batch=budget, full=full)
    assert sorted(index for batch in batches for index in batch) == list(range(len(costs)))
    sizes = [sum(costs[index] for index in batch) for batch in batches]
    assert all(len(batch) == 1 or size <= budget for batch, size in zip(batches, sizes, strict=True))
    assert sizes == sorted(sizes, reverse=True)
    if len(batches) > 1:  # a run moves only where a batch has less than the one it leaves
        assert max(sizes) - min(sizes) <= max(costs)
    wanted = max(1, round(sum(costs) / full))
    assert len(batches) >= min(wanted, len(costs))
    if wanted <= len(costs) and sum(costs) / wanted + max(costs, default=0) <= budget:
        assert len(batches) == (wanted if costs else 0)


@given(lengths.flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))), budgets)
def test_even_batches_do_not_depend_on_input_order(pair, budget):
    def shapes(costs):
        return [[costs[index] for index in batch] for batch in plan_even(costs, tokens_per_batch=budget, full=40)]

    assert shapes(pair[0]) == shapes(pair[1])


def test_even_batches_by_hand():
    # 20 tokens at 7 a batch: three; 8, then 5, then 4 and 3 to the least filled
    assert plan_even([3, 8, 5, 4], tokens_per_batch=10, full=7) == [[1], [3, 0], [2]]
    assert plan_even([3, 8, 5, 4], tokens_per_batch=100, full=10) == [[1, 0], [2, 3]]
    assert plan_even([3, 8, 5, 4], tokens_per_batch=10, full=10) == [[1], [3, 0], [2]]  # two would have had 11 and 9
    assert plan_even([30, 1], tokens_per_batch=10, full=10) == [[0], [1]]
    assert plan_even([], tokens_per_batch=10, full=10) == []


def plain(*rows):
    return [(list(row), None) for row in rows]


def test_a_shared_prefix_stands_once():
    got = lay_out([plain([1, 2, 3, 4], [1, 2, 5])], share=True, pad=0)
    assert got == Layout(
        ids=[1, 2, 3, 4, 5],
        positions=[0, 1, 2, 3, 2],
        types=None,
        segments=(Segment(2, (2, 1)),),
        pooled=[3, 4],
    )
    assert got.segments[0].sizes == (2, 2, 1)


def test_groups_follow_each_other_and_start_anew():
    got = lay_out([plain([1, 2, 3], [1, 2, 4]), plain([9, 8]), plain([1, 6], [7, 6])], share=True, pad=0)
    assert got.ids == [1, 2, 3, 4, 9, 8, 1, 6, 7, 6]
    assert got.positions == [0, 1, 2, 2, 0, 1, 0, 1, 0, 1]
    # a lone response shares nothing; the last group has no prefix at all
    assert got.segments == (Segment(2, (1, 1)), Segment(0, (2,)), Segment(0, (2, 2)))
    assert got.segments[2].sizes == (2, 2)
    assert got.pooled == [2, 3, 5, 7, 9]


def test_each_row_keeps_the_token_that_is_read():
    identical = lay_out([plain([4, 5, 6], [4, 5, 6])], share=True, pad=0)
    assert (identical.ids, identical.segments, identical.pooled) == ([4, 5, 6, 6], (Segment(2, (1, 1)),), [2, 3])
    assert identical.positions == [0, 1, 2, 2]
    inside = lay_out([plain([4, 5, 6, 7], [4, 5])], share=True, pad=0)  # one is the beginning of the other
    assert (inside.ids, inside.segments, inside.pooled) == ([4, 5, 6, 7, 5], (Segment(1, (3, 1)),), [3, 4])
    assert inside.positions == [0, 1, 2, 3, 1]
    single = lay_out([plain([7])], share=True, pad=0)
    assert (single.ids, single.segments, single.pooled) == ([7], (Segment(0, (1,)),), [0])


def test_the_head_reads_the_last_token_that_is_not_pad():
    got = lay_out([plain([1, 2, 0, 3, 0, 0], [1, 2, 0, 4])], share=True, pad=0)
    assert got.ids == [1, 2, 0, 3, 0, 0, 4]
    assert got.positions == [0, 1, 2, 3, 4, 5, 3]
    assert got.segments == (Segment(3, (3, 1)),)
    assert got.pooled == [3, 6]
    # where the token that is read lies inside what is shared, the prefix ends before it
    ends = lay_out([plain([1, 2, 0], [1, 2, 0, 3])], share=True, pad=0)
    assert (ends.segments, ends.ids, ends.pooled) == ((Segment(1, (2, 3)),), [1, 2, 0, 2, 0, 3], [1, 5])
    only_pad = lay_out([plain([0, 0])], share=True, pad=0)
    assert (only_pad.pooled, only_pad.segments) == ([0], (Segment(0, (2,)),))
    assert lay_out([plain([1, 2, 0])], share=True, pad=None).pooled == [2]


def test_encoders_share_nothing_and_read_the_first_token():
    rows = [([2, 5, 3, 6, 3], [0, 0, 0, 1, 1]), ([2, 5, 3, 7], [0, 0, 0, 1])]
    got = lay_out([rows, [([2, 8], [0, 1])]], share=False, pad=3, first_position=2)
    assert got == Layout(
        ids=[2, 5, 3, 6, 3, 2, 5, 3, 7, 2, 8],
        positions=[2, 3, 4, 5, 6, 2, 3, 4, 5, 2, 3],
        types=[0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1],
        segments=(Segment(0, (5, 4)), Segment(0, (2,))),
        pooled=[0, 5, 9],
    )


def test_first_position_and_types_with_a_prefix():
    got = lay_out([[([1, 2, 3], [7, 8, 9]), ([1, 2, 4, 5], [7, 8, 6, 5])]], share=True, pad=0, first_position=10)
    assert got.positions == [10, 11, 12, 12, 13]
    assert got.types == [7, 8, 9, 6, 5]


row = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@given(st.lists(row, min_size=1, max_size=5))
def test_common_prefix_equals_brute_force(rows):
    shared = max(n for n in range(min(map(len, rows)) + 1) if len({tuple(row[:n]) for row in rows}) == 1)
    assert common_prefix(rows) == shared


@given(
    st.lists(st.lists(row, min_size=1, max_size=4), min_size=1, max_size=4), st.booleans(), st.sampled_from([None, 0])
)
def test_every_row_can_be_read_back(groups, share, pad):
    """Prefix and own part are the row again, at its own positions, and `pooled` points at the token to be read."""
    got = lay_out([plain(*rows) for rows in groups], share=share, pad=pad)
    at, pooled = 0, iter(got.pooled)
    for rows, segment in zip(groups, got.segments, strict=True):
        prefix = range(at, at + segment.prefix)
        at += segment.prefix
        for row, own in zip(rows, segment.responses, strict=True):
            places = [*prefix, *range(at, at + own)]
            assert [got.ids[place] for place in places] == row
            assert [got.positions[place] for place in places] == list(range(len(row)))
            real = [index for index, token in enumerate(row) if token != pad]
            read = next(pooled)
            assert read == places[(real[-1] if real else 0) if share else 0]
            assert read >= at  # its own, not the prefix's
            at += own
    assert at == len(got.ids) == len(got.positions)
    assert next(pooled, None) is None
