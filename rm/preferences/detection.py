"""Detects the format of rows from columns and their types, or takes it by name, and checks it against the settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from rm.conversations import messages_in_json
from rm.preferences.formats import BESIDE, BY_ROLES, EVERYWHERE, FORMATS, PUBLISHED, Format
from rm.preferences.readers import votes
from rm.preferences.row_values import PROMPTS, RESPONSES, PreferenceError, PreferenceRow, ReadSettings
from rm.preferences.verdicts import ask_for_winner, settle, words_of

_IS_ID = re.compile(r"(^|_)(id|index|idx|seed|tokens?|length)$", re.IGNORECASE)
_TREE = {"message_id", "parent_id", "role", "text"}  # OpenAssistant's messages
_GRADES = ("score", "rating", "grade", "reward")
_SEPARATE = ("prompt", "instruction", "question", "query", "context_messages")
"""Prompt columns of which a row needs one; `input` is not among them, as it may belong to an instruction."""


def add_roles(row: PreferenceRow, columns: Mapping[str, str]) -> PreferenceRow:
    """Return `row` with the columns named by `columns` (role → column) also under their roles.

    Both sides of a pair become lists of messages if they are conversations stored as JSON, and grades of both sides with
    common names (`chosen-rating`, `rejected_reward`) get their roles.
    """
    named = {role: row[column] for role, column in columns.items() if column in row and role not in BESIDE}
    view = {**row, **named} if named else row
    if "score_chosen" not in view and (grades := _grade_columns(tuple(view))) is not None:
        high, low = (view[name] for name in grades)
        if all(isinstance(grade, int | float) and not isinstance(grade, bool) for grade in (high, low)):
            view = {**view, "score_chosen": high, "score_rejected": low}
    sides = [view.get(name) for name in ("chosen", "rejected")]
    parsed = [messages_in_json(side) if isinstance(side, str) else None for side in sides]
    if all(parsed):
        return {**view, "chosen": parsed[0], "rejected": parsed[1]}
    return view


@lru_cache(maxsize=256)
def _grade_columns(names: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the columns named as grades of the chosen and of the rejected side; the plainest of several."""
    spelling = {words_of(name): name for name in names}
    pairs = []
    for words, name in spelling.items():
        other = spelling.get(tuple("rejected" if word == "chosen" else word for word in words))
        grade = next((rank for rank, word in enumerate(_GRADES) if word in words), None)
        if "chosen" in words and other is not None and grade is not None:
            pairs.append((len(words), grade, name, other))
    return min(pairs)[2:] if pairs else None


def detect_format(row: PreferenceRow, columns: Mapping[str, str] | None = None) -> str:
    """Return the name of the format that a row is in, by its columns and their types.

    Raises `PreferenceError` if none fits, or several do and `columns` does not decide.
    """
    columns = columns or {}
    view = add_roles(row, columns)
    candidates = [format for format in FORMATS.values() if format.fits(view)]
    taking = [format for format in candidates if format.takes(columns)]
    by_roles = [format.name for format in taking if format in BY_ROLES]
    if taking and taking[0] in PUBLISHED:
        return taking[0].name
    if len(by_roles) == 1:
        return by_roles[0]
    if by_roles:
        suggestions = [f"data.format={name}" for name in by_roles]
        raise PreferenceError(
            f"data has columns {_join_names(row)}, which fit the formats {_join_names(by_roles)}; choose one: "
            f"{' or '.join(suggestions)}, or name the column to use in data.columns",
            suggestions,
        )
    if candidates:
        raise PreferenceError(
            f"data.columns names {_join_names(columns)}, and the format {candidates[0].name} of the rows takes only "
            f"{_join_names({*candidates[0].roles, *candidates[0].inner, *EVERYWHERE})}; remove the others, or set data.format"
        )
    for role, column in columns.items():
        if column not in row:
            raise PreferenceError(_unknown_column_message(role, column, row))
    suggestions = _suggest_judgements(view)
    if suggestions:
        raise PreferenceError(
            f"data has columns {_join_names(row)}: responses to prompts, as `bestkept run` scores them, without a known "
            f"judgement; to train on them name the judgement: {' or '.join(suggestions)}",
            suggestions,
        )
    if row.keys() >= _TREE:
        raise PreferenceError(
            "data has one message of a tree per row (message_id, parent_id, role, text), and a preference compares answers to "
            "one message; join them into rows {prompt: the messages up to it, responses: the answers, ranking: 1 + their rank}"
        )
    if (question := ask_for_winner(row)) is not None:
        raise question
    if (meant := _suggest_case(row)) is not None:
        raise PreferenceError(
            f"data has columns {_join_names(row)}, and names are case-sensitive; did you mean {meant}?", [meant]
        )
    corpus = "messages" in row or "conversations" in row or _has_any(row, RESPONSES)
    raise PreferenceError(
        f"data has columns {_join_names(row)}, which fit no known format ({', '.join(FORMATS)}); "
        + ("a corpus without judgements is input of `bestkept run`; to train, " if corpus else "")
        + "set data.format, or name the columns, for example data.columns={prompt: COLUMN, response: COLUMN, score: COLUMN}"
    )


def columns_setting(columns: Mapping[str, str]) -> str:
    """Return the setting that names these columns, quoted for a shell."""
    return f"'data.columns={{{', '.join(f'{role}: {name}' for role, name in columns.items())}}}'"


