"""The rule `on_topic`, which drops responses that are much less relevant than others to their prompt. Pure functions.

With `gap: auto`, the distances of all responses are counted, and separately those of responses to other prompts;
`rm.relevance_gap` settles the gap.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.config.prompt_rules import OnTopic
from pipelines.errors import InputError
from pipelines.select.candidates import Candidates, Mask, group_sizes
from pipelines.select.top import Cut
from rm.relevance_gap import FARTHEST, Distances, SettledGap

_SEVERAL = 3  # with so many responses of known relevance, the second most relevant one is the reference


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


Settled = Cut | SettledGap
"""The outcome of a step that looks at all prompts."""


def measure_distances(candidates: Candidates, signal: str) -> Distances:
    """Count the rows of whole prompts; prompts with fewer than two known responses are left out. Raises `InputError` for values
    that are no cosines."""
    compared, counts = _compared(candidates, signal)
    several = counts > 1
    distances = []
    for name in (signal, foreign_column(signal)):
        values = candidates.values.get(name, np.full(len(candidates), np.nan)).astype(np.float64)
        behind = (compared - values)[several & np.isfinite(values)]
        if len(behind) and behind.max() > FARTHEST:
            raise InputError(
                f"on_topic.gap is auto, which needs cosines, and signals.{signal} has values {behind.max():.4g} apart for "
                "one prompt; set gap to a number"
            )
        distances.append(behind)
    return Distances.of(*distances)
