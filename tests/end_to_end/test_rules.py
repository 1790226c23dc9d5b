"""Every rule through the whole graph, on rewards that the corpus carries, against the obvious answer row by row."""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import TIMED, write_jsonl

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, InputError, RejectedError
from pipelines.score import score_files
from pipelines.select import prefilter, read_transform
from pipelines.select import selection as selection_module


def corpus(prompts=9, responses=5):
    """Rewards with ties; prompts of different sizes; three sources."""
    rng = np.random.default_rng(3)
    rows = []
    for p in range(prompts):
        for k in range(1 + (p + responses) % responses):
            reward = float(np.float32(rng.integers(-4, 5) / 4))
            text = f"answer {p} {k} " + "x" * int(rng.integers(1, 40))
            source = "abc"[(p + k) % 3]
            rows.append({"prompt": f"p{p}", "response": text, "reward": reward, "source": source, "generator": f"g{k}"})
    return [rows[at] for at in rng.permutation(len(rows))]


@pytest.fixture
def select(tmp_path):
    def run(rows, steps, *, name="out", files=3, **changes):
        root = tmp_path / "in"
        if not root.exists():
            for number in range(files):
                write_jsonl(root / f"{number}.jsonl", rows[number::files])
        config = RunConfig.model_validate(
            {
                "input": {"path": str(root), "rows_per_fragment": 4, **changes.pop("input", {})},
                "scores": {"path": str(tmp_path / "scores"), "column": "reward"},
                "select": steps,
                "output": {"path": str(tmp_path / name), **changes.pop("output", {})},
                **changes,
            }
        )
        return run_curation(config, scorer=None).manifest

    return run


def table(tmp_path, name="out"):
    return pq.read_table(tmp_path / name / "data").to_pylist()


def kept(tmp_path, name="out"):
    return {row["messages"][-1]["content"] for row in table(tmp_path, name)}


def tree(root: Path):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in TIMED
    }


def order(row):
    from rm.conversations import response_hash

    return (-row["reward"], response_hash(row["response"]))


def by(rows, key):
    found = defaultdict(list)
    for row in rows:
        found[row[key]].append(row)
    return [sorted(group, key=order) for group in found.values()]


def texts(rows):
    return {row["response"] for row in rows}


def test_a_column_of_rewards_needs_no_model(tmp_path, select):
    rows = [*corpus(), {"prompt": "p0", "response": "no reward", "reward": None, "source": "a", "generator": "g"}]
    rows.append({**rows[-1], "response": "not a number", "reward": "high"})
    manifest = select(rows, [{"best_of_n": {"min_candidates": 1}}], limits={"max_rejected_fraction": 0.5})
    usable = rows[:-2]
    assert kept(tmp_path) == {group[0]["response"] for group in by(usable, "prompt")}
    assert manifest["rejected"] == {"no_reward": 2}
    assert manifest["model"] == {"name": "column reward", "revision": None, "column": "reward"}
    best = [group[0]["reward"] for group in by(usable, "prompt")]
    assert manifest["mean_reward"]["kept"] == pytest.approx(sum(best) / len(best), abs=1e-12)
    longest = [
        sorted(g, key=lambda row: (-len(row["response"]), order(row)[1]))[0]["reward"] for g in by(usable, "prompt")
    ]
    assert manifest["controls"]["longest"] == pytest.approx(sum(longest) / len(longest), abs=1e-12)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rewards_inside_the_records_of_responses_are_selected_on(tmp_path, kind):
    rows = [
        {
            "instruction": f"p{n}",
            "completions": [{"response": f"r{n}{k}", "overall_score": (n * k) % 5 / 2} for k in range(4)],
        }
        for n in range(1, 6)
    ]
    rows[2]["completions"][1]["overall_score"] = None
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_jsonl(path, rows)
    values = {
        "input": {"path": str(path)},
        "scores": {"column": "completions.overall_score"},
        "select": [{"best_of_n": {}}],
        "output": {"path": str(tmp_path / "out")},
    }
    manifest = run_curation(
        RunConfig.model_validate({**values, "limits": {"max_rejected_fraction": 0.5}}), scorer=None
    ).manifest
    assert manifest["rejected"] == {"no_reward": 1}
    usable = [
        {"prompt": row["instruction"], "response": one["response"], "reward": one["overall_score"]}
        for row in rows
        for one in row["completions"]
        if one["overall_score"] is not None
    ]
    assert kept(tmp_path) == {group[0]["response"] for group in by(usable, "prompt")}
    other = {**values, "scores": {"column": "completions.response"}, "output": {"path": str(tmp_path / "other")}}
    with pytest.raises(InputError, match=r"scores.column is 'completions.response', and"):
        run_curation(RunConfig.model_validate(other), scorer=None)


