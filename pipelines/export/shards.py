"""Shard plans: assign kept responses to shards, and shards to jobs, each written by one worker. Integers only, no Beam.

Kept responses are numbered in place order (file, unit, row, response); shard k has the numbers
[k * rows_per_shard, (k + 1) * rows_per_shard). Shards with a common boundary inside a unit that can only be streamed from its
start (a compressed file) form one job, so that no such unit is streamed twice. Train and test have separate numbers, shards and
jobs, and a unit with rows of both is read once for each.

For example, with 4 rows per shard, units with 3, 2 and 5 kept responses have the numbers 0-2, 3-4 and 5-9: shard 0 gets the
whole first unit and the first response of the second.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_MOST_ROWS_AT_ONCE = 1024  # more are no faster


@dataclass(frozen=True)
class ShardPlan:
    """The first number of each unit's kept responses, and the jobs that write them."""

    total: int
    unit_starts: Mapping[tuple[int, int], int]  # (file, unit) → number of its first kept response
    rows_per_shard: int
    jobs: tuple[tuple[int, int], ...]  # half-open ranges of shards

    @property
    def shards(self) -> int:
        return self.jobs[-1][1]

    def rows_of_job(self, job: int) -> tuple[int, int]:
        """The half-open range of response numbers in a job."""
        first, last = self.jobs[job]
        return first * self.rows_per_shard, min(last * self.rows_per_shard, self.total)

    def pieces(self, file: int, unit: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(job, start, end) for a unit's `count` kept responses, positions within the unit."""
        start = self.unit_starts[file, unit]
        job = bisect_right([first * self.rows_per_shard for first, _ in self.jobs], start) - 1
        position = 0
        while position < count:
            end = min(count, self.rows_of_job(job)[1] - start)
            yield job, position, end
            position, job = end, job + 1


@dataclass(frozen=True)
class SplitPlans:
    """The shard plan of each split, by its name; their jobs are numbered consecutively."""

    plans: Mapping[str, ShardPlan]
    rows_at_once: Mapping[int, int]  # by file number: rows that may be decoded at a time
    message_keys: frozenset[str] = frozenset()  # keys of the corpus's messages beside role and text

    @property
    def jobs(self) -> int:
        return sum(len(plan.jobs) for plan in self.plans.values())

    @property
    def counts(self) -> dict[str, int]:
        """The number of shards of each split."""
        return {name: plan.shards for name, plan in self.plans.items()}

    def pieces(self, split: str, file: int, unit: int, count: int) -> Iterator[tuple[int, int, int]]:
        """(job, start, end) for a unit's `count` kept responses in a split, as positions among these."""
        for job, start, end in self.plans[split].pieces(file, unit, count):
            yield self._first_job(split) + job, start, end

    def shards_of(self, job: int) -> Iterator[tuple[str, int]]:
        """(name, rows) of the shards that a job writes, in order."""
        split = [name for name in self.plans if self._first_job(name) <= job][-1]
        plan = self.plans[split]
        for number in range(*plan.jobs[job - self._first_job(split)]):
            rows = min(plan.rows_per_shard, plan.total - number * plan.rows_per_shard)
            yield f"data/{split}-{number:05d}-of-{plan.shards:05d}.parquet", rows

    def _first_job(self, split: str) -> int:
        return sum(len(self.plans[name].jobs) for name in itertools.takewhile(split.__ne__, self.plans))


def plan_shards(counts: Iterable[tuple[int, int, int]], *, rows_per_shard: int, streamed: Sequence[bool]) -> ShardPlan:
    """The shard plan for `counts`: (file, unit, kept responses) in any order; `streamed` by file number.

    If no response is kept, there is one empty shard: a data set without files cannot be loaded.
    """
    unit_starts: dict[tuple[int, int], int] = {}
    inner: list[tuple[int, int]] = []  # ranges of response numbers that one job must hold
    number = 0
    for file, unit, kept in sorted(counts):
        unit_starts[file, unit] = number
        if streamed[file]:
            inner.append((number, number + kept))
        number += kept
    shards = max(1, -(-number // rows_per_shard))
    joined = [False] * (shards + 1)  # whether the boundary before shard k lies inside such a range
    for start, end in inner:
        for boundary in range(start // rows_per_shard + 1, -(-end // rows_per_shard)):
            joined[boundary] = True
    starts = [shard for shard in range(shards) if not joined[shard]]
    return ShardPlan(number, unit_starts, rows_per_shard, tuple(zip(starts, [*starts[1:], shards], strict=True)))


def rows_at_once(fragments: Iterable[tuple[int, int, int]]) -> int:
    """The number of rows of a file that may be decoded at a time, given (unit, fragment, rows): at most those of two fragments,
    whose bytes are limited. Row counts alone do not limit memory: a dictionary may have one long text for many rows.
    """
    in_order = sorted(fragments)
    inner = [rows for (unit, _, rows), (following, *_) in itertools.pairwise(in_order) if unit == following]
    return min([_MOST_ROWS_AT_ONCE, *inner])


def rows_within(bytes_per_shard: int, rows_per_shard: int, *, rows: int, text_bytes: int) -> int:
    """The largest number of rows with which shards of mean row size stay within both bounds."""
    if not rows or not text_bytes:
        return rows_per_shard
    return max(1, min(rows_per_shard, bytes_per_shard * rows // text_bytes))


class OutputShard(NamedTuple):
    """A published shard; the manifest lists all but `memory_bytes`."""

    name: str
    rows: int
    bytes: int
    xxh3_128: str
    memory_bytes: int  # of its rows as Arrow tables

    @property
    def split(self) -> str:
        return self.name.rpartition("/")[2].partition("-")[0]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "memory_bytes"}
