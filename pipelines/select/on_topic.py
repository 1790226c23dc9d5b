"""The rule `on_topic`: drops responses that lie far behind the others to their prompt in relevance. Pure."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.config.prompt_rules import OnTopic
from pipelines.select.candidates import Candidates, Mask, group_sizes

_SEVERAL = 3  # responses of known relevance from which on the second most relevant one counts


def on_topic(candidates: Candidates, rule: OnTopic) -> Mask:
    """The responses that lie at most `gap` behind."""
    near: Mask = behind_others(candidates, rule.signal) <= rule.gap
    return near


def behind_others(candidates: Candidates, signal: str) -> npt.NDArray[np.float64]:
    """The distance of each response behind the second most relevant one of its prompt, or of two the more relevant one: negative
    for those that are more relevant, infinite for those whose relevance is not known."""
    order, starts = candidates.prompts
    behind = np.full(len(order), np.inf)
    if len(order):
        values = candidates.values[signal][order].astype(np.float64)
        known = np.isfinite(values)
        values = np.where(known, values, -np.inf)
        sizes = group_sizes(starts, len(order))
        group = np.repeat(np.arange(len(starts)), sizes)
        highest = values[np.lexsort((-values, group))]
        compared = highest[starts + (np.add.reduceat(known.astype(np.int64), starts) >= _SEVERAL)]
        references = np.repeat(compared, sizes)
        behind[order[known]] = references[known] - values[known]
    return behind
