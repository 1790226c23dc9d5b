"""Exact sums of floats, independent of their order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt

_EXACT = 2**28  # number of 24-bit integers whose sum is exact in a float64


@dataclass
class ExactSum:
    """Sum of float32 values without rounding: integer mantissas added up per binary exponent."""

    count: int = 0
    mantissas: Counter[int] = field(default_factory=Counter)  # exponent → sum of 24-bit integers

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> ExactSum:
        """The sum of finite values."""
        sums: Counter[int] = Counter()
        for start in range(0, len(values), _EXACT):
            fractions, exponents = np.frexp(values[start : start + _EXACT])  # fractions are multiples of 2**-24
            least = int(exponents.min())
            totals = np.bincount(exponents - least, weights=fractions)  # exact: 53 bits are enough
            for place in np.flatnonzero(totals).tolist():
                sums[least + place] += int(totals[place] * 2**24)
        return cls(len(values), sums)

    @classmethod
    def of_squares(cls, values: npt.NDArray[np.float32]) -> ExactSum:
        """The sum of the squares of the values, without rounding."""
        sums: Counter[int] = Counter()
        for exponents, signed in _parts(values):
            squares = signed * signed  # below 2**48: summed as two halves of 24 bits
            low = np.bincount(exponents, weights=squares & 0xFFFFFF)
            high = np.bincount(exponents, weights=squares >> 24)
            for exponent in np.flatnonzero(low + high).tolist():
                at = 2 * (max(exponent, 1) - 126) - 24  # (m * 2**(e - 24))**2 = m**2 * 2**((2 * e - 24) - 24)
                sums[at] += int(low[exponent]) + (int(high[exponent]) << 24)
        return cls(len(values), sums)

    def __add__(self, other: ExactSum) -> ExactSum:
        merged = Counter(self.mantissas)
        for exponent, total in other.mantissas.items():
            merged[exponent] += total  # the + of Counter drops sums that are not positive
        return ExactSum(self.count + other.count, merged)

    def __sub__(self, part: ExactSum) -> ExactSum:
        """The sum without the values of `part`, which it includes."""
        merged = Counter(self.mantissas)
        merged.subtract(part.mantissas)
        return ExactSum(self.count - part.count, merged)

    def total(self) -> Fraction:
        """The sum as an exact fraction."""
        return sum(
            (Fraction(mantissa) * Fraction(2) ** (exponent - 24) for exponent, mantissa in self.mantissas.items()),
            Fraction(0),
        )

    def mean(self) -> float | None:
        """The correctly rounded mean; None without values."""
        return float(self.total() / self.count) if self.count else None


def _parts(values: npt.NDArray[np.float32]) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]]:
    """Biased exponents and signed 24-bit integers of finite values, at most `_EXACT` at once."""
    for start in range(0, len(values), _EXACT):
        bits = np.ascontiguousarray(values[start : start + _EXACT], dtype=np.float32).view(np.uint32)
        exponents = (bits >> np.uint32(23)) & np.uint32(0xFF)
        integers = (bits & np.uint32(0x7FFFFF)) | ((exponents > 0).astype(np.uint32) << np.uint32(23))
        signed = integers.astype(np.int64)
        yield exponents, np.where(bits >> np.uint32(31), -signed, signed)
