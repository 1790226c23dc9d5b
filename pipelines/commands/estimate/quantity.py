"""The type of every estimate in `bestkept plan`: a value, its range and its basis; with sums and products. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """A number, its range, and its basis: exact, sampled (a 95 % interval), measured, assumed, or at_most."""

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
    """Return the basis of a number that is computed from several numbers: the least certain of their bases."""
    return max(bases, key=_ORDER.index)


def total_of(quantities: Sequence[Quantity]) -> Quantity:
    """Return the sum of independent quantities: half-widths add as the root of their squares, separately for each side."""
    value = sum(quantity.value for quantity in quantities)
    below = math.sqrt(sum((quantity.value - quantity.low) ** 2 for quantity in quantities))
    above = math.sqrt(sum((quantity.high - quantity.value) ** 2 for quantity in quantities))
    return Quantity(value, value - below, value + above, weakest("exact", *(quantity.basis for quantity in quantities)))


def product_of(left: Quantity, right: Quantity) -> Quantity:
    """Return the product of two positive quantities: ends times ends, wide enough for any dependence between the two."""
    return Quantity(
        left.value * right.value, left.low * right.low, left.high * right.high, weakest(left.basis, right.basis)
    )


def to_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping with its quantities as plain values, at any depth."""

    def plain(value: Any) -> Any:
        if isinstance(value, Quantity):
            return value.to_json()
        if isinstance(value, Mapping):
            return to_json(value)
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in values.items()}
