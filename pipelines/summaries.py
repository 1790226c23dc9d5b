"""Mergeable summaries: counts and exact sums, the same whatever the order they are merged in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt


@dataclass
class ExactSum:
    """Sum of float32 values without rounding: integer mantissas added up per binary exponent."""

    count: int = 0
    mantissas: Counter[int] = field(default_factory=Counter)  # exponent → sum of 24-bit integers

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> ExactSum:
        fractions, exponents = np.frexp(values.astype(np.float32))
        integers = np.ldexp(fractions.astype(np.float64), 24).astype(np.int64)  # exact: float32 has 24 bits
        sums: Counter[int] = Counter()
        for exponent in np.unique(exponents):
            sums[int(exponent)] = int(integers[exponents == exponent].sum())
        return cls(len(values), sums)

    def __add__(self, other: ExactSum) -> ExactSum:
        merged = Counter(self.mantissas)
        for exponent, total in other.mantissas.items():
            merged[exponent] += total  # Counter's own + drops what is not positive
        return ExactSum(self.count + other.count, merged)

    def __sub__(self, part: ExactSum) -> ExactSum:
        """What is left when `part`, a sum over some of the same values, is taken away."""
        merged = Counter(self.mantissas)
        merged.subtract(part.mantissas)
        return ExactSum(self.count - part.count, merged)

    def mean(self) -> float | None:
        """The correctly rounded mean; None without values."""
        if not self.count:
            return None
        total = sum(
            (Fraction(mantissa) * Fraction(2) ** (exponent - 24) for exponent, mantissa in self.mantissas.items()),
            Fraction(0),
        )
        return float(total / self.count)


@dataclass
class SelectionSummary:
    """What selection did to one or more partitions of the prompts."""

    candidates: int = 0
    prompts: int = 0
    steps: list[tuple[str, int, int]] = field(default_factory=list)  # rule, rows and prompts it kept
    kept: ExactSum = field(default_factory=ExactSum)
    dropped: ExactSum = field(default_factory=ExactSum)
    kept_prompts: int = 0

    def __add__(self, other: SelectionSummary) -> SelectionSummary:
        if self.steps and other.steps:
            steps = [(rule, a + c, b + d) for (rule, a, b), (_, c, d) in zip(self.steps, other.steps, strict=True)]
        else:
            steps = self.steps or other.steps
        return SelectionSummary(
            self.candidates + other.candidates,
            self.prompts + other.prompts,
            steps,
            self.kept + other.kept,
            self.dropped + other.dropped,
            self.kept_prompts + other.kept_prompts,
        )


def merge_summaries(summaries: Iterable[SelectionSummary]) -> SelectionSummary:
    total = SelectionSummary()
    for summary in summaries:
        total = total + summary
    return total
