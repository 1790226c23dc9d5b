"""Numbers of `bestkept plan`: totals from samples with their intervals, kept responses, time, memory and money. Pure.

Everything that is not known exactly is a `Quantity` with the ends of its range and with what it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A number, the range that it lies in, and what it rests on: exact, sampled (a 95 % interval), measured, assumed, or
    at_most."""

    value: float
    low: float
    high: float
    basis: str

    @classmethod
    def exact(cls, value: float) -> Quantity:
        return cls(value, value, value, "exact")

    def times(self, factor: float) -> Quantity:
        return Quantity(self.value * factor, self.low * factor, self.high * factor, self.basis)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}


_ORDER = ("exact", "measured", "sampled", "assumed", "at_most")


def weakest(*bases: str) -> str:
    """What a number rests on that is made of several."""
    return max(bases, key=_ORDER.index)


def total_of(quantities: Sequence[Quantity]) -> Quantity:
    """The sum of independent quantities: half-widths add as the root of their squares, each side by itself."""
    value = sum(each.value for each in quantities)
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in quantities))
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in quantities))
    return Quantity(value, value - below, value + above, weakest("exact", *(each.basis for each in quantities)))


def product_of(left: Quantity, right: Quantity) -> Quantity:
    """Ends times ends: no narrower than the truth, whatever the two have to do with one another. Both are positive."""
    return Quantity(
        left.value * right.value, left.low * right.low, left.high * right.high, weakest(left.basis, right.basis)
    )


def to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its quantities as plain values, at any depth."""

    def plain(value: Any) -> Any:
        if isinstance(value, Quantity):
            return value.to_json()
        if isinstance(value, Mapping):
            return to_json(value)
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in values.items()}
