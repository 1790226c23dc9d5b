"""Weights in 8 bits: the layer by hand, what is replaced, and the error on rewards and on who wins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.slow_helpers import minilm
from support.training_groups import run_settings
from torch import nn

from rm.checkpoint.eight_bits import EightBitLinear, quantise
from rm.checkpoint.load import load_for_scoring
from rm.checkpoint.memory_check import weights_bytes
from rm.engine.memory import BatchSize
from rm.scorer import Scorer
from rm.scorer_memory import measure_memory
from rm.train import train

SETTINGS = {"max_length": 64, "too_long": "truncate", "tokens_per_batch": 1000, "device": "cpu"}


def test_each_output_has_a_scale_and_its_largest_weight_is_exact():
    layer = nn.Linear(3, 3)
    layer.weight.data = torch.tensor([[1.27, -0.5, 0.004], [-254.0, 1.0, 0.9], [0.0, 0.0, 0.0]])
    layer.bias.data = torch.tensor([0.25, 0.0, -1.0])
    eight = EightBitLinear(layer)
    assert eight.weight.tolist() == [[127, -50, 0], [-127, 0, 0], [0, 0, 0]]
    assert eight.scale[:2].tolist() == pytest.approx([0.01, 2.0])
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert eight(x).tolist() == [pytest.approx([1.27 - 1.0 + 0.25, -254.0, -1.0])]
    assert eight(x.bfloat16()).dtype == torch.bfloat16
    assert {name for name, _ in eight.named_parameters()} == {"bias"}
    assert EightBitLinear(nn.Linear(3, 2, bias=False))(x).shape == (1, 2)


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_the_linear_layers_of_the_backbone_are_replaced(request, kind):
    directory = request.getfixturevalue(kind)
    plain = load_for_scoring(directory, dtype="bfloat16", device="cpu")
    eight = load_for_scoring(directory, dtype="int8", device="cpu")
    layers = [name for name, module in plain.model.base_model.named_modules() if type(module) is nn.Linear]
    replaced = [name for name, module in eight.model.base_model.named_modules() if isinstance(module, EightBitLinear)]
    assert replaced == layers
    assert len(layers) > 10
    assert eight.computing_parameters == plain.computing_parameters
    assert eight.dtype == torch.bfloat16
    head = eight.model.score if kind == "causal" else eight.model.classifier
    assert head.weight.dtype == torch.float32
    matrices = sum(module.weight.nbytes for module in eight.modules() if isinstance(module, EightBitLinear))
    assert (
        matrices
        < weights_bytes(directory, "int8")
        < weights_bytes(directory, "bfloat16")
        == 2 * weights_bytes(directory, "float32") // 4
    )
    assert quantise(eight.model) == 0


@pytest.mark.parametrize("kind", ["encoder", "causal"])
def test_rows_are_packed_and_the_estimate_knows_the_type(request, kind):
    directory = request.getfixturevalue(kind)
    groups = [((("user", f"what is {noun}"),), ["good answer", "bad", "the word"]) for noun in ("the", "you", "time")]
    scorer = Scorer.load(directory, dtype="int8", **SETTINGS)
    assert scorer.packed
    assert measure_memory(scorer).bytes(BatchSize.padded(64, 32)) > 0
    eight = np.concatenate([scores.rewards for scores in scorer.score(groups)])
    plain = np.concatenate([s.rewards for s in Scorer.load(directory, dtype="float32", **SETTINGS).score(groups)])
    assert np.isfinite(eight).all()
    assert np.abs(eight - plain).max() < 0.2 * plain.std()
    assert not np.array_equal(eight, plain)


@pytest.mark.slow
def test_the_winners_are_those_of_bfloat16(tmp_path):
    """MiniLM trained on the demo's preferences: of four responses, nearly always the same one is best."""
    demo = Path(__file__).parents[3] / "configs/demo"
    rows = [json.loads(line) for line in (demo / "responses.jsonl").read_text(encoding="utf-8").splitlines()][::2]
    qualities = ("helpful", "thin", "beside_the_point", "careless")
    values = {"epochs": 0.5, "learning_rate": 1e-4, "max_length": 256, "heldout_fraction": 0.0}
    train(run_settings(demo / "preferences.jsonl", minilm(), tmp_path / "model", **values))
    groups = [((("user", row["prompt"]),), [row[quality] for quality in qualities]) for row in rows]
    settings = {**SETTINGS, "max_length": 256, "tokens_per_batch": None}
    rewards = {
        dtype: np.array([s.rewards for s in Scorer.load(tmp_path / "model", dtype=dtype, **settings).score(groups)])
        for dtype in ("float32", "bfloat16", "int8")
    }
    half, eight = rewards["bfloat16"], rewards["int8"]
    same = {name: float((value.argmax(1) == half.argmax(1)).mean()) for name, value in rewards.items()}
    print(same)
    assert same["int8"] > 0.95
    assert np.abs(eight - half).mean() < 0.05 * half.std()
