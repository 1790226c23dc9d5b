"""Best-of-N inside a worker, before the shuffle: rows that can no longer matter stay where they are. Pure.

What is left of a prompt is enough for the rule to come to the same end on all workers' leftovers together: the best `keep`
responses, the runner-up where a gap is asked for, as many as `min_candidates` needs to see, and the longest `keep`, for the
comparison that every report holds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.config import BestOfN
from pipelines.select.candidates import (
    Candidates,
    Mask,
    first_within,
    group_ranks,
    group_sizes,
    order_within,
    worst_bits,
)
from pipelines.select.columns import Needs

_WORTH = 0.7  # where more than this share would be left, the shuffle is cheaper than the sort
_SAMPLED = np.uint64(1 << 60)  # keys below, a sixteenth of all prompts, tell how much would be left
_FEW = 1000  # rows of a sample that tells little


def shrink(candidates: Candidates, rule: BestOfN, *, needs: Needs) -> Candidates:
    """The rows that may matter; all of them where most of them may."""
    gap = rule.min_margin > 0 or rule.min_probability is not None or needs.margin
    wanted = max(rule.keep + gap + (rule.keep if needs.length else 0), rule.min_candidates)
    if not len(candidates) or _left(candidates, wanted) > _WORTH * len(candidates):
        return candidates
    order, starts = candidates.prompts
    sizes = group_sizes(starts, len(order))
    chosen = np.zeros(len(candidates), dtype=bool)
    _mark_first(chosen, candidates, worst_bits(candidates.reward), rule.keep + gap)
    if needs.length:
        _mark_first(chosen, candidates, ~candidates.length.astype(np.uint32), rule.keep)
    kept = chosen[order]
    missing = np.minimum(sizes, rule.min_candidates) - np.add.reduceat(kept, starts, dtype=np.int64)
    if (missing > 0).any():  # any others will do: they are there to be counted
        others = np.cumsum(~kept)
        rank = others - np.repeat(others[starts] - ~kept[starts], sizes)
        kept |= ~kept & (rank <= np.repeat(missing, sizes))
    return candidates.take(order[kept])


def _left(candidates: Candidates, wanted: int) -> float:
    """About how many rows would be left of `wanted` a prompt: never fewer are, but for the sample's error."""
    keys = candidates.key_high[candidates.key_high < _SAMPLED]
    if len(keys) < _FEW:
        keys = candidates.key_high
    keys = np.sort(keys)
    sizes = np.diff(np.flatnonzero(np.append(True, keys[1:] != keys[:-1])), append=len(keys))
    return float(np.minimum(sizes, wanted).sum()) * len(candidates) / len(keys)


def _mark_first(chosen: Mask, candidates: Candidates, values: npt.NDArray[np.uint32], count: int) -> None:
    """Set the first `count` of each prompt."""
    if count == 1:
        chosen[first_within(candidates, values)[0]] = True
        return
    order, starts = order_within(candidates, values)
    chosen[order[group_ranks(starts, len(order)) < count]] = True
