"""`bestkept env`: versions, devices and variables for a bug report; no credentials."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from rich.table import Table

from pipelines.commands.printing import print_json, print_tables
from pipelines.runtime.machine import count_cores, list_gpus, tool_version

_PACKAGES = (
    *(
        "apache-beam",
        "pyarrow",
        "numpy",
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "accelerate",
        "peft",
        "fsspec",
    ),
    *("huggingface_hub", "s3fs", "gcsfs", "pydantic", "typer", "rich"),
)
_VARIABLES = (
    *(
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "TOKENIZERS_PARALLELISM",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "BESTKEPT_MODELS",
    ),
    *("XDG_CACHE_HOME", "TMPDIR", "NO_COLOR", "PYTHONPATH"),
)


def print_environment(*, as_json: bool) -> None:
    """Print the environment: a table, or one JSON object."""
    facts = environment()
    if as_json:
        print_json(facts)
        return
    table = Table(show_header=False)
    for name, value in facts.items():
        rows = value.items() if isinstance(value, dict) else [(name, value)]
        for inner, content in rows:
            table.add_row(inner, "not set" if content is None else str(content))
    print_tables(table)


def environment() -> dict[str, Any]:
    """Return the versions, the machine and the variables that affect a run."""
    from rm.engine.device import describe_devices

    return {
        "bestkept": tool_version(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cores": count_cores(),
        "memory": _memory(),
        "gpus": ", ".join(list_gpus()) or "none",
        "torch devices": describe_devices(),
        "variables": {name: os.environ.get(name) for name in _VARIABLES},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"
