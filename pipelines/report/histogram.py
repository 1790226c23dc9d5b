"""Counts of rewards in bins that need not be chosen in advance: exact, and independent of how the rows are divided. Pure.

Bins are `2**scale` wide and begin at multiples of that, so that two of them form one of the next scale, exactly. The scale of
a part is the finest at which its own range takes at most `BINS` bins. The whole has a wider range and therefore no finer
scale; coarsening the parts to it gives the same counts as counting everything at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

BINS = 1024
_DIGITS = 40  # of the largest reward, in bits: more than float32 has, so that such bins begin at the rewards themselves
_LEAST = -148  # exponent of the smallest float32

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Histogram:
    """Rows and sizes (such as tokens) by bin of reward, for each of several groups; `counts[group][k]` is for bin `first +
    k`."""

    scale: int = -1024
    first: int = 0
    counts: Mapping[int, Counts] = field(default_factory=dict)
    sizes: Mapping[int, Counts] = field(default_factory=dict)

    @classmethod
    def of(
        cls, rewards: npt.NDArray[np.float32], sizes: npt.NDArray[np.integer], groups: npt.NDArray[np.integer]
    ) -> Histogram:
        """Count finite rewards [N], with sizes [N] below 2**31 and groups [N]: small integers from 0."""
        if not len(rewards):
            return cls()
        values = rewards.astype(np.float64)
        scale = scale_of(float(values.min()), float(values.max()))
        bins = np.floor(np.ldexp(values, -scale)).astype(np.int64)
        first = int(bins.min())
        width = int(bins.max()) - first + 1
        cells = groups.astype(np.int64) * width + (bins - first)
        many = (int(groups.max()) + 1) * width
        counts = np.bincount(cells, minlength=many).reshape(-1, width)
        # float64 sums are exact below 2**53
        totals = np.bincount(cells, weights=sizes, minlength=many).astype(np.int64).reshape(-1, width)
        present = np.flatnonzero(counts.any(axis=1)).tolist()
        return cls(scale, first, {g: counts[g] for g in present}, {g: totals[g] for g in present})

    def __bool__(self) -> bool:
        return bool(self.counts)

    @property
    def bins(self) -> int:
        return max((len(rows) for rows in self.counts.values()), default=0)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """[bins + 1]; bin k holds rewards from edge k to just below edge k + 1."""
        return np.ldexp(np.arange(self.first, self.first + self.bins + 1, dtype=np.float64), self.scale)

    def regroup(self, names: Mapping[int, int]) -> Histogram:
        """The same counts with new group numbers; groups that get the same number are added up."""
        parts = (
            Histogram(self.scale, self.first, {names[group]: self.counts[group]}, {names[group]: self.sizes[group]})
            for group in self.counts
        )
        return merge_histograms(parts)

    def coarsen(self, scale: int) -> Histogram:
        """The same counts in bins `2**scale` wide. Raises `ValueError` for a scale finer than the current one."""
        by = scale - self.scale
        if by < 0:
            raise ValueError(f"a histogram of scale {self.scale} cannot be made finer, to {scale}")
        if not by or not self.counts:
            return self
        first = self.first >> by
        into = (np.arange(self.first, self.first + self.bins) >> by) - first
        width = int(into[-1]) + 1

        def add_up(fine: Counts) -> Counts:
            whole = np.zeros(width, np.int64)
            np.add.at(whole, into, fine)
            return whole

        both = ({group: add_up(fine) for group, fine in values.items()} for values in (self.counts, self.sizes))
        return Histogram(scale, first, *both)


def scale_of(low: float, high: float) -> int:
    """The finest scale with at most `BINS` bins from `low` to `high`; a wider range has no finer one."""
    largest = max(abs(low), abs(high))
    return _finest_scale(low, high, (math.frexp(largest)[1] if largest else _LEAST) - _DIGITS)


def _finest_scale(low: float, high: float, scale: int) -> int:
    """The finest scale, from this one, at which the bins suffice."""
    while math.floor(math.ldexp(high, -scale)) - math.floor(math.ldexp(low, -scale)) >= BINS:
        scale += 1
    return scale


def merge_histograms(parts: Iterable[Histogram]) -> Histogram:
    """The histogram of all rows counted by the parts."""
    some = [part for part in parts if part]
    if not some:
        return Histogram()
    low = min(math.ldexp(part.first, part.scale) for part in some)
    high = max(math.ldexp(part.first + part.bins - 1, part.scale) for part in some)
    scale = _finest_scale(low, high, max(part.scale for part in some))
    alike = [part.coarsen(scale) for part in some]
    first = min(part.first for part in alike)
    width = max(part.first + part.bins for part in alike) - first
    counts: dict[int, Counts] = {}
    sizes: dict[int, Counts] = {}
    for part in alike:
        at = slice(part.first - first, part.first - first + part.bins)
        for whole, added in ((counts, part.counts), (sizes, part.sizes)):
            for group, values in added.items():
                whole.setdefault(group, np.zeros(width, np.int64))[at] += values
    return Histogram(scale, first, counts, sizes)
