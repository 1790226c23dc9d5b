"""The possible readings of a corpus by its columns, in the order of `detection`. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pipelines.corpus.columns.value_kinds import FirstRows

_PLAIN = re.compile(r"[\w ./-]*\w")
LISTS = ("responses", "completions", "candidates", "outputs", "generations", "samples")
SINGLE = ("response", "completion", "output", "answer")
_TEXT = ("text", "messages")
_ONE = ("text", "messages", "message", "record")


WANTED = {
    "messages": "messages",
    "sharegpt": "messages",
    "prompt_response": "prompt and response",
    "responses_list": "prompt and responses",
    "alpaca": "prompt, input and response",
    "hh": "messages (transcripts)",
}
"""The columns of a format, in words."""


class _Names(NamedTuple):
    """Names of columns that may have a role, and the possible kinds of their values."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    certain: bool = False  # the kind must be known; otherwise a column without values may have the role


ROLES: Mapping[str, tuple[_Names, ...]] = {
    "messages": (_Names(("messages", "conversations", "conversation"), ("messages",)),),
    "transcript": (_Names(("text", "transcript", "dialogue", "conversation", "messages"), ("text",), certain=True),),
    "prompt": (
        _Names(("prompt", "instruction", "question", "query"), _TEXT),
        _Names(("input", "problem", "user_prompt"), _TEXT),
    ),
    "response": (
        _Names(SINGLE, _ONE),
        _Names(("generated_text", "generation", "reply", "solution"), _ONE),
    ),
    "responses": (_Names(LISTS, ("texts", "records", "messages", "lists", "text")),),
    "listed": (
        _Names(SINGLE, ("texts", "records"), certain=True),
        _Names(("choices", "generated_text", "generation"), ("texts", "records"), certain=True),
    ),
}
"""The columns that may have a role: usual names, then rarer ones, which count only if no usual one is present. `listed` means a
list of responses in a column with a singular name."""


class Reading(NamedTuple):
    """One way to read a corpus: the columns that `input.columns` would name, and the reason."""

    format: str
    columns: Mapping[str, str]
    why: str

    @property
    def setting(self) -> str:
        """The setting that selects this reading, quoted for a shell."""
        setting = shlex.quote(f"input.columns={_flow(self.columns)}")
        if self.format == "preferences":
            return f"input.format=preferences {setting}" if self.columns else "input.format=preferences"
        return f"input.format=hh {setting}" if self.format == "hh" else setting


def column_of(name: str, names: Sequence[str]) -> str:
    """The column that a setting names: `outputs` for `outputs.text`, unless a column has the full name."""
    head, dot, field = name.partition(".")
    return head if name not in names and dot and field and head in names else name


def join_settings(readings: Sequence[Reading]) -> str:
    """The settings that select these readings, for an error message."""
    return " or ".join(dict.fromkeys(reading.setting for reading in readings))


def roles_of_layout(user_columns: Mapping[str, str]) -> set[str]:
    """The roles assigned by the user that decide between readings; a system prompt, tools or a source fit any reading."""
    return user_columns.keys() - {"system", "source", "tools"}


def columns_for_role(role: str, table: FirstRows, user_columns: Mapping[str, str]) -> list[str]:
    """The columns that may have a role, best first, all from the first group of names that has any."""
    if role in user_columns:
        return [user_columns[role]]
    for names, kinds, certain in ROLES[role]:
        columns = [
            name
            for name in names
            if name in table.names
            and (
                table.kinds[name] in kinds
                or (table.kinds[name] is None and not certain)
                or (role == "messages" and table.is_messages_as_json(name))
            )
        ]
        with_values = [name for name in columns if table.kinds[name] is not None]
        if columns:
            return with_values or columns
    return []


def _messages(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "messages", "sharegpt") or (
        format == "auto" and user_columns.keys() & {"prompt", "response", "responses"}
    ):
        return None
    columns = columns_for_role("messages", table, user_columns)
    if not columns:
        return None
    if format == "auto" and "messages" not in user_columns and not table.ends_with_assistant(columns[0]):
        return _open_messages(table, columns[0], user_columns)
    beside = [name for name in (*ROLES["prompt"][0].names, *SINGLE) if name in table.names]
    more = f"; {', '.join(beside)} are not needed" if beside else ""
    return Reading(
        "messages" if format == "auto" else format,
        {"messages": columns[0]},
        f"{columns[0]} holds whole conversations, the last assistant turn is the response{more}",
    )


