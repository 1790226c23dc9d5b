"""Real text through a real model, against plain transformers on the documented text."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from corpora import SHARED, write_jsonl
from slow_helpers import minilm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipelines import curate
from pipelines.config import RunConfig, TrainConfig
from pipelines.training import settings_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.exists(), reason="the real corpora are not part of the project"),
]
MAX_LENGTH = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from rm.train import train

    directory = tmp_path_factory.mktemp("model")
    config = TrainConfig.model_validate(
        {
            "data": {"path": str(Path(__file__).parents[1] / "configs/demo/preferences.jsonl")},
            "model": {"path": str(minilm()), "max_length": 128},
            "train": {"epochs": 0.1, "learning_rate": 1e-4, "groups_per_batch": 4},
            "output": {"path": str(directory)},
        }
    )
    train(settings_of(config))
    return directory


def rewards_by_hand(directory: Path, rows: list[dict[str, str]]) -> np.ndarray:
    """`tokenizer(prompt, response)`, too long: the left of the prompt goes first, then the end of the response."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    rewards = []
    for row in rows:
        prompt, response = (
            tokenizer(row[name], add_special_tokens=False, verbose=False)["input_ids"]
            for name in ("prompt", "response")
        )
        room = MAX_LENGTH - 3
        prompt = prompt[len(prompt) - max(0, min(len(prompt), room - len(response))) :]
        response = response[: room - len(prompt)]
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = [cls, *prompt, sep, *response, sep]
        types = [0] * (len(prompt) + 2) + [1] * (len(response) + 1)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
        rewards.append(logits[0, 0].item())
    return np.array(rewards)


def check(directory: Path, rows: list[dict[str, str]], corpus: Path, out: Path) -> None:
    """Run on `corpus`; the output holds the argmax of every prompt of `rows`, with its reward."""
    config = RunConfig.model_validate(
        {
            "input": {"path": str(corpus)},
            "model": {"path": str(directory), "max_length": MAX_LENGTH},
            "output": {"path": str(out)},
        }
    )
    curate.curate(config, scorer=curate.default_scorer(config))
    best: dict[str, tuple[float, str]] = defaultdict(lambda: (-np.inf, ""))
    for row, reward in zip(rows, rewards_by_hand(directory, rows), strict=True):
        best[row["prompt"]] = max(best[row["prompt"]], (reward, row["response"]))
    kept = pq.read_table(out / "data").to_pylist()
    assert len(kept) == len(best) == len({row["prompt_id"] for row in kept})
    for row in kept:
        reward, response = best[row["messages"][0]["content"]]
        assert row["reward"] == pytest.approx(reward, abs=1e-4)
        assert row["messages"][1]["content"] == response


def test_best_of_56_as_parquet_and_as_a_list(tmp_path, model):
    rows = pq.read_table(SHARED / "best_of_56").to_pylist()
    prompts = sorted({row["prompt"] for row in rows})[::60]
    rows = [row for row in rows if row["prompt"] in prompts and row["response"].strip()]
    assert len(prompts) == 7
    check(model, rows, write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    groups = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row["response"])
    text = "".join(json.dumps({"prompt": prompt, "responses": group}) + "\n" for prompt, group in groups.items())
    (tmp_path / "list.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    check(model, rows, tmp_path / "list.jsonl.zst", tmp_path / "out-list")


def test_gsm8k(tmp_path, model):
    lines = gzip.decompress((SHARED / "gsm8k_solutions.jsonl.gz").read_bytes()).splitlines(keepends=True)[:120]
    (tmp_path / "gsm8k.jsonl.gz").write_bytes(gzip.compress(b"".join(lines)))
    check(model, [json.loads(line) for line in lines], tmp_path / "gsm8k.jsonl.gz", tmp_path / "out")
