"""Training data: groups as token ids, the draws of an epoch, and optimiser steps as micro-batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from rm.conversations import UnusableError
from rm.engine.layout import Layout, lay_out, plan_groups
from rm.preferences import Group, Rejections
from rm.preferences.groups import ALONE
from rm.text.templates import Encoded, Template
from rm.train.language_loss import ChosenText, chosen_text, preferred

_FEW_STEPS = 30


@dataclass(frozen=True)
class EncodedGroup:
    """A group as token ids: K responses, E comparisons and L labels, whose indices are into `responses`."""

    responses: list[Encoded]  # [K]
    edges: np.ndarray  # float64 [E, 6], the columns of `Edge`
    labels: np.ndarray  # float64 [L, 3], the columns of `Label`
    members: tuple[int, ...]  # [K] indices of the responses in the `Group`

    def select(self, chosen: Sequence[int]) -> EncodedGroup:
        """Return the group with the `chosen` responses alone, and the judgements among them."""
        place = np.full(len(self.responses), -1)
        place[list(chosen)] = np.arange(len(chosen))
        edges = self.edges[(place[self.edges[:, :2].astype(int)] >= 0).all(1)]
        labels = self.labels[place[self.labels[:, 0].astype(int)] >= 0]
        edges[:, :2], labels[:, 0] = place[edges[:, :2].astype(int)], place[labels[:, 0].astype(int)]
        rows = [self.responses[index] for index in chosen]
        return EncodedGroup(rows, edges, labels, tuple(self.members[index] for index in chosen))


def encode_groups(groups: Sequence[Group], template: Template, rejected: Rejections) -> list[EncodedGroup | None]:
    """Encode groups, None for those without a usable judgement; count the unusable ones in `rejected`.

    Responses that cannot be encoded, and comparisons whose sides are equal after truncation, are not used.
    """
    return [_encode_group(group, template, rejected) for group in groups]


def _encode_group(group: Group, template: Template, rejected: Rejections) -> EncodedGroup | None:
    rows: dict[int, Encoded] = {}
    for index, encoded in enumerate(template.encode_group(group.prompt, group.responses)):
        if isinstance(encoded, UnusableError):
            rejected[encoded.reason] += 1
        else:
            rows[index] = encoded
    edges = []
    for edge in group.edges:
        if edge.preferred not in rows or edge.other not in rows:
            continue
        if rows[edge.preferred].ids == rows[edge.other].ids:
            rejected["equal_after_truncation"] += 1
            continue
        edges.append(edge)
    labels = [label for label in group.labels if label.response in rows]
    if not edges and not labels:
        return None
    used = {index for edge in edges for index in edge[:2]} | {label.response for label in labels}
    whole = EncodedGroup(
        [rows.get(index, _EMPTY) for index in range(len(group.responses))],
        np.array(edges, dtype=np.float64).reshape(-1, 6),
        np.array(labels, dtype=np.float64).reshape(-1, 3),
        tuple(range(len(group.responses))),
    )
    return whole.select(sorted(used))


def hash_groups(groups: Sequence[EncodedGroup]) -> str:
    """Return a hash of token ids and judgements, in order: everything that training reads from its data."""
    digest = hashlib.sha256()
    for group in groups:
        for part in (*(np.array(row.ids, dtype=np.int64) for row in group.responses), group.edges, group.labels):
            digest.update(f"{part.shape}".encode() + part.tobytes())
    return digest.hexdigest()[:32]


def doubts_about(groups: Sequence[Group], *, steps: int) -> Iterator[str]:
    """Yield a warning for each reason why a training on these groups, with so many steps, may have little effect."""
    tied = sum(len(group.scores) > 1 and not group.edges and not group.labels for group in groups)
    if 2 * tied > len(groups):
        yield (
            f"{tied:,} of {len(groups):,} prompts have no two grades that differ (by data.min_gap), and have no effect; use "
            "finer grades, or more responses per prompt"
        )
    if steps < _FEW_STEPS:
        yield (
            f"the training has {steps} optimiser steps, and with fewer than about {_FEW_STEPS} a model hardly changes; raise "
            "train.epochs, lower train.groups_per_batch, or use more data"
        )


def spread_rewards(rewards: np.ndarray, members: Sequence[int], count: int) -> np.ndarray:
    """Return the rewards of a group's `members` as float32 [count] over all its responses, NaN for the others."""
    whole = np.full(count, np.nan, dtype=np.float32)
    whole[list(members)] = rewards
    return whole


