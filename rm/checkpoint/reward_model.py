"""A sequence classifier as a reward model: its backbone, its scalar head, and the token that the head reads."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rm.checkpoint.experts import computing_parameters
from rm.checkpoint.interchange import pooling_pad_id
from rm.identity import ModelError


class RewardModel(nn.Module):
    """`forward(input_ids [B, T], lengths [B], token_type_ids [B, T] | None) -> rewards [B]`, float32; of N outputs [B, N].

    Rows are padded on the right and independent of their neighbours: the reward of a row is what
    `AutoModelForSequenceClassification(...).logits` gives for that row alone. For a causal backbone that is the
    head on the last token that is not the model's pad token, also if pad and eos are one token (then it is read
    before a closing eos, as it was trained). Only an OpenRLHF checkpoint is read as OpenRLHF reads it, at the
    very last token (`rm.checkpoint.interchange.pooling_pad_id`). `model` may be a peft model; its base model computes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.causal = is_causal(self.model)
        self.computing_parameters = computing_parameters(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the backbone's weights; the head is float32."""
        dtype: torch.dtype = next(self.model.parameters()).dtype
        return dtype

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> Any:
        mask = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]  # [B, T]
        inputs = {"input_ids": input_ids, "attention_mask": mask.long()}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if not self.causal:
            return self.model(**inputs).logits.squeeze(-1).float()
        hidden = self.model.base_model(**inputs, use_cache=False)[0]  # [B, T, H]
        pad = pooling_pad_id(self.model.config)
        counted = mask if pad is None else mask & (input_ids != pad)
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (
            (steps * counted).argmax(-1).to(hidden.device)
        )  # [B]; transformers' own pooling rule, on the row without its padding
        pooled = hidden[torch.arange(len(last), device=hidden.device), last]  # [B, H]
        return self.model.score(pooled).squeeze(-1).float()


def is_causal(model: Any) -> bool:
    """Return whether the head reads the last token (`score`, as the causal classes name it), not a pooled one."""
    head = getattr(model, "score", None)
    return isinstance(getattr(head, "original_module", head), nn.Linear)  # peft wraps the head that it trains


class Float32Head(nn.Linear):
    """A linear head that computes in float32, whatever type the backbone's hidden states have, also under autocast."""

    @classmethod
    def wrap(cls, model: Any) -> Any:
        head = head_of(model)
        head.__class__ = cls
        for parameter in head.parameters():
            parameter.data = parameter.data.float()
        return model

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        with torch.autocast(input.device.type, enabled=False):  # in bfloat16, rewards near 20 are 0.125 apart
            return super().forward(input.float())


def head_name(model: Any) -> str:
    """Return the name of the head's weight: the one linear layer outside the backbone with `num_labels` rows."""
    prefix = f"{model.base_model_prefix}."
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and not name.startswith(prefix)
        and module.out_features == model.config.num_labels
    ]
    if not names:
        raise ModelError(
            f"{type(model).__name__} has no linear scalar head; choose a sequence-classification architecture"
        )
    return f"{names[-1]}.weight"


def head_of(model: Any) -> Any:
    return model.get_submodule(head_name(model).removesuffix(".weight"))
