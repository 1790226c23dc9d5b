"""`signals`: columns of the corpus and further models, by name; adding one makes that one alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import best_rows, corpus_rows, kept_rows, write_jsonl
from support.stubs import NamedFactory, named_reward, save_named_model, scored_by

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.config.signals import SignalConfig
from pipelines.errors import InputError
from pipelines.plan import make_plans
from pipelines.select import selection as selection_module
from pipelines.select.selection import offset_warning
from rm.conversations import from_prompt, prompt_key

BEST = {"best_of_n": {"min_candidates": 1}}


@pytest.fixture
def make(tmp_path):
    """A configuration that scores with the model anna and has further signals."""
    rows = [
        {**row, "ok": (True, False, None)[number % 3], "marks": {"clear": number % 4 / 2 if number % 4 else None}}
        for number, row in enumerate(corpus_rows(6, 4))
    ]
    for part in range(2):
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", rows[part::2])

    def model(name):
        return {"path": str(save_named_model(tmp_path / "models" / name))}

    def config(steps, out="out", *, columns=(), models=(), **changes):
        values = {
            "input": {"path": str(tmp_path / "in"), "rows_per_fragment": 5},
            "model": model("anna"),
            "scores": {"path": str(tmp_path / "scores")},
            "output": {"path": str(tmp_path / out)},
            "select": steps,
            "signals": {"correct": {"column": "ok"}, "clear": {"column": "marks.clear"}, "bo": {"model": model("bo")}},
        }
        values["signals"] = {name: values["signals"][name] for name in (*columns, *models)}
        return RunConfig.model_validate(values | changes)

    config.rows, config.model = rows, model
    return config


def run(config, log: Path, **changes):
    return run_curation(config, scorer=NamedFactory(str(log)), **changes).manifest


def reward(name, row):
    return float(named_reward(name, from_prompt(row["prompt"]), row["response"]))


def folders(root: Path) -> dict[str, dict[str, bytes]]:
    files = sorted((root / "scores").glob("*/*.parquet"))
    return {
        name: {f.name: f.read_bytes() for f in files if f.parent.name == name}
        for name in {f.parent.name for f in files}
    }


def check_means(out: Path, rows) -> None:
    """The report has the means of the signals over what was kept and what was dropped, without nulls; and the page says them."""
    means, staying = json.loads((out / "report.json").read_text())["signals"], kept_rows(out)
    values = {
        "correct": [None if row["ok"] is None else float(row["ok"]) for row in rows],
        "clear": [row["marks"]["clear"] for row in rows],
        "bo": [reward("bo", row) for row in rows],
    }
    assert means.keys() == values.keys()
    for name, column in values.items():
        for side in ("kept", "dropped"):
            known = [
                value
                for value, row in zip(column, rows, strict=True)
                if value is not None and ((row["prompt"], row["response"]) in staying) == (side == "kept")
            ]
            assert means[name][side]["responses"] == len(known) > 0
            assert means[name][side]["mean"] == pytest.approx(np.mean(np.float32(known)), rel=1e-6)
    assert f"of {means['bo']['kept']['responses']} kept" in (out / "report.html").read_text()


def test_a_model_and_a_column_select_and_a_further_signal_scores_nothing_else(make, tmp_path, monkeypatch):
    log, count = tmp_path / "log", len(make.rows)
    run(make([BEST], "plain"), log)
    before = folders(tmp_path)
    assert scored_by(log) == {"anna": count}

    manifest = run(make([{"where": "correct"}, BEST], "one", columns=["correct"]), log)
    assert scored_by(log) == {"anna": count}
    correct = [row for row in make.rows if row["ok"]]
    assert kept_rows(tmp_path / "one") == best_rows(correct, lambda row: reward("anna", row))
    assert manifest["signals"] == {"correct": {"column": "ok"}}
    assert manifest["mapping"]["carry"] == []
    assert "signal" in (tmp_path / "one" / "report.html").read_text()

    steps = [
        {"reward": "0.1 * reward + bo + 3 * rank(clear) + correct"},
        {"where": "not (coalesce(correct, false) and bo > 21)"},
        BEST,
    ]
    config = make(steps, "three", columns=["clear", "correct"], models=["bo"])
    manifest = run(config, log)
    assert scored_by(log) == {"anna": count, "bo": count}
    assert {name: content for name, content in folders(tmp_path).items() if name in before} == before
    assert manifest["signals"]["bo"]["name"] == "bo"
    assert json.loads((tmp_path / "three" / "run.json").read_text())["signals"] == manifest["signals"]
    check_means(tmp_path / "three", make.rows)

    def rank(row):
        known = [one["marks"]["clear"] for one in make.rows if one["prompt"] == row["prompt"]]
        mine = row["marks"]["clear"]
        return None if mine is None else 1 + sum(one < mine for one in known if one is not None)

    def value(row):
        return 0.1 * reward("anna", row) + reward("bo", row) + 3 * rank(row) + row["ok"]

    left = [row for row in make.rows if row["ok"] is not None and rank(row) is not None]
    left = [row for row in left if not (row["ok"] and reward("bo", row) > 21)]
    assert kept_rows(tmp_path / "three") == best_rows(left, value)

    run(make(steps, "again", columns=["correct", "clear"], models=["bo"], runner={"name": "local"}), log)
    monkeypatch.setattr(selection_module, "PARTITIONS", 1)
    run(make([{**steps[0]}, steps[1], BEST], "other", columns=["correct", "clear"], models=["bo"]), log)
    data = [
        {f.name: f.read_bytes() for f in (tmp_path / out / "data").iterdir()} for out in ("three", "again", "other")
    ]
    assert data[0] == data[1] == data[2]
    assert scored_by(log) == {"anna": count, "bo": count}

    explained = explain(config, prompt_key(from_prompt(make.rows[0]["prompt"])).hex())
    step = explained["rows"][0]["steps"][0]
    assert set(step) == {"rule", "verdict", "reward", "bo", "clear", "rank(clear)", "correct", "combined"}


def test_each_signal_is_that_of_its_own_model(make, tmp_path):
    signals = {"second": {"model": make.model("carla")}, "first": {"model": make.model("bo")}}
    run(make([{"reward": "first - 2 * second"}, BEST], signals=signals), tmp_path / "log")
    expected = best_rows(make.rows, lambda row: reward("bo", row) - 2 * reward("carla", row))
    assert kept_rows(tmp_path / "out") == expected
    assert expected != best_rows(make.rows, lambda row: reward("carla", row) - 2 * reward("bo", row))


@pytest.mark.slow
def test_an_ensemble_and_the_signal_of_a_model_that_rejects_some(make, tmp_path):
    rows = make.rows
    rows[3]["response"] += " bo-REJECTS"
    for part in range(2):
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", rows[part::2])
    config = make(
        [{"where": "bo is null or carla < 30 or carla > 30"}, {"where": "bo is null"}],
        columns=["correct"],
        models=["bo"],
        model=[make.model("anna"), make.model("carla")],
        ensemble={"names": ["anna", "carla"]},
    )
    log = tmp_path / "log"
    manifest = run(config, log)
    assert kept_rows(tmp_path / "out") == {(rows[3]["prompt"], rows[3]["response"])}
    assert manifest["rejected"] == {}
    outcome = run_scoring(config, scorer=NamedFactory(str(log)))
    assert [member["name"] for member in outcome.members][-1] == "bo"
    assert [member["rejected"] for member in outcome.members][-1] == {"by_bo": 1}
    assert scored_by(log) == {"anna": len(rows), "bo": len(rows), "carla": len(rows)}


@pytest.mark.slow
def test_a_changed_column_is_read_again_and_changed_text_is_scored_again(make, tmp_path):
    log = tmp_path / "log"
    run(make([{"where": "correct"}], "one", columns=["correct"], models=["bo"]), log)
    rows = [{**row, "ok": not row["ok"]} for row in make.rows]
    for part in range(2):
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", rows[part::2])
    run(make([{"where": "correct"}], "two", columns=["correct"], models=["bo"]), log)
    assert scored_by(log) == {name: len(rows) for name in ("anna", "bo")}
    assert kept_rows(tmp_path / "two") == {(row["prompt"], row["response"]) for row in rows if row["ok"]}


def test_parquet_and_lists_of_responses(make, tmp_path):
    rows = [
        {"prompt": f"p{p}", "responses": [f"a{p}", f"b{p}"], "passed": [p == 1, True], "unused": "x" * p}
        for p in range(3)
    ]
    (tmp_path / "wide").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "wide" / "0.parquet")
    changes = {"input": {"path": str(tmp_path / "wide")}, "report": {"write": False}}
    log = tmp_path / "log"
    run(make([], "plain", **changes), log)
    config = make([{"where": "passed == 1"}], "lists", signals={"passed": {"column": "passed"}}, **changes)
    run(config, log)
    assert kept_rows(tmp_path / "lists") == {("p0", "b0"), ("p1", "a1"), ("p1", "b1"), ("p2", "b2")}
    assert scored_by(log) == {"anna": 6}


def test_a_column_that_holds_no_numbers_and_one_that_is_missing_are_told(make, tmp_path):
    write_jsonl(tmp_path / "in" / "0.jsonl", [{"prompt": "p", "response": "r", "ok": "very secret"}])
    (tmp_path / "in" / "1.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"column 'ok' of signals\.correct has a value of type str that is not a number"
    ) as raised:
        run(make([{"where": "correct"}], columns=["correct"]), tmp_path / "log")
    assert "secret" not in str(raised.value)
    with pytest.raises(InputError, match=r"signals\.correct\.column names 'okk', .* did you mean 'ok'"):
        make_plans(make([], signals={"correct": {"column": "okk"}}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": {"a": {}}}, "exactly one of column, model and embedding"),
        ({"signals": {"a": {"column": "ok", "model": {"path": "x"}}}}, "exactly one of column, model and embedding"),
        ({"signals": {"rank": {"column": "ok"}}}, "'rank' cannot name a signal"),
        (
            {"signals": {"ok": {"column": "ok"}}, "input": {"path": "x", "carry": ["ok"]}},
            r"in signals and in input\.carry",
        ),
        ({"signals": {"ok": {"column": "ok"}}, "select": [{"where": "okk"}]}, "did you mean 'ok'"),
        ({"signals": {"a": {"model": {"path": "x"}}}, "select": [{"where": "a"}]}, "a is a number; compare it: a > 0"),
        (
            {"signals": {"a": {"model": {"path": "x"}}}, "model": None, "scores": {"column": "r"}},
            r"signals\.a is a model beside scores\.column",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told(make, changes, message):
    with pytest.raises(ValueError, match=message):
        make([], **changes)


def test_a_signal_of_a_model_with_offsets_is_warned_of_like_the_reward(make):
    config = make([{"where": "bo > 0.5"}], models=["bo"], columns=["correct"])
    plan = make_plans(config).whole
    assert offset_warning(config, plan) is not None
    for text in ("correct", "rank(bo) > 1", "prompt_z(bo) > 1 or clear > 1"):
        other = make([{"where": text}], models=["bo"], columns=["correct", "clear"])
        assert offset_warning(other, plan) is None, text
    assert not np.isnan(reward("bo", make.rows[0]))


def test_the_corpus_of_a_later_step_is_not_that_of_an_earlier_one(make, tmp_path):
    """`top` reads no columns of the steps after it, and `corpus_z` is over all responses that have the number."""
    steps = [{"top": {"rows": 16}}, {"where": "corpus_z(clear) > 0"}]
    run(make(steps, "top", columns=["clear"]), tmp_path / "log")
    first = sorted(make.rows, key=lambda row: -reward("anna", row))[:16]
    known = [row["marks"]["clear"] for row in make.rows if row["marks"]["clear"] is not None]
    above = [row for row in first if row["marks"]["clear"] is not None and row["marks"]["clear"] > np.mean(known)]
    assert kept_rows(tmp_path / "top") == {(row["prompt"], row["response"]) for row in above}


def test_a_mistyped_field_of_a_signal_is_an_error(make):
    config = make([{"where": "clear > 0"}, BEST], columns=["clear"])
    wrong = config.model_copy(update={"signals": {"clear": SignalConfig(column="marks.claer")}})
    with pytest.raises(InputError, match=r"signals\.clear\.column"):
        make_plans(wrong)
    absent = config.model_copy(update={"signals": {"clear": SignalConfig(column="nothing")}})
    with pytest.raises(InputError, match=r"'nothing', and .* has .*; name one of them"):
        make_plans(absent)


@pytest.mark.parametrize("name", ["kept", "gold", "length"])
def test_a_signal_named_like_a_column_of_the_report_is_a_signal(tmp_path, name):
    rows = [
        {"prompt": f"p{n}", "response": f"answer {at}", "mark": at + n / 8, "judge": float(at)}
        for n in range(4)
        for at in (0, 1)
    ]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    values = {
        "input": {"path": str(tmp_path / "in")},
        "scores": {"path": str(tmp_path / "scores"), "column": "judge"},
        "signals": {name: {"column": "mark"}},
        "output": {"path": str(tmp_path / "out")},
    }
    run_curation(RunConfig.model_validate(values), scorer=None)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    means = report["signals"][name]
    assert (means["kept"]["responses"], means["dropped"]["responses"]) == (4, 4)
    assert (means["kept"]["mean"], means["dropped"]["mean"]) == pytest.approx((1 + 3 / 16, 3 / 16))
    assert report["best_of_n"]["measured_by"] == "reward"
