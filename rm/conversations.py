"""Canonical conversations: the one form in which prompts and responses are compared, hashed and rendered.

Pure functions. A conversation is a tuple of `(role, content)` turns with the roles `system`, `user` and `assistant`; a
*sample* is the conversation before the last assistant turn (the prompt) and that turn's content (the response).
This module does not know about files, columns, tokenizers or models.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from rm.transcripts import open_turns as open_turns
from rm.transcripts import turns_in as turns_in

Turn = tuple[str, str]
Conversation = tuple[Turn, ...]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}
# gives what json.dumps(text, ensure_ascii=False) gives, without making an encoder
_quote_json = json.encoder.encode_basestring


STRUCTURED = r"^[ \t\r\n]*\["
"""The beginning of each text that `from_prompt` may read as more than one turn, for `re` and for Arrow's RE2."""
_STRUCTURED = re.compile(STRUCTURED)


class UnusableError(ValueError):
    """A row or response that cannot be scored; `reason` is a code from the documented list, never text of the row."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode_bytes(value: Any) -> Any:
    """Return `value` with bytes that are UTF-8 as text, in lists and mappings too; other bytes stay, and are no usable text.

    Some writers of Parquet (Impala, Spark before 1.6 or with `binaryAsString`) store text as binary.
    """
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    if isinstance(value, list):
        return [decode_bytes(item) for item in value]
    if isinstance(value, Mapping):
        return {key: decode_bytes(item) for key, item in value.items()}
    return value


def text_of(value: object, *, field: str) -> str:
    """Return `value` as usable text.

    Raises `UnusableError` with `null_<field>`, `bad_utf8`, `wrong_type`, `empty_<field>` or `lone_surrogate`.
    """
    if value is None:
        raise UnusableError(f"null_{field}")
    if isinstance(value, bytes):
        raise UnusableError("bad_utf8")  # otherwise `decode_bytes` has made text of it
    if not isinstance(value, str):
        raise UnusableError("wrong_type")
    if not value.strip():
        raise UnusableError(f"empty_{field}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableError("lone_surrogate") from None
    return value


def _message_text(message: Mapping[str, object], *, field: str) -> str:
    """Return a message's text; content parts are joined where all of them are text."""
    if message.get("tool_calls") or message.get("function_call"):
        raise UnusableError("tool_calls")
    content = message["content"] if "content" in message else message.get("value")
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text":
                raise UnusableError("content_parts")
            parts.append(text_of(part.get("text"), field=field))
        content = "".join(parts)
    return text_of(content, field=field)


def messages_in_json(text: str) -> list[Any] | None:
    """Return the messages that a text holds as JSON; None for any other text, such as a list of anything else."""
    value = _list_in_json(text)
    return value if value and all(map(is_message, value)) else None


def _list_in_json(text: str) -> list[Any] | None:
    try:
        return json.loads(text) if _STRUCTURED.match(text) else None
    except (ValueError, RecursionError):
        return None


def is_message(value: object) -> bool:
    """Tell whether a value has the keys of a message: role and content (or calls), or ShareGPT's from and value."""
    return isinstance(value, Mapping) and (
        ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
    )


def from_messages(value: object) -> Conversation:
    """Convert a list of `{role, content}` (OpenAI, TRL) or `{from, value}` (ShareGPT) messages to a conversation.

    The list may be text, as JSON. Raises `UnusableError` for anything else: `null_prompt`, `bad_json`, `bad_utf8`,
    `wrong_type`, `bad_role`, `tool_calls`, `content_parts`, or what `text_of` raises.
    """
    if isinstance(value, str):
        text, value = value, _list_in_json(value)
        if value is None:
            raise UnusableError("bad_json" if _STRUCTURED.match(text) else "wrong_type")
    if value is None:
        raise UnusableError("null_prompt")
    if isinstance(value, bytes):
        raise UnusableError("bad_utf8")
    if not isinstance(value, Sequence):
        raise UnusableError("wrong_type")
    turns: list[Turn] = []
    for position, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise UnusableError("wrong_type")
        name = message["role"] if "role" in message else message.get("from")
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None or (role == "system" and position > 0):
            raise UnusableError("bad_role")
        last = position == len(value) - 1 and role == "assistant"
        turns.append((role, _message_text(message, field="response" if last else "prompt")))
    return tuple(turns)


