"""Which side of a split a prompt is on, and which shards the sides go into: integers only."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.export.shards import SplitPlans, plan_shards
from pipelines.export.train_test_split import Split, is_test
from pipelines.select.candidates import Candidates, zero_columns

_64 = 2**64


def rows_with_keys(high, low) -> Candidates:
    columns = {**zero_columns(len(high)), "key_high": np.array(high, np.uint64), "key_low": np.array(low, np.uint64)}
    return Candidates(**columns | {"row": np.arange(len(high), dtype=np.int32)})


def random_rows(count: int, seed: int = 0) -> Candidates:
    keys = np.random.default_rng(seed).integers(0, _64, size=(2, count), dtype=np.uint64)
    return rows_with_keys(*keys)


def splitmix_of_integers(z: int) -> int:
    """The finaliser as its authors publish it (Steele et al. 2014), on integers without a width."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % _64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % _64
    return z ^ (z >> 31)


@given(st.integers(0, _64 - 1), st.integers(0, _64 - 1), st.integers(0, 2**32 - 1), st.integers(1, 999))
def test_the_side_is_a_hash_of_key_and_seed_below_the_fraction(high, low, seed, thousandths):
    own = splitmix_of_integers(high ^ splitmix_of_integers((low + 0x9E3779B97F4A7C15 * (seed + 1)) % _64))
    expected = own < Fraction(thousandths, 1000) * _64 // 1
    assert is_test(rows_with_keys([high], [low]), thousandths / 1000, seed=seed).tolist() == [expected]


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.9])
def test_the_fraction_of_prompts_is_test(fraction):
    share = is_test(random_rows(200_000), fraction, seed=0).mean()
    assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / 200_000) ** 0.5


def test_a_larger_fraction_has_the_test_prompts_of_a_smaller_one():
    rows = random_rows(10_000)
    small, large = is_test(rows, 0.1, seed=3), is_test(rows, 0.2, seed=3)
    assert not np.any(small & ~large)
    assert large.sum() > small.sum() > 0


def test_seeds_choose_independently():
    rows = random_rows(100_000)
    both = is_test(rows, 0.2, seed=0) & is_test(rows, 0.2, seed=1)
    assert abs(both.mean() - 0.04) < 0.004


@pytest.mark.parametrize("half", ["key_high", "key_low"])
def test_both_halves_of_the_key_count(half):
    rows = random_rows(10_000)
    other = rows.with_columns(**{half: random_rows(10_000, seed=1).key_high})
    assert 0.4 < (is_test(rows, 0.5, seed=0) != is_test(other, 0.5, seed=0)).mean() < 0.6


def test_parts_keep_every_row_once_in_its_order():
    rows = random_rows(1000)
    assert Split().names == ("train",)
    assert Split().parts(rows) == [rows]
    split = Split(0.3, 5)
    assert split.names == ("train", "test")
    train, test = split.parts(rows)
    test_rows = is_test(rows, 0.3, seed=5)
    assert test.row.tolist() == np.flatnonzero(test_rows).tolist()
    assert train.row.tolist() == np.flatnonzero(~test_rows).tolist()


counts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=6)


@given(counts, st.integers(1, 4), st.booleans())
def test_each_split_has_shards_and_jobs_of_its_own(units, rows_per_shard, is_streamed):
    plans = SplitPlans(
        {
            name: plan_shards(
                [(0, unit, parts[at]) for unit, parts in enumerate(units)],
                rows_per_shard=rows_per_shard,
                streamed=[is_streamed],
            )
            for at, name in enumerate(["train", "test"])
        },
        rows_at_once={},
    )
    dealt = defaultdict(int)
    jobs_of = {"train": set(), "test": set()}
    for at, name in enumerate(["train", "test"]):
        for unit, parts in enumerate(units):
            positions = []
            for job, start, end in plans.pieces(name, 0, unit, parts[at]):
                positions += range(start, end)
                dealt[job] += end - start
                jobs_of[name].add(job)
            assert positions == list(range(parts[at]))
    assert not jobs_of["train"] & jobs_of["test"]
    written = [(job, *shard) for job in range(plans.jobs) for shard in plans.shards_of(job)]
    for job in range(plans.jobs):
        assert sum(rows for own, _, rows in written if own == job) == dealt[job]
    for at, name in enumerate(["train", "test"]):
        total = sum(parts[at] for parts in units)
        shards = max(1, -(-total // rows_per_shard))
        names = [shard for _, shard, _ in written if f"/{name}-" in shard]
        assert names == [f"data/{name}-{number:05d}-of-{shards:05d}.parquet" for number in range(shards)]
        assert sum(rows for _, shard, rows in written if shard in names) == total
        assert all(0 < rows <= rows_per_shard or total == 0 for _, shard, rows in written if shard in names)
