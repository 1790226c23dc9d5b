"""A small model, and ways to put it on an emulated store."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.storage.models import cache
from pipelines.storage.models.fetch import fetch_model

WEIGHTS = "model.safetensors"
GET_WEIGHTS = r"^GET /(bucket|download).*model\.safetensors"


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(cache.MODELS, str(tmp_path / "machine"))
    return tmp_path / "machine"


@pytest.fixture
def model(causal, tmp_path) -> Path:
    """A tiny model with a calibration, in a directory with other things."""
    directory = Path(shutil.copytree(causal, tmp_path / "reward"))
    (directory / "calibration.json").write_text('{"temperature": 1.75}')
    (directory / "training.log").write_text("no part of it")
    return directory


def url_of(store) -> str:
    return f"{store.url}/models/reward"


def upload(store, directory: Path) -> str:
    """As other tools do: all files, and no checksums."""
    for path in directory.iterdir():
        store.put(f"models/reward/{path.name}", path.read_bytes())
    store.proxy.requests.clear()
    return url_of(store)


def sent(store, directory: Path) -> str:
    fetch_model(str(directory), url_of(store))
    store.proxy.requests.clear()
    return url_of(store)


def flip(data: bytes) -> bytes:
    """Other content of the same size, with a header that is still right."""
    return data[:-1] + bytes([data[-1] ^ 1])
