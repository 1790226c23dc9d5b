"""Two responses and a verdict on them, as in judge benchmarks and arenas: the columns, and the values that name the winner.

Columns are recognised by names that differ in one mark (`response_a` and `response_b`, `output 1` and `output 2`), values by
what they name: a mark (`A`, `model_b`, `A>B`), a column, a model beside its response, a tie. Numbers are read as marks only if
they are unambiguous; otherwise the user must define them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rm.conversations import is_message
from rm.preferences.row_values import PreferenceError, PreferenceRow, ReadSettings

FIRST, SECOND, TIE = 0, 1, 2

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MARKS = (("1", "2"), ("a", "b"), ("0", "1"), ("first", "second"), ("left", "right"))
_RESPONSE_WORDS = {
    *("response", "output", "answer", "completion", "generation", "reply", "solution", "candidate", "conversation"),
    *("prediction", "summary", "text", "story", "essay", "translation"),
}
_BESIDE = {"model", "llm", "assistant", "ai", "bot", "system", "option", "the", "body", "content"}
_WINNER_WORDS = {
    *(
        "winner",
        "win",
        "label",
        "preference",
        "preferred",
        "prefer",
        "verdict",
        "judgement",
        "judgment",
        "better",
        "safer",
    ),
    *("best", "choice", "vote", "decision", "outcome"),
}
_TIES = {
    *("tie", "ties", "tied", "draw", "equal", "equals", "same", "both", "neither", "bothbad", "both bad", "both good"),
    *("tie bothbad", "tie both bad", "equally good", "no preference"),
}
_COMPARED = re.compile(r"\W*([ab12])\s*(>|<|=)+\s*([ab12])\W*")
_LONGEST_VERDICT = 64  # characters; longer text is not a verdict


@lru_cache(maxsize=4096)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a column's name in lower case: `response_A` and `responseA` are `("response", "a")`."""
    return tuple(word.lower() for word in _WORD.findall(name))


@lru_cache(maxsize=256)
def paired_columns(names: tuple[str, ...]) -> dict[tuple[str, ...], tuple[str, str]]:
    """Return the pairs of columns whose names differ only in a mark, by the words of the name with `*` for the mark.

    More than two such columns, as `response_1` to `response_4`, are not a pair.
    """
    slots: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        words = words_of(name)
        for at, word in enumerate(words):
            if any(word in marks for marks in _MARKS) or (word.isdigit() and int(word) < 10) or word == "c":
                slots.setdefault((*words[:at], "*", *words[at + 1 :]), {})[word] = name
    return {
        key: (marked[first], marked[second])
        for key, marked in slots.items()
        for first, second in _MARKS
        if marked.keys() == {first, second}
    }


@dataclass(frozen=True)
class Verdict:
    """The columns of two responses and of the verdict, and the meaning of its values.

    `winner` is one column, or two or three that mark the first, the second and neither with 1. `values` are the user's;
    without them a number names the side `number - first_number`, and a text may be a value of the columns `names`.
    """

    sides: tuple[str, str]
    winner: tuple[str, ...]
    values: Mapping[str, int] | None = None
    first_number: int | None = None
    names: tuple[str, str] | None = None

    def votes(self, row: PreferenceRow) -> list[int | None]:
        """Return `FIRST`, `SECOND` or `TIE` for each verdict of a row, None for any other value."""
        if len(self.winner) > 1:
            marked = [side for side, name in enumerate(self.winner) if row.get(name) in (1, True)]
            return [marked[0] if len(marked) == 1 else None]
        value = row.get(self.winner[0])
        return [self._side(item, row) for item in _given(value)]

    def _side(self, value: object, row: PreferenceRow) -> int | None:
        text = _canonical(value)
        if self.values is not None:
            return self.values.get(text)
        if text.isdigit():
            side = None if self.first_number is None or isinstance(value, bool) else int(text) - self.first_number
            return side if side in (FIRST, SECOND) else None
        if self.names is not None:
            names = [_canonical(row.get(name)) for name in self.names]
            if names[0] != names[1] and text in names:
                return names.index(text)
        return _named_side(text, self.sides)


def fits(row: PreferenceRow) -> bool:
    """Return whether a row has two responses and columns that may judge them."""
    return bool(_pairs_of_responses([row])) and bool(_winners([row], ()))


