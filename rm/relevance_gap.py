"""The gap of a relevance gate that a corpus determines by itself. NumPy only: a selection imports it without torch.

Responses lie behind the most relevant ones to their prompt by some distance, and so do responses to other prompts. A share p of
the corpus may be responses to other prompts: O(g), the share of responses further behind than g, is (1 - p) W(g) + p F(g), with
F the same share among responses to other prompts, and W among responses that answer their prompts. As W is not negative, p is
at most the least O(g) / F(g), and this bound is its estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FARTHEST = 2  # apart that cosines are at most

_STEPS = 1024  # of a gap, in 1: a power of two, so that a distance is exactly within a step or beyond it
_BINS = FARTHEST * _STEPS + 1
# share and number of responses to other prompts beyond a gap that tells something
_ENOUGH, _FEWEST = Fraction(1, 2), 100
_MOST = Fraction(1, 2)  # the largest estimate of the share of off-topic responses


class SettledGap(NamedTuple):
    """A gap settled over all prompts."""

    gap: float
    measured: int  # responses that are compared with others
    caught: float | None  # share of responses to other prompts beyond it; None if none are known
    off_topic: float | None  # estimated share of these that answer another prompt; None with too few to tell


@dataclass(frozen=True)
class Distances:
    """Responses by their distance behind others, in bins: bin n holds those above (n - 1) / 1024 up to n / 1024."""

    responses: NDArray[np.int64]
    foreign: NDArray[np.int64]  # responses to other prompts

    @classmethod
    def of(cls, responses: NDArray[Any], foreign: NDArray[Any]) -> Distances:
        """Count finite distances, of at most `FARTHEST`."""
        return cls(*(np.bincount(_bins(behind), minlength=_BINS) for behind in (responses, foreign)))


def _bins(behind: NDArray[Any]) -> NDArray[np.int64]:
    bins: NDArray[np.int64] = np.clip(np.ceil(behind * _STEPS), 0, _BINS - 1).astype(np.int64)
    return bins


def merge_distances(parts: Iterable[Distances]) -> Distances:
    """Return the sums of the parts."""
    responses, foreign = np.zeros(_BINS, dtype=np.int64), np.zeros(_BINS, dtype=np.int64)
    for part in parts:
        responses, foreign = responses + part.responses, foreign + part.foreign
    return Distances(responses, foreign)


def settle_gap(distances: Distances, max_touched: float) -> SettledGap:
    """Return the least gap beyond which at most a share `max_touched` of the responses that answer their prompts lie.

    Computed in integers: a share of exactly `max_touched` is not above it.
    """
    count, others = int(distances.responses.sum()), int(distances.foreign.sum())
    beyond = [Fraction(at, max(1, count)) for at in (count - np.cumsum(distances.responses)).tolist()]
    foreign = [Fraction(at, max(1, others)) for at in (others - np.cumsum(distances.foreign)).tolist()]
    telling = [
        own / other
        for own, other in zip(beyond, foreign, strict=True)
        if other >= _ENOUGH and other * others >= _FEWEST
    ]
    share, most = min([_MOST, *telling]) if telling else Fraction(0), Fraction(str(max_touched))
    touched = (own - share * other > most * (1 - share) for own, other in zip(beyond, foreign, strict=True))
    step = 1 + max((at for at, too_many in enumerate(touched) if too_many), default=-1)
    caught = float(foreign[step]) if others else None
    return SettledGap(step / _STEPS, count, caught, float(share) if telling else None)
