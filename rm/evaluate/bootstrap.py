"""Estimates with confidence intervals, from a bootstrap that resamples whole prompts.

The comparisons of one prompt share its responses and their rewards, so they are not independent: an interval that treats
them as independent is too narrow (Cameron, Gelbach & Miller 2008). Here a resample draws prompts, each with all its
comparisons.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Estimate(NamedTuple):
    """A value with its confidence interval, of 95 % unless stated otherwise; NaN without data.

    The interval is NaN with fewer than two prompts: one prompt does not show how prompts differ.
    """

    value: float
    low: float
    high: float


_TAIL = 2.5
"""Percent of the resamples beyond either end of an interval of 95 %."""


@dataclass(frozen=True)
class Figures:
    """A frozen dataclass of numbers that can be written as JSON."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name; estimates as `{value, low, high}`, NaN and infinities as null. Fields that `repr` leaves out
        are left out."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.repr}


def _plain(value: Any) -> Any:
    if isinstance(value, Figures):
        return value.to_json()
    if isinstance(value, Estimate):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Bootstrap(Figures):
    """Settings of the intervals: the number of resamples of prompts, with replacement, and the seed."""

    resamples: int = 2000
    seed: int = 0


class Resampled(NamedTuple):
    """Means [S] of columns over all rows, and over those of each resample of clusters; None with fewer than two clusters."""

    means: Floats
    draws: Floats | None  # [resamples, S]

    def estimate(self, column: int, *, among: int = 1) -> Estimate:
        """Return a column's mean with its percentile interval, widened to hold jointly `among` several at 95 % (Bonferroni)."""
        return Estimate(float(self.means[column]), *self._ends(column, _TAIL / among, _TAIL / among))

    def least(self, columns: Sequence[int], *, among: int = 1) -> Estimate:
        """Return the least of several columns' means, with an interval that accounts for the choice by the same rows.

        The least of the true means is above a bound only if each of them is: the lower end is the least of the columns' ordinary
        lower ends, and needs no correction (an intersection-union test, Berger 1982). It is below a bound if any of them is:
        the upper end is the least of the columns' upper ends, at a tail divided by their number (Bonferroni).
        """
        tail = _TAIL / among
        ends = [self._ends(column, tail, tail / len(columns)) for column in columns]
        return Estimate(float(self.means[list(columns)].min()), min(e[0] for e in ends), min(e[1] for e in ends))

    def _ends(self, column: int, below: float, above: float) -> tuple[float, float]:
        if self.draws is None:
            return math.nan, math.nan
        low, high = np.percentile(self.draws[:, column], [below, 100 - above])
        return float(low), float(high)


def clustered_means(values: ArrayLike, clusters: ArrayLike, *, bootstrap: Bootstrap) -> list[Estimate]:
    """Return the means [S] over rows of `values` [rows, S], each with a percentile interval; see `resample`."""
    resampled = resample(values, clusters, bootstrap=bootstrap)
    return [resampled.estimate(column) for column in range(len(resampled.means))]


def resample(values: ArrayLike, clusters: ArrayLike, *, bootstrap: Bootstrap) -> Resampled:
    """Return the means [S] over rows of `values` [rows, S], and those of resampled clusters.

    `clusters` [rows] are integers; rows of one are drawn together. A resample's mean is its sum over its number of rows
    (the ratio estimator: clusters differ in size). All S columns have the same resamples, so the column `a - b` is the
    paired difference of a and b. The result does not depend on the order of rows, nor on the numbers of clusters if their
    order is the same.

    Raises `ValueError` if shapes do not fit or a value is not finite.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or len(table) != len(np.asarray(clusters)):
        raise ValueError(f"values {table.shape} and clusters {np.shape(clusters)}; expected [rows, S] and [rows]")
    if not np.isfinite(table).all():
        raise ValueError("values hold NaN or infinities; leave such rows out first")
    rows, columns = table.shape
    if rows == 0:
        return Resampled(np.full(columns, math.nan), None)
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    count = int(codes.max()) + 1
    totals = np.zeros((count, columns + 1))
    np.add.at(totals, codes, np.column_stack([table, np.ones(rows)]))
    means = totals[:, :-1].sum(axis=0) / rows
    if count < 2:
        return Resampled(means, None)
    rng = np.random.default_rng(bootstrap.seed)
    sums = np.empty((bootstrap.resamples, columns + 1))
    for draw in range(bootstrap.resamples):
        sums[draw] = np.bincount(rng.integers(count, size=count), minlength=count) @ totals
    return Resampled(means, sums[:, :-1] / sums[:, -1:])


def paired_difference(
    correct_a: ArrayLike, correct_b: ArrayLike, clusters: ArrayLike, *, bootstrap: Bootstrap | None = None
) -> Estimate:
    """Estimate the mean of `correct_a - correct_b` over the same items, clustered by prompt.

    `correct_a` and `correct_b` are [items], or [seeds, items] (the numbers of seeds may differ): then each item counts
    with its mean over seeds, and the interval is over items, for these seeds. `clusters` [items] are the prompts.
    Raises `ValueError` if the items do not fit.
    """
    sides = [np.atleast_2d(np.asarray(side, dtype=np.float64)).mean(axis=0) for side in (correct_a, correct_b)]
    if sides[0].shape != sides[1].shape:
        raise ValueError(f"A has {len(sides[0])} items and B has {len(sides[1])}; expected the same items")
    return clustered_means((sides[0] - sides[1])[:, None], clusters, bootstrap=bootstrap or Bootstrap())[0]


def average_ranks(values: Floats) -> Floats:
    """Return ranks from 1, ascending; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def pearson(left: Floats, right: Floats) -> float:
    """Return Pearson's correlation; NaN if either side is constant."""
    if len(left) < 2 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    a, b = left - left.mean(), right - right.mean()
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


def equal_mass_bins(values: Floats, bins: int) -> list[Ints]:
    """Divide the indices of `values` into at most `bins` groups of equal size, ascending; equal values stay together."""
    if len(values) == 0:
        return []
    ordered = np.sort(values)
    bin_of = np.searchsorted(ordered, values, side="left") * min(bins, len(values)) // len(values)
    return [np.flatnonzero(bin_of == bin) for bin in np.unique(bin_of)]
