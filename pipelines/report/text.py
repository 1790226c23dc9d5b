"""Text from data, prepared for display: cropped to a length or a width, with no run of marks that leaves its line; percentages.

Only what a page shows is cut; files for programs hold the whole. Escaping is not done here: markupsafe and jinja do it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from pipelines.storage.canonical_json import Json

LARGEST_TEXT = 14  # px: what the style sheet gives SVG text on narrow screens
_MARKS = 4  # combining marks on one letter; no script in use stacks more
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn the direction of what follows
_WIDE = frozenset("mwMW@%—…")
_NARROW = frozenset("fijlrtI.,:;'!|()[]/- ")


def crop(words: str, most: int = 200) -> str:
    """At most `most` characters of `words`, `…` where some were cut; what cannot be shown becomes U+FFFD."""
    kept: list[str] = []
    for character in _sanitise(words):
        if len(kept) == most:
            return "".join(kept[:-1]).rstrip() + "…"
        kept.append(character)
    return "".join(kept)


def crop_to_width(words: str, room: float) -> str:
    """As many characters as fit `room` pixels of a drawing in the largest size it is set in, `…` where some were cut."""
    text = crop(words)
    if width(text) <= room:
        return text
    kept, free = "", room - width("…")
    for character in text.removesuffix("…"):
        free -= width(character)
        if free < 0:
            break
        kept += character
    return kept.rstrip() + "…"


def width(words: str) -> float:
    """Pixels that `words` take at the largest size, in fonts as wide as DejaVu Sans and Verdana are."""
    return sum(map(_ems, words)) * LARGEST_TEXT


def sanitise(text: str) -> str:
    """All of a text with its lines; what cannot be shown becomes U+FFFD, and marks that would leave their line are dropped."""
    return "\n".join("".join(_sanitise(line)) for line in text.splitlines())


def _ems(character: str) -> float:
    if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0.0
    if unicodedata.east_asian_width(character) in "WF":
        return 1.4  # emoji are wider than their em
    if character in _WIDE:
        return 1.0
    if character in _NARROW:
        return 0.45
    return 0.8 if character.isupper() else 0.65


def _sanitise(words: str) -> Iterator[str]:
    marks = 0
    for character in words:
        category = unicodedata.category(character)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if marks <= _MARKS:
            hidden = category in ("Cc", "Cs") or character in _TURNS
            yield " " if character in "\t\r\n" else "\ufffd" if hidden else character


def percent(value: float | None, *, sign: bool = False) -> str:
    """`61.2`, or `-` where there is nothing."""
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}z.1f}"


def percent_interval(estimate: Json, *, sign: bool = False) -> str:
    """`61.2 [58.4, 64.0]`, in percent; `-` where there is nothing, no brackets where there is no interval."""
    value = percent(estimate["value"], sign=sign)
    if estimate["low"] is None:
        return value
    return f"{value} [{percent(estimate['low'], sign=sign)}, {percent(estimate['high'], sign=sign)}]"
