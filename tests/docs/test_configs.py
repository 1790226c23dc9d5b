"""Every configuration that the project ships is valid, and every command that the README shows names one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines.config import RunConfig, TrainConfig, load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    kind = TrainConfig if path.stem.startswith("train") else RunConfig
    assert load(kind, str(path)).output.path


def test_readme_commands_name_files_and_fields_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^bestkept (run|score|select|train) (\S+\.yaml)(.*)$", text, flags=re.MULTILINE)
    assert len(commands) >= 2
    for command, config, rest in commands:
        kind = TrainConfig if command == "train" else RunConfig
        words = shlex.split(rest, comments=True)
        load(kind, str(ROOT / config), [word for word in words if "=" in word and not word.startswith("--")])
