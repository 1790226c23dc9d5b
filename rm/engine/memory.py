"""The memory of a forward, with or without its backward: counted on small batches, and carried on to larger ones.

Every tensor that an operation allocates is followed until it is freed, on any device, so no architecture needs a formula.
Memory grows with the tokens of a batch and, where attention holds a matrix, with their product with the longest row. So
three small batches settle all three coefficients. What kernels hold inside of themselves is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PROBED_TOKENS = 64  # of a row in the smallest batch; the longest row has twice as many


@dataclass(frozen=True)
class BatchMemory:
    """The bytes that a batch needs on top of weights and their gradients."""

    constant: float
    per_token: float
    per_pair: float  # of a token and one of the longest row

    @classmethod
    def of(cls, measure: Callable[[int, int], tuple[int, int]], *, longest: int) -> BatchMemory:
        """Return what batches need by `measure(rows, tokens per row)`, which returns (tokens computed, peak in bytes).

        It is called three times, with rows of at most `longest` tokens.
        """
        length = max(1, min(PROBED_TOKENS, longest // 2))
        (n1, one), (n2, two), (n3, long) = measure(1, length), measure(2, length), measure(1, 2 * length)
        grown = (two - one) / max(1, n2 - n1)  # of a token, in rows of `length`
        constant = one - grown * n1
        twice = (long - constant) / n3  # of a token, in rows twice as long
        per_pair = max(0.0, (twice - grown) / length)
        return cls(max(0.0, constant), max(0.0, grown - per_pair * length), per_pair)

    def bytes(self, tokens: int, longest: int) -> int:
        """Return what a batch of `tokens` needs whose longest row has `longest`."""
        return round(self.constant + tokens * self._of_token(longest))

    def tokens_within(self, free: int, longest: int) -> int:
        """Return the most tokens that `free` bytes take, in rows of up to `longest`; 0 or less where there are none."""
        return int((free - self.constant) // max(1.0, self._of_token(longest)))

    def _of_token(self, longest: int) -> float:
        return self.per_token + self.per_pair * longest


def peak_bytes(compute: Callable[[], Any], *, trained: Iterable[nn.Parameter] = ()) -> int:
    """Return the most bytes that `compute` held at a time beyond what was there; gradients of `trained` do not count."""
    counter = _Allocations()
    hooks = [
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
    return counter.peak()


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records storages as operations allocate them and as they are freed, in order."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._events: list[tuple[int, int]] = []  # (number of the storage, bytes; negative when freed)
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

    def peak(self) -> int:
        """Return the most bytes that were allocated at a time."""
        held = most = 0
        for number, size in self._events:
            if number not in self._left_out:
                held += size
                most = max(most, held)
        return most

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
