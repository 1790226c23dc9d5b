"""Reasons why no reading fits a corpus, with remedies, for the end of an error message. They never contain row text."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.corpus.columns.layouts import ROLES, Reading, columns_for_role, find_readings
from pipelines.corpus.columns.value_kinds import FirstRows

_EXAMPLE = "name them, for example input.columns={prompt: COLUMN, response: COLUMN}"
_PREFERENCE_COLUMNS = {"chosen", "rejected"}


def hint(table: FirstRows, wanted: str, user_columns: Mapping[str, str]) -> str:
    """The first reason that applies to the table, and its remedy, with leading punctuation."""
    checks = (
        _tree,
        _preferences,
        _another_case,
        _open_conversations,
        _batch_answers,
        _no_text,
        _no_response,
        _one_text,
    )
    for check in checks:
        if (reason := check(table, user_columns)) is not None:
            return reason
    return f"; {_EXAMPLE}"


def _preferences(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    from rm.preferences import PreferenceError
    from rm.preferences import detect_format as preference_format

    row = dict.fromkeys(table.names) | {name: value for row in table.rows[:1] for name, value in row.items()}
    try:
        name = preference_format(row)
    except PreferenceError:
        if not {*table.names} >= _PREFERENCE_COLUMNS:
            return None
        name = "of chosen and rejected"
    prompts = columns_for_role("prompt", table, user_columns)
    setting = (
        Reading("", {"prompt": prompts[0], "response": "chosen"}, "").setting
        if prompts and "chosen" in table.names
        else ""
    )
    return (
        f": these are preferences (the format {name}), which `bestkept train` and `bestkept evaluate` read; to score all their "
        "responses as a corpus set input.format=preferences"
        + (f", the chosen sides alone {setting}" if setting else "")
    )


def _tree(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    if not {"message_id", "parent_id", "role", "text"} <= {*table.names}:
        return None
    return (
        ": each row is one message of a tree (message_id, parent_id, role, text); join the messages from a root to each answer "
        "into rows with a column of messages, then input.columns={messages: COLUMN}"
    )


def _another_case(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    """Columns that would be recognised in lower case and with underscores: `Prompt`, `Model Response`."""
    original: dict[str, str] = {}
    for name in table.names:
        original.setdefault(name.strip().lower().replace(" ", "_").replace("-", "_"), name)
    rows = [{small: row.get(name) for small, name in original.items()} for row in table.rows]
    if user_columns or list(original) == table.names:
        return None
    readings = find_readings(FirstRows(list(original), rows), "auto", {})
    if not readings:
        return None
    reading = readings[0]._replace(columns={role: original[name] for role, name in readings[0].columns.items()})
    return f", since names are case-sensitive; did you mean {reading.setting}?"


def _open_conversations(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    columns = columns_for_role("messages", table, user_columns)
    if not columns or table.ends_with_assistant(columns[0]):
        return None
    return (
        f": {columns[0]} ends with the user's turn in all of the first rows, so there is no response; name the column that "
        f"holds it, input.columns={{prompt: {columns[0]}, response: COLUMN}}"
    )


def _batch_answers(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    if not {"custom_id", "response"} <= {*table.names} or columns_for_role("prompt", table, user_columns):
        return None
    return (
        ": these are answers of a batch API, and the prompts lie in its requests; join the two files by custom_id into rows "
        "with prompt and response"
    )


def _no_text(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    kinds = {kind for kind in table.kinds.values() if kind is not None}
    if not kinds or kinds - {"number", "boolean", "other"}:
        return None
    return ": no column holds text; check that input.path names the corpus, and not its features or labels"


def _no_response(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    prompts, answers = (
        columns_for_role("prompt", table, user_columns),
        columns_for_role("response", table, user_columns),
    )
    if not prompts or [name for name in answers if name not in prompts]:
        return None
    return (
        f": {prompts[0]} holds prompts, and no column is known to hold responses; generate them first, or name the column, "
        f"input.columns={{prompt: {prompts[0]}, response: COLUMN}}"
    )


def _one_text(table: FirstRows, user_columns: Mapping[str, str]) -> str | None:
    texts = [name for name, kind in table.kinds.items() if kind == "text"]
    known = {name for names in ROLES["transcript"] for name in names.names}
    if user_columns or len(texts) != 1 or texts[0] not in known:
        return None
    return (
        f": {texts[0]} is one text a row, and where its prompt ends is not known; write prompt and response into columns of "
        'their own, or, for transcripts of "Human: ..." and "Assistant: ...", set input.format=hh '
        f"input.columns={{messages: {texts[0]}}}"
    )
