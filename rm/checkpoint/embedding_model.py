"""A backbone without a head, and the pooling of a text's hidden states into one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rm.checkpoint.experts import computing_parameters


class EmbeddingModel(nn.Module):
    """`forward(input_ids [B, T], lengths [B], token_type_ids [B, T] | None) -> vectors [B, H]`, float32.

    Rows are padded on the right. With several poolings, H is their sum.
    """

    def __init__(self, model: Any, pooling: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.pooling = tuple(pooling)
        self.computing_parameters = computing_parameters(model)

    @property
    def width(self) -> int:
        """The length of a vector."""
        return int(self.model.config.get_text_config().hidden_size) * len(self.pooling)

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]  # [B, T]
        inputs = {"input_ids": input_ids, "attention_mask": mask.long()}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        hidden = self.model(**inputs)[0].float()  # [B, T, H]
        return torch.cat([pool(hidden, lengths, mode) for mode in self.pooling], dim=-1)


def pool(hidden: torch.Tensor, lengths: torch.Tensor, mode: str) -> torch.Tensor:
    """Pool each row's hidden states [B, T, H], of which the first `lengths` [B] count, into one vector: [B, H]."""
    places = torch.arange(hidden.shape[1], device=hidden.device)
    mask = (places < lengths[:, None])[..., None]  # [B, T, 1]
    if mode == "cls":
        return hidden[:, 0]
    if mode == "lasttoken":
        return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
    if mode == "max":
        return hidden.masked_fill(~mask, -torch.inf).amax(1)
    weights = mask * (places + 1.0)[:, None] if mode == "weightedmean" else mask.float()
    total = (hidden * weights).sum(1)
    divisor = weights.sum(1)
    return total / (divisor.sqrt() if mode == "mean_sqrt_len_tokens" else divisor)
