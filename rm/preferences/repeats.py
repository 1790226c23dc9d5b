"""Prompts that the texts of responses repeat at the front, as generators that return the whole text write them.

A response may begin like its prompt by chance ("Hello" → "Hello there"), so that a text is cut only where all rows of a set
begin so. A whole transcript whose turns are the prompt's and one more leaves no doubt, in any row.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from rm.conversations import TOOLS, Conversation, turns_in
from rm.preferences.groups import Group

_LEAST_CHARACTERS = 16  # of all distinct prompts together


def repeating_places(groups: Sequence[Group]) -> frozenset[int]:
    """Return the places of those responses that begin with the text of the prompt in all of these groups."""
    count = max((len(group.responses) for group in groups), default=0)
    return frozenset(place for place in range(count) if _repeats(groups, place))


def _repeats(groups: Sequence[Group], place: int) -> bool:
    longer = [group for group in groups if len(group.responses) > place]
    prompts = {prompt for group in longer if (prompt := _text(group.prompt)) is not None}
    whole = [rest_after(_text(group.prompt), group.responses[place]) is not None for group in longer]
    return all(whole) and sum(map(len, prompts)) >= _LEAST_CHARACTERS


def begins_with_prompt(group: Group) -> bool:
    """Tell whether a response begins with the text of a prompt too long for that to be chance."""
    text = _text(group.prompt)
    long = text is not None and len(text) >= _LEAST_CHARACTERS
    return long and any(rest_after(text, response) is not None for response in group.responses)


def cut_prompt(group: Group, places: Collection[int]) -> Group:
    """Return a group whose responses do not repeat the prompt: texts at `places`, and transcripts at any place."""
    text = _text(group.prompt)
    responses = []
    for place, response in enumerate(group.responses):
        rest = rest_after(text, response) if place in places else None
        responses.append(rest or _last_turn(group.prompt, response) or response)
    return group if tuple(responses) == group.responses else replace(group, responses=tuple(responses))


def rest_after(prompt: str | None, response: str) -> str | None:
    """Return what follows a prompt at the front of a response, None where it does not begin so or where nothing follows.

    A word is not torn: after "count to 1", "count to 10" does not begin so.
    """
    text = response.lstrip()
    if prompt is None or not text.startswith(prompt):
        return None
    rest = text[len(prompt) :]
    torn = prompt[-1:].isalnum() and rest[:1].isalnum()
    return None if torn else (rest.strip() and rest.lstrip()) or None


def _text(prompt: Conversation) -> str | None:
    """Return the text of a prompt of one turn, whatever system prompt is before it."""
    turns = [content for role, content in prompt if role not in ("system", TOOLS)]
    return turns[0].strip() if len(turns) == 1 else None


def _last_turn(prompt: Conversation, response: str) -> str | None:
    """Return the last turn of a response that is a whole transcript of the prompt's turns and one more."""
    messages = turns_in(response)
    if messages is None:
        return None
    turns = [(message["role"], message["content"]) for message in messages if message["role"] != "system"]
    before = [(role, content.strip()) for role, content in prompt if role not in ("system", TOOLS)]
    is_answer = turns[:-1] == before and turns[-1][0] == "assistant"
    return turns[-1][1] or None if is_answer else None