def test_changed_rewards_are_noticed(tmp_path, select):
    rows = corpus()
    select(rows, [])
    changed = [{**row, "reward": -row["reward"]} for row in rows]
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", changed[number::3])
    select(rows, [{"top": {"rows": 4}}], name="again")
    assert {row["reward"] for row in table(tmp_path, "again")} <= {
        row["reward"] for row in sorted(changed, key=order)[:4]
    }


@pytest.mark.parametrize("first", [True, False], ids=["first", "after-best-of-n"])
@pytest.mark.parametrize("per", [None, "source"])
def test_top(tmp_path, select, first, per):
    rows = corpus(12)
    before = [] if first else [{"best_of_n": {"keep": 2, "min_candidates": 1}}]
    top = {"fraction": 0.5} if per is None else {"fraction": 0.4, "per": per, "quotas": {"a": 3}, "min_rows": 2}
    manifest = select(rows, [*before, {"top": top}])
    left = rows if first else [row for group in by(rows, "prompt") for row in group[:2]]
    expected = set()
    for group in [sorted(left, key=order)] if per is None else by(left, per):
        count = len(group) // 2 if per is None else 3 if group[0]["source"] == "a" else max(2, int(0.4 * len(group)))
        expected |= texts(group[:count])
    assert kept(tmp_path) == expected
    assert manifest["steps"][-1]["rows"] == len(expected)
    assert manifest["counts"]["prompts"] == (None if first else 12)
    assert manifest["warnings"] == []  # a judge's scores are comparable


def test_two_cuts_with_rules_between_and_behind(tmp_path, select):
    rows = corpus(14)
    steps = [
        {"threshold": {"min_reward": -0.5}},
        {"top": {"fraction": 0.8}},
        {"best_of_n": {"keep": 2, "min_candidates": 2}},
        {"top": {"rows": 9}},
        {"drop_prompts": {"min_candidates": 2}},
    ]
    manifest = select(rows, steps)
    left = sorted((row for row in rows if row["reward"] >= -0.5), key=order)
    counts = [len(left)]
    left = left[: int(0.8 * len(left) + 1e-9)]
    counts.append(len(left))
    left = [row for group in by(left, "prompt") if len(group) >= 2 for row in group[:2]]
    counts.append(len(left))
    left = sorted(left, key=order)[:9]
    counts.append(len(left))
    left = [row for group in by(left, "prompt") if len(group) >= 2 for row in group]
    counts.append(len(left))
    assert kept(tmp_path) == texts(left)
    assert [step["rows"] for step in manifest["steps"]] == counts
    assert [step["rule"] for step in manifest["steps"]] == ["threshold", "top", "best_of_n", "top", "drop_prompts"]


@pytest.mark.parametrize("files", [1, 4], ids=["same-file", "other-files"])
def test_pairs_become_preferences(tmp_path, select, files):
    rows = corpus()
    manifest = select(rows, [{"pairs": {"min_gap": 0.5}}], files=files, output={"shape": "preference"})
    expected = {}
    for group in by(rows, "prompt"):
        if group[0]["reward"] - group[-1]["reward"] >= 0.5:
            worst = [row for row in group if row["reward"] == group[-1]["reward"]][-1]
            expected[group[0]["prompt"]] = (group[0], worst)
    found = table(tmp_path)
    assert len(found) == len(expected) == manifest["counts"]["kept"] > 3
    for row in found:
        chosen, rejected = expected[row["prompt"][0]["content"]]
        assert row["chosen"] == [{"role": "assistant", "content": chosen["response"]}]
        assert row["rejected"] == [{"role": "assistant", "content": rejected["response"]}]
        assert (row["chosen_reward"], row["rejected_reward"]) == (chosen["reward"], rejected["reward"])


