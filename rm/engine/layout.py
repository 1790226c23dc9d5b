"""Batch plans and layouts, computed from integers, without text or tensors."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple


def plan_batches(lengths: Sequence[int], *, tokens_per_batch: int) -> list[list[int]]:
    """Partition rows into batches of similar length under a token budget.

    `lengths` are tokens per row, and a batch costs `rows * longest row`, padding included. Longest rows come first, so
    that a batch too large for the memory fails at once. A row longer than the whole budget gets a batch of its own.
    Every index appears exactly once; equal lengths keep their order, so the plan is deterministic.
    """
    return plan_groups([[length] for length in lengths], tokens_per_batch=tokens_per_batch, padded=True)


def plan_groups(lengths: Sequence[Sequence[int]], *, tokens_per_batch: int, padded: bool) -> list[list[int]]:
    """Partition groups, never cut, into batches under a token budget, those with the longest rows first.

    `lengths` are tokens per row of each group. A batch costs `rows * longest row` where rows are `padded`, else the sum
    of its rows. A group larger than the whole budget gets a batch of its own. Every index appears exactly once.
    """
    _check_budget(tokens_per_batch)
    batches: list[list[int]] = []
    rows, longest, tokens = 0, 0, 0
    for index in sorted(range(len(lengths)), key=lambda i: -max(lengths[i])):
        group = lengths[index]
        rows, tokens = rows + len(group), tokens + sum(group)
        if not batches or (rows * longest if padded else tokens) > tokens_per_batch:
            batches.append([])
            rows, longest, tokens = len(group), max(group), sum(group)
        batches[-1].append(index)
    return batches


def cut_rows(lengths: Sequence[int], *, prefix: int, tokens_per_batch: int) -> list[list[int]]:
    """Cut one group's rows into runs that fit a token budget, the longest rows first.

    `lengths` are tokens per row, the `prefix` tokens that all rows share included. A run costs its prefix once and every
    row's own tokens, and repeats the prefix of the run before it. A row longer than the whole budget is a run of its own.
    Every index appears exactly once; equal lengths keep their order.
    """
    _check_budget(tokens_per_batch)
    if lengths and prefix > min(lengths):
        raise ValueError(f"prefix is {prefix} tokens, and the shortest row has {min(lengths)}")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    runs: list[list[int]] = []
    cost = 0
    for index in order:
        own_tokens = lengths[index] - prefix
        cost += own_tokens
        if not runs or cost > tokens_per_batch:
            runs.append([])
            cost = prefix + own_tokens
        runs[-1].append(index)
    return runs


def plan_even(costs: Sequence[int], *, tokens_per_batch: int, full: int) -> list[list[int]]:
    """Partition runs into batches of about the same cost, `full` tokens each, or less where the budget demands it.

    `costs` are tokens per run. Each run, costliest first, goes to the batch with the fewest tokens (Graham 1969, longest
    processing time first). A run larger than the whole budget gets a batch of its own. Every index appears exactly once;
    costliest batches come first.
    """
    _check_budget(tokens_per_batch)
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    count = max(1, round(sum(costs) / full))
    while True:
        batches: list[list[int]] = [[] for _ in range(count)]
        least = [(0, number) for number in range(count)]
        for index in order:
            cost, number = least[0]
            batches[number].append(index)
            heapq.heapreplace(least, (cost + costs[index], number))
        if all(cost <= tokens_per_batch or len(batches[number]) == 1 for cost, number in least):
            by_cost = [batches[number] for _, number in sorted(least, key=lambda pair: (-pair[0], pair[1]))]
            return [batch for batch in by_cost if batch]
        count += 1


class Segment(NamedTuple):
    """One group in a packed row: the length of its prefix, and of each response's own tokens, one after the other."""

    prefix: int
    responses: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.prefix, *self.responses) if self.prefix else self.responses

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The same lengths, each with the number of tokens before it that it attends to."""
        prefix = ((self.prefix, 0),) if self.prefix else ()
        return (*prefix, *((size, self.prefix) for size in self.responses))


class Layout(NamedTuple):
    """Groups packed into one row of T tokens, without padding."""

    ids: list[int]  # [T]
    positions: list[int]  # [T]; those of a response continue its prefix
    types: list[int] | None  # [T] token type ids, for the encoders that have them
    segments: tuple[Segment, ...]
    pooled: list[int]  # [R] index of the token that the head reads, for every response in order


def lay_out(
    groups: Sequence[Sequence[tuple[Sequence[int], Sequence[int] | None]]],
    *,
    share: bool,
    pad: int | None,
    first_position: int = 0,
) -> Layout:
    """Pack groups of rows `(ids, types)` into one row of T tokens.

    With `share` (causal models) the common first tokens of a group's rows are stored once, and the head reads the last
    token that is not `pad`, as transformers' own pooling does; without it (encoders) every row is stored whole and the
    head reads its first token. The token that the head reads is never shared, and a single row has no prefix, which
    would cost one more attention. Two rows that share [1, 2], for example:

        rows        [1, 2, 3, 4]  [1, 2, 5]
        ids         [1, 2, 3, 4, 5]
        positions   [0, 1, 2, 3, 2]
        segments    (Segment(prefix=2, responses=(2, 1)),)
        pooled      [3, 4]
    """
    ids: list[int] = []
    positions: list[int] = []
    types: list[int] = []
    segments: list[Segment] = []
    pooled: list[int] = []
    for rows in groups:
        reads = [_last_index_without(row, pad) if share else 0 for row, _ in rows]
        prefix = min(common_prefix([row for row, _ in rows]), *reads) if share and len(rows) > 1 else 0
        ids += rows[0][0][:prefix]
        positions += range(first_position, first_position + prefix)
        types += (rows[0][1] or ())[:prefix]
        for (row, row_types), read in zip(rows, reads, strict=True):
            pooled.append(len(ids) + read - prefix)
            ids += row[prefix:]
            positions += range(first_position + prefix, first_position + len(row))
            types += (row_types or ())[prefix:]
        segments.append(Segment(prefix, tuple(len(row) - prefix for row, _ in rows)))
    return Layout(ids, positions, types if len(types) == len(ids) else None, tuple(segments), pooled)


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """Count the common first tokens of all rows."""
    first, last = min(map(list, rows)), max(map(list, rows))  # whatever these two share, all between them share
    for place, (left, right) in enumerate(zip(first, last, strict=False)):
        if left != right:
            return place
    return min(len(first), len(last))


def _last_index_without(row: Sequence[int], pad: int | None) -> int:
    """Return the last index whose token is not `pad`, 0 where there is none."""
    return next((place for place in range(len(row) - 1, 0, -1) if row[place] != pad), 0)


def _check_budget(tokens_per_batch: int) -> None:
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}; it must be at least 1")
