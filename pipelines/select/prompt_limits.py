"""Limits on prompts: the limited values, and exact limits that are quantiles over all prompts. Pure functions.

A quantile is the value of a prompt, found by the counting passes of `top`: each prompt is a row with its value as the reward, in
a stratum with the name of the limit. So any order of merging gives the same quantile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config import DropPrompts
from pipelines.select.candidates import Candidates, Labels, Mask, best_first, group_sizes, zero_columns
from pipelines.select.top import Cut, CutEdges, keep

_STRATUM = "limit"


@dataclass(frozen=True)
class Quantiles:
    """The limits of a rule that are quantiles, as the rule of a cut, like `Top`."""

    rule: DropPrompts
    per: str = _STRATUM
    tokens: None = None

    def target_rows(self, stratum: str | None, available: int) -> int:
        """Return the number of prompts within the limit; ties with its own value are not counted twice."""
        share = Fraction(str(self.rule.quantiles[stratum or ""]))
        smaller = math.ceil(share * available)  # the quantile is so many-th from the smallest
        return smaller if _is_most(stratum) else available - smaller + 1


@dataclass(frozen=True)
class PromptValues:
    """The values of each prompt that limits bound, for prompts in the order of `candidates.prompts`."""

    order: npt.NDArray[np.intp]  # positions of the rows, best first
    sizes: npt.NDArray[np.intp]
    values: Mapping[str, npt.NDArray[np.float64]]  # by the name of the limit

    @classmethod
    def of(cls, candidates: Candidates, rule: DropPrompts) -> PromptValues:
        """Return the values of the prompts of some rows."""
        order, starts = best_first(candidates)
        sizes = group_sizes(starts, len(order))
        reward = candidates.reward[order].astype(np.float64)
        best, worst = reward[starts], reward[starts + sizes - 1]
        values = {"min_best": best, "min_worst_reward": worst, "min_spread": best - worst, "max_spread": best - worst}
        if rule.min_worst_tokens is not None:
            tokens = candidates.values["response_tokens"][order[starts + sizes - 1]]
            values["min_worst_tokens"] = tokens.astype(np.float64)
        return cls(order, sizes, values)


def _is_most(limit: str | None) -> bool:
    return (limit or "").startswith("max_")


def as_rows(candidates: Candidates, rule: DropPrompts) -> Candidates:
    """For each limit that is a quantile, a row for each prompt with enough responses, higher rewards farther inside the limit."""
    prompts = PromptValues.of(candidates, rule)
    enough = prompts.sizes >= rule.min_candidates
    names = tuple(rule.quantiles)
    columns = [(-1 if _is_most(name) else 1) * prompts.values[name][enough] for name in names]
    rewards = np.concatenate(columns).astype(np.float32)
    codes = np.repeat(np.arange(len(names), dtype=np.int32), int(enough.sum()))
    columns_by_name: dict[str, Any] = {**zero_columns(len(rewards)), "reward": rewards, "raw": rewards}
    return Candidates(**columns_by_name, labels={_STRATUM: Labels(codes, names)})


def close(cut: Cut) -> Cut:
    """The cut after all passes over rewards; values equal to a quantile are within its limit."""
    boundaries = {
        name: replace(boundary, prefix=boundary.prefix + 1, open=False) if boundary.open else boundary
        for name, boundary in cut.boundaries.items()
    }
    return Cut(cut.rule, cut.digits, boundaries)


def quantiles_of(edges: CutEdges) -> dict[str, float]:
    """The limits that a closed cut settled on, by name."""
    return {name: -edge.lowest_kept if _is_most(name) else edge.lowest_kept for name, edge in edges.items() if name}


def within_limits(candidates: Candidates, rule: DropPrompts, *, cut: Cut | None = None) -> Mask:
    """All responses of the prompts within every limit. Raises `ValueError` for a quantile without a closed cut."""
    kept = np.zeros(len(candidates), dtype=bool)
    if not len(candidates):
        return kept
    if rule.quantiles and cut is None:
        raise ValueError("drop_prompts needs the cut of its quantiles over all prompts")
    prompts = PromptValues.of(candidates, rule)
    usable = prompts.sizes >= rule.min_candidates
    for name, values in prompts.values.items():
        limit = getattr(rule, name)
        if isinstance(limit, int | float):
            usable &= values <= limit if _is_most(name) else values >= limit
    if cut is not None:
        inside = keep(as_rows(candidates, rule), cut).reshape(len(rule.quantiles), -1)
        usable[prompts.sizes >= rule.min_candidates] &= inside.all(axis=0)
    kept[prompts.order] = np.repeat(usable, prompts.sizes)
    return kept
