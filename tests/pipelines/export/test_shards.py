from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.export.shards import plan_shards, rows_at_once, rows_within

units = st.lists(st.integers(1, 9), min_size=1, max_size=4)
corpora = st.lists(st.tuples(units, st.booleans()), max_size=5)


@settings(max_examples=300)
@given(corpora, st.integers(1, 12), st.randoms())
def test_every_response_in_its_shard_and_no_stream_in_two_jobs(corpus, rows_per_shard, random):
    counts = [(file, unit, count) for file, (kept, _) in enumerate(corpus) for unit, count in enumerate(kept)]
    streamed = [is_streamed for _, is_streamed in corpus]
    total = sum(sum(kept) for kept, _ in corpus)
    shuffled = random.sample(counts, len(counts))
    plan = plan_shards(shuffled, rows_per_shard=rows_per_shard, streamed=streamed)
    assert plan == plan_shards(counts, rows_per_shard=rows_per_shard, streamed=streamed)
    assert plan.total == total
    assert plan.shards == max(1, -(-total // rows_per_shard))
    assert [shard for first, last in plan.jobs for shard in range(first, last)] == list(range(plan.shards))

    dealt: dict[int, list[tuple[int, int, int]]] = {}
    for file, (kept, is_streamed) in enumerate(corpus):
        jobs_by_unit: dict[int, set[int]] = {}
        for unit, count in enumerate(kept):
            pieces = list(plan.pieces(file, unit, count))
            assert [position for _, start, end in pieces for position in range(start, end)] == list(range(count))
            for job, start, end in pieces:
                dealt.setdefault(job, []).append((file, start, end))
                jobs_by_unit.setdefault(unit, set()).add(job)
        if is_streamed:
            assert all(len(jobs) == 1 for jobs in jobs_by_unit.values())
    for job in range(len(plan.jobs)):
        first, last = plan.rows_of_job(job)
        assert sum(end - start for _, start, end in dealt.get(job, [])) == last - first


def test_jobs_are_single_shards_where_everything_can_be_reached():
    plan = plan_shards([(0, 0, 10)], rows_per_shard=3, streamed=[False])
    assert plan.jobs == ((0, 1), (1, 2), (2, 3), (3, 4))


def test_a_stream_that_ends_at_a_shards_end_joins_nothing():
    plan = plan_shards([(0, 0, 3), (1, 0, 4)], rows_per_shard=3, streamed=[True, True])
    assert plan.jobs == ((0, 1), (1, 3))


@pytest.mark.parametrize(("bytes_per_shard", "rows"), [(10**9, 100), (5000, 50), (4999, 49), (100, 1), (99, 1), (1, 1)])
def test_a_shard_ends_at_rows_or_bytes_whichever_comes_first(bytes_per_shard, rows):
    assert rows_within(bytes_per_shard, 100, rows=7, text_bytes=700) == rows
    assert rows_within(bytes_per_shard, 100, rows=0, text_bytes=0) == 100


def test_nothing_kept_is_one_empty_shard():
    plan = plan_shards([], rows_per_shard=3, streamed=[False])
    assert (plan.total, plan.shards, plan.jobs) == (0, 1, ((0, 1),))


inner = st.lists(st.integers(1, 9), max_size=5)
fragments = st.dictionaries(
    st.integers(0, 2), st.builds(lambda sizes, last: [*sizes, last], inner, st.integers(0, 9)), min_size=1
)


@given(fragments, st.randoms())
def test_rows_that_are_decoded_at_once_lie_in_two_fragments_at_most(units, random):
    listed = [(unit, at, rows) for unit, sizes in units.items() for at, rows in enumerate(sizes)]
    random.shuffle(listed)
    most = rows_at_once(listed)
    assert most == 1024 or most in [rows for sizes in units.values() for rows in sizes[:-1]]
    for sizes in units.values():
        of_row = [at for at, rows in enumerate(sizes) for _ in range(rows)]
        for start in range(len(of_row)):
            assert len(set(of_row[start : start + most])) <= 2


def test_rows_decoded_at_once_by_hand():
    assert rows_at_once([(0, 0, 2048), (0, 1, 2048), (0, 2, 5)]) == 1024, "the last of a unit says nothing"
    assert rows_at_once([(0, 0, 300), (0, 1, 100), (0, 2, 400), (1, 0, 7)]) == 100
    assert rows_at_once([(0, 0, 7), (1, 0, 9)]) == 1024
