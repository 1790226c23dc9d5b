"""Finds the experts of mixture-of-experts models, and the number of experts that process a token.

transformers keeps the experts of a layer in one module, as weights whose first dimension is the expert; older architectures
have a list of modules named `experts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

_CHOSEN = ("top_k", "num_experts_per_tok", "moe_topk")


class Experts(NamedTuple):
    """The experts of one layer, or of one of its projections if these have separate weights."""

    weights: list[nn.Parameter]
    number: int
    chosen: int  # experts that process a token
    fused: bool  # weights of all experts in one, which no linear layer holds

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self.weights)


def find_experts(model: Any) -> Iterator[Experts]:
    """Yield the experts of every layer that has any."""
    for name, module in model.named_modules():
        count = getattr(module, "num_experts", 0)
        weights = [weight for weight in module.parameters(recurse=False) if weight.ndim > 1]
        fused = any(weight.ndim == 3 for weight in weights) and all(len(weight) == count for weight in weights)
        if isinstance(count, int) and count > 1 and fused:
            yield Experts(weights, count, _count_chosen(model, name, count), fused=True)
        elif isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "experts" and len(module) > 1:
            chosen = _count_chosen(model, name, len(module))
            yield Experts(list(module.parameters()), len(module), chosen, fused=False)


def computing_parameters(model: Any) -> int:
    """Count the weights that a token is multiplied with: all but embeddings, and of experts only those that compute it."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    total: int = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in embeddings)
    idle = sum(layer.parameters * (layer.number - layer.chosen) // layer.number for layer in find_experts(model))
    return total - idle


def _count_chosen(model: Any, name: str, count: int) -> int:
    """Return the number of experts of this layer that process a token, from its router or the configuration; else all."""
    layer = model.get_submodule(name.rpartition(".")[0])
    config = getattr(model, "config", None)
    for holder in (model.get_submodule(name), layer, *layer.children(), config and config.get_text_config()):
        for attribute in _CHOSEN:
            chosen = getattr(holder, attribute, None)
            if isinstance(chosen, int) and not isinstance(chosen, bool) and 0 < chosen <= count:
                return chosen
    return count
