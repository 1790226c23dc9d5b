"""Commands whose model lies on a bucket: what they do on a local model, and no more requests than they need."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.corpora import corpus_rows, write_jsonl
from support.tiny_models import save_causal
from support.weights_on_stores import GET_WEIGHTS, WEIGHTS, flip, model, root, sent, upload, url_of

from pipelines.commands.estimate.estimate import PlanOptions, plan_run
from pipelines.commands.run import default_scorer, run_graph
from pipelines.config import RunConfig
from pipelines.corpus import reward_source
from pipelines.errors import ModelLoadError
from pipelines.plan import make_plans
from pipelines.score import load_model
from pipelines.storage.models import cache, loadable_directory
from pipelines.storage.models.fetch import fetch_model

__all__ = ["model", "root"]  # fixtures


@pytest.fixture
def config(tmp_path):
    """(model.path, name of the output, changes) → a configuration; scores of all outputs lie together."""
    corpus = write_jsonl(tmp_path / "in.jsonl", corpus_rows())

    def make(path: object, name: str, **changes: Any) -> RunConfig:
        values = {
            "input": {"path": str(corpus), "rows_per_fragment": 8},
            "model": {"path": str(path)},
            "select": [{"best_of_n": {"keep": 2}}],
            "output": {"path": str(tmp_path / name)},
            "scores": {"path": str(tmp_path / "scores")},
            "report": {"write": False},
            **changes,
        }
        return RunConfig.model_validate(values)

    return make


@pytest.fixture
def loads(monkeypatch) -> list[str]:
    """Weights of the models that are loaded, by their sha256."""
    noted: list[str] = []

    def noting(model, identity):
        noted.append(identity["weights"][WEIGHTS])
        return loadable_directory(model, identity)

    monkeypatch.setattr(load_model, "loadable_directory", noting)
    return noted


def run(settings: RunConfig):
    return run_graph(settings, scorer=default_scorer(settings))


def test_a_model_on_a_bucket_gives_and_takes_the_scores_of_the_same_model_on_disk(store, model, root, config, loads):
    local, remote = config(model, "local"), config(sent(store, model), "remote")
    on_bucket = run(remote)
    assert len(loads) == 1
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1
    on_disk = run(local)
    assert len(loads) == 1, "every score file was found"
    assert on_bucket.plan.fingerprint == on_disk.plan.fingerprint
    assert on_bucket.plan.hash == on_disk.plan.hash
    assert on_bucket.manifest == on_disk.manifest
    assert on_bucket.manifest["counts"]["scored"] == 48
    assert on_bucket.manifest["model"]["name"] == "reward"


@pytest.mark.slow
def test_rewards_are_those_of_the_local_model_to_the_bit(store, model, root, config, tmp_path):
    local = config(model, "local", scores={"path": str(tmp_path / "a")})
    remote = config(upload(store, model), "remote", scores={"path": str(tmp_path / "b")})
    assert run(local).manifest == run(remote).manifest
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.parquet")} for name in ("a", "b")
    )
    assert first == second
    assert len(first) == 6


def test_where_all_is_scored_no_weights_are_fetched(store, model, root, config, loads, monkeypatch, tmp_path):
    url = sent(store, model)
    run(config(url, "first"))
    store.proxy.requests.clear()
    monkeypatch.setenv(cache.MODELS, str(tmp_path / "another-machine"))
    loads.clear()
    assert run(config(url, "second", select=[])).manifest["counts"]["kept"] == 48
    assert run(config(url, "first")).already_complete
    assert loads == []
    assert not store.proxy.lines(GET_WEIGHTS)


@pytest.mark.slow
def test_an_ensemble_on_a_bucket_fetches_each_of_its_models_once(make_store, model, tmp_path, root, config, loads):
    store, other = make_store("s3"), save_causal(tmp_path / "other", seed=1)
    fetch_model(str(other), f"{store.url}/models/other")
    models = [{"path": sent(store, model)}, {"path": f"{store.url}/models/other"}]
    on_bucket = run(config("", "remote", model=models))
    assert len(loads) == len(set(loads)) == 2
    assert len(store.proxy.lines(GET_WEIGHTS)) == 2
    on_disk = run(config("", "local", model=[{"path": str(model)}, {"path": str(other)}]))
    assert len(loads) == 2
    assert on_bucket.plan.hash == on_disk.plan.hash
    assert on_bucket.manifest["counts"] == on_disk.manifest["counts"]


@pytest.mark.slow
def test_workers_of_one_machine_share_a_copy(store, model, root, config, tmp_path, bestkept):
    settings = config(sent(store, model), "out", runner={"workers": 2}).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    code, _, err = bestkept("run", tmp_path / "run.yaml")
    assert code == 0, err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["counts"]["scored"] == 48
    assert len(store.proxy.lines(GET_WEIGHTS)) == 1


def test_weights_replaced_between_plan_and_work_end_the_run(store, model, root, config, tmp_path, monkeypatch):
    settings = config(sent(store, model), "out")
    new = flip((model / WEIGHTS).read_bytes())

    def too_late(planned, identity):
        store.put(f"models/reward/{WEIGHTS}", new)
        return loadable_directory(planned, identity)

    monkeypatch.setattr(load_model, "loadable_directory", too_late)
    with pytest.raises(ModelLoadError, match=f"{WEIGHTS} is not the file that the run was planned with"):
        run(settings)
    assert not list((tmp_path / "scores").rglob("*.parquet"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("name", "version"), [("SCORING_VERSION", "1"), ("transformers", "4.9.9"), ("tokenizers", "0.1.0")]
)
def test_a_worker_with_other_versions_ends_the_run(store, model, root, config, monkeypatch, name, version):
    planned = {**reward_source.installed_versions(), name: version}
    monkeypatch.setattr(reward_source, "installed_versions", lambda: planned)
    settings = config(sent(store, model), "out")
    with pytest.raises(ModelLoadError, match=rf"{name} [\d.]+ \(launcher: {version}\); build the workers' image"):
        run(settings)
    assert not store.proxy.lines(GET_WEIGHTS), "before anything is fetched"


def test_versions_and_places_are_no_part_of_what_a_run_is(store, model, root, config, monkeypatch):
    here = make_plans(config(sent(store, model), "out")).whole
    monkeypatch.setattr(reward_source, "installed_versions", lambda: {"transformers": "4.9.9"})
    there = make_plans(config(model, "out")).whole
    assert here.model != there.model
    assert (here.hash, here.content_hash, here.fingerprint) == (there.hash, there.content_hash, there.fingerprint)


def test_a_local_directory_that_changed_since_is_noticed_by_the_worker(model, root, config):
    found = make_plans(config(model, "out")).whole
    assert loadable_directory(found.model, found.identity) == model
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(flip(data))
    with pytest.raises(ModelLoadError, match=rf"reward/{WEIGHTS} is not the file that the run was planned with"):
        loadable_directory(found.model, found.identity)
    (model / WEIGHTS).write_bytes(data)
    (model / "added_tokens.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"reward/added_tokens\.json is not the file"):
        loadable_directory(found.model, found.identity)
    shutil.rmtree(model)
    with pytest.raises(
        ModelLoadError, match=r"there is no model directory .*reward on this worker; put the model into"
    ):
        loadable_directory(found.model, found.identity)


def test_plan_needs_no_weights(store, model, root, config):
    url = sent(store, model)
    ours = plan_run(config(url, "out"), (), PlanOptions(benchmark=False))
    assert not store.proxy.lines(GET_WEIGHTS)
    theirs = plan_run(config(model, "out"), (), PlanOptions(benchmark=False))
    assert ours["models"] == theirs["models"]
    assert ours["models"][0]["name"] == "reward"


def test_inspect_shows_what_a_model_on_a_bucket_reads(store, model, root, tmp_path, bestkept):
    path = write_jsonl(tmp_path / "in.jsonl", corpus_rows(2, 2))
    ours, theirs = (
        bestkept("inspect", path, "--json", f"model.path={place}") for place in (upload(store, model), model)
    )
    assert ours[0] == theirs[0] == 0
    shown, expected = json.loads(ours[1]), json.loads(theirs[1])
    assert shown["corpus"]["tokens"] == expected["corpus"]["tokens"]
    assert shown["model"] == {**expected["model"], "path": url_of(store)}
    assert not store.proxy.lines(GET_WEIGHTS)


def preferences(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"prompt {n}", "chosen": f"good answer {n}", "rejected": f"bad reply number {n}"} for n in range(24)
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def test_evaluate_measures_a_model_on_a_bucket(store, model, root, tmp_path, bestkept):
    data, found = preferences(tmp_path), []
    for number, place in enumerate((sent(store, model), model)):
        output = f"output.path={tmp_path / str(number)}"
        code, _, err = bestkept("evaluate", place, data, output, *([] if number else ["store_temperature=false"]))
        assert code == 0, err
        found.append(json.loads((tmp_path / str(number) / "evaluation.json").read_text())["evaluation"])
    assert found[0] == found[1]
    code, _, err = bestkept("evaluate", url_of(store), data, "store_temperature=true")
    assert code == 2
    assert "is not a local directory" in err


@pytest.mark.slow
def test_training_starts_from_a_model_on_a_bucket(store, model, root, tmp_path, bestkept):
    values = {
        "data": {"path": str(preferences(tmp_path))},
        "model": {"path": sent(store, model)},
        "train": {"epochs": 1},
        "output": {"path": str(tmp_path / "trained")},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    code, _, err = bestkept("train", tmp_path / "train.yaml")
    assert code == 0, err
    assert (tmp_path / "trained" / WEIGHTS).exists()
    code, _, err = bestkept("train", tmp_path / "train.yaml", "model.revision=main")
    assert code == 7
    assert "only for hub ids" in err


def test_the_command_tells_what_is_wrong_with_a_bucket(store, model, root, config, tmp_path, bestkept):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(config(url_of(store), "out").model_dump(mode="json", exclude_unset=True))
    )
    code, _, err = bestkept("run", tmp_path / "run.yaml")
    assert code == 7
    assert f"model.path '{url_of(store)}' is empty; expected a model's files there: `bestkept model fetch" in err
    code, out, err = bestkept("model", "fetch", model, url_of(store))
    assert code == 0, err
    assert f"model: {{path: {url_of(store)}}}" in out
    assert "reward" in out
    assert "4 sent" in out
    code, out, _ = bestkept("model", "fetch", model, url_of(store), "--quiet")
    assert (code, out) == (0, f"{url_of(store)}\n")
    code, _, err = bestkept("--json-logs", "model", "fetch", model, url_of(store))
    assert json.loads(err.splitlines()[-1]).items() >= {"output": url_of(store), "files": 4, "files_sent": 0}.items()
    assert bestkept("run", tmp_path / "run.yaml")[0] == 0
    store.put(f"models/reward/{WEIGHTS}", b"cut")
    code, _, err = bestkept("run", tmp_path / "run.yaml")
    assert code == 5
    assert f"{WEIGHTS} has 3 bytes, and" in err
