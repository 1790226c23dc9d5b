"""Best-of-N inside a worker, before the shuffle: rows that cannot affect the result are not shuffled. Pure functions.

The rows of a prompt that remain on all workers together give the same result as all of its rows. They are the best `keep`
responses, the next one if the rule has a minimum gap, enough others for `min_candidates`, and the longest `keep`, for the
comparison in the report. With `keep` 1 and `min_candidates` 2, for example, 64 responses shrink to two: best and longest.
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

_MOST_REMAINING = 0.7  # if a larger share of rows would remain, the shuffle is cheaper than the sort
_SAMPLE_BELOW = np.uint64(
    1 << 60
)  # lower halves of keys below it, of a sixteenth of any partition's prompts, are the sample
_LEAST_SAMPLE = 1000  # with fewer rows in the sample, all keys are counted


def shrink(candidates: Candidates, rule: BestOfN, *, needs: Needs) -> Candidates:
    """The rows that may affect `rule`; all rows if most of them may."""
    gap = rule.min_margin > 0 or rule.min_probability is not None or needs.margin
    wanted = max(rule.keep + gap + (rule.keep if needs.length else 0), rule.min_candidates)
    if not len(candidates) or _estimate_remaining(candidates, wanted) > _MOST_REMAINING * len(candidates):
        return candidates
    order, starts = candidates.prompts
    sizes = group_sizes(starts, len(order))
    chosen = np.zeros(len(candidates), dtype=bool)
    _mark_first(chosen, candidates, worst_bits(candidates.reward), rule.keep + gap)
    if needs.length:
        _mark_first(chosen, candidates, ~candidates.length.astype(np.uint32), rule.keep)
    kept = chosen[order]
    missing = np.minimum(sizes, rule.min_candidates) - np.add.reduceat(kept, starts, dtype=np.int64)
    if (missing > 0).any():  # any others will do: they are only counted
        others = np.cumsum(~kept)
        rank = others - np.repeat(others[starts] - ~kept[starts], sizes)
        kept |= ~kept & (rank <= np.repeat(missing, sizes))
    return candidates.take(order[kept])


def _estimate_remaining(candidates: Candidates, wanted: int) -> float:
    """Estimate how many rows remain if each prompt keeps `wanted`: an upper bound, up to the error of the sample."""
    keys = candidates.key_high[candidates.key_low < _SAMPLE_BELOW]
    if len(keys) < _LEAST_SAMPLE:
        keys = candidates.key_high
    keys = np.sort(keys)
    sizes = np.diff(np.flatnonzero(np.append(True, keys[1:] != keys[:-1])), append=len(keys))
    return float(np.minimum(sizes, wanted).sum()) * len(candidates) / len(keys)


def _mark_first(chosen: Mask, candidates: Candidates, values: npt.NDArray[np.uint32], count: int) -> None:
    """Set `chosen` for the first `count` rows of each prompt, the smallest of `values` first."""
    if count == 1:
        chosen[first_within(candidates, values)[0]] = True
        return
    order, starts = order_within(candidates, values)
    chosen[order[group_ranks(starts, len(order)) < count]] = True