def settle(rows: Sequence[PreferenceRow], settings: ReadSettings) -> Verdict:
    """Return the columns and the notation of the verdicts in `rows`, from the settings or from their values.

    Raises `PreferenceError` with the settings to choose from if they are ambiguous.
    """
    pairs = [settings.sides] if settings.sides else _pairs_of_responses(rows)
    if len(pairs) != 1:
        choices = [_columns_setting(pair, "COLUMN") for pair in pairs] or [
            _columns_setting(("COLUMN", "COLUMN"), "COLUMN")
        ]
        raise PreferenceError(
            f"data has {'several pairs of responses' if pairs else 'no two columns known as two responses'}; name the two "
            f"responses, and the column that says which one is better: {' or '.join(choices)}",
            choices,
        )
    sides = pairs[0]
    winner = settings.columns.get("winner")
    winners = [(winner,)] if winner else _winners(rows, sides)
    if settings.winner is not None:
        values = {_canonical(value): side for side, name in enumerate(_KEYS) for value in settings.winner.get(name, ())}
        candidates = [Verdict(sides, columns, values) for columns in winners]
    else:
        candidates = [verdict for columns in winners if (verdict := _certain(rows, sides, columns)) is not None]
    if len(candidates) == 1:
        return candidates[0]
    if not winners:
        raise _question(sides)
    if candidates or len(winners) > 1:
        choices = [_columns_setting(sides, *verdict.winner) for verdict in candidates] or [
            _columns_setting(sides, *columns) for columns in winners
        ]
        raise PreferenceError(
            f"data has two responses, {sides[0]} and {sides[1]}, and several columns that may say which one is better; name "
            f"it: {' or '.join(choices)}",
            choices,
        )
    raise _doubt(rows, sides, winners[0][0], named=winner is not None)


def ask_for_winner(row: PreferenceRow) -> PreferenceError | None:
    """Return an error that asks for the column that judges a row's two responses; None if it does not have two."""
    pairs = _pairs_of_responses([row])
    return _question(pairs[0]) if pairs else None


def _question(sides: tuple[str, str]) -> PreferenceError:
    setting = _columns_setting(sides, "COLUMN")
    return PreferenceError(
        f"data has two responses, {sides[0]} and {sides[1]}, and no column known to say which one is better; name it: {setting}",
        [setting],
    )


_KEYS = ("first", "second", "tie")


def _pairs_of_responses(rows: Sequence[PreferenceRow]) -> list[tuple[str, str]]:
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return [
        pair
        for key, pair in paired_columns(names).items()
        if {*key} & _RESPONSE_WORDS and {*key} <= _RESPONSE_WORDS | _BESIDE | {"*"}
        if any(all(_is_response(row.get(name)) for name in pair) for row in rows)
    ]


def _is_response(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and is_message(value[0]))


