"""Best-of-N inside a worker, before the shuffle: rows that can no longer matter stay where they are. Pure.

What is left of a prompt is enough for the rule to come to the same end on all workers' leftovers together: the best `keep`
responses, the runner-up where a gap is asked for, as many as `min_candidates` needs to see, and the longest `keep`, for the
comparison that every report holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipelines.candidates import Candidates, Positions, best_first, ranked_within
from pipelines.columnar import Needs, concatenate
from pipelines.config import BestOfN

_ROWS = 2_000_000  # held at a time, about 100 MB
_WORTH = 0.7  # what is left above this share is not worth another round


def shrink(candidates: Candidates, rule: BestOfN, *, needs: Needs) -> Candidates:
    """The rows that may matter."""
    if not len(candidates):
        return candidates
    order, starts = best_first(candidates)
    ends = np.append(starts[1:], len(order))
    sizes = ends - starts
    gap = rule.min_margin > 0 or rule.min_probability is not None or needs.margin
    kept = np.zeros(len(order), dtype=bool)  # by position in `order`
    _mark(kept, starts, sizes, rule.keep + gap)
    if needs.length:
        by_length, _ = ranked_within(candidates, ~candidates.length.astype(np.uint32))
        place = np.empty(len(order), dtype=np.intp)
        place[order] = np.arange(len(order))
        longest = np.zeros(len(order), dtype=bool)
        _mark(longest, starts, sizes, rule.keep)
        kept[place[by_length[longest]]] = True
    missing = np.minimum(sizes, rule.min_candidates) - np.add.reduceat(kept, starts, dtype=np.int64)
    for group in np.flatnonzero(missing > 0):
        rest = np.flatnonzero(~kept[starts[group] : ends[group]])[: missing[group]]
        kept[starts[group] + rest] = True
    return candidates.take(order[kept])


def _mark(kept: np.ndarray, starts: Positions, sizes: Positions, count: int) -> None:
    """Set the first `count` of each group."""
    for rank in range(int(min(count, sizes.max()))):
        kept[starts[sizes > rank] + rank] = True


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
