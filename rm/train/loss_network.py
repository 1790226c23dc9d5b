"""The trained network: the model's forward on micro-batches, and the loss of their rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rm.engine.packed_forward import packed_rewards
from rm.together import PADDED, compatible_groups
from rm.train.data import MicroBatch
from rm.train.losses import accept_reject, bradley_terry, centring_penalty, plackett_luce, smooth


class GroupNetwork(nn.Module):
    """`forward(MicroBatch) -> rewards [R]`, float32; one forward per response, and per prompt where rows are packed.

    `model` is an ordinary sequence classifier, perhaps with adapters inside. `offset` is the b of labels of single
    responses, P(accepted) = sigmoid(r + b). `way` is that of `rm.together` for rows that are not packed.
    With `bfloat16` it computes in that type, whatever type its weights have.
    """

    def __init__(
        self, model: Any, *, causal: bool, offset: float = 0.0, way: str = PADDED, bfloat16: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.causal = causal
        self.way = way
        self.computes_in_bfloat16 = bfloat16
        self.offset = nn.Parameter(torch.tensor(offset))

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.computes_in_bfloat16):
            return self._rewards(batch)

    def _rewards(self, batch: MicroBatch) -> torch.Tensor:
        if batch.layout is not None:
            return packed_rewards(self.model, batch.layout, causal=self.causal)
        assert batch.input_ids is not None  # a micro-batch is packed or padded
        lengths = batch.lengths.tolist()
        parts = compatible_groups([[row] for row in range(len(lengths))], lengths, way=self.way, split=None)
        if len(parts) == 1:
            return self._forward_rows(batch, slice(None))
        members = [[row for [row] in part] for part in parts]
        order = torch.tensor([row for part in members for row in part], device=self.model.device)
        return torch.cat([self._forward_rows(batch, part) for part in members])[order.argsort()]

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
        return self.model(**inputs).logits[:, 0].float()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class GroupLoss:
    """The loss of a micro-batch's comparisons and labels as one number."""

    name: str  # bradley_terry | plackett_luce
    label_smoothing: float
    centring: float

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
