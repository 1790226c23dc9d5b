"""Mergeable summaries: counts and exact sums, the same whatever the order they are merged in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.length import Sample, merge_samples

_EXACT = 2**28  # so many 24-bit integers are summed exactly in a float64


@dataclass
class ExactSum:
    """Sum of float32 values without rounding: integer mantissas added up per binary exponent."""

    count: int = 0
    mantissas: Counter[int] = field(default_factory=Counter)  # exponent → sum of 24-bit integers

    @classmethod
    def of(cls, values: npt.NDArray[np.float32]) -> ExactSum:
        sums: Counter[int] = Counter()
        for exponents, signed in _parts(values):
            totals = np.bincount(exponents, weights=signed)  # exact: below 2**53
            for exponent in np.flatnonzero(totals).tolist():
                sums[max(exponent, 1) - 126] += int(totals[exponent])
        return cls(len(values), sums)

    @classmethod
    def of_squares(cls, values: npt.NDArray[np.float32]) -> ExactSum:
        """The sum of the values' squares, which are not rounded either."""
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
            merged[exponent] += total  # Counter's own + drops what is not positive
        return ExactSum(self.count + other.count, merged)

    def __sub__(self, part: ExactSum) -> ExactSum:
        """What is left when `part`, a sum over some of the same values, is taken away."""
        merged = Counter(self.mantissas)
        merged.subtract(part.mantissas)
        return ExactSum(self.count - part.count, merged)

    def total(self) -> Fraction:
        return sum(
            (Fraction(mantissa) * Fraction(2) ** (exponent - 24) for exponent, mantissa in self.mantissas.items()),
            Fraction(0),
        )

    def mean(self) -> float | None:
        """The correctly rounded mean; None without values."""
        return float(self.total() / self.count) if self.count else None


def _parts(values: npt.NDArray[np.float32]) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]]:
    """Biased exponents and signed 24-bit integers of finite values, not too many at once."""
    for start in range(0, len(values), _EXACT):
        bits = np.ascontiguousarray(values[start : start + _EXACT], dtype=np.float32).view(np.uint32)
        exponents = (bits >> np.uint32(23)) & np.uint32(0xFF)
        integers = (bits & np.uint32(0x7FFFFF)) | ((exponents > 0).astype(np.uint32) << np.uint32(23))
        signed = integers.astype(np.int64)
        yield exponents, np.where(bits >> np.uint32(31), -signed, signed)


class StepSum(NamedTuple):
    """What a step kept."""

    rule: str
    rows: int
    prompts: int | None  # None where the step works before prompts come together
    size: int  # tokens; characters where there is no tokenizer


StepCounts = dict[int, StepSum]
"""By number of the step."""


@dataclass
class SelectionSummary:
    """What selection did to a part of the responses."""

    candidates: int = 0
    prompts: int | None = 0  # None where a cut before prompts come together leaves them uncounted
    steps: StepCounts = field(default_factory=dict)
    kept: ExactSum = field(default_factory=ExactSum)
    everything: ExactSum = field(default_factory=ExactSum)
    kept_prompts: int = 0
    size: int = 0  # tokens of all candidates; characters where there is no tokenizer
    kept_size: int = 0
    longest: ExactSum = field(
        default_factory=ExactSum
    )  # of as many responses a prompt as were kept, the longest instead
    sample: Sample = field(default_factory=lambda: merge_samples([]))

    @property
    def dropped(self) -> ExactSum:
        return self.everything - self.kept

    def __add__(self, other: SelectionSummary) -> SelectionSummary:
        steps = dict(self.steps)
        for number, own in other.steps.items():
            before = steps.get(number, StepSum(own.rule, 0, 0, 0))
            prompts = _both(before.prompts, own.prompts)
            steps[number] = StepSum(own.rule, before.rows + own.rows, prompts, before.size + own.size)
        return SelectionSummary(
            candidates=self.candidates + other.candidates,
            prompts=_both(self.prompts, other.prompts),
            steps=steps,
            kept=self.kept + other.kept,
            everything=self.everything + other.everything,
            kept_prompts=self.kept_prompts + other.kept_prompts,
            size=self.size + other.size,
            kept_size=self.kept_size + other.kept_size,
            longest=self.longest + other.longest,
            sample=merge_samples([self.sample, other.sample]),
        )

    def random_mean(self) -> float | None:
        """Mean reward of a random choice of the kept ones' size: the first of the sample, up to that share of its size."""
        sizes = self.sample.tokens.astype(np.int64)
        if not self.size or not len(sizes):
            return None
        fits = int(np.count_nonzero(np.cumsum(sizes) * self.size <= self.kept_size * int(sizes.sum())))
        return ExactSum.of(self.sample.reward[:fits]).mean()


def _both(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right


def merge_summaries(summaries: Iterable[SelectionSummary]) -> SelectionSummary:
    total = SelectionSummary()
    for summary in summaries:
        total = total + summary
    return total
