"""The rule `on_topic`, which drops responses that are much less relevant than others to their prompt, and its automatic gap.
Pure functions.

With `gap: auto`, the distances of all responses are counted, and separately those of responses to other prompts. A share p of
the corpus may be responses to other prompts: O(g), the share of responses further behind than g, is (1 - p) W(g) + p F(g), with
F the same share among responses to other prompts, and W among responses that answer their prompts. As W is not negative, p is
at most the least O(g) / F(g), and this bound is its estimate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.config.prompt_rules import OnTopic
from pipelines.errors import InputError
from pipelines.select.candidates import Candidates, Mask, group_sizes
from pipelines.select.top import Cut

_SEVERAL = 3  # with so many responses of known relevance, the second most relevant one is the reference
_STEPS = 1024  # of a gap, in 1: a power of two, so that a distance is exactly within a step or beyond it
_FARTHEST = 2  # apart that cosines are at most
_BINS = _FARTHEST * _STEPS + 1
_ENOUGH, _FEWEST = (
    Fraction(1, 2),
    100,
)  # share and number of responses to other prompts beyond a gap that tells something
_MOST = Fraction(1, 2)  # the largest estimate of the share of off-topic responses


def on_topic(candidates: Candidates, rule: OnTopic, settled: SettledGap | None = None) -> Mask:
    """The responses that lie at most `gap` behind. Raises `ValueError` if the gap is not settled."""
    gap = rule.gap if settled is None else settled.gap
    if gap == "auto":
        raise ValueError("on_topic needs the gap that was settled over all prompts")
    near: Mask = behind_others(candidates, rule.signal) <= gap
    return near


def behind_others(candidates: Candidates, signal: str) -> npt.NDArray[np.float64]:
    """The distance of each response behind the second most relevant one to its prompt, or behind the more relevant of two:
    negative for more relevant responses, infinite for responses of unknown relevance."""
    compared, _ = _compared(candidates, signal)
    values = candidates.values[signal].astype(np.float64)
    return np.where(np.isfinite(values), compared - values, np.inf)


def _compared(candidates: Candidates, signal: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """The relevance that each row is compared with, -inf if no response of the prompt has one, and the number of responses that
    have one."""
    order, starts = candidates.prompts
    compared, counts = np.full(len(order), -np.inf), np.zeros(len(order), dtype=np.int64)
    if len(order):
        values = candidates.values[signal][order].astype(np.float64)
        known = np.isfinite(values)
        sizes = group_sizes(starts, len(order))
        group = np.repeat(np.arange(len(starts)), sizes)
        values = np.where(known, values, -np.inf)
        highest = values[np.lexsort((-values, group))]
        count = np.add.reduceat(known.astype(np.int64), starts)
        compared[order] = np.repeat(highest[starts + (count >= _SEVERAL)], sizes)
        counts[order] = np.repeat(count, sizes)
    return compared, counts


def foreign_column(signal: str) -> str:
    """The name of the cosines of prompts with responses to other prompts, beside those of a signal."""
    return f"foreign({signal})"


class SettledGap(NamedTuple):
    """A gap settled over all prompts."""

    gap: float
    measured: int  # responses that are compared with others
    caught: float | None  # share of responses to other prompts beyond it; None if none are known
    off_topic: (
        float | None
    )  # estimated share of the measured responses that answer another prompt; None with too few to tell


Settled = Cut | SettledGap
"""The outcome of a step that looks at all prompts."""


@dataclass(frozen=True)
class Distances:
    """Responses by their distance behind others, in bins: bin n holds those above (n - 1) / 1024 up to n / 1024."""

    responses: npt.NDArray[np.int64]
    foreign: npt.NDArray[np.int64]  # responses to other prompts

    @classmethod
    def of(cls, candidates: Candidates, signal: str) -> Distances:
        """Count the rows of whole prompts; prompts with fewer than two known responses are left out."""
        compared, counts = _compared(candidates, signal)
        several = counts > 1
        binned = []
        for name in (signal, foreign_column(signal)):
            values = candidates.values.get(name, np.full(len(candidates), np.nan)).astype(np.float64)
            behind = (compared - values)[several & np.isfinite(values)]
            if len(behind) and behind.max() > _FARTHEST:
                raise InputError(
                    f"on_topic.gap is auto, which needs cosines, and signals.{signal} has values {behind.max():.4g} apart for "
                    "one prompt; set gap to a number"
                )
            bins = np.clip(np.ceil(behind * _STEPS), 0, _BINS - 1).astype(np.int64)
            binned.append(np.bincount(bins, minlength=_BINS))
        return cls(*binned)


def merge_distances(parts: Iterable[Distances]) -> Distances:
    """The sums of the parts."""
    responses, foreign = np.zeros(_BINS, dtype=np.int64), np.zeros(_BINS, dtype=np.int64)
    for part in parts:
        responses, foreign = responses + part.responses, foreign + part.foreign
    return Distances(responses, foreign)


def settle_gap(distances: Distances, rule: OnTopic) -> SettledGap:
    """The least gap beyond which at most a share `max_touched` of the responses that answer their prompts lie.

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
    share, most = min([_MOST, *telling]) if telling else Fraction(0), Fraction(str(rule.max_touched))
    touched = (own - share * other > most * (1 - share) for own, other in zip(beyond, foreign, strict=True))
    step = 1 + max((at for at, too_many in enumerate(touched) if too_many), default=-1)
    caught = float(foreign[step]) if others else None
    return SettledGap(step / _STEPS, count, caught, float(share) if telling else None)
