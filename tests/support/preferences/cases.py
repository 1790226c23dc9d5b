"""Settings, conversations and cases for the tests of preference formats."""

from __future__ import annotations

from typing import Any, NamedTuple

from support.corpora import READING

from rm.preferences import Group, ReadSettings


class FormatCase(NamedTuple):
    """Rows in the exact published schema (columns and types as on the hub), and the groups written by hand."""

    format: str
    rows: list[dict[str, Any]]
    changes: dict[str, Any]  # to the settings of reading
    groups: list[Group]


def settings(**changes: Any) -> ReadSettings:
    return ReadSettings(**{**READING, **changes})


def user(text: str) -> tuple[tuple[str, str], ...]:
    return (("user", text),)


def messages(*turns: str) -> list[dict[str, str]]:
    """A conversation as messages, the user's turn first."""
    return [{"role": role, "content": content} for role, content in zip(["user", "assistant"] * 4, turns, strict=False)]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


CHAT = (("user", "Hi"), ("assistant", "Hello"), ("user", "Why?"))
