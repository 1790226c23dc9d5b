"""Mixtures of experts: a token passes through some of them, and the numbers say so."""

from __future__ import annotations

import pytest
import torch
from support.every_classifier import save_tiny
from torch import nn

from rm.checkpoint.experts import computing_parameters, find_experts
from rm.checkpoint.load import build_without_weights, load_backbone_for_training
from rm.checkpoint.lora import add_lora
from rm.dry_run import DryRun


def test_a_token_computes_with_the_experts_that_it_passes_through(tmp_path):
    """Width 32, 2 layers, 4 heads and 2 of keys of width 8, 4 experts of width 64, of which a token passes through 2."""
    attention = 32 * 32 + 32 * 16 + 32 * 16 + 32 * 32
    norms, router, head = 2 * 32, 4 * 32, 32
    experts = 2 * 3 * 32 * 64
    expected = 2 * (attention + norms + router + experts) + 32 + head
    directory = save_tiny(tmp_path / "model", "mixtral")
    forecast = DryRun.of(directory, max_length=64, too_long="truncate", tokens_per_batch=None, device="cpu")
    assert forecast.shape["computing_parameters"] == expected
    embeddings = forecast.model.model.config.vocab_size * 32
    assert forecast.shape["parameters"] == expected + 2 * experts + embeddings, "all experts are in memory"


@pytest.mark.parametrize(
    ("kind", "layers"),
    [("qwen3_moe", 2), ("gpt_oss", 2), ("jetmoe", 8), ("phimoe", 2), ("hunyuan_v1_moe", 2), ("deepseek_v3", 0)],
)
def test_experts_are_known_in_every_layout(kind, layers, tmp_path):
    """JetMoE has experts in its attention, too, two projections each; the tiny DeepSeek has dense layers alone."""
    model = build_without_weights(save_tiny(tmp_path / "model", kind)).model
    experts = list(find_experts(model))
    assert len(experts) == layers
    assert {(layer.number, layer.chosen) for layer in experts} <= {(4, 2)}
    halves = sum(layer.parameters * (layer.number - layer.chosen) // layer.number for layer in experts)
    dense = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name)
    assert computing_parameters(model) == dense - halves


def test_experts_in_a_list_of_modules_count_as_well():
    layer = nn.Module()
    layer.top_k, layer.experts = 1, nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(3))
    model = nn.ModuleDict({"layer": layer, "head": nn.Linear(4, 1, bias=False)})
    assert computing_parameters(model) == 16 + 4


def test_adapters_say_that_they_do_not_reach_the_experts(tmp_path, caplog):
    model = load_backbone_for_training(save_tiny(tmp_path / "model", "mixtral")).model
    experts = 2 * 4 * 3 * 32 * 64
    adapted = add_lora(model, rank=2, alpha=4)
    assert f"does not train the experts of MixtralForSequenceClassification, {experts:,} of its" in caplog.text
    assert not any("experts" in name for name, weight in adapted.named_parameters() if weight.requires_grad)


def test_adapters_of_dense_models_and_of_named_layers_say_nothing(tmp_path, caplog):
    torch.manual_seed(0)
    add_lora(load_backbone_for_training(save_tiny(tmp_path / "dense", "llama")).model, rank=2, alpha=4)
    sparse = load_backbone_for_training(save_tiny(tmp_path / "model", "mixtral")).model
    add_lora(sparse, rank=2, alpha=4, targets=["q_proj"])
    assert "experts" not in caplog.text
