"""Flattens groups with their rewards into a table of comparisons, the input of all figures except best-of-n."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm.conversations import prompt_key, response_hash
from rm.evaluate.bootstrap import Floats, Ints
from rm.preferences import Group


@dataclass(frozen=True)
class Comparisons:
    """C comparisons as columns. Side `i` is the response whose content hash is the smaller one.

    That orientation depends neither on the winner nor on the order of responses in a file. With the readers' order, the
    preferred response first, every stated probability would be 1, and a model that overstates all its probabilities would
    seem calibrated.
    """

    probability: Floats  # [C] stated, that i is preferred; 1/2 is a tie
    gap: Floats  # [C] r_i - r_j; NaN if either could not be scored
    length: Floats  # [C, 2] of i and j
    nearer: Floats  # [C] cosine of i - that of j if they differ by more than the gap, else 0; NaN without `Relevance`
    on_topic: Floats  # [C] 1 if the step `on_topic` keeps only i, -1 if only j, else 0; NaN without `Relevance`
    cluster: Ints  # [C] prompts, numbered in the order of their keys
    half: NDArray[np.bool_]  # [C] the half of the prompts that the prompt falls in, by its key
    origin: NDArray[np.object_]
    source: NDArray[np.object_]
    subset: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.gap)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Comparisons:
        columns = (getattr(self, name)[chosen] for name in self.__dataclass_fields__)
        return Comparisons(*columns)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """The comparisons [C] of which both sides have a reward."""
        return ~np.isnan(self.gap)

    @property
    def tied(self) -> NDArray[np.bool_]:
        """The comparisons [C] that are ties."""
        return np.equal(self.probability, 0.5)

    @property
    def nearer_or_longer(self) -> Floats:
        """Positive [C] if i is the nearer one, or, of two that are about as near, the longer one, negative if j is; NaN without
        `Relevance`."""
        return join_gate(self.nearer, self.length[:, 0] - self.length[:, 1])


def join_gate(gate: Floats, signal: Floats) -> Floats:
    """Return `gate`, and `signal` where the gate is 0."""
    return np.where(gate != 0, gate, signal)


def correctness(signal: Floats, probability: Floats) -> Floats:
    """Return 1 where `signal` (positive: i) points to the side that `probability` favours, 1/2 where it is 0, else 0."""
    return 0.5 + 0.5 * np.sign(signal) * np.sign(probability - 0.5)


class Relevance(NamedTuple):
    """The cosines of prompts and responses, and the gap of a gate before another rule.

    Before length, of two responses whose cosines differ by more than `gap` the nearer one is chosen, otherwise the longer one.
    Before the reward, the gate is that of the step `on_topic` (`rm.evaluate.gate`).
    """

    cosines: Sequence[ArrayLike]  # [K] for each group
    gap: float
    duels: Sequence[ArrayLike] = ()  # for each duel of the stress tests, in the order of its texts
    max_touched: float | None = None  # by which the gap was settled; None if it was given
    caught: float | None = None  # share of responses to other prompts that lie further behind than the gap


def nearer(i: ArrayLike, j: ArrayLike, *, gap: float) -> Floats:
    """Return the differences of two sides' cosines where they are above `gap`, and 0 where they are not, or not known."""
    ahead = np.asarray(i, dtype=np.float64) - np.asarray(j, dtype=np.float64)
    return np.where(np.abs(ahead) > gap, ahead, 0.0)


def distances_behind(cosines: Floats) -> Floats:
    """Return the distance of each response [K] behind the second most relevant one to its prompt, or behind the more relevant of
    two; infinite for an unknown cosine."""
    known = cosines[np.isfinite(cosines)]
    if not len(known):
        return np.full(len(cosines), np.inf)
    return np.where(np.isfinite(cosines), reference_of(known) - cosines, np.inf)


def reference_of(cosines: Floats) -> float:
    """Return the cosine that those of a prompt's responses are compared with: the second highest, or the higher of two."""
    known = np.sort(cosines)
    return float(known[-2] if len(known) > 2 else known[-1])