@pytest.mark.parametrize("files", [1, 3])
def test_several_pairs_of_a_prompt_have_the_best_that_fits_and_different_texts(tmp_path, select, files):
    rows = corpus()
    step = {"pairs": {"chosen": {"where": 'source != "a"'}, "rejected": {"sigma": -1}, "pairs_per_prompt": 2}}
    output = {"shape": "preference", "rows_per_shard": 4, "add": ["rank"]}
    manifest = select(rows, [step], files=files, output=output)
    expected = []
    for group in by(rows, "prompt"):
        able = [row for row in group if row["source"] != "a"]
        rewards = np.array([row["reward"] for row in group])
        target = rewards.mean() - rewards.std()
        fits = [row for row in group if able and row["reward"] < able[0]["reward"]]
        ranked = sorted(fits, key=lambda row: (abs(row["reward"] - target), row["reward"], order(row)))
        rank = group.index(able[0]) + 1 if able else 0
        expected += [(rank, able[0]["response"], row["response"], row["reward"]) for row in ranked[:2]]
    found = table(tmp_path)
    given = [
        (row["rank"], row["chosen"][0]["content"], row["rejected"][0]["content"], row["rejected_reward"])
        for row in found
    ]
    assert sorted(given) == sorted(expected)
    assert manifest["counts"]["kept"] == len(found) > len({row["prompt_id"] for row in found}) > 3


def test_length_correction_takes_the_slope_out(tmp_path, select):
    rng = np.random.default_rng(0)
    rows = []
    for n in range(400):
        length = int(rng.integers(5, 200))
        rows.append(
            {"prompt": f"p{n % 40}", "response": f"{n:04d}" + "x" * length, "reward": 0.05 * length + rng.normal() / 9}
        )
    manifest = select(rows, [{"length_correction": None}, {"top": {"fraction": 0.25}}])
    found = table(tmp_path)
    lengths = [len(row["messages"][-1]["content"]) for row in found]
    everything = [len(row["response"]) for row in rows]
    assert abs(np.mean(lengths) - np.mean(everything)) < 15  # 1.5 standard errors of 100 rows are 9
    by_text = {row["response"]: np.float32(row["reward"]) for row in rows}
    assert all(row["reward"] == by_text[row["messages"][-1]["content"]] for row in found), "the model's own reward"
    points = manifest["length_correction"]
    slope = (points["reward"][-1] - points["reward"][0]) / (points["length"][-1] - points["length"][0])
    assert slope == pytest.approx(0.05, rel=0.05)
    select(rows, [{"top": {"fraction": 0.25}}], name="plain")
    assert np.mean([len(row["messages"][-1]["content"]) for row in table(tmp_path, "plain")]) > np.mean(lengths) + 50


def test_reference_ranks_margins_and_included_columns(tmp_path, select):
    rows = corpus()
    steps = [{"threshold": {"reference": "generator=g1", "min_probability": 0.6, "temperature": 0.5}}]
    output = {"add": ["rank", "margin"], "include_columns": ["generator", "reward"]}
    select(rows, steps, input={"carry": ["generator"]}, output=output)
    found = {row["messages"][-1]["content"]: row for row in table(tmp_path)}
    expected = {}
    for group in by(rows, "prompt"):
        reference = [row["reward"] for row in group if row["generator"] == "g1"]
        for rank, row in enumerate(group):
            if reference and 1 / (1 + math.exp(-(row["reward"] - reference[0]) / 0.5)) >= 0.6:
                margin = row["reward"] - group[rank + 1]["reward"] if rank + 1 < len(group) else None
                expected[row["response"]] = (rank + 1, margin, row["generator"])
    assert {text: (row["rank"], row["margin"], row["generator"]) for text, row in found.items()} == expected
    assert len(expected) > 3
    with pytest.raises(InputError, match=r"include_columns names 'nowhere', and the input has prompt"):
        select(rows, [], name="o2", output={"include_columns": ["nowhere"]})


STEPS = [
    [{"best_of_n": {"keep": 2, "min_margin": 0.25}}, {"top": {"fraction": 0.7, "per": "source"}}],
    [{"length_correction": None}, {"top": {"fraction": 0.6, "per": "source", "min_rows": 2}}, {"random": {"keep": 2}}],
    [{"pairs": {"rejected": "random"}}],
    [{"pairs": {"rejected": {"sigma": -1}, "pairs_per_prompt": 3}}],
]


@pytest.mark.parametrize("steps", STEPS, ids=["best-top", "length-top-random", "pairs", "several-pairs"])
def test_neither_partitions_nor_the_order_in_which_files_are_listed_change_a_byte(tmp_path, select, monkeypatch, steps):
    rows = corpus(12)
    rows += [{**rows[0], "prompt": f"tie {n}", "response": "tied"} for n in range(6)] * 2
    output = {"shape": "preference" if "pairs" in steps[0] else "messages", "rows_per_shard": 4}
    paths = [str(tmp_path / "in" / f"{number}.jsonl") for number in range(3)]
    select(rows, steps, output=output, input={"path": paths})
    for partitions, order in ((1, (2, 0, 1)), (64, (2, 1, 0))):
        monkeypatch.setattr(selection_module, "PARTITIONS", partitions)
        select(rows, steps, name=f"by-{partitions}", output=output, input={"path": [paths[at] for at in order]})
        assert tree(tmp_path / f"by-{partitions}") == tree(tmp_path / "out")


