"""Responses to other prompts, added to a group in training as losers against its own responses.

Chosen and rejected responses often differ in length and form, and a model that learns these can ignore the prompt. A response to
another prompt is as long and as well formed, but not an answer (Liu et al. 2025, "RRM", arXiv 2409.13156).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rm.conversations import UnusableError, prompt_key
from rm.preferences import Group
from rm.preferences.groups import ALONE
from rm.preferences.similar import similar_prompts
from rm.text.templates import Template
from rm.train.data import EncodedGroup, term_shares

_SIMILAR = 8  # most similar prompts to draw from


@dataclass(frozen=True, kw_only=True)
class ForeignSettings:
    """The settings; `pipelines.config.train.ForeignConfig` documents them."""

    per_group: int
    similar: float
    weight: float
    ties: bool


class ForeignResponses:
    """Draws responses to other prompts for groups, different ones in each epoch.

    `groups` are the training groups, and `encoded` the same groups encoded: only responses that are used there are drawn. A draw
    depends only on seed, epoch, group and part.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        encoded: Sequence[EncodedGroup],
        template: Template,
        *,
        settings: ForeignSettings,
        seed: int,
        picks: bool,
    ) -> None:
        self._groups, self._encoded, self._template = groups, encoded, template
        self._settings, self._seed, self._picks = settings, seed, picks
        self._keys = [prompt_key(group.prompt) for group in groups]
        self._several = len(set(self._keys)) > 1
        prompts = [group.prompt for group in groups]
        self._similar = similar_prompts(prompts, count=_SIMILAR) if settings.similar else [[] for _ in prompts]

    def join(self, group: EncodedGroup, index: int, *, epoch: int, part: int) -> EncodedGroup:
        """Return `group`, a part of the group at `index`, with foreign responses after its own.

        Each own response beats each foreign one. The comparisons with foreign responses together have `settings.weight` times
        the weight of the group's own, and the weight of the whole group is unchanged.
        """
        rng = np.random.default_rng((self._seed, epoch, index, part))
        texts = [self._draw(index, rng) for _ in range(self._settings.per_group)] if self._several else []
        rows, seen = [], [row.ids for row in group.responses]
        for row in self._template.encode_group(self._groups[index].prompt, texts):
            if not isinstance(row, UnusableError) and row.ids not in seen:
                rows.append(row)
                seen.append(row.ids)
        if not rows:
            return group
        count = len(group.responses)
        foreign = range(count, count + len(rows))
        added = [(i, j, 1.0, 1.0, 0.0, ALONE) for i in range(count) for j in foreign]
        if self._settings.ties:
            added += [(i, j, 0.5, 1.0, 0.0, ALONE) for i, j in combinations(foreign, 2)]
        edges, labels = self._balance(group, np.array(added, dtype=np.float64))
        return EncodedGroup([*group.responses, *rows], edges, labels, (*group.members, *[-1] * len(rows)))

    def _draw(self, index: int, rng: np.random.Generator) -> str:
        """Return a response to a similar prompt, or to any other one."""
        similar = self._similar[index]
        if similar and rng.random() < self._settings.similar:
            other = similar[rng.integers(len(similar))]
        else:
            other = index
            while self._keys[other] == self._keys[index]:
                other = int(rng.integers(len(self._keys)))
        members = self._encoded[other].members
        return self._groups[other].responses[members[rng.integers(len(members))]]

    def _balance(self, group: EncodedGroup, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the edges [E, 6] of both kinds, and the labels [L, 3], weighted for `Collator`, which divides by the number of
        terms, so that the group's own have 1 / (1 + weight) of their original weight, and the foreign ones the rest.
        """
        edges, labels, own = np.concatenate([group.edges, added]), group.labels.copy(), len(group.edges)
        shares = term_shares(edges[:, 5]) if self._picks else np.full(len(edges), 1 / len(edges))
        kept = 1 / (1 + self._settings.weight)
        labels[:, 2] *= kept
        if own:
            edges[:own, 3] *= kept / shares[:own].sum()
        edges[own:, 3] *= (1 - kept) * ((own > 0) + (len(labels) > 0)) / shares[own:].sum()
        return edges, labels