def _winners(rows: Sequence[PreferenceRow], sides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the columns that may hold the verdict: by their names, with values as short as a verdict."""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    called = [name for name in names if name not in sides and {*words_of(name)} & _WINNER_WORDS]
    marked = [
        (*pair, *[name for name in called if "tie" in words_of(name)][:1])
        for key, pair in paired_columns(names).items()
        if {*key} & _WINNER_WORDS
        and all(row.get(name) in (None, 0, 1) for row in rows for name in pair)
        and any(row.get(name) is not None for row in rows for name in pair)
    ]
    taken = {name for columns in marked for name in columns}
    single = [(name,) for name in called if name not in taken and any(True for _ in _verdicts(rows, name))]
    return [*marked, *single]


def _verdicts(rows: Iterable[PreferenceRow], name: str) -> Iterator[Any]:
    """Yield the values of a column of verdicts; nothing if any value cannot be a verdict."""
    values = [row.get(name) for row in rows]
    flat = [item for value in values for item in _given(value)]
    if all(isinstance(item, int | float) or (isinstance(item, str) and len(item) <= _LONGEST_VERDICT) for item in flat):
        yield from flat


def _given(value: object) -> list[Any]:
    """Return the verdicts in a value, one or a list; none for null or an empty cell of a table."""
    return [item for item in (value if isinstance(value, list) else [value]) if item is not None and item != ""]


def _certain(rows: Sequence[PreferenceRow], sides: tuple[str, str], winner: tuple[str, ...]) -> Verdict | None:
    """Return the only way to read a column's values, None if there is none or more than one."""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    companions = [pair for pair in paired_columns(names).values() if pair != sides]
    for verdict in [
        Verdict(sides, winner, first_number=_first_number(rows, sides, winner[0]), names=names)
        for names in (None, *companions)
    ]:
        votes = [vote for row in rows for vote in verdict.votes(row)]
        if votes and None not in votes:
            return verdict
    return None


def _first_number(rows: Sequence[PreferenceRow], sides: tuple[str, str], winner: str) -> int | None:
    """Return the number that can only name the first response: 0 of columns 0 and 1, 1 of values 1 and 2."""
    numbers = {_canonical(value) for value in _verdicts(rows, winner)}
    marks = {*words_of(sides[0])} ^ {*words_of(sides[1])}
    if marks == {"0", "1"}:
        return 0
    return 1 if "2" in numbers and "0" not in numbers else None


def _named_side(text: str, sides: tuple[str, str]) -> int | None:
    """Return the side that a text names by its mark (`model_a`, `[[B]]`, `A>B`) or its column, or `TIE`; else None."""
    if re.sub(r"[\W_]+", " ", text).strip() in _TIES:
        return TIE
    if (compared := _COMPARED.fullmatch(text)) is not None:
        left, sign, right = compared.groups()
        if (left in "a1") == (right in "a1"):
            return None
        return TIE if sign == "=" else FIRST if (left in "a1") == (sign == ">") else SECOND
    words, columns = words_of(text), [words_of(side) for side in sides]
    if words in columns:
        return columns.index(words)
    if not words or not {*words[:-1]} <= _RESPONSE_WORDS | _BESIDE:
        return None
    marks = [mark for mark in _MARKS if {*mark} == {*columns[0]} ^ {*columns[1]}]
    marks += [mark for mark in _MARKS if mark != ("0", "1")]
    if marks[0] == ("0", "1") and words[-1].isdigit():
        marks = marks[:1]
    return next((mark.index(words[-1]) for mark in marks if words[-1] in mark), None)


def _canonical(value: object) -> str:
    """Return a value of a verdict as text: 1, 1.0 and "1" are equal, and so are "A" and "a"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def _columns_setting(sides: tuple[str, str], winner: str, *more: str) -> str:
    """Return the setting that names the columns; columns that mark the winner with 1 cannot be named."""
    return f"'data.columns={{responses: [{sides[0]}, {sides[1]}], winner: {winner}}}'"


def _doubt(rows: Sequence[PreferenceRow], sides: tuple[str, str], winner: str, *, named: bool) -> PreferenceError:
    """Return an error that asks for the meaning of a verdict's values; it contains numbers, but no text from rows."""
    values = [*_verdicts(rows, winner)]
    numbers = sorted(
        {_canonical(value) for value in values} if all(not isinstance(value, str) for value in values) else ()
    )
    ways = _WAYS.get(tuple(numbers), ("{first: VALUE, second: VALUE, tie: VALUE}",))
    columns = "" if named else f"{_columns_setting(sides, winner)} "
    choices = [f"{columns}'data.winner={way}'" for way in ways]
    holding = f" with the values {', '.join(numbers)}" if numbers else ", whose values name none of them"
    return PreferenceError(
        f"data has two responses, {sides[0]} and {sides[1]}, and a verdict in the column {winner}{holding}; say "
        f"what they mean: {' or '.join(choices)}",
        choices,
    )


_WAYS = {
    ("0", "1", "2"): ("{first: 1, second: 2, tie: 0}", "{first: 0, second: 1, tie: 2}"),
    ("0", "1"): ("{first: 0, second: 1}", "{first: 1, second: 0}"),
    ("1",): ("{first: 1, second: 2}", "{first: 1, second: 0}", "{first: 0, second: 1}"),
    ("0",): ("{first: 0, second: 1}", "{first: 1, second: 0}"),
    ("-1", "0", "1"): ("{first: -1, second: 1, tie: 0}", "{first: 1, second: -1, tie: 0}"),
    ("-1", "1"): ("{first: -1, second: 1}", "{first: 1, second: -1}"),
    ("false", "true"): ("{first: true, second: false}", "{first: false, second: true}"),
    ("1", "1.5", "2"): ("{first: 1, second: 2, tie: 1.5}", "{first: 2, second: 1, tie: 1.5}"),
}
"""The usual meanings of numbers, between which only the user can choose."""
