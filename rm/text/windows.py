"""What a call has to score: each distinct text once, in windows of bounded size, encoded one window ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from rm.conversations import Conversation

CallPosition = tuple[int, int]  # (group, response) in the call
T = TypeVar("T")
R = TypeVar("R")


class PendingText(NamedTuple):
    """Distinct responses to one prompt, and who asks for each: the same text may stand in many rows of a corpus."""

    prompt: Conversation
    responses: list[str]
    places: list[list[CallPosition]]


def deduplicate(groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[PendingText]:
    """The groups with equal prompts as one, and equal responses to a prompt as one, in order of first appearance.

    A corpus of one response a row has its prompt's rows anywhere: here they come together, and can share it.
    """
    prompts: dict[Conversation, dict[str, list[CallPosition]]] = {}
    for group, (prompt, responses) in enumerate(groups):
        known = prompts.setdefault(prompt, {})
        for index, response in enumerate(responses):
            known.setdefault(response, []).append((group, index))
    return [PendingText(prompt, list(known), list(known.values())) for prompt, known in prompts.items() if known]


def split_into_windows(asked: Iterable[PendingText], *, characters: int) -> Iterator[list[PendingText]]:
    """Cut into windows of about so many characters, prompts counted once a response, as they are when tokenised.

    A prompt with too many responses is cut between two of them; a text longer than that is a window of its own.
    """
    window: list[PendingText] = []
    size = 0
    for prompt, responses, places in asked:
        each = sum(len(content) for _, content in prompt)
        start = 0
        for index, response in enumerate(responses):
            size += each + len(response)
            if size > characters and (window or index > start):
                if index > start:
                    window.append(PendingText(prompt, responses[start:index], places[start:index]))
                yield window
                window, start, size = [], index, each + len(response)
        window.append(PendingText(prompt, responses[start:], places[start:]))
    if window:
        yield window


def map_ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map(make, items)`, the next one made in a thread while the caller works on the last: tokenisers and kernels both
    release the interpreter's lock."""
    with ThreadPoolExecutor(1, thread_name_prefix="bestkept-ahead") as pool:
        coming = None
        for item in items:
            following = pool.submit(make, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
