"""Messages as single strings: a turn's text, or its whole message if that has more than text.

The content of a turn, like a response, is its text. If the message also has tool calls, reasoning or a name, its content is
`WHOLE` followed by the message as JSON; a response of several messages is `WHOLE` followed by their list, and a row's tools are
a separate turn (`TOOLS`). So all of them are passed, compared and hashed as texts, and opened to be rendered or shown. No text
begins with `WHOLE`: `text_of` refuses it.

>>> content = read_content({"role": "assistant", "content": "4", "reasoning_content": "2+2"}, role="assistant", field="response")
>>> open_messages("assistant", content)
[{'role': 'assistant', 'content': '4', 'reasoning_content': '2+2'}]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

WHOLE = "\ufdd0"
"""A noncharacter, which Unicode keeps for internal use."""
DEEPEST = 100
"""Largest depth of lists and objects in JSON, the same on every interpreter; the limit for rows is lower."""
TOOLS = "tools"
"""The role of the turn with a row's tools; always the first turn."""
TEXT_KEYS = ("reasoning_content", "reasoning", "thinking", "name", "tool_call_id")
JSON_KEYS = ("tool_calls", "function_call")
MESSAGE_KEYS = (*TEXT_KEYS, *JSON_KEYS)
"""Keys of a message, beside role and content, that belong to the conversation: with texts, and with lists or objects."""


class UnusableError(ValueError):
    """A row or response that cannot be scored; `reason` is a code from the documented list, never text from the row."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeepNestingError(UnusableError):
    """JSON that is nested too deeply; the limit of `json` itself depends on the interpreter and its stack."""

    def __init__(self) -> None:
        super().__init__("deep_nesting")


def load_json(text: str | bytes) -> Any:
    """Parse JSON. Raises `ValueError`; `DeepNestingError` beyond `DEEPEST` levels."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise DeepNestingError from None
    if depth_of(value) > DEEPEST:
        raise DeepNestingError
    return value


