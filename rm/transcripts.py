"""Transcripts: conversations written as one text, `"\\n\\nHuman: ...\\n\\nAssistant: ..."` (HH-RLHF, Bai et al. 2022). Pure.

Text before the first turn is the system turn. A transcript that ends with `Assistant:` is open: the response goes there.

>>> open_turns("\\n\\nHuman: Hi\\n\\nAssistant:")
[{'role': 'user', 'content': 'Hi'}]
"""

from __future__ import annotations

import re

Messages = list[dict[str, str]]

_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
_SYSTEM = re.compile(r"\s*System:[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def turns_in(text: str) -> Messages | None:
    """Return the turns of a transcript as messages, with an empty last one if it is open; None for any other text."""
    marks = list(_TURN.finditer(text))
    if not marks:
        return None
    before = text[: marks[0].start()]
    if before.strip() and marks[0].group(1) != "Human":
        return None
    system = before[mark.end() :] if (mark := _SYSTEM.match(before)) else before
    messages = [{"role": "system", "content": system.strip()}] if system.strip() else []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        content = text[mark.end() : following.start() if following else len(text)]
        messages.append({"role": _ROLES[mark.group(1)], "content": content.strip()})
    return messages


def open_turns(text: str) -> Messages | None:
    """Return the turns of a prompt that is a transcript, without the empty last turn; None for other text.

    Text that only quotes turns is not a transcript: if it does not begin with a turn, it must begin with `System:` or be open,
    and must end with the user's turn.
    """
    messages = turns_in(text)
    if messages is None:
        return None
    is_open = messages[-1] == {"role": "assistant", "content": ""}
    turns = messages[:-1] if is_open else messages
    begins = text.startswith("\n\n") and messages[0]["role"] != "system"
    if not turns or begins:
        return turns or None
    marked = is_open or _SYSTEM.match(text) is not None or (messages[0]["role"] != "system" and len(messages) > 1)
    return turns if marked and turns[-1]["role"] == "user" else None
