"""Evaluates expressions over columns of NumPy arrays, one entry per response. No Beam, no files.

Numbers are computed in float64, null is NaN. Rewards and signals are float32: a literal compared with one of them is first
rounded to float32, so that `reward >= 0.1` keeps the same responses as `min_reward: 0.1`. Conditions are 0, 1 and 2, for false,
null and true: then `and` is the minimum, and `or` the maximum.

`rank` and `prompt_z` need all rows of a prompt at once. Parts evaluated before the rows are together are found by their nodes.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipelines.config.expression import Expression
from pipelines.config.expression_terms import OF_CORPUS, OF_PROMPT, Node
from pipelines.errors import InputError
from pipelines.score.prompt_values import Prompts, ranks_within, standardised_within

Condition = npt.NDArray[np.uint8]
FALSE, NULL, TRUE = 0, 1, 2

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_COMPUTE: Mapping[str, Callable[..., Any]] = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide, "negative": np.negative, "abs": np.abs,
    "log": np.log, "exp": np.exp, "sqrt": np.sqrt, "min": np.minimum, "max": np.maximum,
}  # fmt: skip


class Texts(Protocol):
    """A column of text as codes: `values[codes[i]]`, null if the code is -1."""

    @property
    def codes(self) -> npt.NDArray[np.int32]: ...

    @property
    def values(self) -> tuple[str, ...]: ...


class Columns(Protocol):
    """The columns that an expression may read, each of `len` entries."""

    def __len__(self) -> int: ...

    def number(self, name: str) -> npt.NDArray[Any] | None:
        """A built-in number or a signal: float32 or int32, NaN for null; None if the name is that of a column."""
        ...

    def text(self, name: str) -> Texts:
        """A carried column, or `source`."""
        ...

    def known(self, node: Node) -> npt.NDArray[Any] | None:
        """The result of a node that was evaluated before: float64 for a number; 0, 1 or 2 for a condition."""
        ...

    @property
    def prompts(self) -> Prompts:
        """Positions sorted by prompt, and where each prompt starts among them."""
        ...


@dataclass(frozen=True)
class _Number:
    """Stored float32 or int32, else float64; an array, or one value for all entries."""

    values: Any
    nullable: bool
    written: bool = False  # a literal in the expression


def condition(expression: Expression, columns: Columns) -> Condition:
    """Return 0, 1 or 2 for each entry: false, null or true. Raises `InputError` for text where numbers are expected."""
    return result_of(expression.root, columns, condition=True)


def numbers(expression: Expression, columns: Columns) -> npt.NDArray[np.float64]:
    """Return the number of each entry, NaN for null. Raises `InputError` for text where numbers are expected."""
    return result_of(expression.root, columns, condition=False)


def result_of(node: Node, columns: Columns, *, condition: bool) -> npt.NDArray[Any]:
    """Return the result of a part of an expression, in the form of `condition` or `numbers`."""
    if condition:
        return np.broadcast_to(np.asarray(_condition(node, columns), dtype=np.uint8), (len(columns),))
    return np.broadcast_to(np.asarray(_number(node, columns).values, dtype=np.float64), (len(columns),))


def _condition(node: Node, columns: Columns) -> Any:
    known, arguments = columns.known(node), node.arguments
    if known is not None:
        return known
    match node.operation:
        case "constant":
            return np.uint8(TRUE if arguments[0] else FALSE)
        case "name" | "column":
            return _flags(node, columns)
        case "and":
            return functools.reduce(np.minimum, (_condition(argument, columns) for argument in arguments))
        case "or":
            return functools.reduce(np.maximum, (_condition(argument, columns) for argument in arguments))
        case "not":
            return np.uint8(TRUE) - _condition(arguments[0], columns)
        case "coalesce":
            return functools.reduce(_known, (_condition(argument, columns) for argument in arguments))
        case "is null":
            return _is_null(arguments[0], columns).astype(np.uint8) << 1
        case "in":
            return functools.reduce(np.maximum, (_compare("==", arguments[0], one, columns) for one in arguments[1:]))
    left, right = arguments
    return _compare(node.operation, left, right, columns)


def _flags(node: Node, columns: Columns) -> Condition:
    """A name used as a condition: its values are true and false, or 1 and 0."""
    values = _number(node, columns).values
    missing = np.isnan(values)
    if not np.all((values == 0) | (values == 1) | missing):
        raise InputError(
            f"{node.arguments[0]!r} is used as a condition, and has numbers other than 0 and 1; compare it: "
            f"{node.arguments[0]} > 0.5"
        )
    return np.where(missing, NULL, np.where(values == 1, TRUE, FALSE)).astype(np.uint8)


def _is_null(node: Node, columns: Columns) -> npt.NDArray[np.bool_]:
    if node.operation in ("name", "column"):
        values = columns.number(node.arguments[0]) if node.operation == "name" else None
        return columns.text(node.arguments[0]).codes < 0 if values is None else np.isnan(values)
    if node.kind == "number":
        return np.isnan(np.asarray(_number(node, columns).values, dtype=np.float64))
    return np.asarray(False if node.kind == "text" else _condition(node, columns) == NULL)


def _compare(sign: str, left: Node, right: Node, columns: Columns) -> Any:
    if left.kind == "text":
        return _compare_texts(sign, left, right, columns)
    sides = [_number(left, columns), _number(right, columns)]
    single = any(not side.written and side.values.dtype == np.float32 for side in sides)
    with np.errstate(over="ignore"):
        values = [np.float32(side.values) if side.written and single else side.values for side in sides]
    result = np.asarray(_COMPARE[sign](*values)).astype(np.uint8) << 1
    for side, value in zip(sides, values, strict=True):
        if side.nullable:
            result = np.where(np.isnan(value), np.uint8(NULL), result)
    return result


def _compare_texts(sign: str, left: Node, right: Node, columns: Columns) -> Any:
    wanted, other = (TRUE, FALSE) if sign == "==" else (FALSE, TRUE)
    if left.operation == "constant":
        left, right = right, left
    if left.operation == "constant":
        return np.uint8(wanted if left.arguments == right.arguments else other)
    texts, value = columns.text(left.arguments[0]), right.arguments[0]
    by_code = [wanted if text == value else other for text in texts.values]
    return np.array([*by_code, NULL], dtype=np.uint8)[texts.codes]  # -1 is the last


def _number(node: Node, columns: Columns) -> _Number:
    known, arguments = None if node.kind == "condition" else columns.known(node), node.arguments
    if known is not None:
        return _Number(known, nullable=True)
    match node.operation:
        case "constant":
            return _Number(np.float64(arguments[0]), nullable=False, written=True)
        case "name" | "column":
            values = columns.number(arguments[0]) if node.operation == "name" else None
            if values is not None:
                return _Number(values, nullable=bool(values.dtype.kind == "f"))
            return _Number(_parsed(arguments[0], columns.text(arguments[0])), nullable=True)
        case "coalesce":
            return _Number(functools.reduce(_coalesce, (_doubles(argument, columns) for argument in arguments)), True)
        case operation if operation in _COMPUTE:
            compute, parts = _COMPUTE[operation], [_doubles(argument, columns) for argument in arguments]
            with np.errstate(all="ignore"):
                result = compute(parts[0]) if len(parts) == 1 else functools.reduce(compute, parts)
                return _Number(np.where(np.isfinite(result), result, np.nan), nullable=True)
        case operation if operation in OF_PROMPT:
            within = ranks_within if operation == "rank" else standardised_within
            values = within(np.broadcast_to(_doubles(arguments[0], columns), (len(columns),)), columns.prompts)
            return _Number(np.where(np.isfinite(values), values, np.nan), nullable=True)
        case operation if operation == OF_CORPUS:
            raise ValueError(f"{node.text} needs the mean and deviation of the corpus, which are not known here")
    flags = np.asarray(_condition(node, columns))  # a condition counts as 1 and 0
    return _Number(np.array([0.0, np.nan, 1.0])[flags], nullable=True)


def _doubles(node: Node, columns: Columns) -> npt.NDArray[np.float64]:
    return np.asarray(_number(node, columns).values).astype(np.float64, copy=False)


def _known(first: Any, second: Any) -> Any:
    return np.where(first == NULL, second, first)


def _coalesce(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(np.isnan(first), second, first)


def _parsed(name: str, texts: Texts) -> npt.NDArray[np.float64]:
    """The numbers in a carried column of text; true and false are 1 and 0, and empty text is null."""
    parsed = [number_in(text) for text in texts.values]
    used = np.unique(texts.codes)
    wrong = sum(parsed[code] is None for code in used.tolist() if code >= 0)
    if wrong:
        raise InputError(
            f"the column {name!r} is used as a number (or true and false), and {wrong:,} of its distinct values are not; "
            f'compare it with a text: {name} == "...", or correct the column'
        )
    known = [np.nan if number is None else number for number in parsed]
    return np.array([*known, np.nan])[texts.codes]  # -1 is the last


def number_in(text: str) -> float | None:
    """The number in a text: NaN for null, None if it is not a number."""
    bare = text.strip().lower()
    if bare in ("", "null", "nan", "true", "false"):
        return {"true": 1.0, "false": 0.0}.get(bare, np.nan)
    try:
        number = float(bare) if "_" not in bare else None
    except ValueError:
        return None
    return number if number is None or np.isfinite(number) else np.nan


def describe(names: Iterable[str], columns: Columns, *, as_text: bool = False) -> dict[str, list[Any]]:
    """Return the values of some names, for an explanation: numbers, or text unchanged."""
    described: dict[str, list[Any]] = {}
    for name in names:
        values = None if as_text else columns.number(name)
        if values is not None:
            described[name] = values.tolist()
        else:
            texts = columns.text(name)
            described[name] = [None if code < 0 else texts.values[code] for code in texts.codes.tolist()]
    return described
