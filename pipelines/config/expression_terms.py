"""The terms of expressions: names known to every expression, functions, operations and uses of names."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Kind = Literal["number", "condition", "text", "any"]

BUILT_IN: Mapping[str, Kind] = {
    "reward": "number",
    "tokens": "number",
    "prompt_tokens": "number",
    "response_tokens": "number",
    "characters": "number",
    "truncated": "condition",
    "source": "text",
}
"""The names known to every expression. Characters are those of the response."""

OF_TOKENIZER = ("tokens", "prompt_tokens", "response_tokens", "truncated")
"""The built-in names that require a model's tokenizer."""

OF_PROMPT = ("rank", "prompt_z")
"""The functions that compare a response with the others to its prompt."""
OF_CORPUS = "corpus_z"
"""The function that compares a response with all responses."""

FUNCTIONS = {
    "abs": (1, 1),
    "log": (1, 1),
    "exp": (1, 1),
    "sqrt": (1, 1),
    "min": (2, 9),
    "max": (2, 9),
    "coalesce": (2, 9),
    **dict.fromkeys((*OF_PROMPT, OF_CORPUS), (1, 1)),
}
"""The minimum and maximum number of arguments of each."""
CONSTANTS = {"true": True, "false": False, "null": None}
RESERVED = (*BUILT_IN, *FUNCTIONS, *CONSTANTS, "column", "z")
"""The words of the language, which cannot name a model."""


def check_name(name: str, what: str) -> None:
    """Raise `ValueError` if expressions cannot refer to a number by this name."""
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or name in RESERVED or keyword.iskeyword(name):
        raise ValueError(
            f"{name!r} cannot name a {what}: expected letters, digits and _, and none of {', '.join(RESERVED)}"
        )


@dataclass(frozen=True)
class Node:
    """An operation with its arguments: nodes, or plain values for `constant`, `name` and `column`."""

    operation: str
    arguments: tuple[Any, ...]
    kind: Kind

    @cached_property
    def text(self) -> str:
        """A text that is the same for the same operation on the same values, and different for any other."""
        parts = (part.text if isinstance(part, Node) else repr(part) for part in self.arguments)
        return f"{self.operation}:{self.kind}({', '.join(parts)})"

    def walk(self) -> Iterator[Node]:
        yield self
        for argument in self.arguments:
            if isinstance(argument, Node):
                yield from argument.walk()


@dataclass(frozen=True)
class Name:
    """One use of a name: its kind and its position."""

    name: str
    kind: Kind  # `any` if only its presence is tested
    is_column: bool  # written as column("..."), which is never a built-in name or a signal
    position: int
    within_prompt: bool = False  # in `rank` or `prompt_z`, which compare responses to one prompt
