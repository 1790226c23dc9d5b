"""Preferences as a corpus: both sides are scored, and pairs are kept, flipped and dropped through the whole graph."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import write_jsonl

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.inspect.inspect import inspect
from pipelines.commands.run import run_curation
from pipelines.config import InspectConfig, RunConfig
from pipelines.errors import InputError
from pipelines.report.pages.run import render
from pipelines.select import selection as selection_module
from rm.conversations import from_prompt, prompt_key


def corpus():
    """Forty pairs to eight prompts, some with equal rewards, one without a reward, one with equal sides."""
    rng = np.random.default_rng(2)
    rows = [
        {
            "prompt": f"p{n % 8}",
            "chosen": f"chosen {n}",
            "rejected": f"rejected {n}",
            "source": "ab"[n % 3 == 0],
            "rewards": [float(reward) for reward in np.float32(rng.integers(-4, 5, 2) / 4)],
            "annotator": n % 5,
        }
        for n in range(40)
    ]
    rows[5]["rewards"][1] = None
    rows[6]["rejected"] = rows[6]["chosen"]
    return rows


@pytest.fixture(params=["jsonl", "parquet"])
def configured(request, tmp_path):
    rows = corpus()
    for number in range(3):
        part, path = rows[number::3], tmp_path / "in" / f"{number}.{request.param}"
        path.parent.mkdir(exist_ok=True)
        if request.param == "jsonl":
            write_jsonl(path, part)
        else:
            pq.write_table(pa.Table.from_pylist(part), path, row_group_size=5)

    def config(rule, out="out", **output):
        return RunConfig.model_validate(
            {
                "input": {"path": str(tmp_path / "in"), "format": "preferences", "rows_per_fragment": 4},
                "scores": {"path": str(tmp_path / "scores"), "column": "rewards"},
                "select": [{"preferences": rule}],
                "output": {
                    "path": str(tmp_path / out),
                    "shape": "preference",
                    "include_columns": ["annotator"],
                    **output,
                },
                "limits": {"max_rejected_fraction": 0.2},
            }
        )

    return config


def test_pairs_are_kept_flipped_and_dropped_by_their_margins(tmp_path, configured, monkeypatch):
    rule = {"keep": "agree", "min_margin": 0.5, "flip": True, "drop": [-0.75, -0.5]}
    manifest = run_curation(configured(rule, add=["flipped", "margin"], rows_per_shard=7), scorer=None).manifest
    expected, usable = [], [row for row in corpus() if None not in row["rewards"] and row["chosen"] != row["rejected"]]
    for row in usable:
        margin = row["rewards"][0] - row["rewards"][1]
        sides = [(row["chosen"], row["rewards"][0]), (row["rejected"], row["rewards"][1])]
        if margin >= 0.5:
            expected.append((*sides[0], *sides[1], False, row["annotator"]))
        elif margin < -0.75:
            expected.append((*sides[1], *sides[0], True, row["annotator"]))
    found = pq.read_table(tmp_path / "out" / "data").to_pylist()
    made = []
    for row in found:
        sides = [(row[side][0]["content"], row[f"{side}_reward"]) for side in ("chosen", "rejected")]
        made.append((*sides[0], *sides[1], row["flipped"], row["annotator"]))
        assert row["margin"] == row["chosen_reward"] - row["rejected_reward"]
    assert sorted(made) == sorted(expected)
    assert {flipped for *_, flipped, _ in expected} == {True, False}
    counts = manifest["counts"]
    assert counts["read"] == 80 == counts["scored"] + counts["rejected_total"]
    assert manifest["rejected"] == {"equal_sides": 2, "no_reward": 1}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    judged, margins = report["preferences"], [row["rewards"][0] - row["rewards"][1] for row in usable]
    assert (judged["pairs"], judged["incomplete"]) == (38, 1)
    assert (judged["agreed"], judged["level"]) == (sum(m > 0 for m in margins), sum(m == 0 for m in margins))
    assert judged["flipped"] == sum(row[4] for row in expected)
    assert judged["kept"] == sum(not row[4] for row in expected)
    for source in judged["sources"]:
        of = [row for row in usable if row["source"] == source["name"]]
        assert source["pairs"] == len(of)
        assert source["agreed"] == sum(row["rewards"][0] > row["rewards"][1] for row in of)
    assert sum(source["flipped"] for source in judged["sources"]) == judged["flipped"]
    bins = judged["margins"]
    assert [sum(bins[name]) for name in ("kept", "flipped", "dropped")] == [
        judged["kept"],
        judged["flipped"],
        38 - judged["kept"] - judged["flipped"],
    ]
    assert judged["agreement"]["low"] < judged["agreement"]["value"] < judged["agreement"]["high"]
    page = render(manifest, report, [], None)
    assert "Agreement and flips by source" in page
    assert "Rows that lack a reward on one side, and form no pair: 1." in page
    monkeypatch.setattr(selection_module, "PARTITIONS", 1)
    run_curation(configured(rule, "again", add=["flipped", "margin"], rows_per_shard=7), scorer=None)
    for path in sorted((tmp_path / "out" / "data").iterdir()):
        assert (tmp_path / "again" / "data" / path.name).read_bytes() == path.read_bytes()


def test_what_is_explained_is_what_was_done(tmp_path, configured):
    config = configured({"flip": True})
    run_curation(config, scorer=None)
    found = explain(config, prompt_key(from_prompt("p5")).hex())
    for row in (row for row in corpus() if row["prompt"] == "p5"):
        pair = [entry for entry in found["rows"] if entry["reward"] in row["rewards"]]
        assert pair
    by_place = {}
    for entry in found["rows"]:
        by_place.setdefault((entry["file"], entry["place"]), []).append(entry)
    whole = [pair for pair in by_place.values() if all(entry["rejected"] is None for entry in pair)]
    assert len(whole) == 4  # of five rows one has no reward for its rejected side
    for pair in whole:
        margin = pair[0]["reward"] - pair[1]["reward"]
        steps = [entry["steps"][0] for entry in pair]
        assert [step["judged"] for step in steps] == ["chosen", "rejected"]
        assert [step["margin"] for step in steps] == [margin] * 2
        assert [step["flipped"] for step in steps] == [margin < 0] * 2
        words = ["kept", "paired"] if margin > 0 else ["paired", "kept"] if margin < 0 else ["dropped"] * 2
        assert [step["verdict"] for step in steps] == words
    (lone,) = (pair for pair in by_place.values() if pair not in whole)
    assert [entry["steps"][0].get("judged") for entry in lone if entry["rejected"] is None] == ["unpaired"]


def test_rankings_and_verdicts_are_corpora_too(tmp_path):
    rows = [{"prompt": f"p{n}", "responses": [f"c{n}", f"a{n}", f"b{n}"], "ranking": [3, 1, 2]} for n in range(3)]
    write_jsonl(tmp_path / "in.jsonl", [{**row, "rewards": [0.5, 9.0, 0.25]} for row in rows])
    config = {
        "input": {"path": str(tmp_path / "in.jsonl"), "format": "preferences"},
        "scores": {"column": "rewards"},
        "select": [{"preferences": {}}],
        "output": {"path": str(tmp_path / "out"), "shape": "preference"},
    }
    run_curation(RunConfig.model_validate(config), scorer=None)
    found = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in found] == [
        (f"a{n}", f"c{n}") for n in range(3)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"path": "in"}}, "select.0.preferences compares the sides of each row, and input.format is 'auto'"),
        ({"select": [{"preferences": {}}, {"best_of_n": {}}]}, "preferences must be the last step"),
        ({"output": {"path": "out"}}, "the shape preference go together"),
        ({"select": [{"preferences": {"min_probability": 0.7}}]}, "needs a temperature"),
        (
            {"select": [{"pairs": {}}], "output": {"path": "out", "shape": "preference", "add": ["flipped"]}},
            "output.add names flipped",
        ),
    ],
)
def test_what_cannot_mean_anything_is_a_configuration_error(changes, message):
    values = {
        "input": {"path": "in", "format": "preferences"},
        "scores": {"column": "rewards"},
        "select": [{"preferences": {}}],
        "output": {"path": "out", "shape": "preference"},
        **changes,
    }
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(values)


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"prompt": "p", "response": "r"}], {}, "read as preferences .input.format.: data has columns"),
        (
            [{"prompt": "p", "chosen": "a", "rejected": "b"}],
            {"input": "prompt"},
            "input.columns.input is 'prompt', and the",
        ),
        ([{"prompt": "p", "chosen": "a", "rejected": "b"}], {"chosen": "none"}, "input.columns.chosen is 'none'"),
        ([{"prompt": "p", "response": "a", "label": True}], {}, "with one response per row"),
    ],
)
def test_rows_that_are_no_preferences_end_with_one_clear_error(tmp_path, rows, columns, message):
    write_jsonl(tmp_path / "in.jsonl", [{**row, "rewards": [1, 0]} for row in rows])
    config = {
        "input": {"path": str(tmp_path / "in.jsonl"), "format": "preferences", "columns": columns},
        "scores": {"column": "rewards"},
        "select": [],
        "output": {"path": str(tmp_path / "out")},
    }
    with pytest.raises(InputError, match=message):
        run_curation(RunConfig.model_validate(config), scorer=None)


def _two_parquet_files(folder, second):
    first = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}", "source": "a", "margin": 2} for n in range(3)]
    folder.mkdir()
    for name, rows in (("0.parquet", first), ("1.parquet", second)):
        rewards = [{**row, "rewards": [1.0, 0.0]} for row in rows]
        pq.write_table(pa.Table.from_pylist(rewards), folder / name)
    return RunConfig.model_validate(
        {
            "input": {"path": str(folder), "format": "preferences"},
            "scores": {"path": str(folder.parent / "scores"), "column": "rewards"},
            "select": [{"preferences": {}}],
            "output": {"path": str(folder.parent / "out"), "shape": "preference"},
        }
    )


def test_a_parquet_file_may_lack_columns_that_its_rows_can_be_read_without(tmp_path):
    second = [{"rejected": f"r{n}", "chosen": f"c{n}", "prompt": f"p{n}"} for n in range(3, 5)]
    config = _two_parquet_files(tmp_path / "in", second)
    manifest = run_curation(config, scorer=None).manifest
    assert manifest["counts"]["scored"] == 10
    made = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert [(row["chosen"][0]["content"], row["source"]) for row in made] == [
        (f"c{n}", "a" if n < 3 else None) for n in range(5)
    ]
    key = prompt_key(from_prompt("p4")).hex()
    texts = [row["text"] for row in explain(config, key, with_text=True)["rows"]]
    assert texts == ["c4", "r4"]
    both = {"input": {"path": config.input.path, "format": "preferences"}, "data": {"path": config.input.path}}
    looked = inspect(InspectConfig.model_validate(both), shown=1)
    assert looked["corpus"]["mapping"]["preferences"] is not None


def test_a_parquet_file_without_a_column_that_a_setting_names_is_an_error(tmp_path):
    config = _two_parquet_files(tmp_path / "in", [{"prompt": "p9", "chosen": "c9", "rejected": "r9"}])
    named = {**config.input.model_dump(exclude_unset=True), "columns": {"source": "source"}}
    values = {**config.model_dump(exclude_unset=True), "input": named}
    with pytest.raises(InputError, match=r"1\.parquet has no column 'source'"):
        run_curation(RunConfig.model_validate(values), scorer=None)


def test_a_parquet_file_without_a_side_is_an_error_that_names_it(tmp_path):
    config = _two_parquet_files(tmp_path / "in", [{"prompt": "p9", "chosen": "c9", "margin": 1}])
    with pytest.raises(InputError, match=r"1\.parquet has no column 'rejected'"):
        run_curation(config, scorer=None)


def test_values_in_lists_belong_to_their_responses(tmp_path):
    rows = [
        {"prompt": f"p{n}", "responses": ["bad", "good"], "scores": [1, 5], "judge": [0.1, 0.9], "verified": [0, 1]}
        for n in range(4)
    ]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    values = {
        "input": {"path": str(tmp_path / "in"), "format": "preferences"},
        "scores": {"path": str(tmp_path / "scores"), "column": "judge"},
    }
    pairs = {"path": str(tmp_path / "pairs"), "shape": "preference"}
    run_curation(RunConfig.model_validate({**values, "select": [{"preferences": {}}], "output": pairs}), scorer=None)
    (row, *_) = pq.read_table(tmp_path / "pairs" / "data").to_pylist()
    assert row["chosen"][0]["content"] == "good"
    assert (row["chosen_reward"], row["rejected_reward"]) == pytest.approx((0.9, 0.1))
    kept = {"path": str(tmp_path / "kept"), "shape": "prompt_completion"}
    signals = {"verified": {"column": "verified"}}
    select = [{"where": "verified == 1"}]
    run_curation(
        RunConfig.model_validate({**values, "signals": signals, "select": select, "output": kept}), scorer=None
    )
    assert {row["completion"][0]["content"] for row in pq.read_table(tmp_path / "kept" / "data").to_pylist()} == {
        "good"
    }
