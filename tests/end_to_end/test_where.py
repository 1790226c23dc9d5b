"""The steps `where` and `reward` through the whole graph, against the obvious answer row by row; explanations and errors."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.corpora import write_jsonl

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.errors import InputError
from pipelines.select import selection as selection_module
from rm.conversations import from_prompt, prompt_key


def corpus():
    """Ten prompts of six responses each, some of whose columns are null."""
    rng = np.random.default_rng(5)
    flags, scores = [True, False, None], [None, 0.25, 1, 3]
    return [
        {
            "prompt": f"p{p}",
            "response": f"answer {p} {k} " + "x" * int(rng.integers(0, 30)),
            "reward": float(rng.permutation(600)[p * 6 + k]) / 100 - 3,
            "ok": flags[rng.integers(3)],
            "score": scores[rng.integers(4)],
            "source": "abc"[k % 3],
        }
        for p in range(10)
        for k in range(6)
    ]


def configured(root, steps, out="out", **changes):
    values = {
        "input": {"path": str(root / "in"), "rows_per_fragment": 7, "carry": ["ok", "score"]},
        "scores": {"path": str(root / "scores"), "column": "reward"},
        "select": steps,
        "output": {"path": str(root / out)},
    }
    return RunConfig.model_validate(values | changes)


@pytest.fixture
def rows(tmp_path):
    rows = corpus()
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
    return rows


def texts(rows):
    return {row["response"] for row in rows}


def kept(root, out="out"):
    return {row["messages"][-1]["content"] for row in pq.read_table(root / out / "data").to_pylist()}


def best(rows, keep=1):
    prompts = {}
    for row in sorted(rows, key=lambda row: -row["reward"]):
        prompts.setdefault(row["prompt"], []).append(row)
    return [row for group in prompts.values() for row in group[:keep]]


def lowest(rows, count):
    return [
        row
        for row in rows
        if sum(one["reward"] < row["reward"] for one in rows if one["prompt"] == row["prompt"]) < count
    ]


def ranked(rows):
    """Each row with its ranks by reward and by score within the prompt, 1 for the lowest."""
    for row in rows:
        group = [one for one in rows if one["prompt"] == row["prompt"]]
        known = [one["score"] for one in group if one["score"] is not None]
        by_score = None if row["score"] is None else 1 + sum(score < row["score"] for score in known)
        yield row, 1 + sum(one["reward"] < row["reward"] for one in group), by_score


def summed(rows):
    """The rows with twice the standardised reward and the standardised score as reward, where there is a score."""
    rewards, scores = (np.array([row[name] for row in rows if row[name] is not None]) for name in ("reward", "score"))
    return [
        {
            **row,
            "reward": 2 * (row["reward"] - rewards.mean()) / rewards.std()
            + (row["score"] - scores.mean()) / scores.std(),
        }
        for row in rows
        if row["score"] is not None
    ]


CASES = {
    "before": (
        [{"where": "ok and characters < 35"}, {"best_of_n": {"min_candidates": 1}}],
        lambda rows: best([row for row in rows if row["ok"] and len(row["response"]) < 35]),
    ),
    "before-a-cut": (
        [{"where": 'source != "a" or score > 0.5'}, {"top": {"rows": 12}}, {"where": "reward > -1"}, {"top": {"rows": 9}}],
        lambda rows: sorted(
            (row for row in rows if (row["source"] != "a" or (row["score"] or 0) > 0.5) and row["reward"] > -1),
            key=lambda row: -row["reward"],
        )[:9],
    ),
    "after-best-of-n": (
        [{"best_of_n": {"keep": 3}}, {"where": "not ok"}, {"where": "score is not null"}],
        lambda rows: [row for row in best(rows, 3) if row["ok"] is False and row["score"] is not None],
    ),
    "between-cuts": (
        [{"best_of_n": {"keep": 4}}, {"where": "coalesce(score, 2) >= 1"}, {"top": {"rows": 11}}, {"where": "ok is null"}],
        lambda rows: [
            row
            for row in sorted(
                (row for row in best(rows, 4) if row["score"] in (None, 1, 3)), key=lambda row: -row["reward"]
            )[:11]
            if row["ok"] is None
        ],
    ),
    "rank-of-what-is-left": (
        [{"best_of_n": {"keep": 4}}, {"where": "rank(reward) <= 2 and ok is not null"}, {"top": {"rows": 9}}],
        lambda rows: sorted(
            (row for row in lowest(best(rows, 4), 2) if row["ok"] is not None), key=lambda row: -row["reward"]
        )[:9],
    ),
    "sum-of-ranks": (
        [{"reward": "rank(reward) + 10 * rank(score) + coalesce(ok, false)"}, {"best_of_n": {"min_candidates": 1}}],
        lambda rows: best(
            [
                {**row, "reward": by_reward + 10 * by_score + (row["ok"] or False)}
                for row, by_reward, by_score in ranked(rows)
                if by_score is not None
            ]
        ),
    ),
    "over-the-corpus": (
        [{"reward": "2 * corpus_z(reward) + corpus_z(score)"}, {"where": "corpus_z(reward) > 0"}, {"top": {"rows": 9}}],
        lambda rows: sorted(
            (row for row in summed(rows) if row["reward"] > np.mean([one["reward"] for one in summed(rows)])),
            key=lambda row: -row["reward"],
        )[:9],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_where_keeps_the_rows_that_the_expression_says(tmp_path, rows, case, monkeypatch):
    steps, expected = CASES[case]
    manifest = run_curation(configured(tmp_path, steps), scorer=None).manifest
    assert kept(tmp_path) == texts(expected(rows)) != set()
    assert [step["rule"] for step in manifest["steps"]] == [next(iter(step)) for step in steps]
    times = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]
    assert [step["rule"] for step in times] == [next(iter(step)) for step in steps]
    assert all(step["secs"] > 0 for step in times)
    assert "secs" not in json.dumps(manifest)
    monkeypatch.setattr(selection_module, "PARTITIONS", 1)
    run_curation(configured(tmp_path, steps, "again"), scorer=None)
    files = sorted((tmp_path / "out" / "data").iterdir())
    assert [(tmp_path / "again" / "data" / file.name).read_bytes() for file in files] == [
        file.read_bytes() for file in files
    ]


def test_where_sees_the_corrected_reward(tmp_path, rows):
    steps = [{"length_correction": {}}, {"where": "reward > 0"}]
    run_curation(configured(tmp_path, steps), scorer=None)
    run_curation(configured(tmp_path, [steps[0], {"threshold": {"min_reward": 1e-300}}], "same"), scorer=None)
    assert kept(tmp_path) == kept(tmp_path, "same") != texts(row for row in rows if row["reward"] > 0)


def test_an_explanation_names_the_values_that_decide(tmp_path, rows):
    steps = [
        {"where": 'ok or score > 0.5 and source == "b"'},
        {"best_of_n": {"min_candidates": 1}},
        {"where": "reward > -9"},
    ]
    config = configured(tmp_path, steps)
    run_curation(config, scorer=None)
    explained = explain(config, prompt_key(from_prompt("p3")).hex())
    assert explained["steps"][0] == steps[0]
    mine = {round(row["reward"], 2): row for row in rows if row["prompt"] == "p3"}
    assert len(explained["rows"]) == 6 == len(mine)
    for row in explained["rows"]:
        first, last, original = row["steps"][0], row["steps"][2], mine[round(row["reward"], 2)]
        by_score = None if original["score"] is None else original["score"] > 0.5
        other = False if original["source"] != "b" or by_score is False else by_score
        true = True if original["ok"] or other else None if None in (original["ok"], other) else False
        assert first == {
            "rule": "where",
            "verdict": "kept" if true else "dropped",
            "ok": None if original["ok"] is None else str(original["ok"]).lower(),
            "score": None if original["score"] is None else str(original["score"]),
            "source": original["source"],
            "true": true,
        }
        assert last["verdict"] == ("kept" if row["kept"] else "dropped before")
    assert sum(row["kept"] for row in explained["rows"]) == 1


def test_a_column_called_as_what_an_explanation_says_is_told_apart(tmp_path):
    rows = [{"prompt": "p", "response": f"r{k}", "reward": k, "verdict": ("bad", "good")[k]} for k in range(2)]
    write_jsonl(tmp_path / "in" / "0.jsonl", rows)
    read = {"path": str(tmp_path / "in"), "carry": ["verdict"]}
    config = configured(tmp_path, [{"where": 'verdict == "good"'}], input=read)
    run_curation(config, scorer=None)
    steps = [row["steps"][0] for row in explain(config, prompt_key(from_prompt("p")).hex())["rows"]]
    assert sorted((step["verdict"], step['column("verdict")']) for step in steps) == [
        ("dropped", "bad"),
        ("kept", "good"),
    ]


def test_text_where_a_number_is_expected_ends_the_run(tmp_path):
    row = {"prompt": "p", "reward": 1.0, "ok": "very secret", "score": "high"}
    write_jsonl(tmp_path / "in" / "0.jsonl", [{**row, "response": f"r{k}"} for k in range(3)])
    for text, name in (("ok", "ok"), ("score > 3", "score")):
        with pytest.raises(InputError, match=f"the column '{name}' is used as a number") as raised:
            run_curation(configured(tmp_path, [{"where": text}], f"out-{name}"), scorer=None)
        assert "secret" not in str(raised.value)


def test_every_rule_works_on_the_combined_reward(tmp_path, rows):
    steps = [{"reward": "reward + 2 * ok + min(score, 1) - characters / 100"}, {"best_of_n": {"min_candidates": 1}}]
    manifest = run_curation(configured(tmp_path, steps), scorer=None).manifest
    known = [row for row in rows if None not in (row["ok"], row["score"])]
    for row in known:
        row["model"] = row["reward"]
        row["reward"] += 2 * row["ok"] + min(row["score"], 1) - len(row["response"]) / 100
    assert kept(tmp_path) == texts(best(known)) != texts(best([{**row, "reward": row["model"]} for row in known]))
    assert [(step["rule"], step["rows"]) for step in manifest["steps"]] == [
        ("reward", len(known)),
        ("best_of_n", len(best(known))),
    ]
    exported = {
        row["messages"][-1]["content"]: row["reward"] for row in pq.read_table(tmp_path / "out" / "data").to_pylist()
    }
    assert exported == {row["response"]: float(np.float32(row["model"])) for row in best(known)}  # the model's own

    middle = sorted(row["reward"] for row in known)[len(known) // 2]
    steps = [steps[0], {"where": f"reward > {middle!r} + 0"}, {"top": {"rows": 5}}]
    run_curation(configured(tmp_path, steps, "top"), scorer=None)
    assert kept(tmp_path, "top") == texts(sorted(known, key=lambda row: -row["reward"])[:5])

    run_curation(configured(tmp_path, [steps[0], {"where": "reward < 0"}], "low"), scorer=None)
    assert kept(tmp_path, "low") == texts(row for row in known if row["reward"] < 0)

    explained = explain(configured(tmp_path, steps, "none"), prompt_key(from_prompt("p3")).hex())
    for row in explained["rows"]:
        (mine,) = [one for one in rows if round(one.get("model", one["reward"]), 2) == round(row["reward"], 2)]
        step = row["steps"][0]
        if mine in known:
            assert step["verdict"] == "kept"
            assert step["combined"] == pytest.approx(mine["reward"], abs=1e-6)
        else:
            assert (step["verdict"], step["combined"]) == ("dropped", None)
        assert step["characters"] == len(mine["response"])


def test_an_explanation_tells_ranks_and_z_scores(tmp_path, rows):
    steps = [{"reward": "rank(reward) + corpus_z(score)"}, {"where": "prompt_z(reward) > 0 and corpus_z(score) < 2"}]
    config = configured(tmp_path, steps, output={"path": str(tmp_path / "out"), "add": ["rank"]})
    run_curation(config, scorer=None)
    by_text = {row["messages"][-1]["content"]: row["rank"] for row in pq.read_table(tmp_path / "out/data").to_pylist()}
    scores = np.array([row["score"] for row in rows if row["score"] is not None])
    for prompt in ("p3", "p4"):
        explained = explain(config, prompt_key(from_prompt(prompt)).hex(), with_text=True)
        mine = {row["response"]: (row, rank) for row, rank, _ in ranked(rows) if row["prompt"] == prompt}
        z = {
            text: None if one["score"] is None else (one["score"] - scores.mean()) / scores.std()
            for text, (one, _) in mine.items()
        }
        known = sorted((rank + z[text] for text, (_, rank) in mine.items() if z[text] is not None), reverse=True)
        for row in explained["rows"]:
            first, second, (_, rank) = *row["steps"], mine[row["text"]]
            assert first["rank(reward)"] == rank
            if z[row["text"]] is None:
                assert (first["verdict"], first["corpus_z(score)"]) == ("dropped", None)
                continue
            assert first["corpus_z(score)"] == second["corpus_z(score)"] == pytest.approx(z[row["text"]], abs=1e-6)
            assert first["combined"] == pytest.approx(rank + z[row["text"]], abs=1e-5)
            expected = (rank + z[row["text"]] - np.mean(known)) / np.std(known)
            assert second["prompt_z(reward)"] == pytest.approx(expected, abs=1e-5)
            assert row["kept"] == (expected > 0 and z[row["text"]] < 2) == (row["text"] in by_text)
            if row["kept"]:  # ranks of the output are by the combined reward
                place = 1 + int(np.argmin(np.abs(np.array(known) - rank - z[row["text"]])))
                assert by_text[row["text"]] == place


def test_a_combined_reward_after_a_length_correction(tmp_path, rows):
    steps = [{"length_correction": {}}, {"reward": "reward * 2"}, {"where": "reward > 0"}]
    run_curation(configured(tmp_path, steps), scorer=None)
    run_curation(configured(tmp_path, [steps[0], steps[2]], "same"), scorer=None)
    assert kept(tmp_path) == kept(tmp_path, "same") != set()


SOLUTIONS = Path(__file__).parents[2].parent / "shared" / "data" / "gsm8k_solutions.jsonl.gz"


@pytest.mark.slow
@pytest.mark.skipif(not SOLUTIONS.exists(), reason="needs ../shared/data")
def test_a_verifier_and_then_the_best_beat_each_alone(tmp_path):
    """Solutions of GSM8K, with made-up rewards that know a little of who is good."""
    with gzip.open(SOLUTIONS, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    known, rng = {"6b_finetuning": 0, "175b_verification": 2}, np.random.default_rng(0)
    for row in rows:
        row["reward"] = float(known.get(row["generator"], 1) + rng.normal())
    write_jsonl(tmp_path / "in" / "0.jsonl", rows)
    right = {(row["prompt"], row["response"]) for row in rows if row["is_correct"]}

    def run(out, *steps):
        changes = {"input": {"path": str(tmp_path / "in"), "carry": ["is_correct"]}}
        manifest = run_curation(configured(tmp_path, list(steps), out, **changes), scorer=None).manifest
        kept_rows = pq.read_table(tmp_path / out / "data")["messages"].to_pylist()
        correct = np.mean([(prompt["content"], answer["content"]) in right for prompt, answer in kept_rows])
        return manifest["counts"]["kept_prompts"], correct, manifest["mean_reward"]["kept"]

    best_of_n = {"best_of_n": {"min_candidates": 1}}
    prompts, correct, _ = run("best", best_of_n)
    assert prompts == 663
    assert correct < 0.6
    both, chance = run("both", {"where": "is_correct"}, best_of_n), run("any", {"where": "is_correct"}, {"random": {}})
    assert both[:2] == chance[:2] == (441, 1.0)
    assert both[2] > chance[2] + 0.4
