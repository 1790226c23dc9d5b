"""The memory of a training step: estimates against the allocator's records, and what does not fit."""

from __future__ import annotations

import re

import pytest
import torch
from support.allocations import allocated_peak
from support.classifiers import save_wide
from support.corpora import write_jsonl
from support.tiny_models import WORDS, save_sized
from support.training_groups import run_settings

from rm.checkpoint.memory_check import weights_bytes
from rm.identity import ModelError
from rm.train import TrainingError, train
from rm.train import training_run as training
from rm.train.trainer import GroupTrainer


def data(tmp_path, *, length, groups=12):
    rows = [
        {"prompt": f"{noun} is", "chosen": f"good {noun} " * (length // 2), "rejected": f"bad {noun} " * (length // 2)}
        for noun in WORDS[:groups]
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def rankings(tmp_path, *, length):
    """Prompts of so many words with eight short responses each."""
    rows = [
        {
            "prompt": f"{noun} is " * (length // 2),
            "responses": [f"{grade} {noun}" for grade in WORDS[30:38]],
            "ranking": [*range(1, 9)],
        }
        for noun in WORDS[:8]
    ]
    return write_jsonl(tmp_path / "rankings.jsonl", rows)


@pytest.fixture
def measured(monkeypatch):
    """Fills with (estimate, most bytes that a later step took beside the weights) of every training."""
    seen = []
    refuse, take_step = training.refuse_steps, GroupTrainer.training_step

    def estimate(*rest):
        seen.append([refuse(*rest), 0])
        return seen[-1][0]

    def recorded(self, *rest, **named):
        losses = []
        taken = allocated_peak(lambda: losses.append(take_step(self, *rest, **named)))
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        held = sum(value.nbytes for value in moments if isinstance(value, torch.Tensor))
        seen[-1][1] = max(seen[-1][1], taken + held)
        return losses[0]

    monkeypatch.setattr(training, "refuse_steps", estimate)
    monkeypatch.setattr(GroupTrainer, "training_step", recorded)
    return seen


def settings_in(message):
    """The settings that an error names, as changes to a run."""
    changes = {}
    if named := re.search(r"train.tokens_per_batch: (\d+)", message):
        changes["tokens_per_batch"] = int(named[1])
    if "train.gradient_checkpointing: true" in message:
        changes["gradient_checkpointing"] = True
    if "train.lora: {rank: 16}" in message:
        changes["lora"] = {"rank": 16, "alpha": 32, "targets": "all-linear"}
    return changes


REMEDIES = {
    "smaller micro-batches": ({}, lambda step: step.optimiser + step.gradients + step.activations // 2, set()),
    "checkpointing": (
        {},
        lambda step: step.optimiser + step.gradients + step.activations // 11,
        {"gradient_checkpointing"},
    ),
    "adapters": ({"words": 60_000, "layers": 2}, lambda step: step.gradients + step.activations, {"lora"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REMEDIES)
def test_what_does_not_fit_is_refused_with_settings_that_do(tmp_path, monkeypatch, name):
    sizes, memory_of, expected = REMEDIES[name]
    model = save_sized(tmp_path / "model", "causal", **{"hidden": 64, "layers": 6, **sizes})
    pairs, out = data(tmp_path, length=120), tmp_path / "out"
    values = {"epochs": 0.5, "max_length": 256, "heldout_fraction": 0.0}
    steps = []
    refuse = training.refuse_steps
    monkeypatch.setattr(training, "refuse_steps", lambda *rest: steps.append(refuse(*rest)))
    train(run_settings(pairs, model, out, **values))
    free = memory_of(steps[0])
    monkeypatch.setattr("rm.train.memory.free_for_rank", lambda _: free)
    monkeypatch.setattr("rm.train.trained_model.refuse_weights", lambda *_, **__: None)
    with pytest.raises(
        TrainingError, match=f"a step needs {steps[0].total:,} bytes .*{free:,} are free on cpu; set "
    ) as error:
        train(run_settings(pairs, model, tmp_path / "refused", **values))
    assert not (tmp_path / "refused/model.safetensors").exists()
    changes = settings_in(str(error.value))
    assert changes.keys() == {"tokens_per_batch", *expected}
    train(run_settings(pairs, model, out, **values, **changes))
    assert steps[-1].total <= free
    assert steps[-1].activations > 0


def test_where_nothing_helps_a_larger_device_is_asked_for(tmp_path, causal, monkeypatch):
    monkeypatch.setattr("rm.train.memory.free_for_rank", lambda _: 1000)
    monkeypatch.setattr("rm.train.trained_model.refuse_weights", lambda *_, **__: None)
    with pytest.raises(TrainingError, match="use a larger device, or lower"):
        train(run_settings(data(tmp_path, length=20), causal, tmp_path / "out"))


def test_weights_that_cannot_be_trained_are_refused_before_they_are_loaded(tmp_path, causal, monkeypatch):
    pairs = data(tmp_path, length=20)
    size = weights_bytes(causal, "float32")
    monkeypatch.setattr("rm.train.trained_model.load_backbone_for_training", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("rm.checkpoint.memory_check.available_bytes", lambda: size - 1)
    with pytest.raises(ModelError, match=f"take {size:,} bytes in float32"):
        train(run_settings(pairs, causal, tmp_path / "out", lora=LORA))
    monkeypatch.setattr("rm.checkpoint.memory_check.available_bytes", lambda: 3 * size)
    with pytest.raises(
        TrainingError, match=f"takes {4 * size:,} bytes .* {3 * size:,} are free on cpu; set train.lora"
    ):
        train(run_settings(pairs, causal, tmp_path / "out"))
    monkeypatch.setattr("rm.checkpoint.memory_check.available_bytes", lambda: 4 * size)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # ranks of one machine share its memory
    with pytest.raises(TrainingError, match=f" {2 * size:,} are free on cpu"):
        train(run_settings(pairs, causal, tmp_path / "out"))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        train(run_settings(pairs, causal, tmp_path / "out", lora=LORA))


LORA = {"rank": 4, "alpha": 8, "targets": "all-linear"}
SHAPES = {
    "large weights": ("causal", {"hidden": 96, "layers": 2, "words": 20_000}, {"groups_per_batch": 2}, 20),
    "long rows, many micro-batches": ("encoder", {"hidden": 64, "layers": 3}, {"tokens_per_batch": 700}, 200),
    "causal, one micro-batch": ("causal", {"hidden": 64, "layers": 4}, {}, 120),
    "adapters": ("causal", {"hidden": 64, "layers": 3}, {"lora": LORA}, 100),
    "checkpointing": ("causal", {"hidden": 64, "layers": 6}, {"gradient_checkpointing": True}, 150),
    "capped logits": ("Gemma2", {"sliding_window": 48}, {}, 100),
    "sinks and experts": ("GptOss", {"sliding_window": 48}, {"tokens_per_batch": 700}, 200),
    "many responses to a long prompt": ("causal", {"hidden": 64, "layers": 3}, {"max_length": 400}, -120),
    "bfloat16": ("encoder", {"hidden": 64, "layers": 3}, {"precision": "bfloat16"}, 100),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_estimate_is_near_what_a_run_takes(tmp_path, measured, name):
    kind, sizes, changes, length = SHAPES[name]
    save_model = save_sized if kind in ("causal", "encoder") else save_wide
    model = save_model(tmp_path / "model", kind, **sizes)
    values = {"epochs": 1, "max_length": 256, "heldout_fraction": 0.0, **changes}
    pairs = rankings(tmp_path, length=-length) if length < 0 else data(tmp_path, length=length, groups=8)
    train(run_settings(pairs, model, tmp_path / "out", **values))
    [[estimate, taken]] = measured
    assert estimate.total == pytest.approx(taken, rel=0.2), (name, estimate, taken)
