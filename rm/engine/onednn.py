"""Linear layers of float32 encoders on a CPU, computed by oneDNN: weights reordered once, bias and GELU fused.

PyTorch's own `nn.Linear` uses the BLAS it was built with, which reads the weights in their usual order and leaves bias and
activation to further passes. The operations here are those of `torch.compile`. They are not public, so each is first compared
with the layer, and not used if it differs or is missing. Encoders ran a quarter faster. Causal models, which have neither bias
nor GELU, ran a tenth faster, which does not justify operations that are not public. 16-bit types use oneDNN anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

_TOLERANCE = 1e-5  # of the largest output: float32 rounds at 1e-7


class _Linear(nn.Module):
    """`activation(x W^T + b)` of a linear layer, without gradients."""

    def __init__(self, layer: nn.Linear, activation: str) -> None:
        super().__init__()
        self._bias = layer.bias
        self._activation = activation
        self._weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(  # type: ignore[no-any-return]
            hidden, self._weight, self._bias, self._activation, [], "none" if self._activation == "gelu" else ""
        )


@torch.inference_mode()
def fuse_linear_layers(model: Any) -> int:
    """Replace the linear maps of a float32 encoder's layers (BERT and its relatives) for scoring; return their number.

    Replaced weights are released. A layer whose replacement differs or does not exist stays.
    """
    layers = getattr(getattr(model.base_model, "encoder", None), "layer", None)
    if layers is None or model.dtype != torch.float32:
        return 0
    gelu = getattr(model.config, "hidden_act", None) == "gelu"
    count = fused = 0
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear:
                continue
            count += 1
            with_gelu = gelu and hasattr(parent, "intermediate_act_fn")
            replacement = _equivalent_linear(child, "gelu" if with_gelu else "none")
            if replacement is None:
                continue
            setattr(parent, name, replacement)
            if with_gelu:
                parent.intermediate_act_fn = nn.Identity()
            fused += 1
    log.debug("%d of %d linear layers use oneDNN", fused, count)
    return fused


def _equivalent_linear(layer: nn.Linear, activation: str) -> _Linear | None:
    """Return the replacement if it computes what the layer and the activation compute, else None."""
    after: Callable[[torch.Tensor], torch.Tensor] = nn.functional.gelu if activation == "gelu" else nn.Identity()
    rows = torch.randn(1, 5, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = after(layer(rows))
    try:
        replacement = _Linear(layer, activation)
        error = (replacement(rows) - expected).abs().max()
    except (AttributeError, RuntimeError):  # another version of torch, or built without oneDNN
        return None
    return replacement if bool(error <= _TOLERANCE * expected.abs().max()) else None
