"""`make demo` as a user runs it, with real weights."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.slow_helpers import minilm

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo(tmp_path):
    command = [sys.executable, "configs/demo/demo.py", "--backbone", str(minilm()), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    last = result.stdout.strip().splitlines()[-1]
    line = re.fullmatch(r"best label (\d+) % \(random 25 %, longest (\d+) %, bag of words (\d+) %\)", last)
    assert line, last
    best, longest, bag_of_words = map(int, line.groups())
    assert longest <= 35
    assert best >= 50
    assert best >= bag_of_words + 10
