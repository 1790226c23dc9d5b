"""Divides the distinct texts of a call into windows of limited size, each encoded while the previous one is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from rm.conversations import Conversation

CallPosition = tuple[int, int]
"""(group, response): indices into the groups of a call."""
T = TypeVar("T")
R = TypeVar("R")


class PendingText(NamedTuple):
    """Distinct responses to one prompt, and the positions of each: the same text may occur in many rows of a corpus."""

    prompt: Conversation
    responses: list[str]
    places: list[list[CallPosition]]  # aligned with `responses`


def deduplicate(groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[PendingText]:
    """Merge groups with equal prompts, and equal responses to a prompt, in order of first appearance.

    In a corpus with one response per row, the rows of a prompt may be far apart; merged, they share the prompt.
    """
    prompts: dict[Conversation, dict[str, list[CallPosition]]] = {}
    for group, (prompt, responses) in enumerate(groups):
        known = prompts.setdefault(prompt, {})
        for index, response in enumerate(responses):
            known.setdefault(response, []).append((group, index))
    return [PendingText(prompt, list(known), list(known.values())) for prompt, known in prompts.items() if known]


def split_into_windows(
    texts: Iterable[PendingText],
    *,
    characters: int,
    share: bool = False,
    first: int | None = None,
    whole: bool = False,
) -> Iterator[list[PendingText]]:
    """Yield windows of at most `characters` each; a prompt counts once for each response, or with `share` once a window.

    A prompt with too many responses is divided between two of them, unless groups stay `whole`; a text longer than a window has
    a window to itself. The `first` window has at most that number of characters, and each later one half as many again.
    """
    window: list[PendingText] = []
    size, most = 0, min(first or characters, characters)
    for prompt, responses, places in texts:
        prompt_size = sum(len(content) for _, content in prompt)
        start = 0
        for index, response in enumerate(responses):
            size += (0 if share and index > start else prompt_size) + len(response)
            if size > most and (window or index > start) and not (whole and index):
                if index > start:
                    window.append(PendingText(prompt, responses[start:index], places[start:index]))
                yield window
                window, start, size = [], index, prompt_size + len(response)
                most = min(most + most // 2, characters)
        window.append(PendingText(prompt, responses[start:], places[start:]))
    if window:
        yield window


def map_ahead(make: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield `map(make, items)`, making each result in a thread while the caller works on the previous one.

    Tokenisers and kernels both release the interpreter's lock, so they run at the same time.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="bestkept-ahead") as pool:
        coming = None
        for item in items:
            following = pool.submit(make, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
