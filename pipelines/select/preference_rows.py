"""The step `preferences`: compares the judgements of preference rows with the model's rewards. Pure functions.

A row's responses are numbered from best to worst by the row's judgement. So a pair is flipped if its chosen response has the
higher number, and nothing else needs to be shuffled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.config import Preferences
from pipelines.select.candidates import Candidates, Mask


class RowPairs(NamedTuple):
    """The rows that have both sides: positions of their chosen and of their rejected responses."""

    chosen: npt.NDArray[np.intp]
    rejected: npt.NDArray[np.intp]

    @classmethod
    def of(cls, candidates: Any) -> RowPairs:
        """Return the pairs of some responses: anything with the columns `file`, `unit`, `row` and `response`."""
        c = candidates
        order = np.lexsort((c.response, c.row, c.unit, c.file))
        places = np.stack([c.file[order], c.unit[order], c.row[order]])
        changes = np.flatnonzero((places[:, 1:] != places[:, :-1]).any(axis=0)) + 1
        starts = np.append(np.zeros(min(1, len(order)), dtype=np.intp), changes)
        ends = np.append(changes, np.full(min(1, len(order)), len(order), dtype=np.intp))
        whole = (ends - starts >= 2) & (c.response[order[starts]] == 0)
        return cls(order[starts[whole]], order[ends[whole] - 1])

    def margins(self, rewards: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        margins: npt.NDArray[np.float64] = rewards[self.chosen].astype(np.float64) - rewards[self.rejected]
        return margins


def judge(
    margins: npt.NDArray[np.float64], rule: Preferences, *, temperature: float | None = None
) -> tuple[Mask, Mask]:
    """(pairs that are kept, pairs whose sides are swapped)"""
    gap = np.abs(margins)
    sure = (gap > 0) & (gap >= rule.min_margin)
    if rule.min_probability is not None:
        used = rule.temperature or temperature
        if used is None:
            raise ValueError("a probability needs a temperature, and there is none")
        with np.errstate(over="ignore"):
            sure &= 1.0 / (1.0 + np.exp(-gap / used)) >= rule.min_probability
    agrees, disagrees = sure & (margins > 0), sure & (margins < 0)
    swapped = disagrees & rule.flip
    kept = {"agree": agrees | swapped, "disagree": disagrees, "all": np.ones(len(margins), dtype=bool)}[rule.keep]
    if rule.drop is not None:
        kept = kept & ~((margins >= rule.drop[0]) & (margins <= rule.drop[1]))
    return kept, swapped & kept


def preference_rows(candidates: Candidates, rule: Preferences, *, temperature: float | None = None) -> Candidates:
    """The chosen responses of the kept rows, each with the rejected response as `other_...` and the gap as its margin."""
    pairs = RowPairs.of(candidates)
    kept, swapped = judge(pairs.margins(candidates.reward), rule, temperature=temperature)
    chosen = np.where(swapped, pairs.rejected, pairs.chosen)[kept]
    other = candidates.take(np.where(swapped, pairs.chosen, pairs.rejected)[kept])
    gap = candidates.reward[chosen].astype(np.float64) - other.reward
    return candidates.take(chosen).paired_with(other).with_columns(margin=gap.astype(np.float32))
