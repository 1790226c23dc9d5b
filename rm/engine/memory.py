"""The memory of a forward, with or without its backward: measured on small batches, and extrapolated to larger ones.

Every tensor that an operation allocates is tracked until it is freed, on any device, so no architecture needs a formula. A few
small batches determine the memory that grows with the tokens of a batch, with the pairs of tokens that attend to each other,
with the pairs of one row if attention runs row by row, and with the keys gathered for attention to prefixes. Each module is
measured separately, since another module may need the most in larger batches. Memory inside kernels is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rm.engine.layout import Segment
from rm.engine.packed_attention import BLOCK

PROBED_TOKENS = 64  # of a row in the smallest batch; the longest row has twice as many

Peaks = Mapping[Hashable, int]
"""The peak of allocated bytes, by the part of the computation."""


class BatchSize(NamedTuple):
    """The numbers that the memory of a batch depends on."""

    tokens: int  # computed: shared ones once, padding included
    pairs: float  # of tokens and those that they attend to, over all rows
    row_pairs: float  # pairs of the longest row in memory at a time, if attention runs row by row
    gathered: int  # keys of prefixes, once for each response that attends to them
    masked: float  # pairs of a response's tokens and those that they attend to, if it has a prefix

    @classmethod
    def padded(cls, tokens: int, longest: int) -> BatchSize:
        """Return the size of rows of at most `longest` tokens, padded."""
        return cls(tokens, tokens * longest, longest * longest, 0, 0)

    @classmethod
    def packed(cls, segments: Sequence[Segment]) -> BatchSize:
        """Return the size of packed rows."""
        runs = [(size, before) for segment in segments for size, before in segment.runs]
        return cls(
            sum(size for size, _ in runs),
            sum(size * (before + (size + min(size, BLOCK)) / 2) for size, before in runs),
            max(min(size, BLOCK) * (size + before) for size, before in runs),
            sum(before for _, before in runs),
            sum(size * (size + before) for size, before in runs if before),
        )

    def times(self, factor: float) -> BatchSize:
        """Return the size of a batch with this multiple of the rows."""
        return self._replace(
            tokens=round(self.tokens * factor),
            pairs=self.pairs * factor,
            gathered=round(self.gathered * factor),
            masked=self.masked * factor,
        )


class _Part(NamedTuple):
    """Bytes that are held in one part of the computation."""

    constant: float
    per_token: float
    per_pair: float
    per_row_pair: float
    per_gathered: float
    per_masked: float

    @classmethod
    def of(cls, probes: Sequence[tuple[BatchSize, int]]) -> _Part:
        """Solve the sizes and bytes of the probes of `BatchMemory.of`, in their order; nothing makes memory shrink."""
        (one, a), (two, b), (long, c), (both, d), *shared = probes
        row, rows = b - a, d - c  # of one more row, short and long
        tokens, more = two.tokens - one.tokens, both.tokens - long.tokens
        pairs, more_pairs = two.pairs - one.pairs, both.pairs - long.pairs
        per_pair = max(0.0, (rows / more - row / tokens) / (more_pairs / more - pairs / tokens))
        per_token = max(0.0, (row - per_pair * pairs) / tokens)
        grown = c - a - per_token * (long.tokens - one.tokens) - per_pair * (long.pairs - one.pairs)
        per_row_pair = max(0.0, grown / (long.row_pairs - one.row_pairs))
        alone = cls(0.0, per_token, per_pair, per_row_pair, 0.0, 0.0)
        alone = alone._replace(constant=max(0.0, a - alone.bytes(one)))
        if not shared:
            return alone
        # one more response to a prefix, of a few tokens and of many: memory that one response at a time has does not count
        left = [(size, held - alone.bytes(size)) for size, held in shared]
        (keys, few, e), (more_keys, many, f) = (
            (second.gathered - first.gathered, second.masked - first.masked, held - less)
            for (first, less), (second, held) in (left[:2], left[2:])
        )
        masked = max(0.0, (keys * f - more_keys * e) / (keys * many - more_keys * few))
        return alone._replace(per_gathered=max(0.0, (e - masked * few) / keys), per_masked=masked)

    def bytes(self, size: BatchSize) -> float:
        return self.constant + sum(rate * number for rate, number in zip(self[1:], size, strict=True))

    def rows_within(self, free: int, size: BatchSize) -> float:
        """Return the multiple of such a batch's rows that fits into `free` bytes."""
        fixed = self.constant + self.per_row_pair * size.row_pairs
        return (free - fixed) / max(1.0, self.bytes(size) - fixed)


