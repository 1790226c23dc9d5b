"""Scripts of at most twelve lines, as a user writes them for the files that people have: curated rows, and a report."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_models import WORDS

ALPACA = """
from bestkept import RewardModel, curate, top
model = RewardModel("reward-model")
curated = curate(input="alpaca.json", model=model, select=[top(0.5)], output="best-half")
frame = curated.to_pandas()
print(curated.counts["kept"], "rows kept;", curated.report)
"""
SHAREGPT = """
from bestkept import best_of_n, curate, train
trained = train("pairs.jsonl", model="backbone", output="reward-model-2", heldout=0.2, stress={"prompts": 0})
print(trained.heldout)
curated = curate(input="sharegpt.json", model=trained, select=[best_of_n(1)], output="best")
frame = curated.to_pandas()
"""
CSV = """
import pandas as pd
from bestkept import RewardModel, pairs, select
frame = pd.read_csv("answers.csv")
frame["reward"] = RewardModel("reward-model").score(frame)
curated = select(frame, [pairs(min_gap=0.001)], output="dpo")
frame = curated.to_pandas()
"""
SAVED = """
from datasets import load_from_disk
from bestkept import best_of_n, score, select
scores = score(load_from_disk("saved"), "reward-model", output="scored")
curated = select(scores, [best_of_n(1)], output="best-saved")
frame = curated.to_dataset().to_pandas()
"""


@pytest.fixture
def here(tmp_path, encoder, monkeypatch):
    """A directory with a reward model and the four kinds of files."""
    from datasets import Dataset

    for name in ("reward-model", "backbone"):
        shutil.copytree(encoder, tmp_path / name)
    rows = [{"prompt": f"what is {n // 4}", "response": f'good, "{WORDS[n]}"\nanswer'} for n in range(24)]
    alpaca = [{"instruction": f"name {n}", "input": "a b" if n % 2 else "", "output": f"thing {n}"} for n in range(24)]
    chats: list[Any] = [[("system", "be short"), ("human", row["prompt"]), ("gpt", row["response"])] for row in rows]
    sharegpt = [
        {"id": n, "conversations": [{"from": who, "value": text} for who, text in chat]} for n, chat in enumerate(chats)
    ]
    judged = [{"prompt": f"what is {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(20)]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca, indent=2))
    (tmp_path / "sharegpt.json").write_text(json.dumps(sharegpt))
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in judged))
    with (tmp_path / "answers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kept", "columns"),
    [
        (ALPACA, 12, ["messages", "reward"]),
        (SHAREGPT, 6, ["messages", "reward"]),
        (CSV, 6, ["prompt", "chosen", "rejected"]),
        (SAVED, 6, ["prompt", "response", "reward"]),
    ],
    ids=["alpaca", "sharegpt", "csv", "saved"],
)
def test_a_script_of_a_dozen_lines_does_it(here, script, kept, columns):
    assert len(script.strip().splitlines()) <= 12
    known: dict[str, Any] = {}
    exec(script, known)
    assert len(known["frame"]) == len(known["curated"]) == kept
    assert {*columns} <= {*known["frame"].columns}
    assert Path(known["curated"].report).exists()
    if script == SHAREGPT:
        assert known["frame"]["messages"][0][0] == {"role": "system", "content": "be short"}
