"""Writes `metadata.json` of the Flex template from the configuration's models; `make reference` also runs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))

from launch import COMMANDS, fields

PATH = Path(__file__).with_name("metadata.json")


def metadata() -> dict[str, Any]:
    """The template's metadata. Every parameter is text, and optional for the service, since `config` may contain it; the launcher
    reports missing settings."""
    own = [
        _parameter(
            "command", "What to do", f"One of {', '.join(COMMANDS)}; default run.", regex=f"^({'|'.join(COMMANDS)})$"
        ),
        _parameter(
            "config", "Configuration", "A YAML file in the image or on gs://, which the other parameters override."
        ),
    ]
    given = [_parameter(name, key, help_of(key, field)) for name, (key, field) in fields().items()]
    return {
        "name": "bestkept",
        "description": "Scores a corpus with a reward model and keeps the best responses, as Parquet shards.",
        "streaming": False,
        "parameters": [*own, *given],
    }


def help_of(key: str, field: Any) -> str:
    text = " ".join((field.description or f"{key} of the configuration.").split())
    return f"{text} As YAML."


def _parameter(name: str, label: str, text: str, *, regex: str | None = None) -> dict[str, Any]:
    parameter: dict[str, Any] = {
        "name": name,
        "label": label,
        "helpText": text,
        "paramType": "TEXT",
        "isOptional": True,
    }
    return parameter if regex is None else {**parameter, "regexes": [regex]}


def text() -> str:
    return json.dumps(metadata(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
