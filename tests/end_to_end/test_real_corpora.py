"""Real corpora: text through a real model, against plain transformers on the documented text; and a judge's own scores."""

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
from support.corpora import SHARED, write_jsonl
from support.slow_helpers import minilm
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipelines.commands.run import default_scorer, run_curation
from pipelines.commands.train import settings_of
from pipelines.config import RunConfig, TrainConfig
from rm.conversations import from_prompt, prompt_key, response_hash

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
            "data": {"path": str(Path(__file__).parents[2] / "configs/demo/preferences.jsonl")},
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
    run_curation(config, scorer=default_scorer(config))
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


def drawn_first(rows: list[dict], seed: int) -> dict:
    """The row that `random` takes: the least upper half of splitmix64 over response hash, prompt key and seed."""
    mask = 2**64 - 1

    def draw(row: dict) -> tuple[int, int, int]:
        z = row["hash"] ^ ((row["key_low"] + 0x9E3779B97F4A7C15 * (seed + 1)) & mask)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) >> 32, row["hash"], row["at"]

    return min(rows, key=draw)


def test_best_of_56_with_the_judges_own_scores(tmp_path):
    """Oracle, longest and random on the published numbers: 0.871, 0.442 and 0.109, each recomputed here row by row."""
    rows = [row | {"at": at} for at, row in enumerate(pq.read_table(SHARED / "best_of_56").to_pylist())]
    groups = defaultdict(list)
    for row in rows:
        if (row["response"] or "").strip():
            key = prompt_key(from_prompt(row["prompt"]))
            row |= {"hash": response_hash(row["response"]), "key_low": int.from_bytes(key[8:], "big")}
            groups[key.hex()].append(row)
    assert len(groups) == 401

    def kept(rule: str, **settings: int) -> dict[str, float]:
        config = RunConfig.model_validate(
            {
                "input": {"path": str(SHARED / "best_of_56" / "*.parquet")},
                "scores": {"path": str(tmp_path / "scores"), "column": "judge_win_rate"},
                "select": [{rule: {"keep": 1, **settings}}],
                "limits": {"max_rejected_fraction": 0.01},
                "output": {"path": str(tmp_path / "-".join([rule, *map(str, settings.values())]))},
            }
        )
        run_curation(config, scorer=None)
        found = pq.read_table(Path(config.output.path) / "data", columns=["prompt_id", "reward"]).to_pylist()
        assert len(found) == len(groups)
        return {row["prompt_id"]: row["reward"] for row in found}

    def by_hand(choose) -> dict[str, float]:
        return {key: float(np.float32(choose(group)["judge_win_rate"])) for key, group in groups.items()}

    oracle, longest = kept("best_of_n"), kept("longest")
    assert oracle == by_hand(lambda group: max(group, key=lambda row: row["judge_win_rate"]))
    assert longest == by_hand(lambda group: min(group, key=lambda row: (-len(row["response"]), row["hash"], row["at"])))
    assert np.mean(list(oracle.values())) == pytest.approx(0.871, abs=0.001)
    assert np.mean(list(longest.values())) == pytest.approx(0.442, abs=0.001)
    means = []
    for seed in range(20):
        chosen = kept("random", seed=seed)
        assert chosen == by_hand(lambda group, seed=seed: drawn_first(group, seed))
        means.append(np.mean(list(chosen.values())))
    chance = np.mean([np.mean([row["judge_win_rate"] for row in group]) for group in groups.values()])
    assert chance == pytest.approx(0.109, abs=0.001)
    assert np.mean(means) == pytest.approx(0.109, abs=0.01)  # the standard error of 20 draws is a quarter of that
    assert 0.004 < np.std(means) < 0.03, "seeds differ"


def test_best_of_56_by_gold_rests_on_all_prompts(tmp_path):
    """The gains over random and longest, and their intervals, equal those of a bootstrap by hand over all 401 prompts."""
    random = np.random.default_rng(0)
    table = pq.read_table(SHARED / "best_of_56", columns=["prompt", "response", "judge_win_rate"])
    table = table.filter([bool((text or "").strip()) for text in table["response"].to_pylist()])
    rows = table.to_pylist()
    for row in rows:
        row["reward"] = row["judge_win_rate"] + random.normal()
    pq.write_table(table.append_column("reward", [[row["reward"] for row in rows]]), tmp_path / "rows.parquet")
    values = {
        "input": {"path": str(tmp_path / "rows.parquet"), "carry": ["judge_win_rate"]},
        "scores": {"column": "reward"},
        "select": [{"best_of_n": {}}],
        "output": {"path": str(tmp_path / "out")},
        "report": {"gold": "judge_win_rate", "samples": 0},
    }
    run_curation(RunConfig.model_validate(values), scorer=None)
    told = json.loads((tmp_path / "out" / "report.json").read_text())["gains"]
    groups = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row)
    assert (told["whole"], told["gold"]["prompts"], len(groups)) == (True, 401, 401)
    best = np.array([max(group, key=lambda row: row["reward"])["judge_win_rate"] for group in groups.values()])
    longest = [max(group, key=lambda row: len(row["response"]))["judge_win_rate"] for group in groups.values()]
    means = np.array([[sum(row["judge_win_rate"] for row in group), len(group)] for group in groups.values()])
    draws = random.integers(401, size=(4000, 401))
    sums = means[draws].sum(axis=1)
    for name, value, resampled in (
        ("over_longest", best.mean() - np.mean(longest), (best - longest)[draws].mean(axis=1)),
        (
            "over_random",
            best.mean() - means[:, 0].sum() / means[:, 1].sum(),
            best[draws].mean(axis=1) - sums[:, 0] / sums[:, 1],
        ),
    ):
        found = told["gold"][name]
        assert found["value"] == pytest.approx(value, abs=0.005)  # responses of equal length may be taken otherwise
        assert (found["low"], found["high"]) == pytest.approx(tuple(np.percentile(resampled, [2.5, 97.5])), abs=0.01)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "By gold scores (column judge_win_rate), the selection is better than " in page
    assert "from a bootstrap over all 401 prompts with gold scores." in page
