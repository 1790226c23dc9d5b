"""The signal of an embedding model: scored once, kept in score files of its own, and known to `where` and `reward`."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.corpora import best_rows, kept_rows, write_jsonl
from support.stubs import NamedFactory, named_reward, save_named_model

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.errors import ModelLoadError
from pipelines.plan import make_plans
from pipelines.score.load_model import LoadScorer
from pipelines.select import selection as selection_module
from rm.checkpoint.embedding_config import read_embedding
from rm.conversations import from_prompt, prompt_key
from rm.embedder import Embedder

BEST = {"best_of_n": {"min_candidates": 1}}
TOPICS = ("water they look at", "number of your words", "good day to him", "one more thing")


@dataclass
class Factory:
    """Stubs for reward models, and the real thing for embedding models, whose calls are noted in the same log."""

    log: str

    def __call__(self, plan):
        if "embedding" not in plan.model:
            return NamedFactory(self.log)(plan)
        embedder, log = LoadScorer()(plan), Path(self.log)
        score = embedder.score

        def noted(groups):
            with log.open("a") as file:
                file.write(f"relevance {sum(len(responses) for _, responses in groups)}\n")
            return score(groups)

        embedder.score = noted
        return embedder


@pytest.fixture
def make(tmp_path, encoder):
    """A configuration of the reward model anna and the relevance of a tiny encoder."""
    rows = [
        {"prompt": f"what is {topic}", "responses": [f"it is {topic}", f"{topic} {n}", TOPICS[n - 1] + " so"]}
        for n, topic in enumerate(TOPICS)
    ]
    rows[1]["responses"][1] = "the water " * 40
    for part in range(2):
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", rows[part::2])
    model = tmp_path / "encoder"
    shutil.copytree(encoder, model)

    def config(steps, out="out", **changes):
        values = {
            "input": {"path": str(tmp_path / "in")},
            "model": {"path": str(save_named_model(tmp_path / "models" / "anna"))},
            "scores": {"path": str(tmp_path / "scores")},
            "output": {"path": str(tmp_path / out)},
            "select": steps,
            "signals": {"relevance": {"embedding": {"path": str(model), "device": "cpu"}}},
        }
        return RunConfig.model_validate(values | changes)

    config.rows = [{"prompt": row["prompt"], "response": text} for row in rows for text in row["responses"]]
    config.model = model
    return config


@pytest.fixture
def relevance(make):
    """(row) → its cosine, by an embedder of its own."""
    embedder = Embedder.load(make.model, read_embedding(make.model, None), device="cpu")
    groups = [(from_prompt(row["prompt"]), [row["response"]]) for row in make.rows]
    known = {
        (row["prompt"], row["response"]): float(scores.rewards[0])
        for row, scores in zip(make.rows, embedder.score(groups), strict=True)
    }
    return lambda row: known[row["prompt"], row["response"]]


def reward(row):
    return float(named_reward("anna", from_prompt(row["prompt"]), row["response"]))


def calls(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def run(config, log: Path):
    return run_curation(config, scorer=Factory(str(log))).manifest


def test_relevance_is_scored_once_and_known_to_expressions(make, relevance, tmp_path):
    log, count = tmp_path / "log", len(make.rows)
    run(make([BEST], "plain", signals={}), log)
    assert calls(log) == ["anna 6"] * 2
    middle = float(np.median([relevance(row) for row in make.rows])) + 1e-5
    manifest = run(make([{"where": f"relevance > {middle}"}, BEST], "one"), log)
    assert sorted(calls(log)) == sorted(["anna 6"] * 2 + ["relevance 6"] * 2)
    near = [row for row in make.rows if relevance(row) > middle]
    assert 0 < len(near) < count
    assert kept_rows(tmp_path / "one") == best_rows(near, reward)
    described = manifest["signals"]["relevance"]
    assert described["name"] == "encoder"
    assert described["embedding"]["pooling"] == ["mean"]
    assert manifest["counts"]["truncated_by_signals"] == {"relevance": 1}
    told = next(warning for warning in manifest["warnings"] if "signals.relevance" in warning)
    assert told.startswith("1 of 12 responses (8.3%) have more than the 64 tokens")
    assert "cosine of prompt and response by encoder" in (tmp_path / "one" / "report.html").read_text()


@pytest.mark.slow
def test_relevance_is_a_number_of_the_step_reward_and_of_scoring_alone(make, relevance, tmp_path):
    log, count = tmp_path / "log", len(make.rows)
    run(make([{"reward": "reward + 30 * relevance"}, BEST], "two"), log)
    assert kept_rows(tmp_path / "two") == best_rows(make.rows, lambda row: reward(row) + 30 * relevance(row))
    assert len(calls(log)) == 4
    outcome = run_scoring(make([BEST]), scorer=Factory(str(log)))
    assert [(one["name"], one["scored"], one["truncated"]) for one in outcome.members][1] == ("encoder", count, 1)
    assert len(calls(log)) == 4


def test_the_fingerprint_follows_files_pooling_and_length(make):
    def fingerprint(**changes):
        embedding = {"path": str(make.model), **changes}
        plans = make_plans(make([], signals={"relevance": {"embedding": embedding}}))
        return plans.members[1].fingerprint

    known = [fingerprint(), fingerprint(max_length=12)]
    assert fingerprint(device="cpu", tokens_per_batch=100) == known[0] == fingerprint(max_length=64)
    (make.model / "modules.json").write_text(
        json.dumps([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1"}])
    )
    (make.model / "1").mkdir()
    (make.model / "1" / "config.json").write_text('{"pooling_mode": "cls"}')
    known.append(fingerprint())
    (make.model / "tokenizer_config.json").write_text(
        (make.model / "tokenizer_config.json").read_text().replace("{", '{"x": 1,', 1)
    )
    known.append(fingerprint())
    assert len(set(known)) == 4
    (make.model / "modules.json").write_text('[{"type": "a.Dense", "path": ""}]')
    with pytest.raises(ModelLoadError, match="module 'Dense'"):
        fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": {"a": {"column": "x", "embedding": {"path": "m"}}}}, "exactly one of column, model and embedding"),
        ({"signals": {"a": {"embedding": {"path": "s3://bucket/m"}}}}, "is on an object store"),
        (
            {"signals": {"a": {"embedding": {"path": "m"}}}, "model": None, "scores": {"column": "r"}},
            r"signals\.a is an embedding model beside scores\.column",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make([], **changes)


@pytest.mark.slow
def test_colocated_rewards_beside_relevance_that_is_not(make, relevance, tmp_path):
    log = tmp_path / "log"
    config = make([{"where": "relevance > 0.5"}, BEST], score={"colocate": "prompt"})
    run(config, log)
    near = [row for row in make.rows if relevance(row) > 0.5]
    assert kept_rows(tmp_path / "out") == best_rows(near, reward)


def behind(rows, relevance):
    """(row) → how much less relevant it is than the second most relevant one of its prompt."""
    by_prompt = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(relevance(row))
    return lambda row: sorted(by_prompt[row["prompt"]])[-2] - relevance(row)


def test_what_is_off_topic_is_dropped_whatever_its_reward(make, relevance, tmp_path):
    far = behind(make.rows, relevance)
    gap = float(np.quantile([far(row) for row in make.rows], 0.8)) + 1e-4
    near = [row for row in make.rows if far(row) <= gap]
    dropped = len(make.rows) - len(near)
    assert 0 < dropped < 4
    config = make([{"on_topic": {"gap": gap}}, BEST])
    manifest = run(config, tmp_path / "log")
    assert kept_rows(tmp_path / "out") == best_rows(near, reward) != best_rows(make.rows, reward)
    assert manifest["on_topic"] == [{"step": 0, "signal": "relevance", "gap": gap, "dropped": dropped}]
    assert f"Dropped as off topic: {dropped} (step 1, gap" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["on_topic"] == manifest["on_topic"]
    prompt = next(row["prompt"] for row in make.rows if far(row) > gap)
    explained = explain(config, prompt_key(from_prompt(prompt)).hex())
    for row, one in zip([row for row in make.rows if row["prompt"] == prompt], explained["rows"], strict=True):
        step = one["steps"][0]
        assert step == {
            "rule": "on_topic",
            "verdict": "kept" if far(row) <= gap else "dropped",
            "relevance": pytest.approx(relevance(row), abs=1e-5),
            "behind": pytest.approx(far(row), abs=1e-5),
            "gap": gap,
        }


@pytest.mark.slow
def test_a_gap_that_the_corpus_settles(make, relevance, tmp_path, monkeypatch):
    far = behind(make.rows, relevance)
    most = 0.2
    distances = sorted(far(row) for row in make.rows)
    exact = distances[-1 - int(most * len(distances))]  # at most so many lie further behind
    gap = np.ceil(exact * 1024) / 1024
    near = [row for row in make.rows if far(row) <= gap]
    steps = [{"on_topic": {"max_touched": most}}, BEST]
    config = make(steps)
    manifest = run(config, tmp_path / "log")
    [told] = manifest["on_topic"]
    assert told == {
        "step": 0,
        "signal": "relevance",
        "gap": gap,
        "measured": 12,
        "off_topic": None,
        "dropped": len(make.rows) - len(near),
        "caught": told["caught"],
    }
    assert 0.0 <= told["caught"] <= 1.0
    assert kept_rows(tmp_path / "out") == best_rows(near, reward) != best_rows(make.rows, reward)
    words = (tmp_path / "out" / "report.html").read_text()
    assert "derived from the corpus: it catches" in words
    assert json.loads((tmp_path / "out" / "run.json").read_text())["on_topic"] == [told]
    explained = explain(config, prompt_key(from_prompt(make.rows[0]["prompt"])).hex())
    assert explained["rows"][0]["steps"][0]["gap"] == gap
    monkeypatch.setattr(selection_module, "PARTITIONS", 1)
    again = run(make(steps, "again", input={"path": str(tmp_path / "in"), "rows_per_fragment": 1}), tmp_path / "log")
    assert again["on_topic"][0]["gap"] == gap  # other fragments have other neighbours, and the same gap
