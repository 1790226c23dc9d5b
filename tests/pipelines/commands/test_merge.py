"""`bestkept model merge`: an ordinary checkpoint with the mean of the weights, or one clear error and nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from support.tiny_models import save_causal, save_encoder

from rm.identity import identify
from rm.scorer import Scorer

SCORER = {"dtype": "float32", "max_length": 48, "too_long": "truncate", "tokens_per_batch": 999, "device": "cpu"}
GROUPS = [((("user", "what is hot"),), ["good reply", "bad", "a long answer about water"])]


@pytest.fixture
def models(tmp_path):
    return [save_encoder(tmp_path / f"seed-{seed}", seed=seed) for seed in range(3)]


def test_weights_are_the_mean_and_the_rest_is_that_of_the_first(bestkept, models, tmp_path):
    (models[0] / "calibration.json").write_text('{"temperature": 2.0}')
    code, out, err = bestkept("model", "merge", *models, tmp_path / "merged")
    assert code == 0, err
    assert "none yet: bestkept evaluate" in out
    merged, weights = (
        load_file(tmp_path / "merged" / "model.safetensors"),
        [load_file(m / "model.safetensors") for m in models],
    )
    assert merged.keys() == weights[0].keys()
    for name, tensor in merged.items():
        mean = np.mean([w[name].numpy().astype(np.float64) for w in weights], axis=0).astype(np.float32)
        assert np.array_equal(tensor.numpy(), mean)
    names = {file.name for file in (tmp_path / "merged").iterdir()}
    assert names == {file.name for file in models[1].iterdir()}, "and no temperature, which is that of other rewards"
    assert (tmp_path / "merged" / "config.json").read_bytes() == (models[0] / "config.json").read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_average_of_a_model_with_itself_is_that_model(bestkept, models, tmp_path):
    assert bestkept("model", "merge", models[0], models[0], tmp_path / "same")[0] == 0
    before, after = (Scorer.load(Path(d), **SCORER).score(GROUPS)[0].rewards for d in (models[0], tmp_path / "same"))
    assert np.array_equal(before, after)
    assert identify(tmp_path / "same", dtype="float32", max_length=48, too_long="truncate").tokenizer


def test_a_model_in_several_files_stays_so(bestkept, models, tmp_path):
    from transformers import AutoModelForSequenceClassification

    for model in models:
        AutoModelForSequenceClassification.from_pretrained(model).save_pretrained(model, max_shard_size="20KB")
        (model / "model.safetensors").unlink()
    assert bestkept("model", "merge", *models, tmp_path / "merged")[0] == 0
    Scorer.load(tmp_path / "merged", **SCORER).score(GROUPS)
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1


def changed_config(model, **values):
    path = model / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_does_not_fit_together_is_refused(bestkept, models, tmp_path):
    out = tmp_path / "merged"

    def refused(code, words, *arguments):
        ended, _, err = bestkept("model", "merge", *arguments)
        assert ended == code, err
        assert words in " ".join(err.split()), err
        assert not out.exists()

    refused(7, "differ in config.json", models[0], save_causal(tmp_path / "causal"), out)
    other = Path(shutil.copytree(models[1], tmp_path / "other-tokenizer"))
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace('"hot"', '"cold"'))
    refused(7, "differ in tokenizer (tokenizer.json)", models[0], other, out)
    lacking = Path(shutil.copytree(models[1], tmp_path / "lacking"))
    tensors = load_file(lacking / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if name != "classifier.bias"}, lacking / "model.safetensors")
    refused(7, "classifier.bias is in one of them", models[0], lacking, out)
    changed_config(models[2], hidden_act="relu")
    refused(7, "(hidden_act)", models[0], models[2], out)
    refused(2, "expected two or more", models[0], out)
    refused(2, "object store", models[0], "gs://bucket/model", out)
    refused(7, "not a directory", models[0], tmp_path / "nothing", out)


def test_what_is_there_stays(bestkept, models, tmp_path):
    before = (models[1] / "model.safetensors").read_bytes()
    code, _, err = bestkept("model", "merge", models[0], models[1], models[1])
    assert code == 2
    assert "exists already" in err
    assert (models[1] / "model.safetensors").read_bytes() == before


def test_names_of_origin_do_not_matter(bestkept, models, tmp_path):
    changed_config(models[1], _name_or_path="elsewhere", transformers_version="5.0.0")
    assert bestkept("model", "merge", *models[:2], tmp_path / "merged")[0] == 0


def test_a_cut_file_and_a_full_disk_have_their_own_ends(bestkept, models, tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rm.checkpoint.merge.save_file", full)
        code, _, err = bestkept("model", "merge", *models, tmp_path / "merged")
    assert code == 5
    assert "No space left" in err
    whole = (models[1] / "model.safetensors").read_bytes()
    (models[1] / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, err = bestkept("model", "merge", *models, tmp_path / "merged")
    assert code == 7
    assert "model.safetensors is cut" in " ".join(err.split())
    assert not (tmp_path / "merged").exists()
