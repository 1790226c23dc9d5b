"""The attention of a packed row as a plan: spans for kernels of variable length, indices of keys, and masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from rm.engine.device import to_device
from rm.engine.layout import Segment

# Costs of attention to prefixes, in bytes of memory traffic per feature of a head, to choose between one call and two.
_GATHER_BYTES = 8  # a gathered key and value of 16 bits: read and written
_MERGE_BYTES = (
    44  # a merged token: gathered, attended, widened, interpolated, rounded and put back, as PyTorch's operations do
)
_FLOPS_PER_BYTE = 100  # of an attention kernel on a large GPU, per byte that its memory could move in the same time
_TILE = 128  # queries that a kernel computes together; a shorter run costs the same
_MOST_GATHERED = (
    4  # times the size of all queries: what gathered keys take at a time, which is about what a feed-forward takes
)


class Spans(NamedTuple):
    """N runs of queries and the run of keys that each attends to: one call of a variable-length kernel.

    In causal calls the last query of a run sees all of its keys, the previous query all but one.
    """

    query_ends: torch.Tensor  # int32 [N + 1], from 0
    key_ends: torch.Tensor  # int32 [N + 1]
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Spans:
        """Return the spans of runs of these lengths [N] each."""
        query_ends, key_ends = (
            to_device([0, *accumulate(sizes)], device, dtype=torch.int32) for sizes in (queries, keys)
        )
        return cls(query_ends, key_ends, max(queries), max(keys))


class _Request(NamedTuple):
    """A layer's request to its plan: the arguments of `AttentionPlan.calls`."""

    window: int | None
    heads: int
    key_heads: int
    mergeable: bool


class _Run(NamedTuple):
    """A prefix or a response: its tokens in the row, and the last `kept` tokens of its prefix."""

    start: int
    size: int
    prefix_end: int
    kept: int


