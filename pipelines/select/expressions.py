"""The steps `where`, the responses for which an expression is true, and `reward`, which combines numbers to the reward that all
other steps compare. No Beam, no files.

An expression reads columns of score files that no other step needs. So it is evaluated where these are read, before the shuffle;
what travels of a `where` after the shuffle is its mark, one byte a row, and of the steps before it nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config import Step
from pipelines.config.expression import BUILT_IN, Expression, parse
from pipelines.errors import InputError
from pipelines.score.expression_values import NULL, TRUE, Condition, condition, describe, numbers
from pipelines.select.candidates import Candidates, Labels, Mask

_TAKEN = {*BUILT_IN, "rule", "verdict", "true", "combined"}  # names that an explanation gives to values of its own


@dataclass(frozen=True)
class CandidateColumns:
    """Candidates as the columns that an expression reads."""

    candidates: Candidates

    def __len__(self) -> int:
        return len(self.candidates)

    def number(self, name: str) -> npt.NDArray[Any] | None:
        candidates = self.candidates
        if name in candidates.values:
            return candidates.values[name]
        if name not in BUILT_IN or BUILT_IN[name] == "text":
            return None
        column: npt.NDArray[Any] = getattr(candidates, {"characters": "length"}.get(name, name))
        return column

    def text(self, name: str) -> Labels:
        return self.candidates.labels[name]


def expressions_of(steps: Iterable[Step]) -> list[Expression]:
    """The expressions of the steps that have one."""
    return [expression for step in steps if (expression := expression_of(step)) is not None]


def expression_of(step: Step) -> Expression | None:
    """The expression of `where`, `pairs.chosen` or `reward`; None for another step."""
    if step.reward is not None:
        return parse(step.reward, "number")
    return None if step.condition is None else parse(step.condition)


def labels_of(steps: Iterable[Step], signals: Sequence[str]) -> tuple[str, ...]:
    """The columns of text, `source` too, that the expressions read; `signals` are numbers that the score files hold."""
    expressions = expressions_of(steps)
    named = [name for expression in expressions for name in expression.columns(signals)]
    named += [use.name for expression in expressions for use in expression.uses if use.name == "source"]
    return tuple(dict.fromkeys(named))


def values_of(steps: Iterable[Step], signals: Sequence[str]) -> tuple[str, ...]:
    """The numbers of score files that the expressions read, but for those that candidates have in any case."""
    named = (use.name for expression in expressions_of(steps) for use in expression.uses if not use.is_column)
    stored = {"prompt_tokens", "response_tokens", "truncated", *signals}
    return tuple(dict.fromkeys(name for name in named if name in stored))


def mark_of(step: Step) -> str:
    """The name under which the results of a step's condition travel."""
    return f"where {step.condition}"


def with_marks(candidates: Candidates, steps: Iterable[Step]) -> Candidates:
    """The same rows with the results of these steps, which later need no other column."""
    marks = {mark_of(step): evaluate(candidates, step) for step in steps}
    return candidates if not marks else candidates.with_columns(values={**candidates.values, **marks})  # type: ignore[arg-type]


def evaluate(candidates: Candidates, step: Step) -> Condition:
    """The result of the step's condition for each row: false, null or true. Raises `InputError` for text where a number is
    expected."""
    result: Condition = _evaluate(condition, candidates, step)
    return result


def combined(candidates: Candidates, step: Step) -> npt.NDArray[np.float32]:
    """The `reward` of each row, NaN where it is null or beyond float32. Raises `InputError` like `evaluate`."""
    with np.errstate(over="ignore"):
        rewards = _evaluate(numbers, candidates, step).astype(np.float32)
    return np.where(np.isfinite(rewards), rewards, np.float32(np.nan))


def with_combined(candidates: Candidates, step: Step) -> Candidates:
    """The rows whose combined reward is known, with it as `reward`; `raw` stays."""
    rewards = combined(candidates, step)
    known = ~np.isnan(rewards)
    return (
        candidates.with_columns(reward=rewards)
        if known.all()
        else candidates.take(known).with_columns(reward=rewards[known])
    )


def _evaluate(
    values_of_each: Callable[[Expression, CandidateColumns], npt.NDArray[Any]], candidates: Candidates, step: Step
) -> npt.NDArray[Any]:
    expression = expression_of(step)
    assert expression is not None
    try:
        return values_of_each(expression, CandidateColumns(candidates))
    except InputError as error:
        raise InputError(f"in the step `{step.name}: {expression.text}`, {error}") from error


def where(candidates: Candidates, step: Step) -> Mask:
    """Responses for which the step's condition is true, and not null."""
    mark = candidates.values.get(mark_of(step))
    true: Mask = (evaluate(candidates, step) if mark is None else mark) == TRUE
    return true


def numbers_of(candidates: Candidates, step: Step) -> dict[str, Any]:
    """The values that decide, by name, and the result, for an explanation."""
    expression = expression_of(step)
    assert expression is not None
    read, described = CandidateColumns(candidates), {}
    for use in expression.uses:
        is_column = use.is_column or use.name not in BUILT_IN
        name = f'column("{use.name}")' if is_column and use.name in _TAKEN else use.name
        described[name] = describe([use.name], read, as_text=use.is_column)[use.name]
    if step.reward is not None:
        return {**described, "combined": combined(candidates, step)}
    result = [None if one == NULL else bool(one == TRUE) for one in np.asarray(evaluate(candidates, step)).tolist()]
    return {**described, "true": result}