def fitting_formats(rows: Sequence[PreferenceRow], settings: ReadSettings) -> list[str]:
    """Return the names of all formats that the first of `rows` fits, with its columns as named by `settings`, in order."""
    view = add_roles(rows[0], settings.columns)
    return [format.name for format in FORMATS.values() if format.fits(view) and format.takes(settings.columns)]


def _suggest_judgements(row: PreferenceRow) -> list[str]:
    """Return `data.columns` for each column that may judge the row's one response: true or false, or a number."""
    if not (_has_any(row, PROMPTS) and _has_any(row, RESPONSES)):
        return []
    values = {name: value for name, value in row.items() if name not in (*PROMPTS, *RESPONSES)}
    labels = [f"'data.columns={{label: {name}}}'" for name, value in values.items() if isinstance(value, bool)]
    scores = [
        f"'data.columns={{score: {name}}}'"
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not _IS_ID.search(name)
    ]
    return labels + scores


def _suggest_case(row: PreferenceRow) -> str | None:
    """Return `data.columns` for columns whose lower-case names would be recognised."""
    spelling = {name.lower(): name for name in row}
    lower = {name: row[spelling[name]] for name in spelling}
    for format in FORMATS.values() if list(spelling) != list(row) else ():
        named = {role: spelling[role] for role in format.roles if role in spelling and spelling[role] != role}
        if named and format.fits(lower) and format.fits(add_roles(row, named)):
            return columns_setting(named)
    return None


def _has_any(row: PreferenceRow, names: Sequence[str]) -> bool:
    return any(row.get(name) is not None for name in names)


def resolve_format(rows: Sequence[PreferenceRow], settings: ReadSettings) -> Format:
    """Return the format of rows, by name or from the first of `rows` that fits one.

    Raises `PreferenceError` if there is none, or the settings do not fit it.
    """
    if not rows:
        raise PreferenceError("data has no rows; expected at least one comparison")
    if settings.format != "auto" and settings.format not in FORMATS:
        raise PreferenceError(f"data.format is {settings.format!r}; expected auto or one of {', '.join(FORMATS)}")
    name = settings.format
    if name == "auto":
        name = "verdicts" if settings.sides is not None else _first_detected(rows, settings.columns)
    format = FORMATS[name]
    if not format.takes(settings.columns):
        extra = sorted(settings.columns.keys() - {*format.roles, *format.inner, *EVERYWHERE})
        raise PreferenceError(
            f"data.columns names {_join_names(extra)}, for which the format {format.name} has no place"
        )
    known = {name for row in rows for name in row}
    named = [*settings.columns.items(), *(("responses", column) for column in settings.sides or ())]
    for role, column in named:
        if role not in format.inner and column not in known:
            raise PreferenceError(_unknown_column_message(role, column, known))
    missing = [format.missing_columns(add_roles(row, settings.columns)) for row in rows]
    if all(missing):
        raise PreferenceError(
            f"data.format is {format.name}, and the rows have no column {_join_names(missing[0])}; they have "
            f"{_join_names(known)}; set another data.format, or name the columns in data.columns"
        )
    if settings.winner is not None and name != "verdicts":
        raise PreferenceError(f"data.winner is for verdicts on two responses, and the format is {name}; remove it")
    _refuse_two_prompts(rows, format, settings)
    if not format.has_gaps and (settings.min_gap > 0 or settings.gap_use != "none"):
        raise PreferenceError(
            f"data.min_gap and data.gap_use act on scores, and the format {format.name} has none; remove them"
        )
    return _settled(format, rows, settings) if name == "verdicts" else format


def _settled(format: Format, rows: Sequence[PreferenceRow], settings: ReadSettings) -> Format:
    """Return the format of verdicts with the columns and the notation of these rows."""
    views = [add_roles(row, settings.columns) for row in rows]
    columns = settle(views, settings)
    prompt = [name for name in PROMPTS if any(name in view for view in views)][:1]
    return replace(
        format, needs=(*prompt, *columns.sides, *columns.winner), read=partial(votes.verdict, columns=columns)
    )


def _refuse_two_prompts(rows: Sequence[PreferenceRow], format: Format, settings: ReadSettings) -> None:
    """Raise `PreferenceError` if two columns may hold the prompt and differ: either would be a guess."""
    if "prompt" not in format.roles or "prompt" in settings.columns:
        return
    names = [name for name in _SEPARATE if any(row.get(name) is not None for row in rows)]
    if any(row.get(name) != row.get(names[0]) for row in rows for name in names[1:]):
        suggestions = [f"'data.columns={{prompt: {name}}}'" for name in names]
        raise PreferenceError(
            f"data has columns {_join_names(names)}, each of which may hold the prompt, and they differ; choose one: "
            f"{' or '.join(suggestions)}",
            suggestions,
        )


def _first_detected(rows: Sequence[PreferenceRow], columns: Mapping[str, str]) -> str:
    """Return the format of the first row that has one: a file may begin with incomplete rows."""
    first: PreferenceError | None = None
    for row in rows:
        try:
            return detect_format(row, columns)
        except PreferenceError as error:
            first = first or error
    raise first or PreferenceError("data has no rows; expected at least one comparison")


def _unknown_column_message(role: str, column: str, known: Iterable[str]) -> str:
    return f"data.columns.{role} is {column!r}, and the rows have no such column; name one of {_join_names(known)}"


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names)))
