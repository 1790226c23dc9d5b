"""8-bit weights for scoring: the linear layers of a backbone, with one scale for each output.

Activations, embeddings and norms stay in bfloat16, the type of the computation, in which every 8-bit weight is exact.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

_LARGEST = 127


class EightBitLinear(nn.Module):
    """`x W^T + b` with W [out, in] as int8 times a scale for each output: the largest weight of an output is 127."""

    weight: torch.Tensor  # int8 [out, in]
    scale: torch.Tensor  # float32 [out]

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        output = nn.functional.linear(hidden, self.weight.to(hidden.dtype)) * self.scale.to(hidden.dtype)
        return output if self.bias is None else output + self.bias.to(output.dtype)


def quantise(model: Any) -> int:
    """Replace the linear layers of a classifier's backbone, one at a time, in place; return their number."""
    count = 0
    for parent in list(model.base_model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, EightBitLinear(child))
                count += 1
    held = sum(module.weight.numel() for module in model.modules() if isinstance(module, EightBitLinear))
    others = sum(parameter.numel() for parameter in model.parameters())
    log.info("%d M of %d M weights are in 8 bits", round(held / 1e6), round((held + others) / 1e6))
    return count
