"""Batch plans: integers in, indices out. Knows neither text nor tensors."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], *, tokens_per_batch: int) -> list[list[int]]:
    """Partition rows into batches of similar length under a token budget.

    `lengths` are tokens per row, and a batch costs `rows * longest row`, padding included. Longest rows come first, so
    that a batch too large for the memory shows at once. A row longer than the whole budget gets a batch of its own.
    Every index appears exactly once; equal lengths keep their order, so the plan is deterministic.
    """
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}; it must be at least 1")
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * longest > tokens_per_batch:
            batches.append([])
            longest = lengths[index]
        batches[-1].append(index)
    return batches