def depth_of(value: Any) -> int:
    """The depth of nested lists and objects, 0 for any other value; computed without recursion."""
    depth, level = 0, [value]
    while level := [child for child in level if isinstance(child, dict | list)]:
        depth += 1
        level = [child for outer in level for child in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def text_of(value: object, *, field: str) -> str:
    """Return `value` as usable text.

    Raises `UnusableError` with `null_<field>`, `bad_utf8`, `wrong_type`, `empty_<field>`, `lone_surrogate` or `noncharacter`.
    """
    if value is None:
        raise UnusableError(f"null_{field}")
    if isinstance(value, bytes):
        raise UnusableError("bad_utf8")  # otherwise `decode_bytes` has made text of it
    if not isinstance(value, str):
        raise UnusableError("wrong_type")
    if not value.strip():
        raise UnusableError(f"empty_{field}")
    if value.startswith(WHOLE):
        raise UnusableError("noncharacter")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise UnusableError("lone_surrogate") from None
    return value


def read_content(message: Mapping[str, Any], *, role: str, field: str) -> str:
    """Return the content of a turn: the message's text, or the whole message if it has one of `MESSAGE_KEYS`.

    Text may be missing in a message with tool calls, and in a tool's result. Raises `UnusableError`: the reasons of `text_of`,
    `content_parts`, `bad_<key>` for a value of another type, and `tool_calls` for calls in a turn that is not the assistant's.
    """
    content = _join_parts(message["content"] if "content" in message else message.get("value"), field)
    plain = len(message) == 2 and ("content" in message or "value" in message)
    names = () if plain else MESSAGE_KEYS
    more = {key: _checked(key, message[key]) for key in names if message.get(key) is not None}
    calls = next((key for key in JSON_KEYS if more.get(key)), None)
    if calls is not None and role != "assistant":
        raise UnusableError(calls)
    if calls is None and not (role == "tool" and content == ""):
        content = text_of(content, field=field)
    if not more:
        return str(content)
    if content is not None and not isinstance(content, str):
        raise UnusableError("wrong_type")
    whole: dict[str, Any] = {}
    for key in message:
        if key in ("role", "from"):
            whole["role"] = role
        elif key in ("content", "value"):
            whole["content"] = content
        elif key in more:
            whole[key] = more[key]
    return _pack(whole)


def _join_parts(content: object, field: str) -> object:
    """Return content parts as one text if all of them are text; any other content is returned unchanged."""
    if not isinstance(content, Sequence) or isinstance(content, str | bytes):
        return content
    parts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise UnusableError("content_parts")
        parts.append(text_of(part.get("text"), field=field))
    return "".join(parts)


def _checked(key: str, value: object) -> object:
    """Return a value of a message's key; calls may be JSON text, as `datasets` stores them. Raises `UnusableError`."""
    if key in TEXT_KEYS:
        if not isinstance(value, str):
            raise UnusableError("bad_utf8" if isinstance(value, bytes) else f"bad_{key}")
        return value
    value = parse_json(value)
    calls = value if isinstance(value, list) and key == "tool_calls" else [value]
    calls = [parse_json(call) for call in calls]
    if not all(isinstance(call, Mapping) for call in calls):
        raise UnusableError(f"bad_{key}")
    _pack(calls, reason=f"bad_{key}")
    return calls if key == "tool_calls" else calls[0]


def parse_json(value: object) -> object:
    """Return the list or object in a JSON text; any other value is returned unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return load_json(value)
        except ValueError:
            return value
    return value


def read_tools(value: object) -> str | None:
    """Return the content of the turn for a row's tools, a list or its JSON text; None if there are none.

    Raises `UnusableError("bad_tools")`.
    """
    parsed = parse_json(value)
    if parsed is None or parsed == [] or (isinstance(parsed, str) and parsed.strip() in ("", "null")):
        return None
    tools = [parse_json(tool) for tool in parsed] if isinstance(parsed, list) else []
    if not tools or not all(isinstance(tool, Mapping) for tool in tools):
        raise UnusableError("bad_tools")
    return _pack(value if isinstance(value, str) else tools, reason="bad_tools")


def _pack(value: object, *, reason: str = "wrong_type") -> str:
    """Return `WHOLE` and a value as JSON. Raises `UnusableError`, with `reason` if it is not JSON, or with `lone_surrogate`."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        raise UnusableError("lone_surrogate") from None
    except (TypeError, ValueError, RecursionError):
        raise UnusableError(reason) from None
    return WHOLE + text


def pack_messages(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return several messages as one response."""
    return _pack(list(messages))


def unpack(content: str) -> Any:
    """Return the message, messages or tools in a content that begins with `WHOLE`."""
    return json.loads(content[len(WHOLE) :])


def open_messages(role: str, content: str) -> list[dict[str, Any]]:
    """Return the messages of a turn, or of a response, as they were read."""
    if not content.startswith(WHOLE):
        return [{"role": role, "content": content}]
    whole = unpack(content)
    return whole if isinstance(whole, list) else [whole]


def open_tools(content: str) -> list[dict[str, Any]]:
    """Return the tools in the content of a `TOOLS` turn."""
    tools = unpack(content)
    parsed: list[dict[str, Any]] = json.loads(tools) if isinstance(tools, str) else tools
    return parsed


def canonical(content: str) -> str:
    """Return a content in canonical form: plain text unchanged, JSON with sorted keys."""
    if not content.startswith(WHOLE):
        return content
    value = unpack(content)
    return WHOLE + json.dumps(
        json.loads(value) if isinstance(value, str) else value, sort_keys=True, ensure_ascii=False
    )


def map_texts(content: str, change: Callable[[str], str]) -> str:
    """Return a content with every text in it mapped, including keys of objects, but not roles or keys of messages."""
    if not content.startswith(WHOLE):
        return change(content)
    value = unpack(content)
    if isinstance(value, str):
        value = json.loads(value)
    return _pack(
        [_map_message(item, change) for item in value] if isinstance(value, list) else _map_message(value, change)
    )


def _map_message(message: Any, change: Callable[[str], str]) -> Any:
    if not isinstance(message, dict) or "role" not in message:
        return _map_values(message, change)
    return {key: value if key == "role" else _map_values(value, change) for key, value in message.items()}


def _map_values(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_values(item, change) for item in value]
    if isinstance(value, dict):
        return {change(key): _map_values(item, change) for key, item in value.items()}
    return value


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, without the keys of its objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts_in(item)


def keys_in(content: str) -> set[str]:
    """Return the keys of `MESSAGE_KEYS` that a turn or response has."""
    return {key for message in open_messages("", content) for key in message if key in MESSAGE_KEYS}


def count_characters(content: str) -> int:
    """Count the characters of all texts in a turn or response."""
    if not content.startswith(WHOLE):
        return len(content)
    messages = open_messages("", content)
    return sum(len(text) for message in messages for key in message if key != "role" for text in texts_in(message[key]))


def describe_message(message: Mapping[str, Any]) -> str:
    """Return a message as readable text: its content, and the values of its other keys."""
    parts = [str(message["content"])] if message.get("content") else []
    for key in MESSAGE_KEYS:
        if key in message:
            value = message[key]
            parts.append(f"[{key}] {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return "\n".join(parts)


def describe_response(response: str) -> str:
    """Return a response as readable text."""
    messages = open_messages("assistant", response)
    if len(messages) == 1:
        return describe_message(messages[0])
    return "\n".join(f"{message['role']}: {describe_message(message)}" for message in messages)
