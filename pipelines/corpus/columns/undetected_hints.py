"""Why a corpus could not be read from its columns, and what to do: the rest of an error's line. Never row text."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.corpus.columns.layouts import ROLES, Reading, columns_for_role, find_readings, join_settings
from pipelines.corpus.columns.value_kinds import FirstRows

_EXAMPLE = "name them, for example input.columns={prompt: COLUMN, response: COLUMN}"
_JUDGED = ("chosen", "rejected")


def hint(table: FirstRows, wanted: str, given: Mapping[str, str]) -> str:
    """` because of what; remedy`, for a table that no reading fits. The first that applies."""
    for find in (_preferences, _another_case, _open_conversations, _batch_answers, _no_text, _no_response, _one_text):
        if (found := find(table, given)) is not None:
            return found
    return f"; {_EXAMPLE}"


def _preferences(table: FirstRows, given: Mapping[str, str]) -> str | None:
    from rm.preferences import PreferenceError
    from rm.preferences import detect_format as preference_format

    row = dict.fromkeys(table.names) | {name: value for row in table.rows[:1] for name, value in row.items()}
    try:
        name = preference_format(row)
    except PreferenceError:
        if not {*_JUDGED} <= {*table.names}:
            return None
        name = "of chosen and rejected"
    prompts = columns_for_role("prompt", table, given)
    one = (
        Reading("", {"prompt": prompts[0], "response": "chosen"}, "").setting
        if prompts and "chosen" in table.names
        else ""
    )
    return f": these are preferences (the format {name}), which `bestkept train` and `bestkept evaluate` read" + (
        f"; to score the chosen sides as a corpus set {one}" if one else "; `run` needs prompts and responses"
    )


def _another_case(table: FirstRows, given: Mapping[str, str]) -> str | None:
    """Columns that would be known in small letters, with underscores: `Prompt`, `Model Response`."""
    own: dict[str, str] = {}
    for name in table.names:
        own.setdefault(name.strip().lower().replace(" ", "_").replace("-", "_"), name)
    rows = [{small: row.get(name) for small, name in own.items()} for row in table.rows]
    if given or list(own) == table.names:
        return None
    ways = find_readings(FirstRows(list(own), rows), "auto", {})
    if not ways:
        return None
    meant = ways[0]._replace(columns={role: own[name] for role, name in ways[0].columns.items()})
    return f", as names are told apart by case; did you mean {join_settings([meant])}?"


def _open_conversations(table: FirstRows, given: Mapping[str, str]) -> str | None:
    found = columns_for_role("messages", table, given)
    if not found or table.ends_with_assistant(found[0]):
        return None
    return (
        f": {found[0]} ends with the user's turn in all of the first rows, so there is no response; name the column that "
        f"holds it, input.columns={{prompt: {found[0]}, response: COLUMN}}"
    )


def _batch_answers(table: FirstRows, given: Mapping[str, str]) -> str | None:
    if not {"custom_id", "response"} <= {*table.names} or columns_for_role("prompt", table, given):
        return None
    return (
        ": these are answers of a batch API, and the prompts lie in its requests; join the two files by custom_id into rows "
        "with prompt and response"
    )


def _no_text(table: FirstRows, given: Mapping[str, str]) -> str | None:
    kinds = {kind for kind in table.kinds.values() if kind is not None}
    if not kinds or kinds - {"number", "boolean", "other"}:
        return None
    return ": no column holds text; check that input.path names the corpus, and not its features or labels"


def _no_response(table: FirstRows, given: Mapping[str, str]) -> str | None:
    prompts, answers = columns_for_role("prompt", table, given), columns_for_role("response", table, given)
    if not prompts or [name for name in answers if name not in prompts]:
        return None
    return (
        f": {prompts[0]} holds prompts, and no column is known to hold responses; generate them first, or name the column, "
        f"input.columns={{prompt: {prompts[0]}, response: COLUMN}}"
    )


def _one_text(table: FirstRows, given: Mapping[str, str]) -> str | None:
    texts = [name for name, kind in table.kinds.items() if kind == "text"]
    known = {name for names in ROLES["transcript"] for name in names.names}
    if given or len(texts) != 1 or texts[0] not in known:
        return None
    return (
        f": {texts[0]} is one text a row, and where its prompt ends is not known; write prompt and response into columns of "
        'their own, or, for transcripts of "Human: ..." and "Assistant: ...", set input.format=hh '
        f"input.columns={{messages: {texts[0]}}}"
    )