def _kept(behind: Floats, *, gap: float) -> Floats:
    """Return 1 where, of the distances `behind` [C, 2] of two sides, only the first is within `gap`, -1 where only the second
    is, otherwise 0, as where one is not known."""
    far = (behind > gap).astype(np.float64)
    return np.where(np.isfinite(behind).all(axis=1), far[:, 1] - far[:, 0], 0.0)


def tabulate(
    groups: Sequence[Group],
    rewards: Sequence[ArrayLike],
    lengths: Sequence[ArrayLike],
    relevance: Relevance | None = None,
) -> Comparisons:
    """Tabulate the comparisons of all groups: edges, and each accepted response against each rejected one of its group.

    `rewards` and `lengths` hold an array [K] for each group, aligned with its responses. Every comparison is one row, whatever
    its training weight. Raises `ValueError` if the arrays do not fit the groups.
    """
    if not len(groups) == len(rewards) == len(lengths):
        raise ValueError(f"{len(groups)} groups, {len(rewards)} arrays of rewards, {len(lengths)} of lengths")
    numbers: list[tuple[float, ...]] = []
    owner: list[int] = []
    cosines = [np.full(len(group.responses), math.nan) for group in groups] if relevance is None else relevance.cosines
    for index, (group, reward, length, near) in enumerate(zip(groups, rewards, lengths, cosines, strict=True)):
        r, size = np.asarray(reward, dtype=np.float64), np.asarray(length, dtype=np.float64)
        if not len(group.responses) == len(r) == len(size):
            raise ValueError(
                f"group {index} has {len(group.responses)} responses, {len(r)} rewards, {len(size)} lengths"
            )
        # a selection has only responses with a reward
        cosine = np.where(np.isfinite(r), np.asarray(near, dtype=np.float64), np.nan)
        behind = distances_behind(cosine)
        hashes = [response_hash(response) for response in group.responses]
        for i, j, p in _judgements(group):
            if hashes[i] > hashes[j]:
                i, j, p = j, i, 1.0 - p
            numbers.append((p, r[i] - r[j], size[i], size[j], cosine[i], cosine[j], behind[i], behind[j]))
            owner.append(index)
    table = np.array(numbers, dtype=np.float64).reshape(-1, 8)
    group_of = np.array(owner, dtype=np.int64)
    keys = [prompt_key(group.prompt) for group in groups]
    unknown = np.full(len(table), np.nan)
    return Comparisons(
        table[:, 0],
        np.where(np.isfinite(table[:, 1]), table[:, 1], np.nan),
        table[:, 2:4],
        unknown if relevance is None else nearer(table[:, 4], table[:, 5], gap=relevance.gap),
        unknown if relevance is None else _kept(table[:, 6:], gap=relevance.gap),
        clusters(groups)[group_of],
        # the last byte: `heldout_split` reads the first eight, and these halves must halve its held-out prompts
        np.array([key[-1] % 2 == 1 for key in keys], dtype=bool)[group_of],
        *(np.array([getattr(group, name) for group in groups], dtype=object)[group_of] for name in _KINDS),
    )


_KINDS = ("origin", "source", "subset")


def clusters(groups: Sequence[Group]) -> Ints:
    """Return the number of each group's prompt [groups]; groups of one prompt share it."""
    keys = [prompt_key(group.prompt) for group in groups]
    number = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def _judgements(group: Group) -> Iterator[tuple[int, int, float]]:
    for edge in group.edges:
        yield edge.preferred, edge.other, edge.probability
    accepted = accepted_shares(group)
    for i, share in accepted.items():
        for j, other in accepted.items():
            if share > 0.5 > other:
                yield i, j, 1.0


def accepted_shares(group: Group) -> dict[int, float]:
    """Map each labelled response to the mean of its accept/reject labels."""
    votes: dict[int, list[float]] = {}
    for label in group.labels:
        votes.setdefault(label.response, []).append(label.accepted)
    return {response: float(np.mean(shares)) for response, shares in votes.items()}
