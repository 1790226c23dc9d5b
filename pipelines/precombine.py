"""Best-of-N inside a worker, before the shuffle: rows that can no longer matter stay where they are. Pure.

What is left of a prompt is enough for the rule to come to the same end on all workers' leftovers together: the best `keep`
responses, the runner-up where a gap is asked for, as many as `min_candidates` needs to see, and the longest `keep`, for the
comparison that every report holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipelines.candidates import Candidates, Mask, Prompts, by_prompt, first_within, ranked_within, worst_bits
from pipelines.columnar import Needs, concatenate
from pipelines.config import BestOfN

_ROWS = 2_000_000  # held at a time, about 100 MB
_WORTH = 0.7  # what is left above this share is not worth another round


def shrink(candidates: Candidates, rule: BestOfN, *, needs: Needs) -> Candidates:
    """The rows that may matter."""
    if not len(candidates):
        return candidates
    order, starts = by_prompt(candidates)
    sizes = np.diff(np.append(starts, len(order)))
    chosen = np.zeros(len(candidates), dtype=bool)
    gap = rule.min_margin > 0 or rule.min_probability is not None or needs.margin
    _mark_first(chosen, candidates, worst_bits(candidates.reward), rule.keep + gap, (order, starts))
    if needs.length:
        _mark_first(chosen, candidates, ~candidates.length.astype(np.uint32), rule.keep, (order, starts))
    kept = chosen[order]
    missing = np.minimum(sizes, rule.min_candidates) - np.add.reduceat(kept, starts, dtype=np.int64)
    if (missing > 0).any():  # any others will do: they are there to be counted
        others = np.cumsum(~kept)
        rank = others - np.repeat(others[starts] - ~kept[starts], sizes)
        kept |= ~kept & (rank <= np.repeat(missing, sizes))
    return candidates.take(order[kept])


def _mark_first(
    chosen: Mask, candidates: Candidates, values: npt.NDArray[np.uint32], count: int, prompts: Prompts
) -> None:
    """Set the first `count` of each prompt."""
    if count == 1:
        chosen[first_within(candidates, values, prompts)[0]] = True
        return
    order, starts = ranked_within(candidates, values, prompts)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    chosen[order[rank < count]] = True


@dataclass
class Holder:
    """Collects candidates of one bundle, and gives back what is left of them."""

    rule: BestOfN
    needs: Needs
    rows: int = _ROWS
    _held: list[Candidates] = field(default_factory=list)

    def add(self, candidates: Candidates) -> Iterator[Candidates]:
        self._held.append(candidates)
        count = sum(map(len, self._held))
        if count >= self.rows:
            whole = self._combined()
            if len(whole) > _WORTH * count:
                yield whole
            else:
                self._held, self.rows = [whole], max(self.rows, 2 * len(whole))

    def finish(self) -> Iterator[Candidates]:
        if self._held:
            yield self._combined()

    def _combined(self) -> Candidates:
        whole = shrink(concatenate(self._held, self.needs), self.rule, needs=self.needs)
        self._held = []
        return whole
