"""`train` and `evaluate`: preferences in memory and in files give the same model and the same figures."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.corpora import write_jsonl

from bestkept import ConfigError, InputError, ModelLoadError, RewardModel, evaluate, score, train

PAIRS = [
    {"prompt": f"what is {n}", "chosen": f"good answer {n}", "rejected": f"bad reply {n}"} for n in range(24)
]  # fmt: skip
QUIET = {"stress": {"prompts": 0}}


@pytest.fixture(scope="module")
def trained(encoder, tmp_path_factory):
    """A model that was trained on rows in memory, and its directory."""
    out = tmp_path_factory.mktemp("trained") / "model"
    return train(PAIRS, model=encoder, output=out, heldout=0.3, epochs=2, learning_rate=1e-3, **QUIET), out


def test_a_model_is_trained_on_rows_in_memory(trained, capfd):
    result, out = trained
    assert result.path == str(out)
    assert result.prompts + result.heldout.figures["prompts"] == len(PAIRS)
    assert result.judgements["comparisons"] == result.prompts
    assert (result.rejected, result.steps > 0, result.learning_rate) == ({}, True, 1e-3)
    assert 0 <= result.heldout.interval[0] <= result.heldout.accuracy <= result.heldout.interval[1] <= 1
    assert str(result.heldout).startswith(result.heldout.sentence)
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "the rows are not kept in the model"
    assert json.loads((out / "calibration.json").read_text())["evaluation"]["verdict"] == result.heldout.verdict
    model = result.load(max_length=32)
    assert model.settings == {"max_length": 32}
    assert model.score("what is 1", ["good answer", "bad reply"]).shape == (2,)
    assert score([{"prompt": "p", "responses": ["good", "bad"]}], result).rewards.shape == (2,)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_files_frames_and_blocks_train_the_same_model(trained, encoder, tmp_path):
    from datasets import Dataset

    weights = (trained[1] / "model.safetensors").read_bytes()
    path = write_jsonl(tmp_path / "p.jsonl", PAIRS)
    for name, data in {
        "file": path,
        "frame": pd.DataFrame(PAIRS),
        "dataset": Dataset.from_list(PAIRS),
        "block": {"path": PAIRS, "format": "prompt_chosen_rejected"},
        "sources": [PAIRS],
    }.items():
        settings = {"train": {"epochs": 2}, "learning_rate": 1e-3, "heldout": {"fraction": 0.3}, **QUIET}
        train(data, model={"path": encoder}, output=tmp_path / name, **settings)
        assert (tmp_path / name / "model.safetensors").read_bytes() == weights, name


def test_evaluations_of_rows_and_of_files_are_the_same(trained, tmp_path, capfd):
    result, out = trained
    path = write_jsonl(tmp_path / "p.jsonl", PAIRS)
    settings = {**QUIET, "bootstrap": {"resamples": 100}, "store_temperature": False}
    one = evaluate(result, PAIRS, **settings)
    other = evaluate(RewardModel(out), path, output=tmp_path / "evaluation", **settings)
    assert one.figures == other.figures
    assert (one.path, other.path) == (None, str(tmp_path / "evaluation"))
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["evaluation"] == other.figures
    assert one.figures["prompts"] == len(PAIRS)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_held_out_preferences_in_memory(encoder, tmp_path):
    settings = {"groups_per_batch": 24, "bootstrp": 1}
    with pytest.raises(ConfigError, match="unknown key"):
        train(PAIRS, model=encoder, output=tmp_path / "m", **settings)
    result = train(PAIRS[:12], model=encoder, output=tmp_path / "m", heldout=PAIRS[12:], **QUIET)
    assert (result.prompts, result.heldout.figures["prompts"]) == (12, 12)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda m, out: train(PAIRS, model=m, output=out, epoch=1),
            ConfigError,
            "'train.epoch'; did you mean 'epochs'",
        ),
        (lambda m, out: train([{"a": 1}], model=m, output=out), InputError, "fit no known format"),
        (lambda m, out: train(PAIRS, model="no/such", output=out), ModelLoadError, "no/such"),
        (lambda m, out: train(PAIRS, model=m, output="s3://b/m"), ConfigError, "output.path 's3://b/m' is a URL"),
        (lambda m, out: train([], model=m, output=out), InputError, "data has no rows"),
        (lambda m, out: evaluate(m, [{"a": 1}]), InputError, "fit no known format"),
        (lambda m, out: evaluate(m, PAIRS, bootstrp={}), ConfigError, "evaluate: unknown key 'bootstrp'"),
    ],
)
def test_errors_are_raised_and_leave_nothing(encoder, tmp_path, call, kind, words):
    out: Path = tmp_path / "m"
    with pytest.raises(kind, match=words):
        call(encoder, out)
    assert not out.exists()


@pytest.mark.slow
def test_an_interrupted_training_goes_on_with_the_same_rows(encoder, tmp_path, monkeypatch):
    from rm.train.trainer import GroupTrainer

    settings = {"epochs": 4, "groups_per_batch": 4, "checkpoint_every": 2, "heldout": 0.0, **QUIET}
    train(PAIRS, model=encoder, output=tmp_path / "whole", **settings)
    steps, plain = [], GroupTrainer.training_step

    def step(self, *arguments, **more):
        steps.append(self.state.global_step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return plain(self, *arguments, **more)

    monkeypatch.setattr(GroupTrainer, "training_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(PAIRS, model=encoder, output=tmp_path / "m", **settings)
    train(PAIRS, model=encoder, output=tmp_path / "m", **settings)
    assert steps[6] == 4, "of the checkpoint"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "m")]
    assert weights[0] == weights[1]


def test_training_leaves_the_random_numbers_of_its_caller_alone(encoder, tmp_path):
    def draw():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    def seed():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    expected = draw()
    seed()
    train(PAIRS, model=encoder, output=tmp_path / "model", epochs=1, **QUIET)
    assert draw() == expected


def test_a_model_knows_the_temperature_that_is_stored_after_it_was_opened(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "model")
    model = RewardModel(tmp_path / "model")
    assert model.temperature is None
    evaluate(model, PAIRS, **QUIET)
    assert model.temperature is not None
    assert 0 <= model.probability("p", "a", "b") <= 1
