"""The verdict that is stored with a model, in what a run says: before it scores, in its tables, report and card."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from support.corpora import corpus_rows, write_jsonl
from support.planted_models import VERDICTS, planted
from support.stubs import NamedFactory, StubFactory

from pipelines.commands.estimate.estimate import PlanOptions, plan_run
from pipelines.commands.estimate.table import plan_table
from pipelines.commands.report import rebuild
from pipelines.commands.run import run_curation, run_scoring
from pipelines.commands.summary import summary_fields, summary_table
from pipelines.config import RunConfig
from pipelines.errors import ModelLoadError
from pipelines.plan import make_plans
from pipelines.report.verdict import NO_VERDICT, label
from rm.calibration_record import load_evaluation
from rm.evaluate import Bootstrap, calibrate, evaluate, store_temperature
from rm.identity import ModelError

SECRET_PLACE = "/secret/place"


@pytest.fixture
def model(stub_model, tmp_path):
    return shutil.copytree(stub_model, tmp_path / "model")


def plant(model, name, count=200):
    groups, rewards = planted(count)
    verdict = evaluate(groups, rewards[name], bootstrap=Bootstrap(400)).verdict
    known_by = {"data": f"{SECRET_PLACE}/pairs.jsonl", "fitted_on": "all rows", "verdict": verdict, "groups": groups}
    store_temperature(model, calibrate(groups, rewards[name]), **known_by)
    return verdict.to_json()


def changed(config, **settings):
    return RunConfig.model_validate({**config.model_dump(exclude_unset=True), **settings})


@pytest.fixture
def config(make_config, model, tmp_path):
    return make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows(4, 2)), model={"path": str(model)})


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", VERDICTS)
def test_a_run_repeats_the_verdict_of_its_model(name, count, config, model, tmp_path, caplog):
    evaluation = plant(model, name, count)
    scored = StubFactory(log=str(tmp_path / "log"))
    with caplog.at_level("WARNING", logger="pipelines"):
        outcome = run_curation(config, scorer=scored)
    words = label(evaluation)
    told = "\n".join(record.getMessage() for record in caplog.records)
    bad = VERDICTS[name] != "better_than_length"
    assert (f"model.path model: {words[0].upper()}{words[1:]}: of {count:,} " in told) == bad
    assert ("On pairs of similar length it is not shown" in told) == (
        name not in ("perfect", "longest" if count == 2000 else "")
    )
    assert summary_fields(config, outcome)["verdicts"] == [{"model": "model", "verdict": VERDICTS[name]}]
    assert words in list(summary_table(config, outcome).columns[1].cells)
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert [known["verdict"] for known in manifest["evaluations"].values()] == [VERDICTS[name]]
    first = (out / "report.html").read_text().index(f"{words[0].upper()}{words[1:]}: of {count:,}")
    assert first < (out / "report.html").read_text().index("<svg")
    assert f"{words[0].upper()}{words[1:]}: of {count:,}" in (out / "README.md").read_text()
    assert "pairs.jsonl, all rows." in (out / "README.md").read_text()
    for file in out.glob("*.*"):
        assert SECRET_PLACE not in file.read_text(errors="replace")


def test_a_good_verdict_that_rests_on_length_warns_all_the_same(config, model, caplog):
    plant(model, "lost_at_equal_length")
    with caplog.at_level("WARNING", logger="pipelines"):
        run_scoring(config, scorer=StubFactory())
    assert ["may rest on length" in record.getMessage() for record in caplog.records] == [True]


def test_a_model_without_a_verdict_is_said_to_have_none(config, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="pipelines"):
        outcome = run_curation(config, scorer=StubFactory())
    assert caplog.records == []
    assert summary_fields(config, outcome)["verdicts"] == [{"model": "model", "verdict": None}]
    assert NO_VERDICT in list(summary_table(config, outcome).columns[1].cells)
    assert NO_VERDICT in (tmp_path / "out" / "README.md").read_text()
    assert "no verdict is stored with it" in (tmp_path / "out" / "report.html").read_text()
    assert "evaluations" not in json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "evaluations" not in make_plans(config).whole.to_json()


def test_a_plan_says_it_and_refuses_what_a_run_would_refuse(encoder, make_config, tmp_path):
    model = shutil.copytree(encoder, tmp_path / "model")
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows(4, 2)), model={"path": str(model)})
    without = plan_run(config, options=PlanOptions(benchmark=False))
    assert NO_VERDICT in list(plan_table(without).columns[1].cells)
    plant(model, "longest")
    plan = plan_run(config, options=PlanOptions(benchmark=False))
    assert json.loads(json.dumps(plan))["verdicts"][0]["evaluation"]["verdict"] == "not_better_than_length"
    assert "not shown to be better than length" in list(plan_table(plan).columns[1].cells)
    assert any(line.startswith("model.path model: Not shown to be better than length") for line in plan["warnings"])
    asked = RunConfig.model_validate(
        {**config.model_dump(exclude_unset=True), "limits": {"require_verdict": "better_than_length"}}
    )
    with pytest.raises(ModelLoadError, match="require_verdict"):
        plan_run(asked, options=PlanOptions(benchmark=False))


@pytest.mark.parametrize("command", [run_curation, run_scoring])
@pytest.mark.parametrize("name", [*VERDICTS, None])
def test_a_required_verdict(name, command, config, model, tmp_path):
    if name is not None:
        plant(model, name)
    asked = RunConfig.model_validate(
        {**config.model_dump(exclude_unset=True), "limits": {"require_verdict": "better_than_length"}}
    )
    scored = StubFactory(log=str(tmp_path / "log"))
    if name is not None and VERDICTS[name] == "better_than_length":
        command(asked, scorer=scored)
        return
    with pytest.raises(ModelLoadError, match=r"limits\.require_verdict is better_than_length") as error:
        command(asked, scorer=scored)
    assert error.value.exit_code == 7
    assert not (tmp_path / "log").exists()
    assert not (tmp_path / "out").exists()


def test_a_column_of_rewards_has_no_verdict_and_none_can_be_required(tmp_path):
    rows = [{**row, "judge": 0.5 + number} for number, row in enumerate(corpus_rows(4, 2))]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    values = {"input": {"path": str(path)}, "scores": {"column": "judge"}, "output": {"path": str(tmp_path / "out")}}
    outcome = run_curation(RunConfig.model_validate(values), scorer=None)
    assert summary_fields(RunConfig.model_validate(values), outcome)["verdicts"] == []
    assert "verdict" not in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match=r"limits\.require_verdict is for a reward model"):
        RunConfig.model_validate({**values, "limits": {"require_verdict": "better_than_length"}})


def test_the_verdict_changes_neither_fingerprint_nor_plan_nor_the_kept_rows(config, model, tmp_path):
    before = make_plans(config).whole
    outcome = run_curation(config, scorer=StubFactory())
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    plant(model, "longest")
    after = make_plans(config).whole
    assert (after.fingerprint, after.hash, after.content_hash) == (before.fingerprint, before.hash, before.content_hash)
    assert after.evaluations
    again = run_curation(config, scorer=StubFactory())
    assert again.already_complete
    assert again.manifest == outcome.manifest
    # everything is read and written once more, and repeats what it said
    verified = changed(config, limits={"verify": True})
    run_curation(verified, scorer=StubFactory())
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")} == files
    assert NO_VERDICT in (tmp_path / "out" / "README.md").read_text()
    rebuild(str(tmp_path / "out"))


def test_a_run_that_had_published_nothing_tells_the_verdict_found_since(config, model, tmp_path):
    limited = changed(config, input={"path": str(tmp_path / "b.jsonl")})
    write_jsonl(tmp_path / "b.jsonl", corpus_rows(4, 2))

    def broken(_plan):
        raise ModelLoadError("the model is broken")

    with pytest.raises(ModelLoadError):
        run_curation(limited, scorer=broken)
    assert (tmp_path / "out" / "claim.json").exists()
    plant(model, "longest")
    run_curation(limited, scorer=StubFactory())
    assert "Not shown to be better than length" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
def test_each_model_of_an_ensemble_has_its_own(make_config, stub_model, tmp_path):
    from safetensors.numpy import save_file

    models = []
    for number, name in enumerate(("one", "two")):
        models.append(shutil.copytree(stub_model, tmp_path / name))
        save_file({"score.weight": np.full((1, 4), number, "f4")}, models[-1] / "model.safetensors")
    plant(models[1], "longest")
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows(4, 2)))
    config = RunConfig.model_validate(
        {**config.model_dump(exclude_unset=True), "model": [{"path": str(path)} for path in models]}
    )
    outcome = run_curation(config, scorer=NamedFactory(str(tmp_path / "log")))
    told = {known["model"]: known["verdict"] for known in summary_fields(config, outcome)["verdicts"]}
    assert told == {"one": None, "two": "not_better_than_length"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"one: {NO_VERDICT}" in card
    assert "two: Not shown to be better than length" in card


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation": 3},
        {"evaluation": {"verdict": "worse"}},
        {"evaluation": {"verdict": "worse", "all": [], "length_matched": None}},
    ],
)
def test_a_damaged_evaluation_is_an_error_with_its_remedy(model, change):
    (model / "calibration.json").write_text(json.dumps({"temperature": 1.0, **change}))
    with pytest.raises(ModelError, match=r"calibration\.json holds an evaluation .*bestkept evaluate"):
        load_evaluation(model)
