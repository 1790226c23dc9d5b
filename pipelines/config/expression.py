"""Expressions over the numbers and texts of a response, such as `correct and 20 <= tokens <= 2000`.

Python's parser reads them; the tree is checked against a list of what is allowed, and is never executed. `parse` reports
mistakes that do not depend on names, `Expression.check` unknown names and numbers in place of texts.

A value may be missing (null). A value computed from null or compared with it is null; `and` and `or` behave as in SQL: `false
and null` is false, `true or null` is true. `x is null` and `coalesce(x, 0)` handle missing values. A result that is not a
finite number, such as 1/0 or log(0), is null.

`rank(x)` and `prompt_z(x)` compare a response with the others to its prompt, `corpus_z(x)` with the whole corpus.
"""

from __future__ import annotations

import ast
import difflib
import io
import math
import tokenize
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipelines.config.expression_terms import (
    BUILT_IN,
    CONSTANTS,
    FUNCTIONS,
    OF_CORPUS,
    OF_PROMPT,
    Kind,
    Name,
    Node,
)

LONGEST = 2000  # characters of an expression
_DEEPEST = 50  # levels of brackets and operators, since evaluation is recursive

_ARITHMETIC: Mapping[type[ast.AST], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_COMPARISONS: Mapping[type[ast.AST], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
_HINTS = (
    (" = ", "; equality is written =="),
    ("&&", "; write and"),
    ("||", "; write or"),
    ("<>", "; write !="),
    (" AND ", "; write and"),
    (" OR ", "; write or"),
    (" NOT ", "; write not"),
    (" IS ", "; write is"),
)


@dataclass(frozen=True)
class Expression:
    """A checked expression."""

    text: str
    root: Node
    uses: tuple[Name, ...]
    compared: tuple[tuple[str, Node], ...]  # calls of `rank`, `prompt_z` and `corpus_z`, as they are written

    @property
    def of_prompt(self) -> bool:
        """True if evaluation needs all responses to a prompt."""
        return any(node.operation in OF_PROMPT for _, node in self.compared)

    @property
    def of_corpus(self) -> tuple[Node, ...]:
        """The calls of `corpus_z`."""
        return tuple(dict.fromkeys(node for _, node in self.compared if node.operation == OF_CORPUS))

    def reads_across(self, names: Sequence[str]) -> bool:
        """Return True if one of these numbers is used as is, and not by its place within the prompt."""
        return any(use.name in names and not use.is_column and not use.within_prompt for use in self.uses)

    def columns(self, signals: Sequence[str] = ()) -> tuple[str, ...]:
        """The carried columns that the expression reads; `signals` are the names of further numbers."""
        named = (use.name for use in self.uses if use.is_column or use.name not in {*BUILT_IN, *signals})
        return tuple(dict.fromkeys(named))

    def check(self, columns: Sequence[str], signals: Sequence[str] = (), marks: Sequence[str] = ()) -> None:
        """Raise `ValueError` if a name is none of these or has the wrong kind for its place; `marks` are signals that may be
        conditions."""
        for use in self.uses:
            at = f"at character {use.position + 1},"
            built_in = not use.is_column and use.name in BUILT_IN
            known = [*columns] if use.is_column else [*BUILT_IN, *signals, *columns]
            if use.name.startswith("z(") and use.name not in known and not use.is_column:
                models = ", ".join(name for name in signals if not name.startswith("z("))
                raise ValueError(
                    f"{at} z takes the name of a model under ensemble.names: {models or 'there are none'}; prompt_z and corpus_z "
                    "take any number"
                )
            if use.name not in known:
                close = difflib.get_close_matches(use.name, known, n=1)
                carry = f"known are {', '.join(known) or 'none'}; add a column: input.carry=[{', '.join([*columns, use.name])}]"
                raise ValueError(f"{at} {use.name!r} is unknown; {f'did you mean {close[0]!r}?' if close else carry}")
            is_number = not use.is_column and (use.name in signals or (built_in and use.name != "source"))
            if built_in and not is_number and use.kind in ("number", "condition"):
                raise ValueError(f'{at} {use.name} is text; compare it with a text: {use.name} == "..."')
            if is_number and use.kind == "text":
                raise ValueError(f"{at} {use.name} is a number, and is compared with a text")
            if (
                use.kind == "condition"
                and is_number
                and use.name not in marks
                and BUILT_IN.get(use.name) != "condition"
            ):
                raise ValueError(f"{at} {use.name} is a number; compare it: {use.name} > 0")


@lru_cache(maxsize=256)
def parse(text: str, kind: Kind = "condition") -> Expression:
    """The expression, with values of this kind. Raises `ValueError` with the position of the first mistake."""
    if len(text) > LONGEST:
        raise ValueError(f"it has {len(text):,} characters; expected at most {LONGEST:,}")
    flat = text.replace("\n", " ").replace("\t", " ").replace("\r", " ")
    source = flat.lstrip(" ")
    reader = _Reader(source, len(flat) - len(source))
    root = reader.read(kind)
    return Expression(text, root, tuple(reader.uses), tuple(reader.compared))


class _Reader:
    """Turns Python's syntax tree into nodes, and records the names."""

    def __init__(self, source: str, offset: int) -> None:
        self._source = source
        self._bytes = source.encode(errors="replace")
        self._offset = offset
        self._prompt_calls = 0  # of `rank` and `prompt_z` around what is read
        self.uses: list[Name] = []
        self.compared: list[tuple[str, Node]] = []

    def read(self, kind: Kind) -> Node:
        if not self._source.strip():
            raise ValueError("it is empty; expected an expression such as reward > 0.5")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(self._source, mode="eval").body
                tokens = list(tokenize.generate_tokens(io.StringIO(self._source).readline))
        except SyntaxError as error:
            hint = next((text for sign, text in _HINTS if sign in f" {self._source} "), "")
            place = (error.offset or len(self._source) + 1) - 1  # none or 0: it ends too early
            raise ValueError(f"at character {self._offset + place + 1}, this is not an expression{hint}") from None
        except (ValueError, RecursionError, MemoryError, tokenize.TokenError):
            raise ValueError(
                "this is not an expression: it is nested too deeply, or contains an invalid character"
            ) from None
        comment = next((token for token in tokens if token.type == tokenize.COMMENT), None)
        if comment is not None:
            raise ValueError(f"at character {self._offset + comment.start[1] + 1}, # is not allowed")
        return self._read(tree, kind, 0)

    def _read(self, node: ast.expr, kind: Kind, depth: int) -> Node:
        """Return the node as a value of this kind."""
        if depth > _DEEPEST:
            raise self._error(node, f"brackets and operators are nested more than {_DEEPEST} deep")
        if isinstance(node, ast.Name) and node.id not in {*CONSTANTS, "None"}:
            return self._name(node, node.id, kind)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "column":
            return self._name(node, self._column(node), kind, is_column=True)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "z" and kind == "number":
            return self._name(node, self._standardised(node), kind)
        own = self._kind_of(node)
        if kind == "condition" and isinstance(node, ast.Call) and getattr(node.func, "id", "") == "coalesce":
            return self._call(node, depth, kind)
        if own is None:  # null
            raise self._error(node, "null is allowed only in `is null` and `is not null`")
        if own != kind and not (own == "condition" and kind == "number"):
            example = {"condition": "a condition, such as reward > 0.5", "number": "a number", "text": "a text"}[kind]
            raise self._error(node, f"expected {example}, got a {own}")
        match node:
            case ast.Constant():
                return Node("constant", (self._constant(node),), kind)
            case ast.Name():
                return Node("constant", (CONSTANTS[node.id],), kind)
            case ast.BoolOp():
                operation = "and" if isinstance(node.op, ast.And) else "or"
                return Node(operation, tuple(self._read(value, "condition", depth + 1) for value in node.values), kind)
            case ast.UnaryOp(op=ast.Not()):
                return Node("not", (self._read(node.operand, "condition", depth + 1),), kind)
            case ast.UnaryOp():
                operand = self._read(node.operand, "number", depth + 1)
                if isinstance(node.op, ast.USub) and operand.operation == "constant":
                    return Node("constant", (-operand.arguments[0],), kind)
                return operand if isinstance(node.op, ast.UAdd) else Node("negative", (operand,), kind)
            case ast.BinOp():
                sides = (self._read(side, "number", depth + 1) for side in (node.left, node.right))
                return Node(_ARITHMETIC[type(node.op)], tuple(sides), kind)
            case ast.Compare():
                return self._comparison(node, depth)
            case ast.Call():
                return self._call(node, depth)
        raise self._error(node, "this is not allowed in an expression")

    def _kind_of(self, node: ast.expr) -> Kind | None:
        """Return the kind of a node's values; None for null and for names, which may be of any kind. Raises if it is not
        allowed."""
        match node:
            case ast.Constant(value=bool()):
                return "condition"
            case ast.Constant(value=int() | float()):
                return "number"
            case ast.Constant(value=str()):
                return "text"
            case ast.Constant(value=None):
                return None
            case ast.Name():
                return "condition" if CONSTANTS.get(node.id) is not None else None
            case ast.BoolOp() | ast.Compare() | ast.UnaryOp(op=ast.Not()):
                return "condition"
            case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
                return "number"
            case ast.BinOp():
                if type(node.op) not in _ARITHMETIC:
                    hint = "write and, or" if isinstance(node.op, ast.BitAnd | ast.BitOr) else "known are + - * /"
                    raise self._error(node, f"this operator is not allowed; {hint}")
                return "number"
            case ast.Call(func=ast.Name(id=name)):
                if name == "column":
                    return None
                if name == "z":
                    return "number"
                if name not in FUNCTIONS:
                    known = [*FUNCTIONS, "column", "z"]
                    close = difflib.get_close_matches(name, known, n=1)
                    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                    raise self._error(node, f"the function {name!r} is unknown; {hint}")
                return "number"
        raise self._error(node, "this is not allowed in an expression")

    def _comparison(self, node: ast.Compare, depth: int) -> Node:
        parts, left = [], node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            parts.append(self._pair(operator, left, right, depth + 1))
            left = right
        return parts[0] if len(parts) == 1 else Node("and", tuple(parts), "condition")

    def _pair(self, operator: ast.cmpop, left: ast.expr, right: ast.expr, depth: int) -> Node:
        """Read two sides of a comparison; names take the kind of the other side, or are numbers."""
        if isinstance(operator, ast.Is | ast.IsNot):
            if not self._is_null(right):
                raise self._error(right, "after `is` comes null or not null; equality is written ==")
            test = Node("is null", (self._any(left, depth),), "condition")
            return test if isinstance(operator, ast.Is) else Node("not", (test,), "condition")
        if isinstance(operator, ast.In | ast.NotIn):
            return self._membership(operator, left, right, depth)
        for side in (left, right):
            if self._is_null(side):
                raise self._error(side, "nothing is equal to null; write `is null` or `is not null`")
        kinds = {kind for kind in map(self._kind_of, (left, right)) if kind is not None}
        kind: Kind = "number" if len(kinds) != 1 or kinds == {"condition"} else next(iter(kinds))
        sign = _COMPARISONS[type(operator)]
        if "text" in kinds and sign not in ("==", "!="):
            raise self._error(right, f"{sign} compares numbers; compare texts with == or !=")
        return Node(sign, (self._read(left, kind, depth), self._read(right, kind, depth)), "condition")

    def _any(self, node: ast.expr, depth: int) -> Node:
        """Read the left side of `is null`, of any kind."""
        kind = self._kind_of(node)
        if kind is not None:
            return self._read(node, kind, depth)
        if self._is_null(node):
            raise self._error(node, "null is null; write the name of a value before `is`")
        is_column = isinstance(node, ast.Call)
        name = self._column(node) if isinstance(node, ast.Call) else getattr(node, "id", "")
        self.uses.append(Name(name, "any", is_column, self._position(node), self._prompt_calls > 0))
        return Node("column" if is_column else "name", (name,), "any")

    def _membership(self, operator: ast.cmpop, left: ast.expr, right: ast.expr, depth: int) -> Node:
        if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
            raise self._error(right, 'after `in` comes a list, such as ["a", "b"]')
        for element in right.elts:
            if not isinstance(element, ast.Constant | ast.UnaryOp):
                raise self._error(element, "the list after `in` may contain only numbers or texts")
        kind: Kind = "text" if self._kind_of(right.elts[0]) == "text" else "number"
        value, *options = (self._read(part, kind, depth) for part in (left, *right.elts))
        test = Node("in", (value, *options), "condition")
        return test if isinstance(operator, ast.In) else Node("not", (test,), "condition")

    def _call(self, node: ast.Call, depth: int, kind: Kind = "number") -> Node:
        assert isinstance(node.func, ast.Name)
        name, count = node.func.id, len(node.args)
        least, most = FUNCTIONS[name]
        if node.keywords or not least <= count <= most or any(isinstance(a, ast.Starred) for a in node.args):
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise self._error(node, f"{name} takes {expected} values, got {count + len(node.keywords)}")
        self._prompt_calls += name in OF_PROMPT
        call = Node(name, tuple(self._read(value, kind, depth + 1) for value in node.args), kind)
        self._prompt_calls -= name in OF_PROMPT
        if name in (*OF_PROMPT, OF_CORPUS):
            inner = [part.operation for part in call.walk() if part is not call]
            if name == OF_CORPUS and (nested := {*OF_PROMPT, OF_CORPUS} & {*inner}):
                other = min(nested)
                raise self._error(node, f"{name} takes a number of a single response, and {other} compares several")
            self.compared.append((ast.get_source_segment(self._source, node) or name, call))
        return call

    def _column(self, node: ast.Call) -> str:
        match node:
            case ast.Call(args=[ast.Constant(value=str() as name)], keywords=[]):
                return name
        raise self._error(node, 'column takes the name of a column in quotes: column("my column")')

    def _standardised(self, node: ast.Call) -> str:
        match node:
            case ast.Call(args=[ast.Name(id=name)], keywords=[]):
                return f"z({name})"
        raise self._error(
            node, "z takes the name of a model (ensemble.names): z(helpful); prompt_z and corpus_z take any number"
        )

    def _name(self, node: ast.expr, name: str, kind: Kind, *, is_column: bool = False) -> Node:
        self.uses.append(Name(name, kind, is_column, self._position(node), self._prompt_calls > 0))
        return Node("column" if is_column else "name", (name,), kind)

    def _constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, bool | str):
            return value
        assert isinstance(value, int | float)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self._error(node, "this number is too large")
        return number

    def _is_null(self, node: ast.expr) -> bool:
        return (isinstance(node, ast.Constant) and node.value is None) or (
            isinstance(node, ast.Name) and node.id == "null"
        )

    def _position(self, node: ast.AST) -> int:
        before = self._bytes[: getattr(node, "col_offset", 0)]
        return self._offset + len(before.decode(errors="replace"))

    def _error(self, node: ast.AST, message: str) -> ValueError:
        return ValueError(f"at character {self._position(node) + 1}, {message}")
