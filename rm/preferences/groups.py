"""Groups with comparisons: the one shape in which preferences reach the loss. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from rm.conversations import Conversation, prompt_key

Rejections = Counter[str]


class Edge(NamedTuple):
    """ "Response `preferred` beats response `other`" with `probability` (1/2 is a tie)."""

    preferred: int
    other: int
    probability: float


@dataclass(frozen=True)
class Group:
    """One prompt, its K >= 2 distinct responses, and the comparisons among them."""

    prompt: Conversation
    responses: tuple[str, ...]
    edges: tuple[Edge, ...]
    origin: str  # human | implicit | model


def merge(groups: Iterable[Group]) -> list[Group]:
    """Groups of one prompt and origin as one group: responses pooled, comparisons re-pointed and all kept.

    The order is that of each prompt's first appearance. Pooling is what makes N comparisons cost K forwards.
    """
    responses: dict[tuple[bytes, str], dict[str, int]] = {}
    edges: dict[tuple[bytes, str], list[Edge]] = {}
    prompts: dict[tuple[bytes, str], Conversation] = {}
    for group in groups:
        key = (prompt_key(group.prompt), group.origin)
        prompts.setdefault(key, group.prompt)
        known = responses.setdefault(key, {})
        index = [known.setdefault(response, len(known)) for response in group.responses]
        edges.setdefault(key, []).extend(
            Edge(index[edge.preferred], index[edge.other], edge.probability) for edge in group.edges
        )
    return [Group(prompt, tuple(responses[key]), tuple(edges[key]), key[1]) for key, prompt in prompts.items()]


def heldout_split(groups: Iterable[Group], fraction: float) -> tuple[list[Group], list[Group]]:
    """(train, held out) by prompt: a prompt is on one side only, and stays there however the data grow."""
    train: list[Group] = []
    heldout: list[Group] = []
    for group in groups:
        share = int.from_bytes(prompt_key(group.prompt)[:8], "big") / 2**64
        (heldout if share < fraction else train).append(group)
    return train, heldout
