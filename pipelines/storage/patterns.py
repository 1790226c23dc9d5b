"""Matches patterns with files that do not exist yet, by the rules of fsspec's drivers.

The name of such a file is a template: `#` stands for a decimal digit, `%` for a hexadecimal digit.

>>> could_match("/r/**/*.parquet", "/r/nightly", "data/train-#####.parquet")
True
>>> could_match("/r/*.parquet", "/r/nightly", "data/train-#####.parquet")
False
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from fsspec.utils import glob_translate

_CHARACTERS = {"#": frozenset("0123456789"), "%": frozenset("0123456789abcdef")}
_STEP = re.compile(r"\[!?+\]?+[^\]]*\]|.", re.DOTALL)  # a set in brackets, or one character

_Part = tuple[frozenset[str], ...]
"""A part of a path between slashes: the possible characters at each position."""


def could_match(pattern: str, folder: str, name: str) -> bool:
    """Return whether a pattern could match a file below a folder, whose name is a template; without a name, the folder itself."""
    parts = [_literal(part) for part in folder.split("/")]
    parts += [_template(part) for part in name.split("/")] if name else []
    return _match(tuple(pattern.split("/")), tuple(parts))


def template_expression(name: str) -> str:
    """The regular expression of the names that a template stands for."""
    return re.escape(name).replace(r"\#", "#").replace("#", "[0-9]").replace("%", "[0-9a-f]")


def _literal(part: str) -> _Part:
    return tuple(frozenset(character) for character in part)


def _template(part: str) -> _Part:
    return tuple(_CHARACTERS.get(character, frozenset(character)) for character in part)


@lru_cache(maxsize=4096)
def _match(pattern: tuple[str, ...], parts: tuple[_Part, ...]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":  # any number of parts, but not none at the end
        fewest = 0 if len(pattern) > 1 else 1
        return any(_match(pattern[1:], parts[count:]) for count in range(fewest, len(parts) + 1))
    return bool(parts) and _match_part(pattern[0], parts[0]) and _match(pattern[1:], parts[1:])


def _match_part(pattern: str, part: _Part) -> bool:
    """Return whether a pattern without slashes matches one of the names that a part stands for; all possible matches are
    followed at once."""
    steps = _STEP.findall(pattern)
    reached = _pass_stars(steps, [0])
    for characters in part:
        stars = {at for at in reached if at < len(steps) and steps[at] == "*"}
        ahead = {at + 1 for at in reached - stars if at < len(steps) and _takes(steps[at], characters)}
        reached = _pass_stars(steps, stars | ahead)
    return len(steps) in reached


def _pass_stars(steps: list[str], starts: Iterable[int]) -> set[int]:
    """The positions in a pattern that can be reached from `starts` without a character."""
    reached: set[int] = set()
    for at in starts:
        reached.add(at)
        while at < len(steps) and steps[at] == "*":
            at += 1
            reached.add(at)
    return reached


@lru_cache(maxsize=4096)
def _takes(step: str, characters: frozenset[str]) -> bool:
    expression = re.compile(glob_translate(step))
    return any(expression.match(character) for character in characters)