def _open_messages(table: FirstRows, messages: str, user_columns: Mapping[str, str]) -> Reading | None:
    """The reading of conversations that end with the user's turn, with a column of responses."""
    for format, role, key in (
        ("responses_list", "responses", "responses"),
        ("prompt_response", "response", "response"),
        ("responses_list", "listed", "responses"),
    ):
        if answers := columns_for_role(role, table, user_columns):
            why = f"{messages} ends with the user's turn in all of the first rows, and {answers[0]} holds what follows"
            return Reading(format, {"prompt": messages, key: answers[0]}, why)
    return None


def _responses_list(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "responses_list", "hh") or (
        format == "auto" and user_columns.keys() & {"messages", "response"}
    ):
        return None
    return _prompt_and(table, format, user_columns, "responses_list", "responses")


def _alpaca(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> Reading | None:
    roles = user_columns.keys() & {"prompt", "response"}
    if format not in ("auto", "alpaca") or (
        format == "auto" and ("messages" in user_columns or (roles and "input" not in user_columns))
    ):
        return None
    names = set(table.names)
    dolly = (
        names >= {"instruction", "context", "response", "category"}
        and "input" not in names
        and not roles_of_layout(user_columns)
    )
    prompt = user_columns.get("prompt") or ("instruction" if "instruction" in names else None)
    extra = user_columns.get("input") or ("input" if "input" in names else "context" if dolly else None)
    response = user_columns.get("response") or next((name for name in ("output", "response") if name in names), None)
    if prompt is None or extra is None or response is None:
        return None
    why = f"the columns are {'Dolly' if dolly else 'Alpaca'}'s: {prompt}, {extra} (appended to it) and {response}"
    return Reading("alpaca", {"prompt": prompt, "input": extra, "response": response}, why)


def _prompt_response(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "prompt_response", "hh") or (format == "auto" and "messages" in user_columns):
        return None
    return _prompt_and(table, format, user_columns, "prompt_response", "response")


def _listed(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "responses_list") or user_columns.keys() & {"messages", "response", "responses"}:
        return None
    return _prompt_and(table, format, user_columns, "responses_list", "listed")


def _transcripts(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> Reading | None:
    if format == "hh" and "messages" in user_columns:
        return Reading(
            "hh", {"messages": user_columns["messages"]}, f"{user_columns['messages']} is named to hold transcripts"
        )
    if format not in ("auto", "hh") or user_columns.keys() & {"messages", "prompt", "response", "responses"}:
        return None
    columns = [name for name in columns_for_role("transcript", table, {}) if table.is_transcript(name)]
    if not columns:
        return None
    why = f'every text of the first rows in {columns[0]} is a transcript, "Human: ... Assistant: ..."'
    return Reading("hh", {"messages": columns[0]}, why)


def _prompt_and(
    table: FirstRows, format: str, user_columns: Mapping[str, str], layout: str, role: str
) -> Reading | None:
    """The reading of a prompt and the column with `role`; `hh` if most prompts are transcripts, or if `format` is `hh`."""
    answers = columns_for_role(role, table, user_columns)
    prompts = [name for name in columns_for_role("prompt", table, user_columns) if name not in answers]
    if not prompts or not answers:
        return None
    key, holding = ("response", "one response a row") if role == "response" else ("responses", "a list of responses")
    texts = table.texts_in(prompts[0])
    transcripts = format == "hh" or (format == "auto" and texts > 0 and 2 * table.transcripts_in(prompts[0]) >= texts)
    holds = 'transcripts, "Human: ... Assistant:"' if transcripts else "the prompt"
    why = f"the column {prompts[0]} holds {holds}, {answers[0]} {holding}"
    return Reading("hh" if transcripts else layout, {"prompt": prompts[0], key: answers[0]}, why)


def find_readings(table: FirstRows, format: str, user_columns: Mapping[str, str]) -> list[Reading]:
    """All readings that fit, the preferred one first. `format` and `user_columns` (role → column) are the user's settings."""
    builders = [_messages, _responses_list, _alpaca, _prompt_response, _listed, _transcripts]
    if format == "hh":
        builders = [_transcripts, _responses_list, _prompt_response]
    return [reading for build in builders if (reading := build(table, format, user_columns)) is not None]


def _flow(columns: Mapping[str, str]) -> str:
    """A YAML flow mapping: `{prompt: q, response: a}`."""
    entries = (f"{role}: {name if _PLAIN.fullmatch(name) else json.dumps(name)}" for role, name in columns.items())
    return f"{{{', '.join(entries)}}}"
