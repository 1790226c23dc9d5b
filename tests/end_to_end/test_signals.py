"""The rewards of several models by name, in expressions: each model scores once, and names change no reward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.corpora import best_rows, corpus_rows, kept_rows, write_jsonl
from support.stubs import NamedFactory, named_reward, save_named_model, scored_by

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.plan import make_plans
from rm.conversations import from_prompt, prompt_key

COUNTED = "not truncated and prompt_tokens == 1 and tokens == prompt_tokens + response_tokens and response_tokens > 1"
NAMES = {"anna": "helpful", "bo": "verbose", "carla": "safe"}


@pytest.fixture
def make(tmp_path):
    """A configuration of the models anna, bo, ..., of which each has a name in expressions."""
    rows = [{**row, "ok": number % 3 != 0} for number, row in enumerate(corpus_rows(6, 3))]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)

    def config(models, steps, out="out", *, names=True, **changes):
        values = {
            "input": {"path": str(tmp_path / "in"), "rows_per_fragment": 5, "carry": ["ok"]},
            "model": [{"path": str(save_named_model(tmp_path / "models" / name))} for name in models],
            "scores": {"path": str(tmp_path / "scores")},
            "output": {"path": str(tmp_path / out)},
            "select": steps,
        }
        if names:
            values["ensemble"] = {"names": [NAMES[name] for name in models]}
        return RunConfig.model_validate(values | changes)

    config.rows = rows
    return config


def run(config, log: Path):
    return run_curation(config, scorer=NamedFactory(str(log))).manifest


def rewards(rows, name):
    values = [float(named_reward(name, from_prompt(row["prompt"]), row["response"])) for row in rows]
    return values, (np.mean(values), np.std(values))


def test_rewards_by_name_are_combined_by_an_expression(make, tmp_path):
    best_of_n = {"best_of_n": {"min_candidates": 1}}
    steps = [
        {"reward": "0.7 * helpful - 0.2 * z(verbose) + ok"},
        {"where": f"(helpful < 0.9 or ok) and {COUNTED}"},
        best_of_n,
    ]
    manifest = run(make(["anna", "bo"], steps), tmp_path / "log")
    helpful, _ = rewards(make.rows, "anna")
    verbose, (mean, std) = rewards(make.rows, "bo")
    value = {
        (row["prompt"], row["response"]): 0.7 * a - 0.2 * (b - mean) / std + row["ok"]
        for row, a, b in zip(make.rows, helpful, verbose, strict=True)
    }
    passing = [a < 0.9 or row["ok"] for row, a in zip(make.rows, helpful, strict=True)]
    left = [row for row, is_in in zip(make.rows, passing, strict=True) if is_in and len(row["response"].split()) > 1]
    assert kept_rows(tmp_path / "out") == best_rows(left, lambda row: value[row["prompt"], row["response"]])
    assert manifest["model"]["names"] in (["helpful", "verbose"], ["verbose", "helpful"])
    by_name = dict(zip(manifest["model"]["names"], (one["name"] for one in manifest["model"]["members"]), strict=True))
    assert by_name == {"helpful": "anna", "verbose": "bo"}

    config = make(["anna", "bo"], steps)
    explained = explain(config, prompt_key(from_prompt(make.rows[0]["prompt"])).hex())
    shown = [step["steps"][0] for step in explained["rows"]]
    assert [set(step) for step in shown] == [{"rule", "verdict", "helpful", "z(verbose)", "ok", "combined"}] * len(
        shown
    )
    known = {round(value[row["prompt"], row["response"]], 5) for row in make.rows}
    assert {round(step["combined"], 5) for step in shown} <= known


@pytest.mark.slow
def test_another_model_scores_alone_and_a_changed_expression_scores_nothing(make, tmp_path):
    log, responses = tmp_path / "log", len(make.rows)
    run(make(["anna", "bo"], [{"reward": "helpful - verbose"}], names=True), log)
    run(make(["anna", "bo"], [{"reward": "helpful + 2 * verbose"}, {"best_of_n": {}}], "again"), log)
    assert scored_by(log) == {"anna": responses, "bo": responses}
    steps = [{"reward": "helpful - verbose + z(safe)"}, {"best_of_n": {}}]
    run(make(["carla", "anna", "bo"], steps, "third"), log)
    assert scored_by(log) == {"anna": responses, "bo": responses, "carla": responses}
    bytes_of = {path.name: path.read_bytes() for path in (tmp_path / "third" / "data").iterdir()}
    run(make(["bo", "carla", "anna"], steps, "order"), log)
    assert {path.name: path.read_bytes() for path in (tmp_path / "order" / "data").iterdir()} == bytes_of


@pytest.mark.slow
def test_names_change_neither_rewards_nor_the_fingerprint_of_a_run_without_them(make, tmp_path):
    plain, named = make(["anna", "bo"], [], "plain", names=False), make(["anna", "bo"], [], "named")
    run(plain, tmp_path / "log")
    run(named, tmp_path / "log")
    before, after = make_plans(plain), make_plans(named)
    assert [plan.fingerprint for plan in before.members] == [plan.fingerprint for plan in after.members]
    assert before.whole.fingerprint != after.whole.fingerprint
    assert "names" not in before.whole.identity
    tables = [
        pq.read_table(next((tmp_path / "scores" / plans.whole.fingerprint).glob("*"))) for plans in (before, after)
    ]
    assert not [name for name in tables[0].column_names if name.startswith("signal.")]
    named_columns = [name for name in tables[1].column_names if name.startswith("signal.")]
    assert sorted(named_columns) == [f"signal.{name}" for name in ("helpful", "verbose", "z(helpful)", "z(verbose)")]
    out = [pq.read_table(tmp_path / name / "data") for name in ("plain", "named")]
    assert out[0].equals(out[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ensemble": {"names": ["a"]}}, r"ensemble\.names has 1 names, and model 2 models"),
        ({"ensemble": {"names": ["a", "a"]}}, "two models have the name 'a'"),
        ({"ensemble": {"names": ["a", "reward"]}}, "'reward' cannot name a model"),
        ({"ensemble": {"names": ["a", "b c"]}}, "'b c' cannot name a model"),
        ({"ensemble": {"names": ["a", "ok"]}}, "'ok' is a name in ensemble.names and a column in input.carry"),
        ({"select": [{"reward": "z(helpfull)"}]}, "z takes the name of a model under ensemble.names: helpful, verbose"),
        (
            {"select": [{"reward": "helpfull + 1"}]},
            r"select\.0\.reward is .*'helpfull' is unknown; did you mean 'helpful'",
        ),
        ({"select": [{"reward": "z(helpful + 1)"}]}, r"z takes the name of a model \(ensemble\.names\): z\(helpful\)"),
        ({"select": [{"where": 'helpful == "x"'}]}, "helpful is a number, and is compared with a text"),
        ({"select": [{"best_of_n": {}}, {"reward": "helpful"}]}, "reward must come once, before all steps"),
        ({"select": [{"reward": "helpful"}] * 2}, "reward must come once, before all steps"),
        (
            {"output": {"path": "x", "add": ["probability"]}, "select": [{"reward": "helpful"}]},
            "a combined reward has none",
        ),
        (
            {"select": [{"reward": "helpful"}, {"best_of_n": {"min_probability": 0.6}}]},
            r"select\.1\.best_of_n needs a temperature, and a combined reward has no calibration",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make(["anna", "bo"], [], **changes)