def test_all_rejected_and_empty_input(tmp_path, select):
    rows = [{"prompt": "p", "response": f"r{n}", "reward": None} for n in range(3)]
    with pytest.raises(RejectedError, match="no_reward 3"):
        select(rows, [])
    for step in (
        {"best_of_n": {}},
        {"top": {"fraction": 0.5}},
        {"length_correction": None},
        {"drop_prompts": {"min_best": 0}},
    ):
        name = next(iter(step))
        manifest = select(rows, [step], name=name, limits={"max_rejected_fraction": 1.0})
        assert (manifest["counts"]["kept"], manifest["counts"]["scored"]) == (0, 0)
        assert table(tmp_path, name) == []


def test_unicode_forms_of_a_prompt_are_one_group_and_keep_their_text(tmp_path, select):
    rows = [{"prompt": text, "response": f"r{n}", "reward": n} for n, text in enumerate(["caf\u00e9", "cafe\u0301"])]
    manifest = select(rows, [{"best_of_n": {}}])
    assert manifest["counts"]["prompts"] == 1
    assert [row["messages"][0]["content"] for row in table(tmp_path)] == ["cafe\u0301"]


def test_one_giant_group_of_equal_rewards(tmp_path, select):
    rows = [{"prompt": "p", "response": f"r{n}", "reward": 0.5} for n in range(300)]
    select(rows, [{"best_of_n": {"keep": 7}}])
    assert kept(tmp_path) == texts(sorted(rows, key=order)[:7])
    select(rows, [{"top": {"rows": 7}}], name="top")
    assert kept(tmp_path, "top") == kept(tmp_path)


def test_a_damaged_score_file_ends_the_selection(tmp_path, select):
    select(corpus(), [])
    path = next((tmp_path / "scores").rglob("*.parquet"))
    footer = score_files.read(str(path))[1]
    path.write_bytes(path.read_bytes()[:200])
    from pipelines.errors import StorageError

    with pytest.raises(StorageError, match="gone or damaged"):
        score_files.read_columns(str(path), ["reward"], footer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"select": [{"top": {"rows": 3, "per": "generator"}}]},
            r"names the column 'generator'.*input\.carry=\[generator\]",
        ),
        ({"select": [{"top": {"tokens": 3}}]}, "counted by a reward model's tokenizer"),
        ({"select": [{"best_of_n": {"min_probability": 0.7}}]}, "needs a temperature"),
        ({"select": [{"best_of_n": {}}, {"length_correction": {}}]}, "must be the first step"),
        ({"select": [{"pairs": {}}, {"best_of_n": {}}]}, "must be the last step"),
        ({"select": [{"pairs": {}}]}, r"pairs \(or preferences\) and the shape preference go together"),
        ({"select": [{"top": {}}]}, "exactly one of fraction, rows and tokens"),
        ({"select": [{"top": {"rows": 3, "min_rows": 1}}]}, "no effect without per"),
        ({"select": [{"threshold": {"min_reward": 1, "min_z": 1}}]}, "exactly one of min_reward, reference and min_z"),
        ({"select": [{"threshold": {"min_reward": 1, "temperature": 2}}]}, "no effect without reference"),
        ({"scores": {}}, "give one of them"),
        ({"model": {"path": "m"}}, "give one of them"),
    ],
)
def test_what_cannot_mean_anything_is_a_configuration_error(changes, message):
    values = {"input": {"path": "in"}, "scores": {"column": "reward"}, "output": {"path": "out"}, **changes}
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(values)


