"""The trained network: the model's forward on micro-batches, and the loss of their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from rm.checkpoint.reward_model import Float32Head
from rm.checkpoint.text_head import TextHead
from rm.engine.packed_forward import packed_rewards
from rm.together import PADDED, compatible_groups
from rm.train.data import MicroBatch
from rm.train.language_loss import places_in_layout, text_loss
from rm.train.length_head import LengthHeadSettings, LengthSums, orthogonality
from rm.train.losses import accept_reject, bradley_terry, centring_penalty, plackett_luce, smooth


class Outputs(NamedTuple):
    """Rewards and loss of text, from which the loss of a step is computed."""

    heads: torch.Tensor  # float32 [R, 1], or [R, 2] with a length head
    text_loss: torch.Tensor | None  # [] sum over the responses that are learnt as text


class GroupNetwork(nn.Module):
    """`forward(MicroBatch) -> rewards [R]`, float32; one forward per response, and per prompt where rows are packed.

    `model` is an ordinary sequence classifier, perhaps with adapters inside; where its head has two rows, the first is the one of
    rewards (`rm.train.length_head`). `offset` is the b of labels of single responses, P(accepted) = sigmoid(r + b). `way` is that
    of `rm.together` for rows that are not packed. `text_head` is set if text is also learnt (`rm.train.language_loss`). With
    `bfloat16` it computes in that type, whatever the type of its weights.
    """

    def __init__(
        self,
        model: Any,
        *,
        causal: bool,
        offset: float = 0.0,
        way: str = PADDED,
        bfloat16: bool = False,
        text_head: TextHead | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.causal = causal
        self.way = way
        self.computes_in_bfloat16 = bfloat16
        self.text_head = text_head
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        return self.outputs(batch, text=False).heads[:, 0]

    def outputs(self, batch: MicroBatch, *, text: bool = True) -> Outputs:
        """Compute the rewards of all heads, and with `text` the loss of the batch's texts, if there is a head for it."""
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.computes_in_bfloat16):
            if not text or self.text_head is None or not batch.texts:
                return Outputs(self._heads(batch, self._parts(batch)), None)
            states: list[torch.Tensor] = []
            hook = self.model.base_model.register_forward_hook(
                lambda _, __, output: states.append(output[0].flatten(0, 1))
            )
            parts = self._parts(batch)
            try:
                heads = self._heads(batch, parts)
            finally:
                hook.remove()
            places = torch.tensor(_places(batch, parts), device=states[0].device)
            return Outputs(heads, text_loss(self.text_head.logits, torch.cat(states)[places], batch.texts))

    @property
    def head_weight(self) -> torch.Tensor:
        """The weight [1 or 2, H] of the trained head; adapters keep a second copy beside it."""
        heads = (module for module in self.model.modules() if isinstance(module, Float32Head))
        return next(head.weight for head in heads if head.weight.requires_grad)

    def _parts(self, batch: MicroBatch) -> list[list[int]]:
        """Divide the rows of a padded micro-batch into forwards."""
        if batch.layout is not None:
            return []
        lengths = batch.lengths.tolist()
        parts = compatible_groups([[row] for row in range(len(lengths))], lengths, way=self.way, split=None)
        return [[row for [row] in part] for part in parts]

    def _heads(self, batch: MicroBatch, parts: Sequence[list[int]]) -> torch.Tensor:
        if batch.layout is not None:
            return packed_rewards(self.model, batch.layout, causal=self.causal).reshape(len(batch.lengths), -1)
        if len(parts) == 1:
            return self._forward_rows(batch, slice(None))
        order = torch.tensor([row for part in parts for row in part], device=self.model.device)
        return torch.cat([self._forward_rows(batch, part) for part in parts])[order.argsort()]

    def _forward_rows(self, batch: MicroBatch, rows: slice | list[int]) -> torch.Tensor:
        """Compute the rewards of some rows of a padded micro-batch, with no more padding than they need."""
        device = self.model.device
        assert batch.input_ids is not None
        lengths = batch.lengths[rows].to(device)
        longest = int(batch.lengths[rows].max())
        inputs = {"input_ids": batch.input_ids[rows, :longest].to(device)}  # [R, T]
        inputs["attention_mask"] = (torch.arange(longest, device=device) < lengths[:, None]).long()
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids[rows, :longest].to(device)
        return self.model(**inputs).logits.float()  # type: ignore[no-any-return]


def _places(batch: MicroBatch, parts: Sequence[list[int]]) -> list[int]:
    """Return the positions of the states that predict the tokens of the batch's texts, among those of all its forwards."""
    if batch.layout is not None:
        return places_in_layout(batch.texts, batch.layout)
    starts, before = dict[int, int](), 0
    for part in parts:
        longest = int(batch.lengths[part].max())
        starts |= {row: before + at * longest for at, row in enumerate(part)}
        before += len(part) * longest
    return [
        starts[row] + step for row, start, tokens in batch.texts for step in range(start - 1, start - 1 + len(tokens))
    ]


class StepTotals(NamedTuple):
    """Sums over all micro-batches and ranks of a step, which scale the loss of a micro-batch."""

    weight: float  # of judgements
    texts: int
    lengths: LengthSums | None  # None if one micro-batch is the step


@dataclass(frozen=True)
class GroupLoss:
    """The loss of a micro-batch's comparisons and labels as one number."""

    name: str  # bradley_terry | plackett_luce
    label_smoothing: float
    centring: float
    length_head: LengthHeadSettings | None = None
    text_weight: float = 0.0

    def of_part(self, outputs: Outputs, network: GroupNetwork, batch: MicroBatch, totals: StepTotals) -> torch.Tensor:
        """Return a micro-batch's part of the loss of its step: that of its judgements, and all additional terms."""
        share, heads = batch.weight / totals.weight, outputs.heads
        extra: torch.Tensor | float = 0.0
        rewards = heads[:, 0]
        if self.length_head is not None:
            sums = totals.lengths or LengthSums.of(heads, batch.response_tokens)
            rewards = sums.total_rewards(heads)
            extra = extra + self.length_head.correlation * sums.penalty(heads, batch.response_tokens)
            extra = extra + self.length_head.orthogonality * orthogonality(network.head_weight) * share
        if outputs.text_loss is not None:
            extra = extra + self.text_weight * outputs.text_loss / totals.texts
        return self(rewards, network.offset, batch) * share + extra

    def __call__(self, rewards: torch.Tensor, offset: torch.Tensor, batch: MicroBatch) -> torch.Tensor:
        """Return the weighted mean over the micro-batch's terms: comparisons (or picks) and labels.

        `rewards` [R] are those of the rows, `offset` [] that of the network.
        """
        device = rewards.device
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []  # (mean loss, its weight)
        if len(batch.edges):
            edges, weights, margins = (t.to(device) for t in (batch.edges, batch.weights, batch.margins))
            probabilities = smooth(batch.probabilities.to(device), self.label_smoothing)
            if self.name == "plackett_luce":
                loss = plackett_luce(rewards, edges, probabilities, weights, margins, batch.stages.to(device))
            else:
                loss = bradley_terry(rewards, edges, probabilities, weights, margins)
            if self.centring:
                loss = loss + self.centring * centring_penalty(rewards, edges, weights)
            parts.append((loss, weights.sum()))
        if len(batch.labelled):
            labelled, accepted, weights = (t.to(device) for t in (batch.labelled, batch.accepted, batch.label_weights))
            parts.append((accept_reject(rewards, offset, labelled, accepted, weights), weights.sum()))
        total = torch.stack([weight for _, weight in parts]).sum()
        return torch.stack([loss * weight for loss, weight in parts]).sum() / total
