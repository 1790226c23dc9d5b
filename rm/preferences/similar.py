"""The most similar other prompts, by the rare words that two prompts share."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rm.conversations import Conversation, prompt_key
from rm.messages import open_messages

_WORD = re.compile(r"\w+")
_COMMON = 512
"""Words of more prompts are ignored: they say little, and would take a pass over all of these prompts."""


def words_of(prompt: Conversation) -> frozenset[str]:
    """Return the words of all turns of a prompt except the system's, in lower case."""
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
    more than 512 prompts count only for a prompt's norm. Repeated prompts are not similar to themselves. Equally similar prompts
    are in the order of their keys, so that the result does not depend on the order of the input.
    """
    words = [words_of(prompt) for prompt in prompts]
    keys = [prompt_key(prompt) for prompt in prompts]
    members: dict[str, list[int]] = defaultdict(list)
    for index, own in enumerate(words):
        for word in own:
            members[word].append(index)
    weight = {word: math.log(len(prompts) / len(having)) for word, having in members.items()}
    norms = np.array([math.sqrt(math.fsum(weight[word] ** 2 for word in own)) for own in words])
    rare = {word: np.array(having) for word, having in members.items() if 1 < len(having) <= _COMMON and weight[word]}
    return [_nearest(index, own, rare, weight, norms, keys, count) for index, own in enumerate(words)]


def _nearest(
    index: int,
    own: frozenset[str],
    rare: Mapping[str, NDArray[np.int64]],
    weight: Mapping[str, float],
    norms: NDArray[np.float64],
    keys: Sequence[bytes],
    count: int,
) -> list[int]:
    """Return the `count` prompts with the greatest cosines; of equal ones those with the smallest keys."""
    used = sorted(
        (word for word in own if word in rare), key=lambda word: (weight[word], word)
    )  # sums in a fixed order
    if not used:
        return []
    others = np.concatenate([rare[word] for word in used])
    squares = np.repeat([weight[word] ** 2 for word in used], [len(rare[word]) for word in used])
    sharing, place = np.unique(others, return_inverse=True)
    cosines = np.bincount(place, weights=squares) / norms[sharing]
    nearest: list[tuple[float, bytes, int]] = []
    for at in np.argsort(-cosines, kind="stable").tolist():
        other = int(sharing[at])
        if keys[other] == keys[index]:
            continue
        if len(nearest) >= count and cosines[at] < -nearest[-1][0]:  # all that equal the last one take part
            break
        nearest.append((-float(cosines[at]), keys[other], other))
    return [other for _, _, other in sorted(nearest)[:count]]
