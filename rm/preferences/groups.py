"""Groups with judgements: the common form of preferences for the loss and the evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rm.conversations import Conversation, prompt_key

Rejections = Counter[str]
"""Rows that could not be used, by reason; under `EQUAL_RESPONSES`, comparisons dropped from rows that were used."""

EQUAL_RESPONSES = "equal_responses"

ALONE = -1
"""The stage of an edge that is a judgement by itself."""


class Edge(NamedTuple):
    """ "Response `preferred` beats response `other`" with `probability` (1/2 is a tie).

    Edges of one `stage` are one pick: `preferred`, the same in all of them, was chosen before every `other`. A strict
    ranking of N is N - 1 stages and N(N-1)/2 edges, a choice of the best is one stage and N - 1 edges. Bradley-Terry
    reads the edges, Plackett-Luce the stages.
    """

    preferred: int
    other: int
    probability: float = 1.0
    weight: float = 1.0
    margin: float = 0.0
    stage: int = ALONE


class Label(NamedTuple):
    """ "Response `response` is acceptable by itself" with probability `accepted`."""

    response: int
    accepted: float
    weight: float = 1.0


@dataclass(frozen=True)
class Group:
    """One prompt, its distinct responses, and the judgements of one kind of judge.

    `scores` (empty, or [K] aligned with the responses; None for one without) are the judge's grades: the source of score
    edges, and the gold scores of best-of-n curves. `item` is the row's own id if rows of one prompt must not be merged:
    RewardBench 2 has the same question with one and with several right answers.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    edges: tuple[Edge, ...] = ()
    origin: str = "human"  # human | implicit | model
    labels: tuple[Label, ...] = ()
    scores: tuple[float | None, ...] = ()
    source: str | None = None
    subset: str | None = None
    item: str | None = None


@dataclass
class _GroupBuilder:
    """A group under construction from several groups of one prompt."""

    first: Group
    responses: dict[str, int] = field(default_factory=dict)
    edges: list[Edge] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    scores: dict[int, list[float]] = field(default_factory=dict)
    stages: int = 0

    def add(self, group: Group) -> None:
        index = [self.responses.setdefault(response, len(self.responses)) for response in group.responses]
        for edge in group.edges:
            stage = edge.stage if edge.stage == ALONE else edge.stage + self.stages
            self.edges.append(edge._replace(preferred=index[edge.preferred], other=index[edge.other], stage=stage))
        self.stages += 1 + max((edge.stage for edge in group.edges), default=ALONE)
        self.labels += [label._replace(response=index[label.response]) for label in group.labels]
        for place, score in zip(index, group.scores, strict=False):
            if score is not None:
                self.scores.setdefault(place, []).append(score)

    def build(self) -> Group:
        places = range(len(self.responses)) if self.scores else ()
        scores = tuple(_mean(self.scores[place]) if place in self.scores else None for place in places)
        return Group(
            self.first.prompt,
            tuple(self.responses),
            tuple(self.edges),
            self.first.origin,
            tuple(self.labels),
            scores,
            self.first.source,
            self.first.subset,
            self.first.item,
        )


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def collapse(group: Group) -> tuple[Group, int]:
    """Merge equal responses of a group; return it, and the number of comparisons between equal ones that were dropped.

    Every other judgement is kept with its new indices, and a response graded several times has the mean of its scores.
    Stages are dropped: a pick among texts of which two are equal is not a pick as in Plackett-Luce, but its edges still
    count separately.
    """
    places: dict[str, int] = {}
    index = [places.setdefault(response, len(places)) for response in group.responses]
    if len(places) == len(index):
        return group, 0
    edges = tuple(
        edge._replace(preferred=index[edge.preferred], other=index[edge.other], stage=ALONE)
        for edge in group.edges
        if index[edge.preferred] != index[edge.other]
    )
    grades: dict[int, list[float]] = {}
    for place, score in zip(index, group.scores, strict=False):
        if score is not None:
            grades.setdefault(place, []).append(score)
    pairs = sum(math.comb(len(values), 2) for values in grades.values())
    scores = tuple(_mean(grades[place]) if place in grades else None for place in range(len(places)))
    collapsed = replace(
        group,
        responses=tuple(places),
        edges=edges,
        labels=tuple(label._replace(response=index[label.response]) for label in group.labels),
        scores=scores if grades else (),
    )
    return collapsed, len(group.edges) - len(edges) if group.edges else pairs


def merge(groups: Iterable[Group]) -> list[Group]:
    """Merge groups of one prompt, origin, source, subset and item: responses are pooled, all judgements kept.

    The order is that of each prompt's first appearance. After pooling, N comparisons cost K forwards. A response graded
    several times has the mean of its scores. For example, (a over b) and (a over c) of one prompt become:

        Group(prompt, ("a", "b", "c"), (Edge(0, 1), Edge(0, 2)))
    """
    pools: dict[tuple[bytes, str, str | None, str | None, str | None], _GroupBuilder] = {}
    for group in groups:
        key = (prompt_key(group.prompt), group.origin, group.source, group.subset, group.item)
        pools.setdefault(key, _GroupBuilder(group)).add(group)
    return [pool.build() for pool in pools.values()]


def heldout_split(groups: Iterable[Group], fraction: float) -> tuple[list[Group], list[Group]]:
    """Split groups into (train, held out) by prompt: a prompt is on one side only, and stays there when the data grow."""
    train: list[Group] = []
    heldout: list[Group] = []
    for group in groups:
        share = int.from_bytes(prompt_key(group.prompt)[:8], "big") / 2**64
        (heldout if share < fraction else train).append(group)
    return train, heldout