def from_prompt(value: object, *, system: object = None) -> Conversation:
    """Convert a prompt column, plain text (one user turn) or a list of messages, also as JSON, to a conversation.

    A `system` text goes in front unless the messages have one.

    Raises `UnusableError`, with `prompt_ends_with_assistant` where a message list ends with the assistant's turn.
    """
    if isinstance(value, str):
        value = messages_in_json(value) or value
    turns = (("user", text_of(value, field="prompt")),) if isinstance(value, str) else from_messages(value)
    if not turns:
        raise UnusableError("empty_prompt")
    if turns[-1][0] == "assistant":
        raise UnusableError("prompt_ends_with_assistant")
    if isinstance(system, str) and system.strip() and turns[0][0] != "system":
        return (("system", text_of(system, field="prompt")), *turns)
    return turns


def from_response(value: object, *, after: Conversation = ()) -> str:
    """Convert a response column, text or a list of one assistant message (TRL's completion), to text.

    The list may repeat the prompt `after` at the front, with or without its system turn. Raises `UnusableError`.
    """
    if not isinstance(value, str) and isinstance(value, Sequence):
        turns = from_messages(value)
        fronts = (after, after[1:] if after[:1] and after[0][0] == "system" else ())
        front = next((front for front in fronts if front and turns[: len(front)] == front), ())
        turns = turns[len(front) :]
        if len(turns) != 1 or turns[0][0] != "assistant":
            raise UnusableError("last_turn_not_assistant")
        return turns[0][1]
    return text_of(value, field="response")


def split_last(turns: Conversation) -> tuple[Conversation, str]:
    """Split a whole conversation into (prompt, response): the response is the last turn, the assistant's.

    Raises `UnusableError` with `last_turn_not_assistant` where the last turn is not the assistant's, and with
    `empty_prompt` where it is the only one.
    """
    if not turns or turns[-1][0] != "assistant":
        raise UnusableError("last_turn_not_assistant")
    if len(turns) == 1:
        raise UnusableError("empty_prompt")
    return turns[:-1], turns[-1][1]


def from_hh(text: object) -> Conversation:
    """Convert a whole transcript, `"\\n\\nHuman: ...\\n\\nAssistant: ..."` (HH-RLHF, Bai et al. 2022), to a conversation.

    Raises `UnusableError("bad_hh_format")` where the text has no turns, or other text before the assistant's.
    """
    messages = turns_in(text_of(text, field="prompt"))
    if messages is None:
        raise UnusableError("bad_hh_format")
    return from_messages(messages)


def to_messages(turns: Conversation, response: str | None = None) -> list[dict[str, str]]:
    """Return `[{"role": ..., "content": ...}, ...]`, with `response`, if any, as the last assistant message."""
    messages = [{"role": role, "content": content} for role, content in turns]
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    return messages


def canonical_json(turns: Conversation) -> bytes:
    """Return the conversation as NFC-normalised compact JSON; equal prompts have equal bytes, however they were written."""
    text = ",".join([f"[{_quote_json(role)},{_quote_json(content)}]" for role, content in turns])
    return (f"[{text}]" if text.isascii() else unicodedata.normalize("NFC", f"[{text}]")).encode()


def prompt_key(turns: Conversation) -> bytes:
    """Return the 128-bit key (16 bytes, big-endian xxh3) that decides which responses compete for one prompt."""
    return xxhash.xxh3_128_digest(canonical_json(turns))


def response_hash(response: str | memoryview) -> int:
    """Return the 64-bit content hash (xxh3) of a response's exact text, which may be given in UTF-8.

    Equal rewards are ordered by it.
    """
    return xxhash.xxh3_64_intdigest(response.encode() if isinstance(response, str) else response)
