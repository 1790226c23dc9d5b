"""Tiny models made on the spot, a stub scorer, and configurations; nothing is fetched."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from support.tiny_models import save_causal, save_encoder

pytest_plugins = ["services.engines", "services.stores"]

hypothesis.settings.register_profile("bestkept", deadline=None)  # no test asserts a time
hypothesis.settings.load_profile("bestkept")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """See `quick_beam`; tests marked slow run Beam as it is."""
    if item.get_closest_marker("slow") or "apache_beam" not in sys.modules:
        return (yield)
    from support.quick_beam import quick_beam

    with quick_beam():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture
def bestkept(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """(words) → exit code, standard output and standard error of the command, run in this process."""
    from pipelines import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bestkept", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capfd.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_causal(tmp_path_factory.mktemp("chat"), chat=True)


@pytest.fixture(scope="session")
def stub_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that identifies as a model; only stub scorers use it."""
    from safetensors.numpy import save_file

    directory = tmp_path_factory.mktemp("stub-model")
    save_file({"score.weight": np.zeros((1, 4), dtype=np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory


@pytest.fixture(scope="session")
def configure(stub_model: Path) -> Callable[..., Any]:
    """(root, input) → a configuration of the stub model, with the output `root/out`."""
    from pipelines.config import RunConfig

    def make(root: Path, input_path: Path | str | list[str], **changes: Any) -> RunConfig:
        path = input_path if isinstance(input_path, list) else str(input_path)
        values: dict[str, Any] = {
            "input": {"path": path, **changes.pop("input", {})},
            "model": {"path": str(stub_model), **changes.pop("model", {})},
            "output": {"path": str(root / "out"), **changes.pop("output", {})},
            **changes,
        }
        return RunConfig.model_validate(values)

    return make


@pytest.fixture
def make_config(configure: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    return partial(configure, tmp_path)
