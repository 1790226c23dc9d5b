"""Rewards of fixed models on fixed text. If one of these changes, raise `SCORING_VERSION` and the values together."""

from __future__ import annotations

import pytest
import torch
from support.tiny_models import save_causal, save_encoder

from rm.identity import SCORING_VERSION
from rm.scorer import Scorer

GROUPS = [
    ((("user", "what is the answer"),), ["good answer", "bad reply , more words here"]),
    ((("system", "be short"), ("user", "one"), ("assistant", "two"), ("user", "so")), ["three", "day " * 60]),
]
GOLDEN = {
    "pair": [-0.539115, -0.53923, -0.539159, -0.538754],
    "plain": [-0.190876, -0.229064, -0.307611, -0.246061],
    "chat": [-0.194544, -0.24257, -0.34762, -0.327873],
}


def fill(directory):
    """Weights from a formula, so that no random generator's version matters."""
    from safetensors.torch import load_file, save_file

    file = directory / "model.safetensors"
    tensors = {
        name: torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (1.3 + len(name) / 7))
        .float()
        .view(tensor.shape)
        * (1.0 if tensor.ndim == 1 else 0.5)
        for name, tensor in sorted(load_file(file).items())
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


def rewards(kind, tmp_path):
    make = {
        "pair": lambda: save_encoder(tmp_path),
        "plain": lambda: save_causal(tmp_path),
        "chat": lambda: save_causal(tmp_path, chat=True),
    }[kind]
    scorer = Scorer.load(
        fill(make()), dtype="float32", max_length=40, too_long="truncate", tokens_per_batch=500, device="cpu"
    )
    return [float(reward) for result in scorer.score(GROUPS) for reward in result.rewards]


@pytest.mark.parametrize("kind", sorted(GOLDEN))
def test_rewards_have_not_changed(kind, tmp_path):
    assert SCORING_VERSION == 2, "new version: set new golden rewards"
    assert rewards(kind, tmp_path) == pytest.approx(GOLDEN[kind], abs=1e-5)
