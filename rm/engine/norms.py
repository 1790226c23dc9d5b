"""RMS norms as one operation: many architectures write theirs out, as seven passes over memory instead of one kernel of a GPU.

A norm is replaced only if its results on a few random states are those of the operation, up to rounding.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

from rm.engine.device import refuse_broken

log = logging.getLogger(__name__)

_ROUNDINGS = 4  # of the narrower type, by which results may differ


def fuse_norms(model: nn.Module) -> int:
    """Make the written-out RMS norms of a scoring model run as one operation each; return their number."""
    fused = 0
    for module in model.modules():
        # one with a forward of its own is moved between devices by that
        if "forward" not in vars(module) and (forward := _fused_forward(module)) is not None:
            module.forward = functools.partial(forward, module)
            fused += 1
    if fused:
        log.debug("%d norms run as one operation each", fused)
    return fused


def _fused_forward(module: Any) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
    """Return the module's computation as a forward of one operation; None if it is not such a norm."""
    weight = getattr(module, "weight", None)
    if not type(module).__name__.endswith("RMSNorm") or isinstance(module, nn.RMSNorm) or _eps(module) is None:
        return None
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or len(list(module.parameters())) > 1:
        return None
    try:
        return _tried(module, weight)
    except Exception as error:  # a norm that takes more than states
        refuse_broken(error, trial=True)
        return None


def _tried(module: Any, weight: nn.Parameter) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
    """Return the first forward that gives the module's results on random states."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(7, len(weight), generator=generator) * torch.logspace(-2, 2, 7)[:, None]
    states = states.to(weight.device, weight.dtype)
    with torch.inference_mode():
        expected = module(states)
        for forward in (_scaled, _scaled_around_one):
            result = forward(module, states)
            within = _ROUNDINGS * torch.finfo(weight.dtype).eps * expected.float().abs().clamp_min(1e-3)
            if result.dtype == expected.dtype and bool(((result.float() - expected.float()).abs() <= within).all()):
                return forward
    return None


def _eps(module: Any) -> float | None:
    for name in ("variance_epsilon", "eps"):
        if isinstance(eps := getattr(module, name, None), float):
            return eps
    return None


def _scaled(module: Any, states: torch.Tensor) -> torch.Tensor:
    """Compute the norm of Llama and most others."""
    return rms_norm(states, module.weight.shape, module.weight, _eps(module))


def _scaled_around_one(module: Any, states: torch.Tensor) -> torch.Tensor:
    """Compute Gemma's norm, whose weights are what is added to one, in float32."""
    return rms_norm(states.float(), module.weight.shape, 1.0 + module.weight.float(), _eps(module)).type_as(states)