_EMPTY = Encoded([], None, 0, 0, False)


class Foreign(Protocol):
    """Adds responses to other prompts to a part of a group: `rm.train.foreign.ForeignResponses.join`."""

    def __call__(self, group: EncodedGroup, index: int, *, epoch: int, part: int) -> EncodedGroup: ...


class Draws(Dataset[EncodedGroup]):
    """The draws of an epoch: groups, those of more than `responses_per_group` cut at random into draws of about equal size.

    Every response is seen once per epoch, whatever the size of its group. The cut depends only on seed, epoch and group,
    so a resumed run has the same draws as an uninterrupted one.
    """

    def __init__(
        self,
        groups: Sequence[EncodedGroup],
        *,
        responses_per_group: int | None,
        seed: int,
        foreign: Foreign | None = None,
    ) -> None:
        self._groups = groups
        self._seed = seed
        self._foreign = foreign
        self.epoch = 0
        self._draws = [
            (index, part, parts)
            for index, group in enumerate(groups)
            for parts in [math.ceil(len(group.responses) / (responses_per_group or len(group.responses)))]
            for part in range(parts)
        ]

    def __len__(self) -> int:
        return len(self._draws)

    @property
    def are_plain_comparisons(self) -> bool:
        """True if all judgements are comparisons without margins: a model that guesses has a loss of ln 2 per comparison."""
        return not any(len(group.labels) or group.edges[:, 4].any() for group in self._groups)

    @property
    def groups(self) -> int:
        """The number of groups."""
        return len(self._groups)

    def __getitem__(self, position: int) -> EncodedGroup:
        return self.draw(position)

    def draw(self, position: int) -> EncodedGroup:
        """Return a draw of the current epoch."""
        index, part, parts = self._draws[position]
        group = self._groups[index]
        if parts > 1:
            order = np.random.default_rng((self._seed, self.epoch, index)).permutation(len(group.responses))
            group = group.select(sorted(np.array_split(order, parts)[part].tolist()))
        return group if self._foreign is None else self._foreign(group, index, epoch=self.epoch, part=part)


@dataclass(frozen=True)
class MicroBatch:
    """Whole groups that run through the model together: R rows, E comparisons, L labels.

    Rows are a `layout` (packed) or padded `input_ids` [R, T] with `lengths` [R]. Weights are row weight / number of the
    group's terms (comparisons, or picks where `stages` are read), so that the weights of a group's unweighted
    comparisons sum to 1, and those of its labels.
    """

    layout: Layout | None
    input_ids: torch.Tensor | None  # [R, T]
    token_type_ids: torch.Tensor | None  # [R, T]
    lengths: torch.Tensor  # [R]
    edges: torch.Tensor  # [E, 2] rows (preferred, other)
    probabilities: torch.Tensor  # [E]
    weights: torch.Tensor  # [E]
    margins: torch.Tensor  # [E]
    stages: torch.Tensor  # [E]
    labelled: torch.Tensor  # [L] rows
    accepted: torch.Tensor  # [L] probabilities
    label_weights: torch.Tensor  # [L]
    groups: int
    response_tokens: torch.Tensor  # [R]
    texts: tuple[ChosenText, ...] = ()  # responses whose text is learnt

    @property
    def weight(self) -> float:
        """The sum of all weights, of comparisons and labels."""
        return float(self.weights.double().sum() + self.label_weights.double().sum())

    @property
    def tokens(self) -> int:
        """The tokens that count against `Collator.tokens_per_batch`."""
        return int(self.lengths.sum()) if self.input_ids is None else self.input_ids.numel()

    @property
    def computed_tokens(self) -> int:
        """The tokens that go through the model: shared ones once, padding included."""
        return self.tokens if self.layout is None else len(self.layout.ids)