@dataclass(frozen=True)
class BatchMemory:
    """The bytes that a batch needs on top of weights and their gradients."""

    parts: tuple[_Part, ...]

    @classmethod
    def of(
        cls, measure: Callable[[Sequence[int], int], tuple[int, Peaks]], *, longest: int, packed: bool, shares: bool
    ) -> BatchMemory:
        """Return the memory of batches by `measure(lengths, prefix)`: (tokens computed, peaks) of rows that share a prefix.

        It is called with rows of at most `longest` tokens. Rows are `packed`, or padded; `shares` says whether the keys
        of a packed prefix are gathered for each response.
        """
        length = max(3, min(PROBED_TOKENS, longest // 2))
        # two rows have two lengths, as real rows do, so that tensors made once for each length count
        short, long = (length, length - 1), (2 * length, 2 * length - 1)
        probes = [(short[:1], 0), (short, 0), (long[:1], 0), (long, 0)]
        if packed and shares:
            longer = (*long, 2 * length - 2)
            probes += [(rows, prefix) for prefix in (2 * length - 3, length) for rows in (long, longer)]
        measured: list[tuple[BatchSize, Peaks]] = []
        for lengths, prefix in probes:
            tokens, peaks = measure(lengths, prefix)
            segment = Segment(prefix, tuple(row - prefix for row in lengths))
            size = BatchSize.packed([segment]) if packed else BatchSize.padded(tokens, max(lengths))
            measured.append((size, peaks))
        names = dict.fromkeys(name for _, peaks in measured for name in peaks)
        return cls(tuple({_Part.of([(size, peaks.get(name, 0)) for size, peaks in measured]) for name in names}))

    def bytes(self, size: BatchSize) -> int:
        """Return the bytes that a batch needs."""
        return round(max(part.bytes(size) for part in self.parts))

    def tokens_within(self, free: int, size: BatchSize) -> int:
        """Return the most tokens that fit into `free` bytes, in rows like those of `size`; 0 or less if none fit."""
        return int(min(part.rows_within(free, size) for part in self.parts) * size.tokens)


def measure_peaks(compute: Callable[[], Any], *, trained: Iterable[nn.Parameter] = ()) -> Peaks:
    """Return the peak of the bytes allocated by `compute`; gradients of `trained` do not count.

    The parts are those before and after each module's forward; a backward belongs to the last.
    """
    counter = _Allocations()
    hooks: list[Any] = [
        register_module_forward_pre_hook(lambda module, _: counter.enter((id(module), "in"))),
        register_module_forward_hook(lambda module, _, __: counter.enter((id(module), "out"))),
    ]
    hooks += [
        parameter.register_post_accumulate_grad_hook(counter.leave_out_gradient)  # type: ignore[no-untyped-call]
        for parameter in trained
        if parameter.requires_grad
    ]
    try:
        with counter:
            compute()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.peaks()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records storages as operations allocate them and as they are freed, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, int]] = []  # (number of the storage, bytes; negative when freed)
        self._parts: list[tuple[int, Hashable]] = [(0, None)]  # (number of its first event, name)
        self._numbers: dict[int, int] = {}  # of the living ones, by the address of their object in torch
        self._left_out: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {storage._cdata for storage in map(_storage_of, tree_leaves((args, kwargs))) if storage is not None}
        for leaf in tree_leaves(result):
            storage = _storage_of(leaf)
            if storage is not None and storage._cdata not in known and storage._cdata not in self._numbers:
                self._follow(storage)
        return result

    def leave_out_gradient(self, parameter: torch.Tensor) -> None:
        """Do not count the storage of a gradient that stays."""
        storage = _storage_of(parameter.grad)
        if storage is not None and storage._cdata in self._numbers:
            self._left_out.add(self._numbers[storage._cdata])

    def enter(self, part: Hashable) -> None:
        """Count what follows as this part."""
        self._parts.append((len(self._events), part))

    def peaks(self) -> Peaks:
        """Return the peak of allocated bytes in each part."""
        held = 0
        peaks: dict[Hashable, int] = {}
        ends = [start for start, _ in self._parts[1:]] + [len(self._events)]
        for (start, part), end in zip(self._parts, ends, strict=True):
            most = held
            for number, size in self._events[start:end]:
                if number not in self._left_out:
                    held += size
                    most = max(most, held)
            peaks[part] = max(peaks.get(part, 0), most)
        return peaks

    def _follow(self, storage: Any) -> None:
        number, address, size = len(self._events), storage._cdata, storage.nbytes()
        self._events.append((number, size))
        self._numbers[address] = number

        def freed() -> None:
            self._events.append((number, -size))
            self._numbers.pop(address, None)

        weakref.finalize(storage, freed).atexit = False


def _storage_of(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return None
    try:
        return value.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse, or of a library of kernels
        return None
