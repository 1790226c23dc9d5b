"""`bestkept model fetch` into local directories and from the hub, as a user meets it; object stores are in `tests/storage`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from services.hub_server import Model, running_hub

from pipelines.errors import ConfigError, ConflictError, ModelLoadError
from pipelines.storage.models import locate
from pipelines.storage.models.checksums import CHECKSUMS_FILE
from pipelines.storage.models.fetch import fetch_model
from rm.calibration_record import load_temperature
from rm.identity import identify

ROOT = Path(__file__).parents[3]
ID = "someone/gated-reward"
SETTINGS = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_directory_is_copied_whole_and_described_last(causal, tmp_path):
    source, place = Path(shutil.copytree(causal, tmp_path / "reward")), tmp_path / "models" / "reward"
    (source / "optimizer.pt").write_bytes(b"not needed")
    done = fetch_model(str(source), str(place))
    assert contents(place).keys() == contents(causal).keys() | {CHECKSUMS_FILE}
    assert {name: data for name, data in contents(place).items() if name != CHECKSUMS_FILE} == contents(causal)
    assert identify(place, **SETTINGS) == identify(causal, **SETTINGS), "the checksums are no part of it"
    noted = json.loads((place / CHECKSUMS_FILE).read_text())
    assert noted["source"] == "reward"
    hashes = {**identify(causal, **SETTINGS).weights, **identify(causal, **SETTINGS).tokenizer}
    assert {name: entry["sha256"] for name, entry in noted["files"].items()} == hashes
    assert {name: entry["bytes"] for name, entry in noted["files"].items()} == {
        name: len(data) for name, data in contents(causal).items()
    }
    assert done.sent == len(done.files) == len(contents(causal))
    assert fetch_model(str(source), str(place)).sent == 0


def test_a_new_calibration_follows_and_the_model_stays(causal, tmp_path):
    source, place = Path(shutil.copytree(causal, tmp_path / "reward")), tmp_path / "copy"
    fetch_model(str(source), str(place))
    before = contents(place)
    for temperature in ("1.5", "2.5"):
        (source / "calibration.json").write_text(f'{{"temperature": {temperature}}}')
        assert fetch_model(str(source), str(place)).sent == 0
        assert load_temperature(place) == float(temperature)
        assert {name: data for name, data in contents(place).items() if name != "calibration.json"} == before


def test_a_path_on_the_hub_is_an_id():
    with pytest.raises(ModelLoadError, match=r"'hf://owner/name' is on the hub; write its id instead"):
        locate("hf://owner/name", None)


def test_a_copy_that_broke_off_is_completed(causal, tmp_path):
    fetch_model(str(causal), str(tmp_path / "copy"))
    whole = contents(tmp_path / "copy")
    (tmp_path / "copy" / CHECKSUMS_FILE).unlink()
    (tmp_path / "copy" / "model.safetensors").unlink()
    assert fetch_model(str(causal), str(tmp_path / "copy")).sent == 1
    found = contents(tmp_path / "copy")
    assert found.keys() == whole.keys()
    assert found["model.safetensors"] == whole["model.safetensors"]


def test_another_model_is_not_overwritten(causal, encoder, tmp_path):
    fetch_model(str(causal), str(tmp_path / "copy"))
    before = contents(tmp_path / "copy")
    with pytest.raises(ConflictError, match="another model lies there"):
        fetch_model(str(encoder), str(tmp_path / "copy"))
    assert contents(tmp_path / "copy") == before


def test_what_cannot_be_copied_is_refused(causal, tmp_path):
    with pytest.raises(ConfigError, match="is the model's own directory"):
        fetch_model(str(causal), str(causal) + "/.")
    with pytest.raises(ConfigError, match=r"ID_OR_DIR 's3://b/m' is on an object store; .*own tools"):
        fetch_model("s3://b/m", str(tmp_path / "x"))
    for source, place in (("s3://k:secret@b/m", "x"), (str(causal), "s3://k:secret@b/m")):
        with pytest.raises(ConfigError, match=r"'s3://\*\*\*@b/m' contains credentials") as raised:
            fetch_model(source, place)
        assert "secret" not in raised.value.message
    pickled = Path(shutil.copytree(causal, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match=r"holds pickled weights .*safe_serialization=True"):
        fetch_model(str(pickled), str(tmp_path / "x"))
    with pytest.raises(ModelLoadError, match=r"model.revision 'v1' is only for hub ids"):
        fetch_model(str(causal), str(tmp_path / "x"), revision="v1")
    assert not (tmp_path / "x").exists()


@pytest.fixture
def fetch(causal, tmp_path):
    """(words, token) → the ended command, with a stand-in for the hub that holds a gated model; and what the hub was asked."""
    with running_hub() as served:
        served.models[ID] = Model(
            {**contents(causal), "pytorch_model.bin": b"never asked for", "README.md": b"nor this"}
        )

        def run(*words: str, token: str | None = served.token) -> subprocess.CompletedProcess[str]:
            settings = {
                "HF_ENDPOINT": served.url,
                "HF_HUB_OFFLINE": "0",
                "HF_HOME": str(tmp_path / "hf"),
                "NO_PROXY": "*",
            }
            env = {**os.environ, **settings, "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT)}
            if token is not None:
                env["HF_TOKEN"] = token
            command = [sys.executable, "-m", "pipelines.cli", "model", "fetch", *words]
            return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

        yield run, served


@pytest.mark.slow
def test_a_gated_model_is_fetched_with_the_users_token(fetch, causal, tmp_path):
    run, served = fetch
    done = run(ID, "copy", "--revision", "v1")
    assert done.returncode == 0, done.stderr
    commit = served.models[ID].commit
    assert f"{ID}@{commit}" in done.stdout
    assert f"model: {{path: {tmp_path}/copy}}" in done.stdout
    copied = contents(tmp_path / "copy")
    assert json.loads(copied.pop(CHECKSUMS_FILE))["source"] == f"{ID}@{commit}"
    assert copied == contents(causal)
    assert not served.count(r"resolve.*(bin|README)")
    assert served.count(r"GET .*resolve.*model\.safetensors") == 1
    assert served.token not in done.stdout + done.stderr


@pytest.mark.slow
def test_without_a_token_that_may_read_it_the_remedy_is_named(fetch, tmp_path):
    run, _ = fetch
    for token in (None, "hf_wrong_one"):
        ended = run(ID, "copy", token=token)
        assert ended.returncode == 7
        last = ended.stderr.splitlines()[-1]
        assert f"{ID!r} is not a local directory and could not be fetched from the hub" in last
        assert "HF_TOKEN for a gated model" in last
        assert "hf_wrong" not in ended.stdout + ended.stderr
    assert not (tmp_path / "copy").exists()
