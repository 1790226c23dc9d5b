"""Canonical conversations: the one form in which prompts and responses are compared, hashed and rendered.

Pure functions. A conversation is a tuple of `(role, content)` turns with the roles `system`, `user`, `assistant` and `tool`, and
a first turn `tools` where the row has tools; a *sample* is the conversation before the last assistant turn (the prompt) and that
turn's content (the response), or everything after the last user turn. `rm.messages` describes contents that are more than text.
This module knows nothing of files, columns, tokenizers or models.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from rm.messages import JSON_KEYS as JSON_KEYS
from rm.messages import MESSAGE_KEYS as MESSAGE_KEYS
from rm.messages import TOOLS as TOOLS
from rm.messages import (
    WHOLE,
    canonical,
    keys_in,
    open_messages,
    open_tools,
    pack_messages,
    read_content,
)
from rm.messages import DeepNestingError as DeepNestingError
from rm.messages import UnusableError as UnusableError
from rm.messages import count_characters as count_characters
from rm.messages import depth_of as depth_of
from rm.messages import describe_message as describe_message
from rm.messages import describe_response as describe_response
from rm.messages import load_json as load_json
from rm.messages import parse_json as parse_json
from rm.messages import read_tools as read_tools
from rm.messages import text_of as text_of
from rm.messages import unpack as unpack
from rm.repeats import REPEATED as REPEATED
from rm.repeats import after_prompt as after_prompt
from rm.repeats import are_repeated as are_repeated
from rm.repeats import begins_with_prompt as begins_with_prompt
from rm.repeats import last_turn as last_turn
from rm.transcripts import open_turns as open_turns
from rm.transcripts import turns_in as turns_in

Turn = tuple[str, str]
Conversation = tuple[Turn, ...]

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
# the result of json.dumps(text, ensure_ascii=False), without the cost of creating an encoder
_quote_json = json.encoder.encode_basestring


STRUCTURED = r"^[ \t\r\n]*\["
"""The beginning of each text that `from_prompt` may read as more than one turn, for `re` and for Arrow's RE2."""
_STRUCTURED = re.compile(STRUCTURED)


def decode_bytes(value: Any) -> Any:
    """Return `value` with UTF-8 bytes as text, also in lists and mappings; other bytes are unchanged, and are not usable text.

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


def messages_in_json(text: str) -> list[Any] | None:
    """Return the messages in a text that is a JSON list of messages; None for any other text."""
    value = _list_in_json(text)
    return value if value and all(map(is_message, value)) else None


def _list_in_json(text: str) -> list[Any] | None:
    try:
        return load_json(text) if _STRUCTURED.match(text) else None
    except ValueError:
        return None


def is_message(value: object) -> bool:
    """Return whether a value has the keys of a message: role and content (or calls), or ShareGPT's from and value."""
    return isinstance(value, Mapping) and (
        ("role" in value and not value.keys().isdisjoint(("content", *MESSAGE_KEYS)))
        or ("from" in value and "value" in value)
    )


def from_messages(value: object) -> Conversation:
    """Convert a list of `{role, content}` (OpenAI, TRL) or `{from, value}` (ShareGPT) messages to a conversation.

    The list, or each message in it, may be JSON text. Raises `UnusableError` for anything else: `null_prompt`, `bad_json`,
    `bad_utf8`, `wrong_type`, `bad_role`, or what `rm.messages.read_content` raises.
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
    for position, item in enumerate(value):
        message = parse_json(item)
        if not isinstance(message, Mapping):
            raise UnusableError("wrong_type")
        name = message["role"] if "role" in message else message.get("from")
        if name in ("function_call", "tool_call"):
            name, message = "assistant", _with_call(message)
        role = _ROLES.get(name) if isinstance(name, str) else None
        if role is None or (role == "system" and position > 0):
            raise UnusableError("bad_role")
        last = position == len(value) - 1 and role == "assistant"
        turns.append((role, read_content(message, role=role, field="response" if last else "prompt")))
    return tuple(turns)


def _with_call(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a turn `function_call` (ShareGPT) or `tool_call`, whose text is one or several calls as JSON, with `tool_calls`."""
    value = parse_json(message.get("content", message.get("value")))
    calls = value if isinstance(value, list) and value else [value]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise UnusableError("bad_function_call")
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }


def from_prompt(value: object, *, system: object = None) -> Conversation:
    """Convert a prompt column, plain text (one user turn) or a list of messages, also as JSON, to a conversation.

    A `system` text goes in front unless the messages have one.

    Raises `UnusableError`, with `prompt_ends_with_assistant` if a message list ends with the assistant's turn.
    """
    if isinstance(value, str):
        value = messages_in_json(value) or value
    turns = (("user", text_of(value, field="prompt")),) if isinstance(value, str) else from_messages(value)
    if not turns:
        raise UnusableError("empty_prompt")
    if turns[-1][0] == "assistant":
        raise UnusableError("prompt_ends_with_assistant")
    return with_system(turns, system)


def with_system(turns: Conversation, system: object) -> Conversation:
    """Return the conversation with a `system` text in front, unless it is blank or the conversation has one."""
    if isinstance(system, str) and system.strip() and not any(role == "system" for role, _ in turns[:2]):
        front = 1 if turns[:1] and turns[0][0] == TOOLS else 0
        return (*turns[:front], ("system", text_of(system, field="prompt")), *turns[front:])
    return turns


