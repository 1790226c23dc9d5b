"""Adapters train, merge, and leave an ordinary checkpoint."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.tiny_models import save_encoder, save_language_model
from transformers import DebertaV2Config, DebertaV2Model, GPT2Config, GPT2Model, RobertaConfig, RobertaModel

from rm.checkpoint.load import (
    ensure_distinct_pad,
    load_backbone_for_training,
    load_for_scoring,
    load_tokenizer,
)
from rm.checkpoint.lora import add_lora, merge_lora
from rm.checkpoint.reward_model import RewardModel
from rm.identity import ModelError

IDS = torch.tensor([[4, 20, 31, 40, 5], [4, 21, 33, 5, 0], [4, 50, 51, 52, 5], [4, 60, 5, 0, 0]])
LENGTHS = torch.tensor([5, 4, 5, 3])
CLOSE = {"rel": 1e-5, "abs": 5e-6}


def start(tmp_path, kind):
    return save_language_model(tmp_path, pad=None, unk=None) if kind == "causal" else save_encoder(tmp_path)


def steps(reward_model, count=2):
    """Steps of SGD on two comparisons, rows 0 > 1 and 2 > 3. Gives the losses."""
    optimizer = torch.optim.SGD([p for p in reward_model.parameters() if p.requires_grad], lr=0.3)
    losses = []
    for _ in range(count):
        rewards = reward_model.train()(IDS, LENGTHS)
        loss = -torch.nn.functional.logsigmoid(rewards[0::2] - rewards[1::2]).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def rewards_of(model):
    with torch.inference_mode():
        return RewardModel(model).eval()(IDS, LENGTHS).numpy()


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_adapters_and_head_train_and_the_merged_export_keeps_them(tmp_path, kind):
    directory = start(tmp_path / "start", kind)
    tokenizer, loaded = load_tokenizer(directory), load_backbone_for_training(directory)
    model, head = loaded.model, "score" if kind == "causal" else "classifier"
    if loaded.causal:
        ensure_distinct_pad(model, tokenizer)  # a new row of embeddings
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    untouched = rewards_of(model)
    adapted = add_lora(model, rank=4, alpha=16)
    assert rewards_of(adapted) == pytest.approx(untouched, **CLOSE), "adapters start at zero"
    assert RewardModel(adapted).causal == loaded.causal
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(f".{head}.modules_to_save.default.weight" in name or ".lora_" in name for name in trainable)
    losses = steps(RewardModel(adapted), 3)
    assert losses[-1] < losses[0]
    trained = rewards_of(adapted)
    assert np.abs(trained - untouched).max() > 0.05
    assert rewards_of(model) == pytest.approx(trained, **CLOSE), "what was passed in computes with the adapters"

    merged = merge_lora(adapted)
    assert rewards_of(merged) == pytest.approx(trained, **CLOSE)
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    saved = load_file(tmp_path / "merged" / "model.safetensors")
    assert set(saved) == set(before), "names of an ordinary checkpoint"
    changed = {name for name in saved if not torch.equal(saved[name], before[name])}
    assert f"{head}.weight" in changed
    linear = {name for name in saved if saved[name].ndim == 2 and "embed" not in name}
    assert changed == linear, "every linear layer and the head, and nothing else: no norm, embedding or bias"
    scoring = load_for_scoring(tmp_path / "merged", dtype="float32", device="cpu")
    assert rewards_of(scoring.model) == pytest.approx(trained, **CLOSE)
    rows = scoring.model.get_input_embeddings().weight.shape[0]
    assert rows == scoring.model.config.vocab_size > tokenizer.pad_token_id


def test_the_scale_is_alpha_over_rank(tmp_path):
    model = load_backbone_for_training(start(tmp_path, "causal")).model
    layer = model.model.layers[0].self_attn.q_proj
    base = layer.weight.detach().clone()
    adapted = add_lora(model, rank=2, alpha=8, targets=["q_proj"])
    layer = model.model.layers[0].self_attn.q_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    expected = base + 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    merged = merge_lora(adapted)
    assert torch.allclose(merged.model.layers[0].self_attn.q_proj.weight, expected, atol=1e-5)


def test_targets_are_layers_of_the_backbone_by_name(tmp_path):
    def adapted_layers(targets):
        model = load_backbone_for_training(start(tmp_path, "causal")).model
        add_lora(model, rank=2, alpha=4, targets=targets)
        return {name.rpartition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}

    attention = {f"model.layers.{layer}.self_attn.{part}" for layer in (0, 1) for part in ("q_proj", "v_proj")}
    assert adapted_layers(["q_proj", "v_proj"]) == attention
    assert adapted_layers("q_proj") == {name for name in attention if name.endswith("q_proj")}
    assert len(adapted_layers("all-linear")) == 2 * 7
    for wrong in ("score", ["q_proj", "proj"], []):
        with pytest.raises(ModelError, match=r"it has down_proj, .*v_proj.*always trained in full"):
            adapted_layers(wrong)


@pytest.mark.parametrize(
    ("backbone", "config", "between", "head"),
    [
        (RobertaModel, RobertaConfig, "classifier.dense", "classifier.out_proj"),
        (DebertaV2Model, DebertaV2Config, "pooler.dense", "classifier"),
    ],
)
def test_layers_between_backbone_and_head_train_in_full_and_the_bias_stays_zero(
    tmp_path, backbone, config, between, head
):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    backbone(config(vocab_size=70, pad_token_id=0, **sizes)).save_pretrained(tmp_path)
    model = load_backbone_for_training(tmp_path).model
    before = model.get_submodule(between).weight.detach().clone()
    adapted = add_lora(model, rank=2, alpha=4)
    assert {name.split(".")[0] for name, _ in model.named_parameters() if "lora" in name} == {model.base_model_prefix}
    steps(RewardModel(adapted))
    trained = rewards_of(adapted)
    merged = merge_lora(adapted)
    assert not torch.equal(merged.get_submodule(between).weight, before)
    assert merged.get_submodule(head).bias.tolist() == [0.0]
    assert rewards_of(merged) == pytest.approx(trained, **CLOSE)


def test_gpt2_keeps_its_transposed_layers(tmp_path):
    GPT2Model(GPT2Config(vocab_size=70, n_embd=32, n_layer=1, n_head=2, pad_token_id=0)).save_pretrained(tmp_path)
    reward_model = load_backbone_for_training(tmp_path)
    adapted = add_lora(reward_model.model, rank=2, alpha=4)
    steps(RewardModel(adapted))
    trained = rewards_of(adapted)
    assert rewards_of(merge_lora(adapted)) == pytest.approx(trained, **CLOSE)


@pytest.mark.parametrize("kind", ["causal", "encoder"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_reaches_the_adapters(tmp_path, kind, dtype):
    directory = start(tmp_path, kind)

    def gradients(checkpointing):
        torch.manual_seed(0)
        adapted = add_lora(load_backbone_for_training(directory, dtype=dtype).model, rank=2, alpha=4)
        if checkpointing:
            adapted.gradient_checkpointing_enable({"use_reentrant": False})
        RewardModel(adapted).train()(IDS, LENGTHS)[0].backward()
        return {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}

    plain, checkpointed = gradients(False), gradients(True)
    assert all(gradient.dtype == torch.float32 for gradient in plain.values()), (
        "adapters and head, whatever the weights"
    )
    assert any(gradient.abs().max() > 0 for name, gradient in plain.items() if ".lora_B" in name and ".0." in name)
    for name, gradient in plain.items():
        assert torch.allclose(checkpointed[name], gradient, atol=1e-5), name


def test_missing_peft_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    model = load_backbone_for_training(start(tmp_path, "causal")).model
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install bestkept\[lora\]"):
        add_lora(model, rank=2, alpha=4)
