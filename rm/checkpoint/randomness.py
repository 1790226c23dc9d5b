"""Randomness that a model has in training alone, switched off: its rewards are then the same in training as in scoring.

A comparison is two forwards, and noise in them is noise in the comparison; and what is trained is what will score.
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
    """Let routers of experts that add noise in training, or draw experts there, route as in scoring for good.

    They are known by their jitter. Its value stays: PhiMoE also masks experts by it in scoring.
    """
    for module in model.modules():
        if any("jitter" in name for name in vars(module)):
            module.eval()
            module.train = _stay  # type: ignore[method-assign, assignment]


def _stay(mode: bool = True) -> None:
    """Take the place of a module's `train`, which would set the mode of all modules inside as well."""
