"""The demo's data: in step with its source, and not given away by its surface."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

DEMO = Path(__file__).parents[2] / "configs" / "demo"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", DEMO / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_derived_files_are_in_step_with_the_source(build):
    prompts = build.load()
    lines = (DEMO / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == build.preferences(prompts)
    expected = build.heldout(prompts)
    assert pq.read_table(DEMO / "heldout.parquet").to_pylist() == expected
    lines = gzip.decompress((DEMO / "heldout.jsonl.gz").read_bytes()).decode().splitlines()
    assert [json.loads(line) for line in lines] == expected


def test_size_and_split(build):
    prompts = build.load()
    assert len({item["prompt"] for item in prompts}) == len(prompts) >= 120
    assert len({item["task"] for item in prompts}) >= 6
    trained = {row["prompt"] for row in build.preferences(prompts)}
    held = {row["prompt"] for row in build.heldout(prompts)}
    assert not trained & held
    assert len(trained) == 2 * len(held) == 2 * len(prompts) // 3


def test_length_does_not_give_quality_away(build):
    prompts = build.load()
    for part in (prompts, prompts[2::3]):
        longest = [max(build.QUALITIES, key=lambda quality, item=item: len(item[quality])) for item in part]
        for quality in build.QUALITIES:
            assert 0.15 <= longest.count(quality) / len(part) <= 0.35
