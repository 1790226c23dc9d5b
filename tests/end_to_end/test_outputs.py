"""Models with several outputs: one forward, each output a number that `where` and `reward` know by its name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from support.classifiers import save
from support.corpora import corpus_rows, write_jsonl
from support.stubs import save_named_model

from pipelines.commands.run import default_scorer, run_curation
from pipelines.config import EvaluateConfig, RunConfig
from pipelines.errors import ConfigError, ModelLoadError
from pipelines.plan import make_plans
from rm.scorer import Scorer
from rm.scores import Outputs

NAMES = {"helpfulness": 0, "verbosity": 4}
STEPS = [
    {"reward": "helpfulness - 0.5 * verbosity"},
    {"where": "verbosity < 0.4"},
    {"best_of_n": {"min_candidates": 1}},
]
ROWS = corpus_rows(5, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "five", "Llama", num_labels=5)


@pytest.fixture
def make(tmp_path, model):
    write_jsonl(tmp_path / "in" / "a.jsonl", [*ROWS, {"prompt": "one more", "response": " "}])

    def config(outputs=NAMES, steps=STEPS, out="out", *, path=model, reward=None, **changes) -> RunConfig:
        values = {
            "input": {"path": str(tmp_path / "in"), "rows_per_fragment": 4},
            "model": {"path": str(path), "outputs": outputs, "reward_output": reward, "device": "cpu"},
            "scores": {"path": str(tmp_path / "scores")},
            "limits": {"max_rejected_fraction": 0.5},
            "output": {"path": str(tmp_path / out)},
            "select": steps,
        }
        return RunConfig.model_validate(values | changes)

    return config


def by_response(model, outputs=NAMES) -> dict[str, dict[str, float]]:
    settings = {
        "dtype": "float32",
        "max_length": 4096,
        "too_long": "truncate",
        "tokens_per_batch": 500,
        "device": "cpu",
    }
    scorer = Scorer.load(model, **settings, outputs=Outputs(0, outputs))
    scored = scorer.score([((("user", row["prompt"]),), [row["response"]]) for row in ROWS])
    return {
        row["response"]: {name: float(values[0]) for name, values in one.outputs.items()}
        for row, one in zip(ROWS, scored, strict=True)
    }


def test_outputs_are_combined_and_asked_for_by_name(make, model, tmp_path):
    manifest = run_curation(make(), scorer=default_scorer(make())).manifest
    assert manifest["model"]["outputs"] == {"names": NAMES, "reward": "helpfulness"}
    values = by_response(model)
    best: dict[str, tuple[float, str]] = {}
    for row in ROWS:
        one = values[row["response"]]
        if one["verbosity"] < 0.4:
            reward = one["helpfulness"] - 0.5 * one["verbosity"]
            best[row["prompt"]] = max(best.get(row["prompt"], (-np.inf, "")), (reward, row["response"]))
    kept = {row["messages"][1]["content"] for row in pq.read_table(tmp_path / "out/data").to_pylist()}
    assert kept == {response for _, response in best.values()}
    assert 0 < len(kept) < len(ROWS)
    [folder] = [path for path in (tmp_path / "scores").iterdir() if path.name != "plans"]
    table = pq.read_table(sorted(folder.glob("*.parquet")))
    assert table["signal.verbosity"].null_count == table["reason"].to_pylist().count("empty_response") == 1
    assert table["reward"].equals(table["signal.helpfulness"])


def test_another_selection_of_the_same_outputs_scores_nothing(make, tmp_path):
    run_curation(make(), scorer=default_scorer(make()))
    others = make(steps=[{"where": "helpfulness > 0 or verbosity > 0"}], out="other", reward="helpfulness")
    again = run_curation(others, scorer=lambda plan: pytest.fail("loaded"))
    assert again.manifest["counts"]["kept"] > 0


def test_the_reward_is_the_output_that_is_named(make, model):
    """One that is named alone, or by `reward_output`; it and the names are in the fingerprint."""

    def rewards(config):
        plan = make_plans(config).whole
        run_curation(config, scorer=default_scorer(config))
        folder = Path(config.scores.path, plan.fingerprint)
        return plan.fingerprint, pq.read_table(sorted(folder.glob("*.parquet")))["reward"].drop_null().to_pylist()

    values = by_response(model)
    keep = {"steps": []}
    fingerprints = set()
    for number, (outputs, reward) in enumerate(
        [({"verbosity": 4}, None), (NAMES, "verbosity"), (NAMES, "helpfulness")]
    ):
        fingerprint, scored = rewards(make(outputs, reward=reward, out=f"out{number}", **keep))
        name = reward or "verbosity"
        assert sorted(scored) == pytest.approx(sorted(one[name] for one in values.values()), abs=1e-5)
        fingerprints.add(fingerprint)
    assert len(fingerprints) == 3


def test_a_plain_model_has_the_identity_that_it_had(make, tmp_path):
    plain = save_named_model(tmp_path / "plain")
    plan = make_plans(make({}, [], path=plain)).whole
    assert "outputs" not in plan.identity
    assert "outputs" not in plan.model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": []}, r"model.outputs names helpfulness, verbosity; name the reward in model.reward_output"),
        ({"outputs": {"reward": 0}}, "'reward' cannot name a model's output"),
        ({"outputs": {"a": -1}}, "greater than or equal to 0"),
        (
            {"reward": "honesty"},
            "reward_output is 'honesty', and outputs names helpfulness, verbosity; name one of outputs",
        ),
        (
            {"score": {"colocate": "prompt"}},
            "score.colocate keeps one reward per response, and model.outputs names more",
        ),
        ({"input": {"path": "x", "carry": ["verbosity"]}}, "'verbosity' is a name in model.outputs and in input.carry"),
        ({"steps": [{"where": "honesty > 0"}], "reward": "verbosity"}, "'honesty' is unknown"),
    ],
)
def test_settings_that_do_not_fit(make, changes, message):
    with pytest.raises(ValidationError, match=message):
        make(**changes)


def test_an_evaluation_is_of_one_output():
    values = {"model": {"path": "x", "outputs": NAMES}, "data": {"path": "y"}}
    with pytest.raises(ValidationError, match=r"name the one to evaluate in model.reward_output"):
        EvaluateConfig.model_validate(values)
    values["model"]["reward_output"] = "verbosity"
    assert EvaluateConfig.model_validate(values).model.used_outputs == {"names": NAMES, "reward": "verbosity"}


def test_models_of_an_ensemble_have_one_reward_each(make, model, tmp_path):
    """Their other outputs stay in their own score files."""
    one = {"path": str(model), "device": "cpu"}
    pair = [one | {"outputs": {"helpfulness": 0}}, one | {"outputs": NAMES, "reward_output": "verbosity"}]
    config = make(steps=[], model=pair)
    run_curation(config, scorer=default_scorer(config))
    folders = [path for path in (tmp_path / "scores").iterdir() if path.name != "plans"]
    names = [pq.read_schema(next(path.glob("*.parquet"))).names for path in folders]
    with pytest.raises(ValidationError, match="name the reward in"):
        make(model=[pair[0], one | {"outputs": NAMES}])
    assert sorted(sum(name.startswith("signal.") for name in one) for one in names)[-2:] == [1, 2]


def test_a_calibration_counts_for_the_output_that_it_was_measured_on(make, tmp_path, model, bestkept, caplog):
    """`bestkept evaluate` stores which one that is; for another one, a run says so and uses neither temperature nor verdict."""
    path = shutil.copytree(model, tmp_path / "measured")
    pairs = [{"prompt": f"what is {n}", "chosen": f"good day {n}", "rejected": f"bad {n}"} for n in range(8)]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    settings = [
        f"model.outputs={json.dumps(NAMES)}",
        "model.reward_output=verbosity",
        "model.device=cpu",
        "stress.prompts=0",
    ]
    code, _, err = bestkept("evaluate", path, data, *settings, f"output.path={tmp_path / 'evaluation'}")
    assert code == 0, err
    stored = json.loads((path / "calibration.json").read_text())
    assert stored["output"] == {"name": "verbosity", "number": 4}
    one = {"steps": [{"best_of_n": {}}], "path": path}
    for outputs, reward, words in (
        (NAMES, "verbosity", None),
        ({"length": 4}, None, None),
        (
            NAMES,
            "helpfulness",
            r"measured on output 4 \(verbosity\), and the reward is output 0 \(helpfulness\), so that its",
        ),
        ({"honest": 1}, None, r"output 4 \(verbosity\), and the reward is output 1 \(honest\)"),
    ):
        caplog.clear()
        plan = make_plans(make(outputs, reward=reward, **one)).whole
        assert (plan.temperature, len(plan.evaluations)) == ((None, 0) if words else (stored["temperature"], 1))
        assert bool(words and re.search(words, caplog.text)) == bool(words) == ("measured on output" in caplog.text)
    combined = make_plans(make(path=path)).whole
    assert (combined.temperature, combined.evaluations) == (None, {})
    assert "and the reward is another number" in caplog.text
    sure = make(NAMES, [{"best_of_n": {"min_probability": 0.6}}], reward="helpfulness", path=path)
    with pytest.raises(ConfigError, match=r"has no calibration\.json"):
        run_curation(sure, scorer=lambda plan: pytest.fail("loaded"))
    (path / "calibration.json").write_text(json.dumps({**stored, "output": "verbosity"}))
    with pytest.raises(ModelLoadError, match="has no name and number under output; run `bestkept evaluate`"):
        make_plans(make(NAMES, reward="verbosity", **one))
