"""The most similar other prompts, by the rare words that two prompts share."""

from __future__ import annotations

import heapq
import math
import re
from collections import defaultdict
from collections.abc import Sequence

from rm.conversations import Conversation, prompt_key
from rm.messages import open_messages

_WORD = re.compile(r"\w+")
_COMMON = 512
"""Prompts that share a word from which on it is not looked at: it says little, and would take a pass over all of them."""


def words_of(prompt: Conversation) -> frozenset[str]:
    """Return the words of all turns of a prompt but the system's, in lower case."""
    texts = (
        str(message.get("content") or "")
        for role, content in prompt
        if role in ("user", "assistant")
        for message in open_messages(role, content)
    )
    return frozenset(word.lower() for text in texts for word in _WORD.findall(text))


def similar_prompts(prompts: Sequence[Conversation], *, count: int = 1) -> list[list[int]]:
    """Return for each prompt the indices of the `count` most similar ones, nearest first; fewer where no more share a rare word.

    Similarity is the cosine of the prompts' sets of words, each word weighted by log(prompts / prompts that have it). Words of
    more than 512 prompts count for a prompt's norm alone. A prompt that occurs again is not similar to itself. Equally similar
    ones are in the order of their keys, so that the prompts that are returned do not depend on the order of those given.
    """
    words = [words_of(prompt) for prompt in prompts]
    keys = [prompt_key(prompt) for prompt in prompts]
    members: dict[str, list[int]] = defaultdict(list)
    for index, own in enumerate(words):
        for word in own:
            members[word].append(index)
    weight = {word: math.log(len(prompts) / len(having)) for word, having in members.items()}
    norms = [math.sqrt(math.fsum(weight[word] ** 2 for word in own)) for own in words]
    nearest = []
    for index, own in enumerate(words):
        shared: dict[int, list[float]] = defaultdict(list)
        for word in own:
            if 1 < len(members[word]) <= _COMMON and weight[word]:
                for other in members[word]:
                    shared[other].append(weight[word] ** 2)
        ranked = (
            (-math.fsum(parts) / norms[other], keys[other], other)
            for other, parts in shared.items()
            if keys[other] != keys[index]
        )
        nearest.append([other for _, _, other in heapq.nsmallest(count, ranked)])
    return nearest
