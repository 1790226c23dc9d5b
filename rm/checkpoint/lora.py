"""Low-rank adapters (Hu et al. 2021) on a reward model's backbone, through peft; the head is trained in full.

Adapters are added to the model in place, so everything that uses the model computes with them. The merged model, an
ordinary checkpoint, is published.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from rm.checkpoint.experts import find_experts
from rm.identity import ModelError

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"


def add_lora(model: Any, *, rank: int, alpha: int, targets: str | Sequence[str] = ALL_LINEAR) -> Any:
    """Add adapters inside `model` (as in `load_backbone_for_training(...).model`); return the peft model around it.

    Trainable afterwards: two factors of `rank` for each targeted layer, float32, whose product is scaled by
    `alpha / rank` and is zero at the start; and the trainable weights outside the backbone: the head, and layers between.
    `targets` are the ends of names of linear layers in the backbone (`q_proj`), or "all-linear", which warns where experts
    of a mixture are stored otherwise, and are not trained. `model` is changed in place and remains usable: it is
    `.get_base_model()` of the result.

    Raises `ModelError` if peft is missing, or a target is not a linear layer of the backbone (the head is not).
    """
    try:
        from peft import LoraConfig, TaskType, get_peft_model
    except ImportError as error:
        raise ModelError("LoRA needs peft, which is missing; install it with: pip install bestkept[lora]") from error
    outside = [name for name, child in model.named_children() if child is not model.base_model and _has_weights(child)]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    adapted = get_peft_model(
        model,
        LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=rank,
            lora_alpha=alpha,
            lora_dropout=0.0,
            bias="none",
            target_modules=_linear_layers(model, targets),
            modules_to_save=outside,
        ),
    )
    trainable = dict(model.named_parameters())
    for name in frozen:  # an encoder's bias, frozen at zero: peft makes whole modules trainable
        module, _, weight = name.rpartition(".")
        for top in outside:
            if f"{module}.".startswith(f"{top}."):
                trainable[f"{top}.modules_to_save.default{module.removeprefix(top)}.{weight}"].requires_grad_(False)
    return adapted


def merge_lora(adapted: Any) -> Any:
    """Return the ordinary model: adapters added to its weights, the trained head in place. `adapted` cannot be used after."""
    return adapted.merge_and_unload()


def _linear_layers(model: Any, targets: str | Sequence[str]) -> list[str]:
    """Return full names of the backbone's linear layers that match `targets`. Raises `ModelError` if one matches none."""
    prefix = f"{model.base_model_prefix}."
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix)
    ]
    if targets == ALL_LINEAR:
        experts = sum(layer.parameters for layer in find_experts(model) if layer.fused)
        if experts:
            log.warning(
                "LoRA's %s does not train the experts of %s, %s of its %s weights, which are not linear layers; to train them, "
                "remove train.lora",
                ALL_LINEAR, type(model).__name__, f"{experts:,}", f"{sum(p.numel() for p in model.parameters()):,}",
            )  # fmt: skip
        return linear
    wanted = [targets] if isinstance(targets, str) else list(targets)
    chosen = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in wanted}
    unknown = sorted(target for target, names in chosen.items() if not names)
    if unknown or not wanted:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ModelError(
            f"LoRA targets {unknown} are not linear layers of {type(model).__name__}'s backbone; it has {known} "
            f"(or {ALL_LINEAR!r}); the head is always trained in full"
        )
    return sorted({name for names in chosen.values() for name in names})


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())
