"""Selection rules: pure functions on columns, no Beam, no files.

Columns hold scored responses only. A rule returns which of them it keeps, as a boolean mask aligned with its input.
The order between equal rewards is fixed: smaller content hash of the response, then file, unit, row and position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from pipelines.config import BestOfN, Step

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidates:
    """Aligned columns, one entry per scored response."""

    key_high: npt.NDArray[np.uint64]  # the prompt key's two halves: compared in full, never truncated
    key_low: npt.NDArray[np.uint64]
    reward: npt.NDArray[np.float32]
    response_hash: npt.NDArray[np.uint64]
    file: npt.NDArray[
        np.int32
    ]  # place: file number in the plan, unit in the file, row in the unit, response in the row
    unit: npt.NDArray[np.int32]
    row: npt.NDArray[np.int32]
    response: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.reward)

    def take(self, chosen: npt.NDArray[np.generic]) -> Candidates:
        """The entries at these positions, or under this mask."""
        return Candidates(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True)
class StepCount:
    """What one step kept."""

    rule: str
    rows: int
    prompts: int


def apply_steps(candidates: Candidates, steps: Sequence[Step]) -> tuple[Candidates, list[StepCount]]:
    """Apply steps in order, each to what the one before kept; whole prompts must be in `candidates`."""
    counts = []
    for step in steps:
        if step.best_of_n is not None:
            name, mask = "best_of_n", best_of_n(candidates, step.best_of_n)
        elif step.threshold is not None:
            name, mask = "threshold", threshold(candidates, step.threshold.min_reward)
        else:
            raise ValueError(f"step {step!r} names no rule")
        candidates = candidates.take(mask)
        counts.append(StepCount(name, len(candidates), count_prompts(candidates)))
    return candidates, counts


def threshold(candidates: Candidates, min_reward: float) -> Mask:
    """Responses with a reward of at least `min_reward`."""
    return candidates.reward >= min_reward


def best_of_n(candidates: Candidates, rule: BestOfN) -> Mask:
    """The `keep` best responses of each prompt.

    Prompts with fewer than `min_candidates` responses are dropped whole; so are those where the last kept response leads
    the best dropped one by less than `min_margin` (where nothing is dropped, there is no margin to miss).
    """
    kept = np.zeros(len(candidates), dtype=bool)
    if not len(candidates):
        return kept
    order = best_first(candidates)
    starts = _group_starts(candidates, order)
    sizes = np.diff(np.append(starts, len(order)))
    usable = sizes >= rule.min_candidates
    contested = usable & (sizes > rule.keep)
    last_kept = order[starts[contested] + rule.keep - 1]
    runner_up = order[starts[contested] + rule.keep]
    margin = candidates.reward[last_kept].astype(np.float64) - candidates.reward[runner_up]
    usable[np.flatnonzero(contested)[margin < rule.min_margin]] = False
    rank = np.arange(len(order)) - np.repeat(starts, sizes)
    kept[order[np.repeat(usable, sizes) & (rank < rule.keep)]] = True
    return kept


def best_first(candidates: Candidates) -> npt.NDArray[np.intp]:
    """Positions sorted by prompt, and within a prompt from best to worst under the fixed order of ties."""
    c = candidates
    return np.lexsort((c.response, c.row, c.unit, c.file, c.response_hash, -c.reward, c.key_low, c.key_high))


def count_prompts(candidates: Candidates) -> int:
    """Distinct prompts."""
    if not len(candidates):
        return 0
    order = np.lexsort((candidates.key_low, candidates.key_high))
    return len(_group_starts(candidates, order))


def _group_starts(candidates: Candidates, order: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Where each prompt starts in `order`, which must sort by prompt."""
    high, low = candidates.key_high[order], candidates.key_low[order]
    changes = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return np.flatnonzero(np.concatenate(([True], changes)))
