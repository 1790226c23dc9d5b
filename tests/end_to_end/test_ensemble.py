"""Several models over one corpus, end to end: each scores alone, and their rewards are combined by hand here."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from support import stubs
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import NamedFactory, named_reward, save_named_model, scored_by
from support.tiny_models import save_causal, save_encoder

from pipelines import curate
from pipelines.commands.run import default_scorer, run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.corpus import listing
from pipelines.errors import ConfigError, ConflictError, InputError, ModelLoadError, RejectedError, StorageError
from pipelines.plan import make_plans
from pipelines.score import score_files
from pipelines.select import selection as selection_module
from rm.conversations import from_prompt

NAMES = ["anna", "bo"]


@pytest.fixture
def models(tmp_path):
    """Directories that identify as different models, by name."""

    def make(name: str) -> Path:
        return save_named_model(tmp_path / "models" / name)

    return make


@pytest.fixture
def make(tmp_path, models):
    """A configuration of the named models; scores are shared, `out` names the output."""

    def config(path, names=NAMES, *, out: str = "out", **changes) -> RunConfig:
        values = {
            "input": {"path": path if isinstance(path, list) else str(path), **changes.pop("input", {})},
            "model": [{"path": str(models(name))} for name in names],
            "output": {"path": str(tmp_path / out), **changes.pop("output", {})},
            "scores": {"path": str(tmp_path / "scores")},
            "select": [],
            **changes,
        }
        return RunConfig.model_validate(values)

    return config


@pytest.fixture
def log(tmp_path) -> Path:
    (tmp_path / "log").touch()
    return tmp_path / "log"


@pytest.fixture
def corpus(tmp_path) -> Path:
    return write_jsonl(tmp_path / "in" / "a.jsonl", corpus_rows(6, 3))


def run(config, log):
    return run_curation(config, scorer=NamedFactory(str(log)))


def data(out: Path) -> dict[tuple[str, str], float]:
    """(prompt, response) → reward of an output in the shape `messages`."""
    rows = pq.read_table(out / "data").to_pylist()
    return {(row["messages"][0]["content"], row["messages"][1]["content"]): row["reward"] for row in rows}


def by_hand(rewards, kind: str, penalty: float = 1.0) -> np.ndarray:
    """[M, N] rewards → [N] combined ones, in plain NumPy."""
    rewards = np.array(rewards, dtype=np.float64)
    z = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, keepdims=True)
    return {"mean": z.mean(0), "min": z.min(0), "lower_bound": z.mean(0) - penalty * z.std(0)}[kind]


def expected(rows, names=NAMES, kind="mean", penalty=1.0) -> dict[tuple[str, str], float]:
    rewards = [[named_reward(name, from_prompt(r["prompt"]), r["response"]) for r in rows] for name in names]
    combined = by_hand(rewards, kind, penalty).tolist()
    return {(row["prompt"], row["response"]): reward for row, reward in zip(rows, combined, strict=True)}


def contents(root: Path, *, plans: bool = True) -> dict[str, bytes]:
    files = sorted(path for path in root.rglob("*") if path.is_file() and (plans or "plans" not in path.parts))
    files = [path for path in files if path.name not in TIMED]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def score_paths(tmp_path, config, which: int | None = None) -> list[Path]:
    """Of a member (0, 1) or of the ensemble (None)."""
    plans = make_plans(config)
    plan = plans.whole if which is None else plans.members[which]
    return sorted((tmp_path / "scores" / plan.fingerprint).glob("*.parquet"))


@pytest.mark.parametrize("ensemble", [{}, {"combine": "min"}, {"combine": "lower_bound", "penalty": 0.5}])
def test_rewards_are_those_combined_by_hand(make, corpus, log, tmp_path, ensemble):
    names = ["anna", "bo", "carla"]
    changes = {"ensemble": ensemble} if ensemble else {}
    outcome = run(make(corpus, names, input={"rows_per_fragment": 5}, **changes), log)
    wanted = expected(corpus_rows(6, 3), names, ensemble.get("combine", "mean"), ensemble.get("penalty", 1.0))
    assert data(tmp_path / "out") == pytest.approx(wanted, abs=1e-6)
    assert outcome.manifest["counts"] | {"kept": 18, "read": 18, "scored": 18} == outcome.manifest["counts"]
    assert scored_by(log) == dict.fromkeys(names, 18)


def test_the_best_of_each_prompt_is_that_of_the_ensemble(make, corpus, log, tmp_path):
    run(make(corpus, select=[{"best_of_n": {}}]), log)
    best: dict[str, tuple[float, str]] = {}
    for (prompt, response), reward in expected(corpus_rows(6, 3)).items():
        best[prompt] = max(best.get(prompt, (-9.0, "")), (reward, response))
    assert set(data(tmp_path / "out")) == {(prompt, response) for prompt, (_, response) in best.items()}


def test_two_real_models_against_each_of_them_alone(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows(4, 3))
    models = [
        {"path": str(save_encoder(tmp_path / "one"))},
        {"path": str(save_causal(tmp_path / "two", seed=1)), "tokens_per_batch": 64},
    ]

    def config(model, out, scores="scores", **changes):
        values = {"input": {"path": str(path)}, "model": model, "select": [], **changes}
        output = {"output": {"path": str(tmp_path / out)}, "scores": {"path": str(tmp_path / scores)}}
        return RunConfig.model_validate({**values, **output})

    alone = []
    for number, model in enumerate(models):
        own = config(model, f"alone-{number}", f"scores-{number}")
        run_curation(own, scorer=default_scorer(own))
        alone.append(data(tmp_path / f"alone-{number}"))
    both = config(models, "both", ensemble={"combine": "lower_bound"})
    assert sorted(plan.model["tokens_per_batch"] or 0 for plan in make_plans(both).members) == [0, 64]
    run_curation(both, scorer=default_scorer(both))
    combined = by_hand([list(rewards.values()) for rewards in alone], "lower_bound").tolist()
    assert list(alone[0]) == list(alone[1])
    assert data(tmp_path / "both") == pytest.approx(dict(zip(alone[0], combined, strict=True)), abs=1e-5)
    assert len(set(combined)) == 12


def test_the_order_of_the_list_changes_nothing(make, corpus, log, tmp_path):
    names = ["anna", "bo", "carla"]
    run(make(corpus, names, output={"shape": "original"}), log)
    before = contents(tmp_path / "scores")
    shutil.move(tmp_path / "out", tmp_path / "kept")
    run(make(corpus, names[::-1], output={"shape": "original"}), log)
    assert contents(tmp_path / "out") == contents(tmp_path / "kept")
    assert contents(tmp_path / "scores") == before
    assert scored_by(log) == dict.fromkeys(names, 18)


def test_partitions_change_nothing(make, corpus, log, tmp_path, monkeypatch):
    run(make(corpus, select=[{"best_of_n": {}}]), log)
    for partitions in (1, 7):
        monkeypatch.setattr(selection_module, "PARTITIONS", partitions)
        run(make(corpus, select=[{"best_of_n": {}}], out=f"by-{partitions}"), log)
        assert contents(tmp_path / f"by-{partitions}") == contents(tmp_path / "out")


def test_the_order_of_files_changes_nothing(make, log, tmp_path):
    rows = corpus_rows(6, 3)
    paths = [str(write_jsonl(tmp_path / "in" / f"{n}.jsonl", rows[n * 6 : n * 6 + 6])) for n in range(3)]
    run(make(paths), log)
    before = contents(tmp_path / "scores")
    run(make(paths[::-1], out="other"), log)
    assert contents(tmp_path / "other") == contents(tmp_path / "out")
    assert contents(tmp_path / "scores") == before


def test_how_the_corpus_is_cut_changes_no_reward(make, log, tmp_path):
    """Other files and fragments add up rewards in another order; to the bit, nothing follows from that."""
    rows = corpus_rows(6, 3)
    run(make(write_jsonl(tmp_path / "whole" / "a.jsonl", rows)), log)
    for number in range(4):
        write_jsonl(tmp_path / "cut" / f"{3 - number}.jsonl", rows[number::4])
    run(make(tmp_path / "cut", out="other", input={"rows_per_fragment": 2}), log)
    assert data(tmp_path / "other") == data(tmp_path / "out")


def test_nothing_is_scored_or_loaded_twice(make, corpus, log, tmp_path):
    run_scoring(make(corpus, ["anna"]), scorer=NamedFactory(str(log)))
    run(make(corpus), log)
    assert scored_by(log) == {"anna": 18, "bo": 18}
    stubs.loaded.clear()
    before = contents(tmp_path / "scores", plans=False)
    assert run(make(corpus), log).already_complete
    run(make(corpus, ensemble={"combine": "mean"}, out="other"), log)
    run(make(corpus, ["bo"], out="bo-alone"), log)
    assert (stubs.loaded, scored_by(log)) == ([], {"anna": 18, "bo": 18})
    assert contents(tmp_path / "scores", plans=False) == before
    run(make(corpus, ensemble={"combine": "min"}, out="least"), log)
    assert data(tmp_path / "least") == pytest.approx(expected(corpus_rows(6, 3), kind="min"), abs=1e-6)
    assert stubs.loaded == []


def test_a_grown_corpus_is_standardised_anew_beside_the_old_scores(make, log, tmp_path):
    rows = corpus_rows(9, 2)
    write_jsonl(tmp_path / "in" / "a.jsonl", rows[:10])
    first = run(make(tmp_path / "in"), log).manifest
    config = make(tmp_path / "in")
    before = {path: path.read_bytes() for path in score_paths(tmp_path, config)}
    assert len(before) == 1
    write_jsonl(tmp_path / "in" / "b.jsonl", rows[10:])
    with pytest.raises(ConflictError, match="other input files or model"):
        run(config, log)
    second = run(make(tmp_path / "in", out="grown"), log).manifest
    assert scored_by(log) == {"anna": 18, "bo": 18}
    assert data(tmp_path / "out") == pytest.approx(expected(rows[:10]), abs=1e-6)
    assert data(tmp_path / "grown") == pytest.approx(expected(rows), abs=1e-6)
    assert [m["model"]["responses"] for m in (first, second)] == [10, 18]
    assert len(score_paths(tmp_path, config)) == 3, "one of the small corpus, two of the grown one"
    assert {path: path.read_bytes() for path in before} == before


def test_the_models_of_a_touched_file_are_not_run_again(make, corpus, log, tmp_path):
    config = make(corpus)
    run_scoring(config, scorer=NamedFactory(str(log)))
    os.utime(corpus, (1, 1))
    run(config, log)
    (file,) = make_plans(config).whole.files
    _, footer = score_files.decode(score_paths(tmp_path, config)[0].read_bytes())
    assert (footer.file_size, footer.file_version) == (file.size, file.version), "not those of when a model scored it"
    os.utime(corpus, (2, 2))
    run(make(corpus, out="other"), log)
    assert scored_by(log) == {"anna": 18, "bo": 18}
    assert contents(tmp_path / "other" / "data") == contents(tmp_path / "out" / "data")


def test_an_added_column_is_exported_and_nothing_is_scored_again(make, corpus, log, tmp_path):
    run(make(corpus, output={"shape": "original"}), log)
    write_jsonl(corpus, [{**row, "extra": n} for n, row in enumerate(corpus_rows(6, 3))])
    run(make(corpus, out="other", output={"shape": "original"}), log)
    assert scored_by(log) == {"anna": 18, "bo": 18}
    assert pq.read_table(tmp_path / "other" / "data")["extra"].to_pylist() == list(range(18))


def test_what_one_model_rejects_is_rejected(make, log, tmp_path):
    rows = corpus_rows(6, 3)
    odd = [{"prompt": "p", "response": text} for text in ("", "anna-REJECTS", "bo-REJECTS", "anna-REJECTS bo-REJECTS")]
    path = write_jsonl(tmp_path / "a.jsonl", [*odd[:2], *rows, *odd[2:]])
    config = make(path, limits={"max_rejected_fraction": 0.2}, input={"rows_per_fragment": 4})
    manifest = run(config, log).manifest
    first = manifest["model"]["members"][0]["name"]
    counts = {"empty_response": 1, "by_anna": 1, "by_bo": 1}
    assert manifest["rejected"] == {**counts, f"by_{first}": 2}, "the first model by fingerprint is asked first"
    assert (manifest["counts"]["read"], manifest["counts"]["scored"]) == (22, 18)
    assert data(tmp_path / "out") == pytest.approx(expected(rows), abs=1e-6), "and counts in no mean"
    rejected = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert [(row["place"], row["reason"]) for row in rejected] == [
        ("line 1", "empty_response"), ("line 2", "by_anna"), ("line 21", "by_bo"), ("line 22", f"by_{first}"),
    ]  # fmt: skip
    first_rejected = r"first: a\.jsonl line 1 empty_response, a\.jsonl line 2 by_anna, a\.jsonl line 21 by_bo\)"
    with pytest.raises(RejectedError, match=rf"4 of 22 responses were rejected \(.*{first_rejected}"):
        run(make(path, out="strict", limits={"max_rejected_fraction": 0.1}, input={"rows_per_fragment": 4}), log)


def test_tokens_are_the_first_models_and_any_may_truncate(make, log, tmp_path):
    rows = [{"prompt": "p", "response": f"r{n} {words}"} for n, words in enumerate(["", "anna-CUTS", "bo-CUTS x", ""])]
    config = make(write_jsonl(tmp_path / "a.jsonl", rows))
    manifest = run(config, log).manifest
    first = manifest["model"]["members"][0]["name"]
    (score_file,) = score_paths(tmp_path, config)
    columns = pq.read_table(score_file)
    assert columns["truncated"].to_pylist() == [False, True, True, False]
    words = [len(row["response"].split()) for row in rows]
    assert columns["response_tokens"].to_pylist() == [count * len(first) for count in words]
    assert (manifest["counts"]["truncated"], manifest["counts"]["tokens"]) == (2, 4 + sum(words) * len(first))
    run(make(tmp_path / "a.jsonl", select=[{"top": {"tokens": 10**6}}], out="budget"), log)
    assert len(data(tmp_path / "budget")) == 4


def test_score_says_what_each_model_came_to(make, log, tmp_path):
    rows = [*corpus_rows(6, 3), {"prompt": "p", "response": "anna-REJECTS"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    outcome = run_scoring(make(path, limits={"max_rejected_fraction": 0.1}), scorer=NamedFactory(str(log)))
    members = {member["name"]: member for member in outcome.members}
    assert {name: (one["read"], one["scored"]) for name, one in members.items()} == {"anna": (19, 18), "bo": (19, 19)}
    assert members["anna"]["rejected"] == {"by_anna": 1}
    assert not (tmp_path / "out").exists()
    with pytest.raises(RejectedError, match="1 of 19 responses were rejected by model anna") as raised:
        run_scoring(make(path, limits={"max_rejected_fraction": 0.01}), scorer=NamedFactory(str(log)))
    listed = [
        json.loads(line) for line in Path(raised.value.message.split(" are listed in ")[1]).read_text().splitlines()
    ]
    assert [(row["place"], row["reason"]) for row in listed] == [("line 19", "by_anna")]


def test_select_takes_what_is_there_and_names_what_is_missing(make, corpus, log, tmp_path):
    for name in NAMES:
        with pytest.raises(InputError, match=r"not scored yet.*bestkept score"):
            run_curation(make(corpus), scorer=None)
        run_scoring(make(corpus, [name]), scorer=NamedFactory(str(log)))
    run_curation(make(corpus), scorer=None)
    assert data(tmp_path / "out") == pytest.approx(expected(corpus_rows(6, 3)), abs=1e-6)
    missing = make_plans(make(corpus, ["carla"])).whole.fingerprint
    with pytest.raises(InputError, match=rf"not scored yet \(looked in {tmp_path}/scores/{missing}\)"):
        run_curation(make(corpus, [*NAMES, "carla"], out="other"), scorer=None)


def test_one_model_is_in_memory_at_a_time(make, corpus, log):
    stubs.loaded.clear()
    run_scoring(make(corpus, ["anna", "bo", "carla"], input={"rows_per_fragment": 4}), scorer=NamedFactory(str(log)))
    assert sorted(name for name, _ in stubs.loaded) == ["anna", "bo", "carla"]
    assert [others for _, others in stubs.loaded][1:] == [0, 0]


def test_a_model_waits_for_the_one_before_it(make, corpus, log, tmp_path):
    """On runners that would run both at once; the in-memory one never does."""
    config = make(corpus)
    paths = make_plans(config).save(str(tmp_path / "scores"))

    def inputs(scorer) -> dict[str, int]:
        pipeline = beam.Pipeline(runner=FnApiRunner())
        curate.score_models(pipeline, config, paths, scorer)
        transforms = pipeline.to_runner_api().components.transforms.values()
        return {step.unique_name: len(step.inputs) for step in transforms if step.unique_name.endswith("/ReadPlan")}

    assert inputs(NamedFactory(str(log))) == {"Score0/ReadPlan": 1, "Score1/ReadPlan": 2}
    assert inputs(None) == {"Score0/ReadPlan": 1, "Score1/ReadPlan": 1}, "nothing to wait for"


def test_a_model_without_spread_is_named(make, corpus, log, tmp_path):
    with pytest.raises(ModelLoadError, match=r"model flat gives each of 18 responses the reward 0\.25"):
        run(make(corpus, ["anna", "flat"]), log)
    assert not (tmp_path / "out" / "data").exists()


def test_one_response_is_too_few(make, log, tmp_path):
    rows = [{"prompt": "p", "response": text} for text in ("anna-REJECTS", "bo-REJECTS", "fine")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(InputError, match="have only 1 scored in common"):
        run(make(path, limits={"max_rejected_fraction": 1.0}), log)


def test_one_model_under_two_names_is_refused(make, models, corpus, log):
    shutil.copytree(models("anna"), models("anna").with_name("copy"))
    with pytest.raises(ConfigError, match=r"model\.0 .*anna' and model\.2 .*copy' have the same weights and settings"):
        run(make(corpus, ["anna", "bo", "copy"]), log)


def test_text_that_changed_between_two_scorings_is_noticed(make, corpus, log):
    run_scoring(make(corpus, ["anna"]), scorer=NamedFactory(str(log)))
    status = corpus.stat()
    corpus.write_text(corpus.read_text().replace("answer 7 ", "answer 8 "))  # equal size, equal time
    os.utime(corpus, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(
        InputError, match=r"a\.jsonl has changed between two scorings: .*anna in .*bo in |bo in .*anna in"
    ):
        run(make(corpus), log)


def rewritten(path: Path, change) -> None:
    """Replace a score file by a valid one of other columns."""
    table, footer = score_files.decode(path.read_bytes())
    path.write_bytes(score_files.encode(change(table), replace(footer), score_files.original_schema(table)))


def column_reversed(name: str):
    def change(table):
        at = table.schema.get_field_index(name)
        return table.set_column(at, table.schema.field(at), table[name].take(pa.array(range(len(table)))[::-1]))

    return change


def test_score_files_of_other_rows_do_not_combine(make, corpus, log, tmp_path):
    config = make(corpus)
    run_scoring(config, scorer=NamedFactory(str(log)))
    rewritten(score_paths(tmp_path, config, 1)[0], column_reversed("response_hash"))
    with pytest.raises(StorageError, match="do not have the same rows; remove them and score again"):
        run_curation(config, scorer=None)


def test_other_rewards_of_equal_mean_and_spread_make_other_score_files(make, corpus, log, tmp_path):
    """As after a model's score files were lost and made again on another device: the constants need not show it."""
    config = make(corpus)
    first = run(config, log).manifest
    rewritten(score_paths(tmp_path, config, 1)[0], column_reversed("reward"))
    second = run(make(corpus, out="other"), log).manifest
    assert second["model"] == first["model"]
    assert data(tmp_path / "other") != data(tmp_path / "out")
    assert len(score_paths(tmp_path, config)) == 2


