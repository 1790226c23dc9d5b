"""Kinds of the values in a column, from the first rows of a file: text, a conversation, a list of texts, records.

Pure. A column's name suggests its role, and the kind of its values must confirm it: a column `response` may contain numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from rm.conversations import (
    MESSAGE_KEYS,
    Conversation,
    UnusableError,
    from_hh,
    from_messages,
    is_message,
    messages_in_json,
    open_turns,
    read_tools,
    text_of,
)

RowValues = Mapping[str, Any]
"""One row as it is in its file: column → value."""

FIELDS = ("text", "response", "content", "completion", "output", "generation", "generated_text", "answer", "message")
"""Fields of a record that may contain a response; `message` is an object with role and content (in APIs' `choices`)."""


def kind_of_value(value: object) -> str | None:
    """Return `text`, `number`, `boolean`, `message`, `record`, `texts`, `messages`, `records`, `lists` or `other`; None for
    null, an empty list and a list of these."""
    if value is None or (isinstance(value, list) and not value):
        return None
    if isinstance(value, str):
        return "text"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, Mapping):
        return "message" if is_message(value) else "record"
    if not isinstance(value, list):
        return "other"
    inner = {kind_of_value(item) for item in value} - {None}
    if not inner:
        return None
    plural = {"text": "texts", "message": "messages", "record": "records", "messages": "lists"}
    return plural.get(str(inner.pop()), "other") if len(inner) == 1 else "other"


class FirstRows:
    """The columns and the first rows of a file, from which its layout is detected."""

    def __init__(self, names: Sequence[str], rows: Sequence[RowValues] = ()) -> None:
        self.names = list(names)
        self.rows = list(rows)

    @cached_property
    def kinds(self) -> dict[str, str | None]:
        """The most frequent kind of each column's values, the first one in a tie; None without values."""
        kinds: dict[str, str | None] = {}
        for name in self.names:
            counts = Counter(kind for row in self.rows if (kind := kind_of_value(row.get(name))) is not None)
            kinds[name] = counts.most_common(1)[0][0] if counts else None
        return kinds

    def texts_in(self, name: str) -> int:
        """The number of rows with non-blank text in this column."""
        return sum(isinstance(value := row.get(name), str) and bool(value.strip()) for row in self.rows)

    def same(self, one: str, other: str) -> bool:
        """Return whether two columns have equal values in every row; False without rows."""
        return bool(self.rows) and all(canonical(row.get(one)) == canonical(row.get(other)) for row in self.rows)

    def ends_with_assistant(self, name: str) -> bool:
        """Return whether any conversation in this column ends with the assistant's turn; True without conversations."""
        conversations = [turns for row in self.rows if (turns := conversation(row.get(name))) is not None]
        return not conversations or any(turns[-1][0] == "assistant" for turns in conversations if turns)

    def is_transcript(self, name: str) -> bool:
        """Return whether this column has texts, and all of them begin like HH-RLHF's transcripts."""
        values = [value for row in self.rows if isinstance(value := row.get(name), str) and value.strip()]
        return bool(values) and all(map(_is_hh, values))

    def transcripts_in(self, name: str) -> int:
        """The number of rows with a transcript in this column that ends with the user's turn."""
        turns = [open_turns(value) for row in self.rows if isinstance(value := row.get(name), str)]
        return sum(messages is not None and messages[-1]["role"] == "user" for messages in turns)

    def is_messages_as_json(self, name: str) -> bool:
        """Return whether any text in this column is a list of messages as JSON."""
        return any(isinstance(value := row.get(name), str) and messages_in_json(value) for row in self.rows)

    def unread_keys(self, name: str) -> list[str]:
        """The keys of messages in this column that are not part of a conversation, sorted."""
        messages = [value for row in self.rows for value in _messages_in(row.get(name))]
        keys = {str(key) for message in messages for key, value in message.items() if value is not None}
        return sorted(keys - {"role", "content", "from", "value", *MESSAGE_KEYS})

    def may_hold_tools(self, name: str) -> bool:
        """Return whether a column contains tools (lists of objects, or such lists as JSON) or is empty in the first rows."""
        if name not in self.names or self.kinds[name] not in (None, "text", "records", "texts"):
            return False
        values = [value for row in self.rows if (value := row.get(name)) not in (None, "", [])]
        return not values or any(map(_are_tools, values))

    def keys(self, name: str) -> list[str]:
        """The keys of the records in this column, in order of first appearance."""
        records = [record for row in self.rows for record in _records(row.get(name))]
        return list(dict.fromkeys(str(key) for record in records for key in record))

    def fields(self, name: str) -> list[str]:
        """The `FIELDS` with text (or messages) in the records of this column, in that order."""
        records = [record for row in self.rows for record in _records(row.get(name))]
        return [field for field in FIELDS if any(_holds(record.get(field)) for record in records)]


def canonical(value: object) -> object:
    """The canonical form of a conversation; any other value is unchanged."""
    turns = conversation(value)
    return value if turns is None else turns


def conversation(value: object) -> Conversation | None:
    """The turns of a list of messages; None for any other value, or an unusable one."""
    try:
        return from_messages(value)
    except UnusableError:
        return None


def _messages_in(value: object) -> list[Mapping[str, Any]]:
    """The messages of a conversation, of a response, or of each response of a list."""
    if isinstance(value, str):
        value = messages_in_json(value)
    if isinstance(value, list):
        return [message for item in value for message in _messages_in(item)]
    return [value] if is_message(value) and isinstance(value, Mapping) else []


def _are_tools(value: object) -> bool:
    try:
        return read_tools(value) is not None
    except UnusableError:
        return False


def _is_hh(value: str) -> bool:
    try:
        from_hh(value)
    except UnusableError as error:
        return error.reason != "bad_hh_format"
    return True


def _records(value: object) -> list[Mapping[str, Any]]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, Mapping)]


def _holds(value: object) -> bool:
    if isinstance(value, Mapping):
        return is_message(value)
    try:
        return bool(text_of(value, field="response"))
    except UnusableError:
        return False