def with_tools(turns: Conversation, tools: object) -> Conversation:
    """Return the conversation with a row's tools, a list or its JSON text, in front. Raises `UnusableError("bad_tools")`."""
    content = read_tools(tools)
    return turns if content is None else ((TOOLS, content), *turns)


def tools_in(turns: Conversation) -> list[dict[str, Any]] | None:
    """Return the tools of a conversation; None if it has none."""
    return open_tools(turns[0][1]) if turns and turns[0][0] == TOOLS else None


def holds_more(turns: Conversation, response: str) -> bool:
    """Return whether a conversation contains more than texts of the user, the assistant and the system."""
    plain = ("system", "user", "assistant")
    return response.startswith(WHOLE) or any(role not in plain or content.startswith(WHOLE) for role, content in turns)


def keys_of(turns: Conversation, response: str | None = None) -> set[str]:
    """Return the keys of a conversation's messages beside their texts, and `tools`."""
    keys = {TOOLS for role, _ in turns[:1] if role == TOOLS}
    contents = [content for role, content in turns if role != TOOLS] + ([] if response is None else [response])
    return keys.union(*(keys_in(content) for content in contents if content.startswith(WHOLE)))


def from_response(value: object, *, after: Conversation = (), several: bool = False) -> str:
    """Convert a response column, text or a list of one assistant message (TRL's completion), to a response.

    The list may repeat the prompt `after` at the front, with or without its system turn. With `several`, it may contain tool
    calls and their results before the last answer. Raises `UnusableError`.
    """
    if not isinstance(value, str) and isinstance(value, Sequence):
        turns = from_messages(value)
        after = tuple(turn for turn in after if turn[0] != TOOLS)
        fronts = (after, after[1:] if after[:1] and after[0][0] == "system" else ())
        front = next((front for front in fronts if front and turns[: len(front)] == front), ())
        turns = turns[len(front) :]
        if len(turns) != 1 and not several:
            raise UnusableError("last_turn_not_assistant")
        return pack_response(turns)
    return text_of(value, field="response")


def pack_response(turns: Conversation) -> str:
    """Return the turns that answer a prompt as one response. Raises `UnusableError("last_turn_not_assistant")`."""
    if not turns or turns[-1][0] != "assistant" or any(role not in ("assistant", "tool") for role, _ in turns):
        raise UnusableError("last_turn_not_assistant")
    return turns[0][1] if len(turns) == 1 else pack_messages(to_messages(turns))


def split_last(turns: Conversation) -> tuple[Conversation, str]:
    """Split a whole conversation into (prompt, response): the response is the last turn, the assistant's.

    Raises `UnusableError` with `last_turn_not_assistant` if the last turn is not the assistant's, and with
    `empty_prompt` if it is the only turn.
    """
    if not turns or turns[-1][0] != "assistant":
        raise UnusableError("last_turn_not_assistant")
    if len(turns) == 1:
        raise UnusableError("empty_prompt")
    return turns[:-1], turns[-1][1]


def split_after_last_user(turns: Conversation) -> tuple[Conversation, str]:
    """Split a whole conversation into (prompt, response): the response is everything after the last user turn.

    Raises `UnusableError` as `split_last` does.
    """
    last = max((number for number, (role, _) in enumerate(turns) if role == "user"), default=-1)
    if last < 0 and turns and turns[-1][0] == "assistant":
        raise UnusableError("empty_prompt")
    return turns[: last + 1], pack_response(turns[last + 1 :])


def from_hh(text: object) -> Conversation:
    """Convert a whole transcript, `"\\n\\nHuman: ...\\n\\nAssistant: ..."` (HH-RLHF, Bai et al. 2022), to a conversation.

    Raises `UnusableError("bad_hh_format")` if the text has no turns, or other text before the assistant's.
    """
    messages = turns_in(text_of(text, field="prompt"))
    if messages is None:
        raise UnusableError("bad_hh_format")
    return from_messages(messages)


def to_messages(turns: Conversation, response: str | None = None) -> list[dict[str, Any]]:
    """Return the messages as they were read, `{"role": ..., "content": ...}` and more, followed by those of `response`, if any.

    The tools of a conversation are not among them: see `tools_in`.
    """
    messages = [message for role, content in turns if role != TOOLS for message in open_messages(role, content)]
    return messages if response is None else messages + open_messages("assistant", response)


def canonical_json(turns: Conversation) -> bytes:
    """Return the conversation as NFC-normalised compact JSON; equal prompts have equal bytes, however they were stored."""
    text = ",".join([f"[{_quote_json(role)},{_quote_json(canonical(content))}]" for role, content in turns])
    return (f"[{text}]" if text.isascii() else unicodedata.normalize("NFC", f"[{text}]")).encode()


def prompt_key(turns: Conversation) -> bytes:
    """Return the 128-bit key (16 bytes, big-endian xxh3) that decides which responses compete for one prompt."""
    return xxhash.xxh3_128_digest(canonical_json(turns))


def response_hash(response: str | memoryview) -> int:
    """Return the 64-bit content hash (xxh3) of a response's exact text, which may be given as UTF-8.

    It orders responses with equal rewards.
    """
    return xxhash.xxh3_64_intdigest(canonical(response).encode() if isinstance(response, str) else response)
