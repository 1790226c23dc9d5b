"""Weights with which the longer response wins as often as the shorter one, whatever the ratio of their lengths.

Judges mostly prefer longer responses, and a model that has learnt only this has a low loss. With balanced weights it has the loss
of a coin. Comparisons within a bin of ratios keep their relative weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rm.conversations import count_characters
from rm.preferences.groups import Group

_BINS = 10
_FEWEST = 20  # comparisons in a bin: with fewer, its balance is accidental
_LARGEST = 5.0
"""Largest factor of a comparison's weight, so that a few odd judgements do not dominate."""


def balance_lengths(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with comparisons weighted so that longer and shorter responses win equally often in each bin.

    Comparisons are put into at most ten bins of equal size, of at least 20 comparisons, by the ratio of the responses' lengths in
    characters. In a bin where the longer one wins with the weight L and the shorter one with S, comparisons of the first kind are
    multiplied by (L + S) / 2L, those of the second by (L + S) / 2S, by 5 at most. A comparison of probability p is p of one kind
    and 1 - p of the other, and has the weight of both. Comparisons of equal length, and ties, stay as they are.
    """
    lengths = [[count_characters(response) for response in group.responses] for group in groups]
    table = np.array(
        [
            (_log_ratio(size[edge.preferred], size[edge.other]), edge.probability, edge.weight)
            for group, size in zip(groups, lengths, strict=True)
            for edge in group.edges
        ],
        dtype=np.float64,
    ).reshape(-1, 3)
    factors = iter(_factors(*table.T).tolist())
    return [
        replace(group, edges=tuple(edge._replace(weight=edge.weight * next(factors)) for edge in group.edges))
        for group in groups
    ]


def _factors(
    ratio: NDArray[np.float64], probability: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    factors = np.ones(len(ratio))
    used = np.flatnonzero((ratio != 0) & (probability != 0.5) & (weight > 0))
    longer = np.where(ratio > 0, probability, 1 - probability)
    for members in _bins(used, np.abs(ratio)):
        total = weight[members].sum()
        long = (weight * longer)[members].sum()
        if 0 < long < total:
            to_long, to_short = (min(total / 2 / part, _LARGEST) for part in (long, total - long))
            factors[members] = longer[members] * to_long + (1 - longer[members]) * to_short
    return factors


def _bins(used: NDArray[np.int64], size: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """`used` in bins of about equal numbers, ascending by `size`; equal sizes are in one bin."""
    count = max(1, min(_BINS, len(used) // _FEWEST))
    ordered = used[np.argsort(size[used], kind="stable")]
    starts = [0]
    for part in range(1, count):
        at = int(np.searchsorted(size[ordered], size[ordered[part * len(ordered) // count]]))
        if min(at - starts[-1], len(ordered) - at) >= _FEWEST:
            starts.append(at)
    return np.split(ordered, starts[1:])


def _log_ratio(preferred: int, other: int) -> float:
    """log(preferred / other), of exactly the same size whichever of two lengths is preferred."""
    return math.copysign(math.log(max(preferred, other) / min(preferred, other)), preferred - other)
