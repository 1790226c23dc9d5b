"""Removes prompts repeated at the front of responses, as generators that return the whole text write them. Pure functions.

A response may begin like its prompt by chance ("Hello" → "Hello there"), or quote it, so prompts are removed only if
nearly all of the first rows repeat theirs. A transcript of the prompt's turns and one more is unambiguous.

>>> after_prompt((("user", "2+2?"),), "2+2? 4")
'4'
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rm.messages import TOOLS
from rm.transcripts import turns_in

_Prompt = tuple[tuple[str, str], ...]
_LEAST_CHARACTERS = 16  # in all distinct prompts together
_NEARLY_ALL = 0.9
_WITHOUT_SPACES = "\u2e80"  # the first character of the scripts without spaces between words
REPEATED = "responses begin with the text of their prompts, which is removed; to keep it: {}.repeated_prompt=keep"
"""The note where that is so, for the settings of `data` or `input`."""
_GAP = re.compile(r"(?:[ \t\r]*\n)+|[ \t]+")


def are_repeated(samples: Sequence[tuple[_Prompt, str]]) -> bool:
    """Return whether nearly all of these responses begin with their prompt's text, and more text follows in at least one."""
    rests = [rest for prompt, text in samples if (rest := after_prompt(prompt, text)) is not None]
    if not any(rests) or len(rests) < _NEARLY_ALL * len(samples):
        return False
    prompts = {prompt for prompt, _ in samples}
    long = sum(len(_text(prompt) or "") for prompt in prompts) >= _LEAST_CHARACTERS
    return long or any(last_turn(prompt, text) for prompt, text in samples)


def begins_with_prompt(prompt: _Prompt, response: str) -> bool:
    """Return whether a response begins with the text of its prompt, and the prompt is too long for a coincidence."""
    text = _text(prompt)
    return text is not None and len(text) >= _LEAST_CHARACTERS and bool(_rest_of_text(text, response))


def after_prompt(prompt: _Prompt, response: str) -> str | None:
    """Return the text after the prompt in a response that begins with it, else None.

    Words are not split: "count to 10" does not begin with "count to 1". The indentation of a first line is kept.
    """
    rest = _rest_of_text(_text(prompt), response)
    return rest if rest is not None else last_turn(prompt, response)


def last_turn(prompt: _Prompt, response: str) -> str | None:
    """Return the last turn of a response that is a transcript of the prompt's turns and one more."""
    messages = turns_in(response)
    if messages is None:
        return None
    turns = [(message["role"], message["content"]) for message in messages if message["role"] != "system"]
    before = [(role, content.strip()) for role, content in _turns(prompt)]
    return turns[-1][1] if turns[:-1] == before and turns[-1][0] == "assistant" else None


def _rest_of_text(prompt: str | None, response: str) -> str | None:
    text = response.lstrip()
    if prompt is None or not text.startswith(prompt):
        return None
    rest = text[len(prompt) :]
    if all(character.isalnum() and character < _WITHOUT_SPACES for character in (prompt[-1:], rest[:1])):
        return None
    gap = _GAP.match(rest)
    return "" if not rest.strip() else rest[gap.end() :] if gap else rest


def _text(prompt: _Prompt) -> str | None:
    """Return the text of a prompt of one turn, ignoring a system turn before it."""
    turns = _turns(prompt)
    return turns[0][1].strip() or None if len(turns) == 1 else None


def _turns(prompt: _Prompt) -> list[tuple[str, str]]:
    return [(role, content) for role, content in prompt if role not in ("system", TOOLS)]
