"""Switches off the randomness that a model has only in training, so that its rewards are the same in training and in scoring.

A comparison is two forwards, and noise in them is noise in the comparison.
"""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig


def switch_off_dropout(config: PretrainedConfig) -> None:
    """Set every dropout of a configuration to 0, those of layers and of paths too, also in the configurations inside it."""
    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig):
            switch_off_dropout(value)
        elif isinstance(value, float) and "drop" in key:
            setattr(config, key, 0.0)


def hold_routers(model: nn.Module) -> None:
    """Make routers of experts that add noise in training, or draw experts, always route as in scoring.

    They are detected by their jitter. Its value is kept: PhiMoE also masks experts by it in scoring.
    """
    for module in model.modules():
        if any("jitter" in name for name in vars(module)):
            module.eval()
            module.train = _stay  # type: ignore[method-assign, assignment]


def _stay(mode: bool = True) -> None:
    """Take the place of a module's `train`, which would set the mode of all modules inside as well."""
