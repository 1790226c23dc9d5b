"""Packages of the user's own that are named `pipelines` or `rm`: named where they stand in the way, else no matter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ("-P", "-c", "from bestkept.__main__ import main; main()")  # as the script that pip makes


@pytest.fixture
def python(tmp_path):
    """(words, PYTHONPATH before ours) → exit code and last line of errors of Python in `tmp_path`."""

    def run(*words: str, path: str = "") -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*filter(None, [path]), str(ROOT)])}
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]

    return run


def make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x = 1\n")


@pytest.mark.parametrize("name", ["pipelines/__init__.py", "rm.py"])
def test_another_package_is_named_with_the_remedy(python, tmp_path, name):
    make(tmp_path / name)
    assert python(*COMMAND, "config") == (0, ""), "what lies in the working directory is not in the path of a command"
    code, line = python(*COMMAND, "config", path=".")
    package = name[:-3].partition("/")[0]
    assert code == 2
    assert line.startswith(
        f"bestkept: the name {package} leads to {tmp_path / name}, and bestkept needs its own package"
    )
    assert line.endswith("rename the other one, or keep its folder out of Python's path: leave it out of PYTHONPATH, start in "
                         "another directory, or use `python -P`")  # fmt: skip


@pytest.mark.slow
def test_modules_that_are_run_name_it_too(python, tmp_path):
    make(tmp_path / "rm" / "__init__.py")
    for module in ("pipelines.cli", "pipelines.score.workers.worker"):
        code, line = python("-m", module, "config")
        assert code == 1
        assert f"the name rm leads to {tmp_path / 'rm/__init__.py'}" in line
    code, line = python("-m", "bestkept", "config")
    assert (code, line.startswith("bestkept: the name rm leads to")) == (2, True)


def test_a_folder_without_init_is_no_package(python, tmp_path):
    make(tmp_path / "rm" / "old.py")
    make(tmp_path / "pipelines" / "daily.py")
    assert python(*COMMAND, "config", path=".") == (0, "")
