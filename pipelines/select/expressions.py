"""The steps `where`, which keeps the responses for which an expression is true, and `reward`, which combines numbers into the
reward that all other steps compare. No Beam, no files.

An expression reads columns of score files that no other step needs. So it is evaluated where the files are read, before the
shuffle; for a `where` after the shuffle only its result is shuffled, one byte a row, and nothing for the steps before it. An
expression that compares the responses to a prompt is evaluated after the shuffle. Its largest parts that do not compare are
evaluated before, and their results are shuffled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.config import Step
from pipelines.config.expression import Expression, parse
from pipelines.config.expression_terms import BUILT_IN, OF_PROMPT, Node
from pipelines.errors import InputError
from pipelines.runtime.step_times import timing
from pipelines.score.expression_values import NULL, TRUE, Condition, describe, result_of
from pipelines.score.prompt_values import Prompts
from pipelines.select.candidates import Candidates, Labels, Mask

_TAKEN = {*BUILT_IN, "rule", "verdict", "true", "combined"}  # names that an explanation uses for its values


@dataclass(frozen=True)
class CandidateColumns:
    """Candidates as the columns that the expression of a step reads."""

    candidates: Candidates
    step: Step

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

    def known(self, node: Node) -> npt.NDArray[Any] | None:
        return self.candidates.values.get(name_of_result(self.step, node))

    @property
    def prompts(self) -> Prompts:
        return self.candidates.prompts


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
    """The numbers of score files that the expressions read, except those that candidates always have."""
    named = (use.name for expression in expressions_of(steps) for use in expression.uses if not use.is_column)
    return _stored(named, signals)


def _stored(names: Iterable[str], signals: Sequence[str]) -> tuple[str, ...]:
    stored = {"prompt_tokens", "response_tokens", "truncated", *signals}
    return tuple(dict.fromkeys(name for name in names if name in stored))


def name_of_result(step: Step, node: Node) -> str:
    """The name of the shuffled result of a part of a step's expression. `reward` has separate names: the reward that it reads
    differs from that of the steps after it."""
    return f"{step.name} {node.text}"


@dataclass(frozen=True)
class EarlyParts:
    """The parts of some steps' expressions that are evaluated before the shuffle, and the other numbers that they shuffle."""

    parts: tuple[tuple[Step, Node], ...]
    values: tuple[str, ...]  # numbers of score files that are shuffled unchanged
    numbers: tuple[int, ...] = ()  # of the steps of the parts

    @classmethod
    def of(cls, steps: Sequence[Step], signals: Sequence[str], *, first: int = 0) -> EarlyParts:
        """Those of the steps that are applied after the shuffle, the first of which has the number `first`."""
        combines = any(step.reward is not None for step in steps)
        parts, values, numbers = [], [], []
        for number, step in enumerate(steps, first):
            expression = expression_of(step)
            if expression is not None:
                # `where` on a reward that is combined after the shuffle is evaluated after it
                late = ("reward",) if combines and step.reward is None else ()
                for node in _early(expression.root, late):
                    plain = node.operation == "name" and (node.arguments[0] in {*BUILT_IN, *signals})
                    if plain and node.kind != "condition":
                        values.append(node.arguments[0])
                    elif node.operation != "constant":
                        parts.append((step, node))
                        numbers.append(number)
        return cls(tuple(parts), _stored(values, signals), tuple(numbers))

    def names(self, *, conditions: bool) -> tuple[str, ...]:
        """The names of the results that are conditions, or of the others."""
        chosen = (part for part in self.parts if (part[1].kind == "condition") == conditions)
        return tuple(dict.fromkeys(name_of_result(*part) for part in chosen))

    def evaluate(self, candidates: Candidates) -> Candidates:
        """The same rows with the results of the parts."""
        results = {}
        for number, part in zip(self.numbers, self.parts, strict=True):
            with timing(number):
                results[name_of_result(*part)] = result_for_each(candidates, *part)
        return candidates.with_values(results)


def _early(node: Node, late: Sequence[str]) -> Iterable[Node]:
    """The largest parts of an expression that neither compare responses to a prompt nor read a number that is known later."""
    if any(one.operation in OF_PROMPT or (one.operation == "name" and one.arguments[0] in late) for one in node.walk()):
        return [part for one in node.arguments if isinstance(one, Node) for part in _early(one, late)]
    return [node]


def evaluate(candidates: Candidates, step: Step) -> Condition:
    """The result of the step's condition for each row: false, null or true. Raises `InputError` for text where a number is
    expected."""
    result: Condition = _evaluate(candidates, step)
    return result


def combined(candidates: Candidates, step: Step) -> npt.NDArray[np.float32]:
    """The `reward` of each row, NaN if it is null or beyond float32. Raises `InputError` like `evaluate`."""
    with np.errstate(over="ignore"):
        rewards = _evaluate(candidates, step).astype(np.float32)
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


def _evaluate(candidates: Candidates, step: Step) -> npt.NDArray[Any]:
    expression = expression_of(step)
    assert expression is not None
    return result_for_each(candidates, step, expression.root)


def result_for_each(candidates: Candidates, step: Step, node: Node) -> npt.NDArray[Any]:
    """The result of a part of the step's expression for each row: 0, 1 or 2 of a condition, or a number."""
    try:
        return result_of(node, CandidateColumns(candidates, step), condition=node.kind == "condition")
    except InputError as error:
        raise InputError(f"in the step `{step.name}: {step.condition or step.reward}`: {error}") from error


def where(candidates: Candidates, step: Step) -> Mask:
    """Responses for which the step's condition is true, and not null."""
    true: Mask = evaluate(candidates, step) == TRUE
    return true


def numbers_of(candidates: Candidates, step: Step) -> dict[str, Any]:
    """The values that determine the result, by name, and the result, for an explanation."""
    expression = expression_of(step)
    assert expression is not None
    read, described = CandidateColumns(candidates, step), {}
    for use in expression.uses:
        is_column = use.is_column or use.name not in BUILT_IN
        name = f'column("{use.name}")' if is_column and use.name in _TAKEN else use.name
        described[name] = describe([use.name], read, as_text=use.is_column)[use.name]
    described |= {text: result_for_each(candidates, step, node).tolist() for text, node in expression.compared}
    if step.reward is not None:
        return {**described, "combined": combined(candidates, step)}
    result = [None if one == NULL else bool(one == TRUE) for one in np.asarray(evaluate(candidates, step)).tolist()]
    return {**described, "true": result}