@dataclass(frozen=True)
class AttentionPlan:
    """The segments of a packed row, with everything that their attention needs; one plan for all layers of a forward.

    `told` collects the window and the cap of logits that each layer passes to its attention, `asked` the layers' requests.
    """

    segments: tuple[Segment, ...]
    device: torch.device
    told: list[tuple[int | None, float | None]] = field(default_factory=list, init=False, repr=False, compare=False)
    asked: set[_Request] = field(default_factory=set, init=False, repr=False, compare=False)
    _masks: dict[tuple[int, int, int, bool, int | None], torch.Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _joined: dict[tuple[int | None, int], list[tuple[torch.Tensor | None, slice, Spans]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _cheaper: dict[tuple[int, int], bool] = field(default_factory=dict, init=False, repr=False, compare=False)
    _others: dict[torch.device, AttentionPlan] = field(default_factory=dict, init=False, repr=False, compare=False)

    def on(self, device: torch.device) -> AttentionPlan:
        """Return the plan for layers on this device, made once."""
        if device == self.device:
            return self
        if device not in self._others:
            self._others[device] = AttentionPlan(self.segments, device)
        return self._others[device]

    @cached_property
    def parts(self) -> list[int]:
        """The lengths of the row's parts: for each segment its prefix, if any, and all its responses together."""
        return [part for s in self.segments for part in (s.prefix, sum(s.responses)) if part]

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """The lengths of all prefixes and responses, each with the number of tokens before it that it attends to."""
        return [run for segment in self.segments for run in segment.runs]

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest row, its prefix included."""
        return max(size + before for size, before in self.runs)

    @cached_property
    def rows(self) -> Spans:
        """Prefixes and responses, each attending to itself."""
        sizes = [size for size, _ in self.runs]
        return Spans.of(sizes, sizes, self.device)

    @cached_property
    def first_tokens(self) -> Spans:
        """One token of each response, attending to all of it."""
        sizes = [size for segment in self.segments for size in segment.responses]
        return Spans.of([1] * len(sizes), sizes, self.device)

    @cached_property
    def shares(self) -> bool:
        """True if any segment has a prefix."""
        return any(segment.prefix for segment in self.segments)

    @cached_property
    def to_prefix(self) -> tuple[torch.Tensor, torch.Tensor, Spans]:
        """Indices of the tokens that have a prefix, indices of the prefixes, and their spans; for plans that share."""
        shared = [segment for segment in self.segments if segment.prefix]
        queries: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        at = 0
        for segment in self.segments:
            prefix_end, end = at + segment.prefix, at + sum(segment.sizes)
            if segment.prefix:
                keys.append(np.arange(at, prefix_end))
                queries.append(np.arange(prefix_end, end))
            at = end
        spans = Spans.of([sum(segment.responses) for segment in shared], [s.prefix for s in shared], self.device)
        return to_device(np.concatenate(queries), self.device), to_device(np.concatenate(keys), self.device), spans

    def calls(
        self, window: int | None, heads: int, key_heads: int, *, mergeable: bool
    ) -> list[tuple[torch.Tensor | None, slice, Spans]] | None:
        """Return the calls over gathered keys (`joined`) for these heads of queries and keys; None if two calls, which must be
        `mergeable`, cost less: then `rows` and `to_prefix` are made."""
        self.asked.add(_Request(window, heads, key_heads, mergeable))
        if not mergeable or not self.shares or self.is_joined(heads, key_heads):
            return self.joined(window, most_gathered(heads, key_heads, sum(self.parts)))
        _ = self.rows, self.to_prefix
        return None

    def build(self, asked: Iterable[_Request]) -> None:
        """Answer in advance the requests that the layers of a model made in another forward."""
        for window, heads, key_heads, mergeable in asked:
            self.calls(window, heads, key_heads, mergeable=mergeable)

    def joined(self, window: int | None, most: int) -> list[tuple[torch.Tensor | None, slice, Spans]]:
        """Return calls that attend to all keys of every run, its prefix's and its own. Made once per plan.

        Each has the indices of its keys, its queries, and their spans. Usually one call covers all runs; no call gathers more
        than `most` keys, unless a single run does. With a `window` the far end of a prefix is left out. Without any prefix
        keys are not gathered, and the indices are None.
        """
        if not self.shares:
            return [(None, slice(None), self.rows)]
        if (window, most) not in self._joined:
            self._joined[window, most] = [self._join(runs, window) for runs in self._cut(window, most)]
        return self._joined[window, most]

    def _cut(self, window: int | None, most: int) -> Iterator[list[_Run]]:
        """Yield all runs in parts of at most `most` keys."""
        part: list[_Run] = []
        held, at = 0, 0
        for segment in self.segments:
            start = at
            for size, before in segment.runs:
                kept = before if window is None else min(before, window - 1)
                if part and held + size + kept > most:
                    yield part
                    part, held = [], 0
                part.append(_Run(at, size, start + before, kept))
                held, at = held + size + kept, at + size
        yield part

    def _join(self, runs: Sequence[_Run], window: int | None) -> tuple[torch.Tensor, slice, Spans]:
        keys: list[np.ndarray] = []  # not lists of integers: a batch has 100,000 of them, and its tensors are made anew
        for run in runs:
            keys += [np.arange(run.prefix_end - run.kept, run.prefix_end), np.arange(run.start, run.start + run.size)]
        spans = Spans.of([run.size for run in runs], [run.kept + run.size for run in runs], self.device)
        queries = slice(runs[0].start, runs[-1].start + runs[-1].size)
        return to_device(np.concatenate(keys), self.device), queries, spans

    def is_joined(self, heads: int, key_heads: int) -> bool:
        """Return whether one call over gathered keys is estimated to cost less than two merged calls.

        One call copies every response's prefix, and fills a tile of queries for each response; two calls read and write
        all attentions several more times. So two are cheaper if prefixes are much longer than responses. Computed once per plan.
        """
        if (heads, key_heads) not in self._cheaper:
            self._cheaper[heads, key_heads] = self._costs_less_joined(heads, key_heads)
        return self._cheaper[heads, key_heads]

    def _costs_less_joined(self, heads: int, key_heads: int) -> bool:
        one = two = 0.0
        for segment in self.segments:
            if segment.prefix:
                own = sum(segment.responses)
                keys = sum(segment.sizes) + segment.prefix * len(segment.responses)
                one += _GATHER_BYTES * key_heads * keys
                one += _tiled(segment.responses) * segment.prefix * heads * 4 / _FLOPS_PER_BYTE
                two += _MERGE_BYTES * heads * own
                two += _tiled([own]) * segment.prefix * heads * 4 / _FLOPS_PER_BYTE
        return one <= two

    def mask(self, queries: int, keys: int, before: int, *, causal: bool, window: int | None) -> torch.Tensor | None:
        """Return the mask of the keys that each query sees, bool [queries, keys]; None if each sees all. Made once per plan.

        The first query is `before` tokens after the first key. A query sees a key that is fewer than `window` tokens away,
        and in `causal` attention not after it.
        """
        farthest = max(before + queries - 1, 0 if causal else keys - 1 - before)
        if window is not None and farthest < window:
            window = None
        if window is None and (not causal or before >= keys - 1):
            return None
        key = (queries, keys, before, causal, window)
        if key not in self._masks:
            places = torch.arange(before, before + queries, device=self.device)
            distances = places[:, None] - torch.arange(keys, device=self.device)
            sees = distances >= 0 if causal else torch.ones_like(distances, dtype=torch.bool)
            self._masks[key] = sees if window is None else sees & (distances.abs() < window)
        return self._masks[key]


def most_gathered(heads: int, key_heads: int, tokens: int) -> int:
    """Return the largest number of keys that one call gathers in a row of so many tokens."""
    return _MOST_GATHERED * tokens * heads // key_heads


def _tiled(sizes: Sequence[int]) -> int:
    """Count the queries that a kernel computes for runs of these sizes: whole tiles of each."""
    return sum(-(-size // _TILE) * _TILE for size in sizes)