def test_probabilities_come_from_the_models_calibration(tmp_path, make_config, stub_model):
    from support.stubs import StubFactory, stub_reward

    from rm.conversations import from_prompt

    rows = [{"prompt": f"p{n % 6}", "response": f"r{n}"} for n in range(24)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    steps = [{"best_of_n": {"min_probability": 0.7}}]
    with pytest.raises(ConfigError, match=r"select\.0\.best_of_n needs the temperature.*bestkept evaluate"):
        run_curation(make_config(path, select=steps), scorer=StubFactory())
    calibration = stub_model / "calibration.json"
    calibration.write_text(json.dumps({"temperature": 0.25}))
    try:
        config = make_config(path, select=steps, output={"add": ["probability"]})
        manifest = run_curation(config, scorer=StubFactory()).manifest
    finally:
        calibration.unlink()
    assert manifest["selection"]["temperature"] == 0.25
    expected = {}
    for p in range(6):
        rewards = sorted((float(stub_reward(from_prompt(f"p{p}"), f"r{n}")) for n in range(p, 24, 6)), reverse=True)
        probability = 1 / (1 + math.exp(-(rewards[0] - rewards[1]) / 0.25))
        if probability >= 0.7:
            expected[f"p{p}"] = probability
    found = {row["messages"][0]["content"]: row["probability"] for row in table(tmp_path)}
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < len(expected) < 6


@pytest.mark.parametrize("held", [0, 6, 20])
@pytest.mark.parametrize("rule", [{"best_of_n": {"keep": 2, "min_candidates": 1}}, {"threshold": {"min_z": 0.1}}])
def test_what_a_bundle_may_hold_changes_no_byte(tmp_path, select, monkeypatch, held, rule):
    rows = corpus(prompts=12)
    select(rows, [rule], name="plain")
    monkeypatch.setattr(read_transform, "_BLOCK_ROWS", 3)
    monkeypatch.setattr(read_transform, "_HELD_ROWS", held)
    monkeypatch.setattr(prefilter, "_MOST_REMAINING", np.inf)
    released = []
    pack = read_transform._pack
    monkeypatch.setattr(read_transform, "_pack", lambda *args: released.append(args[0]) or pack(*args))
    select(rows, [rule], name="crowded")
    assert len(released) > len(set(released)), "nothing had to go before the end"
    assert tree(tmp_path / "plain" / "data") == tree(tmp_path / "crowded" / "data")
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("plain", "crowded")]
    assert manifests[0] == manifests[1]


def test_prompts_are_dropped_by_quantiles_of_all_prompts(tmp_path, make_config, monkeypatch):
    from support.stubs import StubFactory, stub_reward

    from pipelines.commands.explain.explain_transform import explain
    from rm.conversations import from_prompt, prompt_key

    rng = np.random.default_rng(4)
    rows = [
        {"prompt": f"p{p}", "response": f"r{p} {k}" + " so" * int(rng.integers(9))}
        for p in range(20)
        for k in range(1 + p % 4)
    ]
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
    rip = {
        "min_worst_reward": {"quantile": 0.4},
        "min_worst_tokens": {"quantile": 0.3},
        "max_spread": {"quantile": 0.75},
    }
    steps = [{"drop_prompts": {**rip, "min_candidates": 2}}, {"best_of_n": {"keep": 1}}]
    path, expected, trees = str(tmp_path / "in"), set(), []
    prompts = defaultdict(list)
    for row in rows:
        reward = float(stub_reward(from_prompt(row["prompt"]), row["response"]))
        prompts[row["prompt"]].append((reward, len(row["response"].split()), row["response"]))
    groups = {name: sorted(group) for name, group in prompts.items() if len(group) > 1}

    def least(values, share):
        return sorted(values)[math.ceil(share * len(values)) - 1]

    worst = least([group[0][0] for group in groups.values()], 0.4)
    tokens = least([group[0][1] for group in groups.values()], 0.3)
    spread = least([np.float32(group[-1][0] - group[0][0]) for group in groups.values()], 0.75)
    for group in groups.values():
        if group[0][0] >= worst and group[0][1] >= tokens and np.float32(group[-1][0] - group[0][0]) <= spread:
            expected.add(group[-1][2])
    for partitions in (16, 1, 64):
        monkeypatch.setattr(selection_module, "PARTITIONS", partitions)
        name = f"by-{partitions}"
        config = make_config(
            path, select=steps, output={"path": str(tmp_path / name)}, scores={"path": str(tmp_path / "s")}
        )
        run_curation(config, scorer=StubFactory())
        trees.append(tree(tmp_path / name))
    assert trees[0] == trees[1] == trees[2]
    assert kept(tmp_path, name) == expected != set()
    verdict = explain(config, prompt_key(from_prompt("p3")).hex())["rows"][0]["steps"][0]
    assert {key: verdict[key] for key in rip} == {
        "min_worst_reward": pytest.approx(worst),
        "min_worst_tokens": tokens,
        "max_spread": pytest.approx(float(spread)),
    }
    assert (verdict["worst"], verdict["worst_tokens"]) == (pytest.approx(groups["p3"][0][0]), groups["p3"][0][1])
    with pytest.raises(ValueError, match="min_worst_tokens is counted by a reward model's tokenizer"):
        RunConfig.model_validate(
            {"input": {"path": path}, "scores": {"column": "reward"}, "select": steps, "output": {"path": "out"}}
        )
