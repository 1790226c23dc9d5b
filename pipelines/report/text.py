"""Text from data, prepared for display: cropped to a length or a width, without stacked marks that leave their line;
percentages.

Only text on pages is cut; files for programs contain all of it. Escaping is left to markupsafe and jinja.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from pipelines.storage.canonical_json import Json

LARGEST_TEXT = 14  # px: what the style sheet gives SVG text on narrow screens
_MARKS = 4  # combining marks on one letter; no script in use stacks more
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # turn the direction of what follows
_WIDE = frozenset("mwMW@%—…")
_WORDS = re.compile(r"[^\s_/.,:;|-]*[\s_/.,:;|-]*")
_NARROW = frozenset("fijlrtI.,:;'!|()[]/- ")


def crop(words: str, most: int = 200) -> str:
    """Return at most `most` characters of `words`, with `…` if some were cut; unprintable characters become U+FFFD."""
    kept: list[str] = []
    for character in _sanitise(words):
        if len(kept) == most:
            return "".join(kept[:-1]).rstrip() + "…"
        kept.append(character)
    return "".join(kept)


def shorten(words: str, most: int = 200) -> str:
    """Return at most `most` characters of `words`, the beginning and the end with `…` between: names often differ at their
    end."""
    if len(words) <= most:
        return crop(words, most)
    end = most // 3
    return "".join(_sanitise(words[: most - end - 1])).rstrip() + "…" + "".join(_sanitise(words[-end:])).lstrip()


def crop_to_width(words: str, room: float) -> str:
    """Return as many characters as fit `room` pixels of a drawing at the largest text size; if not all fit, the beginning and
    the end with `…` between."""
    text = shorten(words)
    if width(text) <= room:
        return text
    pieces = _pieces(text.replace("…", ""))
    head, tail, free, forward = list[str](), list[str](), room - width("…"), True
    while pieces and width(pieces[0 if forward else -1]) <= free:
        piece = pieces.pop(0 if forward else -1)
        free -= width(piece)
        (head if forward else tail).append(piece)
        forward = not forward or len(head) < 2 * len(tail)
    return "".join(head).rstrip() + "…" + "".join(reversed(tail)).lstrip()


def wrap_to_width(words: str, room: float, *, lines: int) -> list[str]:
    """Return `words` in at most `lines` lines that fit `room` pixels, broken between words if possible, and shortened if
    necessary."""
    for tenths in range(10, 0, -1):
        short = crop_to_width(words, room * lines * tenths / 10)
        for broken in (_WORDS.findall(short), [short]):
            wrapped = _wrap(broken, room)
            if len(wrapped) <= lines:
                return wrapped
    return [crop_to_width(words, room)]


def _wrap(words: list[str], room: float) -> list[str]:
    done, line = list[str](), ""
    for word in words:
        if line and width((line + word).rstrip()) > room:
            done.append(line.rstrip())
            line = ""
        for piece in _pieces(word):
            if width((line + piece).rstrip()) > room:
                done.append(line.rstrip())
                line = ""
            line += piece
    return [*done, line.rstrip()] if line.strip() or not done else done


def _pieces(text: str) -> list[str]:
    """Return the characters of a text, each with its combining marks; `…` stays with the character after it, so that no line
    ends with it."""
    pieces = list[str]()
    for character in text:
        if pieces and (_ems(character) == 0.0 or pieces[-1] == "…"):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces


def width(words: str) -> float:
    """Return the pixels that `words` take at the largest size, in fonts as wide as DejaVu Sans and Verdana."""
    return sum(map(_ems, words)) * LARGEST_TEXT


def sanitise(text: str) -> str:
    """Return all lines of a text; unprintable characters become U+FFFD, and marks that would leave their line are dropped."""
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


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """Return `0.407`, or `-` for None."""
    return "-" if value is None else f"{value:{'+' if sign else ''}z.{digits}f}"


def number_interval(estimate: Json, *, sign: bool = False) -> str:
    """Return `0.407 [0.371, 0.444]`."""
    value, low, high = (number(estimate[name], sign=sign) for name in ("value", "low", "high"))
    return value if estimate["low"] is None else f"{value} [{low}, {high}]"


def percent(value: float | None, *, sign: bool = False) -> str:
    """Return `61.2`, or `-` for None."""
    return "-" if value is None else f"{100 * value:{'+' if sign else ''}z.1f}"


def percent_interval(estimate: Json, *, sign: bool = False) -> str:
    """Return `61.2 [58.4, 64.0]`, in percent; `-` for None, and no brackets without an interval."""
    value = percent(estimate["value"], sign=sign)
    if estimate["low"] is None:
        return value
    return f"{value} [{percent(estimate['low'], sign=sign)}, {percent(estimate['high'], sign=sign)}]"


def short(value: float) -> str:
    """Return `0.25`, `12`, `1.5k`, `3.2M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def rate(value: float) -> str:
    """Return `1,234`, `12`, `3.4`, `0.056`: a number per second, whole from 10, otherwise with two significant digits."""
    return f"{value:,.0f}" if value >= 9.95 or value <= 0 else f"{float(f'{value:.2g}'):.12g}"


def share(value: float) -> str:
    """Return `12%`, `0.4%`."""
    return (
        f"{value:.0%}" if value in (0, 1) or 0.01 <= value <= 0.99 else f"{value:.2g}" if value > 1 else f"{value:.1%}"
    )


def describe_gap(gate: Json) -> str:
    """Return a gap of the step `on_topic` in words, from the manifest."""
    if gate.get("measured") is None:
        return f"gap {gate['gap']} in {gate['signal']}"
    words = f"gap {gate['gap']:.3g} in {gate['signal']}, derived from the corpus"
    if gate["caught"] is None:
        return words
    words += f": it catches {gate['caught']:.0%} of responses to other prompts"
    return words if gate["off_topic"] is None else f"{words}, and about {gate['off_topic']:.1%} look like these"
