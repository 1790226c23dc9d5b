"""The language-model loss of preferred responses, which preserves the hidden states' model of text while they learn rewards.

After Yang et al. 2024 ("GRM", arXiv 2406.10216), with the mean loss of a response's tokens, as language models are trained. The
prompt is read and not learnt; only the logits of a few hundred tokens are in memory, and are computed again for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from rm.engine.layout import Layout
from rm.text.templates import Encoded

_CHUNK = 256  # tokens whose logits are in memory: 150 MB of float32 with a vocabulary of 150,000


class ChosenText(NamedTuple):
    """A response to learn: its row, and its tokens from `start` on."""

    row: int
    start: int
    tokens: list[int]


def preferred(responses: Sequence[Encoded], edges: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return the responses of a group that its judgements prefer: the one with the most wins, if unique, and accepted ones.

    `edges` [E, 6] and `labels` [L, 3] are those of `EncodedGroup`. A group of ties has none.
    """
    points = np.zeros(len(responses))
    np.add.at(points, edges[:, 0].astype(int), edges[:, 2] - 0.5)
    np.add.at(points, edges[:, 1].astype(int), 0.5 - edges[:, 2])
    most = points.max(initial=0.0)
    best = np.flatnonzero(np.isclose(points, most)) if most > 0 else np.empty(0, dtype=int)
    chosen = {*(best.tolist() if len(best) == 1 else ()), *labels[labels[:, 1] > 0.5, 0].astype(int).tolist()}
    return sorted(index for index in chosen if chosen_text(index, responses[index]).tokens)


def chosen_text(row: int, encoded: Encoded) -> ChosenText:
    """Return the learnt part of a row: the tokens of its response, except a first token of the row."""
    start = max(1, encoded.response_start)
    return ChosenText(row, start, encoded.ids[start : encoded.response_start + encoded.response_tokens])


def places_in_layout(texts: Sequence[ChosenText], layout: Layout) -> list[int]:
    """Return the positions in a packed row of the states that predict the tokens of these texts, in order."""
    starts, before = [], 0  # (place of the prefix, its length, place of what follows it) of each row
    for segment in layout.segments:
        ends = list(accumulate(segment.responses, initial=before + segment.prefix))
        starts += [(before, segment.prefix, own) for own in ends[:-1]]
        before = ends[-1]
    return [
        prefix_at + step if step < prefix else own + step - prefix
        for row, start, tokens in texts
        for prefix_at, prefix, own in [starts[row]]
        for step in range(start - 1, start - 1 + len(tokens))
    ]


def text_loss(
    logits: Callable[[torch.Tensor], torch.Tensor], states: torch.Tensor, texts: Sequence[ChosenText]
) -> torch.Tensor:
    """Return the sum over texts of the mean cross-entropy of their tokens, which `states` [N, H] predict in their order."""
    device = states.device
    targets = torch.tensor([token for text in texts for token in text.tokens], device=device)
    weights = torch.tensor([1 / len(text.tokens) for text in texts for _ in text.tokens], device=device)

    def chunk(some: torch.Tensor, wanted: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (cross_entropy(logits(some).float(), wanted, reduction="none") * weight).sum()

    parts = [
        checkpoint(
            chunk, states[at : at + _CHUNK], targets[at : at + _CHUNK], weights[at : at + _CHUNK], use_reentrant=False
        )
        for at in range(0, len(targets), _CHUNK)
    ]
    return torch.stack(parts).sum()