@dataclass(frozen=True)
class Collator:
    """Makes micro-batches of groups within a token budget, which together give the loss of their optimiser step.

    Rows are sorted by length only inside a step. Batches of similar length across steps would save more padding, but would
    make steps depend on length, which a reward model must not learn.
    """

    packed: bool
    causal: bool
    pad: int
    first_position: int
    tokens_per_batch: int
    picks: bool  # weigh stages, not edges
    texts: bool = False  # preferred responses are also learnt as text

    def micro_batches(self, groups: Sequence[EncodedGroup]) -> list[MicroBatch]:
        """Return whole groups as micro-batches, those with the longest rows first."""
        lengths = [[len(row.ids) for row in group.responses] for group in groups]
        plan = plan_groups(lengths, tokens_per_batch=self.tokens_per_batch, padded=not self.packed)
        return [self.micro_batch([groups[index] for index in batch]) for batch in plan]

    def weight(self, groups: Sequence[EncodedGroup]) -> float:
        """Return the sum of all weights of these groups, whatever their micro-batches."""
        judgements = [self._judgements([group]) for group in groups]
        return math.fsum(
            float(edges[:, 3].astype(np.float32).sum(dtype=np.float64))
            + float(labels[:, 2].astype(np.float32).sum(dtype=np.float64))
            for edges, labels in judgements
        )

    def count_texts(self, groups: Sequence[EncodedGroup]) -> int:
        """Return the number of responses of these groups whose text is learnt."""
        return sum(len(_learnt(group)) for group in groups) if self.texts else 0

    def micro_batch(self, groups: Sequence[EncodedGroup]) -> MicroBatch:
        """Make one micro-batch of whole groups."""
        rows = [row for group in groups for row in group.responses]
        layout, ids, types = None, None, None
        if self.packed:
            layout = lay_out(
                [[(row.ids, row.types) for row in group.responses] for group in groups],
                share=self.causal,
                pad=self.pad,
                first_position=self.first_position,
            )
        else:
            ids = _pad_rows([row.ids for row in rows], self.pad)
            types = None if rows[0].types is None else _pad_rows([row.types or [] for row in rows], 0)
        edges, labels = self._judgements(groups)
        whole = {
            name: torch.from_numpy(values.astype(np.int64))
            for name, values in (("edges", edges[:, :2]), ("stages", edges[:, 5]), ("labelled", labels[:, 0]))
        }
        real = {
            name: torch.from_numpy(values.astype(np.float32))
            for name, values in (
                ("probabilities", edges[:, 2]),
                ("weights", edges[:, 3]),
                ("margins", edges[:, 4]),
                ("accepted", labels[:, 1]),
                ("label_weights", labels[:, 2]),
            )
        }
        lengths = torch.tensor([len(row.ids) for row in rows])
        return MicroBatch(
            layout=layout,
            input_ids=ids,
            token_type_ids=types,
            lengths=lengths,
            groups=len(groups),
            response_tokens=torch.tensor([row.response_tokens for row in rows]),
            texts=tuple(self._texts(groups)) if self.texts else (),
            **whole,
            **real,
        )

    def _texts(self, groups: Sequence[EncodedGroup]) -> Iterator[ChosenText]:
        start = 0
        for group in groups:
            for index in _learnt(group):
                yield chosen_text(start + index, group.responses[index])
            start += len(group.responses)

    def _judgements(self, groups: Sequence[EncodedGroup]) -> tuple[np.ndarray, np.ndarray]:
        """Concatenate comparisons and labels of all groups, with the micro-batch's indices and stages."""
        all_edges, all_labels, start, stage = [], [], 0, 0
        for group in groups:
            edges, labels = group.edges.copy(), group.labels.copy()
            edges[:, :2] += start
            labels[:, 0] += start
            labels[:, 2] /= max(1, len(labels))
            edges[:, 3] *= term_shares(edges[:, 5]) if self.picks else 1 / max(1, len(edges))
            edges[edges[:, 5] != ALONE, 5] += stage
            stage = int(max(stage - 1, edges[:, 5].max(initial=ALONE))) + 1
            start += len(group.responses)
            all_edges.append(edges)
            all_labels.append(labels)
        return np.concatenate(all_edges), np.concatenate(all_labels)


def term_shares(stages: np.ndarray) -> np.ndarray:
    """Return each edge's share [E] of the group's weight: every pick (edges of one stage) and every lone edge counts once.

    The shares sum to 1.
    """
    names, stage, sizes = np.unique(stages, return_inverse=True, return_counts=True)
    alone = stages == ALONE
    terms = (names != ALONE).sum() + alone.sum()
    shares: np.ndarray = np.where(alone, 1.0, 1 / sizes[stage]) / max(1, terms)
    return shares


def _pad_rows(rows: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
    out = torch.full((len(rows), max(map(len, rows))), fill)
    for position, row in enumerate(rows):
        out[position, : len(row)] = torch.tensor(row)
    return out


def _learnt(group: EncodedGroup) -> list[int]:
    """Return the responses whose text is learnt; wins against responses to other prompts do not count."""
    own = np.array(group.members) >= 0
    edges = group.edges[own[group.edges[:, :2].astype(int)].all(axis=1)]
    return preferred(group.responses, edges, group.labels)
