"""The ways to read a corpus that its columns allow, in the order of `detection`. Pure."""

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


class _Names(NamedTuple):
    """Names that may have a role, where their values are of these kinds, or of none that is known."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    certain: bool = False  # the kind must be known


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
"""The columns that may have a role: the usual names, and the rarer ones, which count where none of the usual is there.
`listed` are responses whose column's name says that there is one."""


class Reading(NamedTuple):
    """One way to read a corpus: what `input.columns` would name, and what speaks for it."""

    format: str
    columns: Mapping[str, str]
    why: str

    @property
    def setting(self) -> str:
        """The setting that asks for this reading, ready to be pasted into a shell."""
        setting = shlex.quote(f"input.columns={_flow(self.columns)}")
        return f"input.format=hh {setting}" if self.format == "hh" else setting


def column_of(name: str, names: Sequence[str]) -> str:
    """The column that a setting names: `outputs` of `outputs.text`, where no column is called that."""
    head, dot, field = name.partition(".")
    return head if name not in names and dot and field and head in names else name


def join_settings(ways: Sequence[Reading]) -> str:
    """The settings to choose from, for an error."""
    return " or ".join(dict.fromkeys(way.setting for way in ways))


def roles_of_layout(given: Mapping[str, str]) -> set[str]:
    """The roles that a user has given to columns and that say how rows are read; a system prompt or a source goes with any."""
    return given.keys() - {"system", "source"}


def columns_for_role(role: str, table: FirstRows, given: Mapping[str, str]) -> list[str]:
    """The columns that could have a role, best first: of the first group of names that has any."""
    if role in given:
        return [given[role]]
    for names, kinds, certain in ROLES[role]:
        found = [
            name
            for name in names
            if name in table.names and (table.kinds[name] in kinds or (table.kinds[name] is None and not certain))
        ]
        filled = [name for name in found if table.kinds[name] is not None]
        if found:
            return filled or found
    return []


def _messages(table: FirstRows, format: str, given: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "messages", "sharegpt") or (
        format == "auto" and given.keys() & {"prompt", "response", "responses"}
    ):
        return None
    found = columns_for_role("messages", table, given)
    if not found:
        return None
    if format == "auto" and "messages" not in given and not table.ends_with_assistant(found[0]):
        return _answered(table, found[0], given)
    beside = [name for name in (*ROLES["prompt"][0].names, *SINGLE) if name in table.names]
    more = f"; {', '.join(beside)} are not needed" if beside else ""
    return Reading(
        "messages" if format == "auto" else format,
        {"messages": found[0]},
        f"{found[0]} holds whole conversations, the last assistant turn is the response{more}",
    )


def _answered(table: FirstRows, messages: str, given: Mapping[str, str]) -> Reading | None:
    """Conversations that end with the user, and a column with what comes next."""
    for format, role, key in (
        ("responses_list", "responses", "responses"),
        ("prompt_response", "response", "response"),
        ("responses_list", "listed", "responses"),
    ):
        if found := columns_for_role(role, table, given):
            why = f"{messages} ends with the user's turn in all of the first rows, and {found[0]} holds what follows"
            return Reading(format, {"prompt": messages, key: found[0]}, why)
    return None


def _responses_list(table: FirstRows, format: str, given: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "responses_list") or (format == "auto" and given.keys() & {"messages", "response"}):
        return None
    return _prompt_and(table, given, "responses_list", "responses", "responses", "a list of responses")


def _alpaca(table: FirstRows, format: str, given: Mapping[str, str]) -> Reading | None:
    roles = given.keys() & {"prompt", "response"}
    if format not in ("auto", "alpaca") or (
        format == "auto" and ("messages" in given or (roles and "input" not in given))
    ):
        return None
    there = set(table.names)
    dolly = (
        there >= {"instruction", "context", "response", "category"}
        and "input" not in there
        and not roles_of_layout(given)
    )
    prompt = given.get("prompt") or ("instruction" if "instruction" in there else None)
    extra = given.get("input") or ("input" if "input" in there else "context" if dolly else None)
    response = given.get("response") or next((name for name in ("output", "response") if name in there), None)
    if prompt is None or extra is None or response is None:
        return None
    why = f"the columns are {'Dolly' if dolly else 'Alpaca'}'s: {prompt}, {extra} (appended to it) and {response}"
    return Reading("alpaca", {"prompt": prompt, "input": extra, "response": response}, why)


def _prompt_response(table: FirstRows, format: str, given: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "prompt_response") or (format == "auto" and "messages" in given):
        return None
    return _prompt_and(table, given, "prompt_response", "response", "response", "one response a row")


def _listed(table: FirstRows, format: str, given: Mapping[str, str]) -> Reading | None:
    if format not in ("auto", "responses_list") or given.keys() & {"messages", "response", "responses"}:
        return None
    return _prompt_and(table, given, "responses_list", "listed", "responses", "a list of responses")


def _transcripts(table: FirstRows, format: str, given: Mapping[str, str]) -> Reading | None:
    if format == "hh" and "messages" in given:
        return Reading("hh", {"messages": given["messages"]}, f"{given['messages']} is named to hold transcripts")
    if format not in ("auto", "hh") or given.keys() & {"messages", "prompt", "response", "responses"}:
        return None
    found = [name for name in columns_for_role("transcript", table, {}) if table.is_transcript(name)]
    if not found:
        return None
    why = f'every text of the first rows in {found[0]} is a transcript, "Human: ... Assistant: ..."'
    return Reading("hh", {"messages": found[0]}, why)


def _prompt_and(
    table: FirstRows, given: Mapping[str, str], format: str, role: str, key: str, holding: str
) -> Reading | None:
    answers = columns_for_role(role, table, given)
    prompts = [name for name in columns_for_role("prompt", table, given) if name not in answers]
    if not prompts or not answers:
        return None
    why = f"the column {prompts[0]} holds the prompt, {answers[0]} {holding}"
    return Reading(format, {"prompt": prompts[0], key: answers[0]}, why)


def find_readings(table: FirstRows, format: str, given: Mapping[str, str]) -> list[Reading]:
    """All readings that fit, the one to take first. `format` and `given` (role → column) are what the user has said."""
    builders = (_messages, _responses_list, _alpaca, _prompt_response, _listed, _transcripts)
    return [reading for build in builders if (reading := build(table, format, given)) is not None]


def _flow(columns: Mapping[str, str]) -> str:
    """A YAML flow mapping: `{prompt: q, response: a}`."""
    shown = (f"{role}: {name if _PLAIN.fullmatch(name) else json.dumps(name)}" for role, name in columns.items())
    return f"{{{', '.join(shown)}}}"