def test_a_damaged_score_file_of_the_ensemble_is_made_again(make, corpus, log, tmp_path):
    config = make(corpus)
    run(config, log)
    (score_file,) = score_paths(tmp_path, config)
    before = score_file.read_bytes()
    score_file.write_bytes(before[:-9])
    run(make(corpus, out="other"), log)
    assert score_file.read_bytes() == before
    assert data(tmp_path / "other") == data(tmp_path / "out")


def test_the_manifest_is_enough_to_redo_the_numbers(make, corpus, log, tmp_path):
    config = make(corpus, ensemble={"combine": "lower_bound", "penalty": 0.75})
    run(config, log)
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    manifest = json.loads(text)
    model, members = manifest["model"], manifest["model"]["members"]
    assert sorted(member["name"] for member in members) == NAMES
    assert model["ensemble"] == {"combine": "lower_bound", "penalty": 0.75}
    z = []
    for member in members:
        (path,) = (tmp_path / "scores" / member["fingerprint"]).glob("*.parquet")
        z.append((pq.read_table(path)["reward"].to_numpy().astype(np.float64) - member["mean"]) / member["std"])
        assert member["weights"]
    combined = (sum(z) / 2 - 0.75 * np.abs(z[0] - z[1]) / 2).astype(np.float32)
    (path,) = (tmp_path / "scores" / manifest["fingerprint"]).glob("*.parquet")
    table, footer = score_files.decode(path.read_bytes())
    np.testing.assert_allclose(table["reward"].to_numpy(), combined, rtol=1e-6)
    assert footer.fingerprint == manifest["fingerprint"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| reward | mean less 0.75 standard deviations of 2 models, each standardised over 18 responses" in card
    for member in members:
        assert (
            f"| reward model | `{member['name']}`, fingerprint `{member['fingerprint']}`, mean {member['mean']:.4f}"
            in card
        )


def test_the_fingerprint_of_an_ensemble(make, corpus, models):
    def fingerprint(names=NAMES, **changes):
        return make_plans(make(corpus, names, **changes)).whole.fingerprint

    lower = [{"combine": "lower_bound", "penalty": penalty} for penalty in (0.5, 1.0)]
    different = [fingerprint(), fingerprint(["anna", "carla"]), fingerprint(ensemble={"combine": "min"})]
    different += [fingerprint(ensemble=settings) for settings in lower]
    different += [fingerprint([name]) for name in NAMES]
    assert len(set(different)) == 7
    assert fingerprint(NAMES[::-1]) == fingerprint(ensemble={"combine": "mean"}) == fingerprint()
    assert fingerprint(ensemble={"combine": "lower_bound"}) == fingerprint(ensemble=lower[1])


def test_an_ensemble_has_no_temperature_and_compares_prompts_where_all_its_models_do(make, corpus, models):
    for name, anchored in (("anna", True), ("bo", True), ("carla", False)):
        fields = {"temperature": 2.0, **({"offset": 0.5} if anchored else {})}
        (models(name) / "calibration.json").write_text(json.dumps(fields))
    plans = make_plans(make(corpus))
    assert [plan.temperature for plan in plans.members] == [2.0, 2.0]
    assert (plans.whole.temperature, plans.whole.comparable) == (None, True)
    assert not make_plans(make(corpus, ["anna", "bo", "carla"])).whole.comparable


def test_the_inputs_are_listed_once(make, corpus, monkeypatch):
    from pipelines import plan

    calls = []
    original = listing.list_files
    monkeypatch.setattr(plan, "list_files", lambda *args, **more: calls.append(1) or original(*args, **more))
    plans = make_plans(make(corpus, ["anna", "bo", "carla"]))
    assert calls == [1]
    assert all(member.files is plans.whole.files for member in plans.members)


def test_the_report_tells_how_far_the_models_are_apart(make, corpus, log, tmp_path):
    rows = corpus_rows(6, 3)
    run(make(corpus, select=[{"best_of_n": {"min_candidates": 1}}]), log)
    rewards = np.array([[named_reward(name, from_prompt(r["prompt"]), r["response"]) for r in rows] for name in NAMES])
    z = (rewards - rewards.mean(axis=1, keepdims=True)) / rewards.std(axis=1, keepdims=True)
    spread = dict(zip([(row["prompt"], row["response"]) for row in rows], z.std(axis=0), strict=True))
    kept = [spread.pop(place) for place in data(tmp_path / "out")]
    found = json.loads((tmp_path / "out" / "report.json").read_text())["disagreement"]
    assert (sum(found["kept"]), sum(found["dropped"])) == (6, 12)
    assert found["kept_mean"] == pytest.approx(np.mean(kept), rel=1e-5)
    assert found["dropped_mean"] == pytest.approx(np.mean(list(spread.values())), rel=1e-5)
    assert "Disagreement of the models" in (tmp_path / "out" / "report.html").read_text()
