"""What whoever uses an output must know of it: said once before or after the work, and in manifest, card and report."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from support.corpora import corpus_rows, write_jsonl

from pipelines.commands.run import default_scorer, run_curation
from pipelines.finish.manifest import warnings_of


@pytest.mark.parametrize(
    ("steps", "comparable", "cut", "splits", "expected"),
    [
        ([{"best_of_n": {}}], False, 0, {}, []),
        ([{"best_of_n": {}}], False, 10, {}, []),  # one in a hundred, to the row
        ([{"best_of_n": {}}], False, 11, {}, ["11 of 1,000 scored responses (1.1%) did not fit"]),
        ([{"top": {"rows": 3}}], False, 0, {}, ["top compares rewards of different prompts"]),
        ([{"top": {"rows": 3}}], True, 0, {"train": 3, "test": 0}, ["the split test has no rows"]),
        ([{"top": {"rows": 3}}], False, 999, {"train": 0, "test": 1}, ["top", "999 of 1,000", "the split train"]),
    ],
)
def test_what_is_warned_of(make_config, steps, comparable, cut, splits, expected):
    counts = {"truncated": cut, "scored": 1000}
    config, plan = make_config("x", select=steps), SimpleNamespace(comparable=comparable, signals={})
    found = list(warnings_of(config, plan, {"counts": counts, "splits": splits}))
    assert len(found) == len(expected)
    assert all(warning.startswith(words) for warning, words in zip(found, expected, strict=True))


def test_nothing_scored_is_nothing_cut(make_config):
    plan = SimpleNamespace(comparable=True, signals={})
    assert list(warnings_of(make_config("x"), plan, {"counts": {"truncated": 0, "scored": 0}})) == []


def test_cut_responses_are_said_once_and_written_down(tmp_path, encoder, make_config, caplog):
    rows = [{**row, "response": f"{row['response']} " + "word " * 99} for row in corpus_rows(3, 2)]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    config = make_config(tmp_path / "in", model={"path": str(encoder), "max_length": 32})
    with caplog.at_level("WARNING", logger="pipelines"):
        run_curation(config, scorer=default_scorer(config))
    words = "6 of 6 scored responses (100.0%) did not fit into model.max_length"
    assert caplog.text.count(words) == 1
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["warnings"][0].startswith(words)
    for name in ("README.md", "report.html"):
        assert words in (tmp_path / "out" / name).read_text()
