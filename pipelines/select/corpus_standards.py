"""Means and deviations over the whole corpus, for `corpus_z` in expressions. No Beam, no files.

They are computed from exact sums over each score file, so they do not depend on the order of files or on partitions. For a step
`reward` the corpus is all scored responses; for `where` it is the responses that `reward` keeps, with their combined reward, or
all scored responses if `reward` compares the responses to a prompt, which is evaluated later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipelines.config import Step
from pipelines.score.ensemble import Moments, Standard
from pipelines.select.candidates import Candidates
from pipelines.select.expressions import expression_of, name_of_result, result_for_each

Standards = Mapping[str, Standard]
"""The mean and the deviation of the argument of each call of `corpus_z`, by the name of its result."""


def needs_standards(step: Step) -> bool:
    expression = expression_of(step)
    return expression is not None and bool(expression.of_corpus)


def measure(candidates: Candidates, steps: Sequence[Step]) -> dict[str, Moments]:
    """The moments, in the rows of one score file, of the argument of each call in these steps: as float32, without nulls."""
    moments = {}
    for step in steps:
        for name, values in _taken(candidates, step).items():
            with np.errstate(over="ignore"):
                single = values.astype(np.float32)
            moments[name] = Moments.of(single[np.isfinite(single)])
    return moments


def merge_moments(parts: Iterable[Mapping[str, Moments]]) -> dict[str, Moments]:
    """The sums of the parts."""
    merged: dict[str, Moments] = {}
    for part in parts:
        for name, moments in part.items():
            merged[name] = merged[name] + moments if name in merged else moments
    return merged


def settle(moments: Mapping[str, Moments]) -> Standards:
    """Mean and population standard deviation, correctly rounded; zeros without values."""
    standards = {}
    for name, one in sorted(moments.items()):
        count = max(1, one.sums.count)
        mean = one.sums.total() / count
        standards[name] = Standard(float(mean), float(one.squares.total() / count - mean * mean) ** 0.5)
    return standards


def with_standards(candidates: Candidates, steps: Sequence[Step], standards: Standards) -> Candidates:
    """The same rows with the results of all calls of `corpus_z` in these steps; 0 where all values of the corpus are equal."""
    results = {}
    for step in steps:
        for name, values in _taken(candidates, step).items():
            mean, std = standards.get(name, Standard(0.0, 0.0))
            with np.errstate(over="ignore"):
                single = values.astype(np.float32).astype(np.float64)
            scores = (single - mean) / std if std else np.where(np.isfinite(single), 0.0, np.nan)
            results[name] = np.where(np.isfinite(scores), scores, np.nan)
    return candidates.with_values(results)


def _taken(candidates: Candidates, step: Step) -> dict[str, np.ndarray]:
    """The values that each call of `corpus_z` takes, by the name of its result."""
    expression = expression_of(step)
    calls = () if expression is None else expression.of_corpus
    return {name_of_result(step, call): result_for_each(candidates, step, call.arguments[0]) for call in calls}
