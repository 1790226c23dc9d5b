"""Runs whose units are dealt out in parts of one fragment, as engines of Beam get them where a fragment takes ten minutes.

What they give is what whole units give, to the byte.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import NamedFactory, StubFactory, StubScorer, forget_units, save_named_model, scored_rows

from pipelines import curate
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.corpus import decoded_units, files, rewritten_copy, split_units
from pipelines.plan import make_plans
from pipelines.runtime import progress
from pipelines.score import transform
from pipelines.score.transform import ScoreCorpus, ScoreUnits, SplitUnits
from pipelines.score.unit_scores import score_directories, scores_path


@pytest.fixture
def parts(monkeypatch):
    """Deals units out in parts from now on; the list of (unit, stripe, stripes) that were."""
    dealt: list[tuple[int, int, int]] = []

    def begin() -> list[tuple[int, int, int]]:
        def finely(*arguments, **settings):
            return ScoreCorpus(*arguments, **{**settings, "element_secs": 1e-12})

        def noted(file_number, unit, plan, most_bytes):
            found = stripes_of(file_number, unit, plan, most_bytes)
            dealt.extend((fields[0], *stripe) for _, fields, stripe in found)
            return found

        stripes_of = transform.stripes_of
        monkeypatch.setattr(curate, "ScoreCorpus", finely)
        monkeypatch.setattr(transform, "stripes_of", noted)
        progress.reset()
        return dealt

    forget_units()
    yield begin
    forget_units()


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in TIMED and path.parent.name != "plans"  # which names the place of copies
    }


def lines(root: Path) -> None:
    """Plain ones and compressed ones."""
    rows = corpus_rows(12, 5)
    root.mkdir()
    write_jsonl(root / "b.jsonl", [*rows[:40], {"prompt": "p", "response": ""}, {"broken": 1}])
    (root / "c.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows[40:]).encode()))


@pytest.mark.slow
def test_an_ensemble_with_measured_texts_and_a_rewritten_copy(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(files, "LARGE_BYTES", 100)
    monkeypatch.setattr(rewritten_copy, "PART_ROWS", 9)
    lines(tmp_path / "in")
    models = [{"path": str(save_named_model(tmp_path / "models" / name))} for name in ("anna", "bo")]
    steps = [{"near_duplicates": {"of": "response"}}, {"best_of_n": {"keep": 2}}]
    settings = {"select": steps, "limits": {"max_rejected_fraction": 0.5}}

    def run(name: str):
        places = {
            "input": {"path": str(tmp_path / "in"), "rows_per_fragment": 3},
            "output": {"path": str(tmp_path / name)},
        }
        config = RunConfig.model_validate({**settings, **places, "model": models})
        return run_curation(config, scorer=NamedFactory(str(tmp_path / f"{name}.log")))

    progress.reset()
    whole = run("whole").manifest
    before = progress.current()
    dealt = parts()
    assert run("parts").manifest["counts"] == whole["counts"]
    assert max(stripes for _, _, stripes in dealt) > 2
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    counts = whole["counts"]
    assert counts["read"] == counts["scored"] + sum(whole["rejected"].values()) == 62
    now = progress.current()
    assert (now.published, now.fragments) == (before.published, before.fragments)
    assert (now.published, now.found) == (2 * counts["scored"], 0)


def test_a_run_that_goes_on_scores_what_is_missing(tmp_path, make_config, parts):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(corpus_rows(12, 5)), tmp_path / "in" / "a.parquet", row_group_size=40)
    settings = {"input": {"rows_per_fragment": 3}}
    config = make_config(tmp_path / "in", **settings)
    run_curation(config, scorer=StubFactory())
    expected = tree(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").unlink()
    scores = sorted(path for path in (tmp_path / "out" / "scores").rglob("*.parquet"))
    for path in scores[::4]:
        path.unlink()
    parts()
    run_curation(config, scorer=StubFactory(log=str(tmp_path / "log")))
    assert tree(tmp_path / "out") == expected
    now = progress.current()
    assert (now.fragments, now.fragments - now.found) == (len(scores), len(scores[::4]))
    assert scored_rows(tmp_path / "log") == now.published


@pytest.mark.parametrize("is_held", [False, True])
def test_another_run_in_the_process_reads_what_has_changed(tmp_path, make_config, parts, monkeypatch, request, is_held):
    parts()
    if is_held:
        decoded_units.hold()
        request.addfinalizer(decoded_units.release)
    for round, word in enumerate(("old", "new")):
        texts = {"prompt": [f"p {row % 9}" for row in range(40)], "response": [f"{word} {row}" for row in range(40)]}
        path = tmp_path / "in.parquet"
        pq.write_table(pa.table(texts), path)
        os.utime(path, ns=(0, 10**15 + round))  # often it has the same size, and hardly another time
        for name, deal in (("parts", curate.ScoreCorpus), ("whole", ScoreCorpus)):
            monkeypatch.setattr(curate, "ScoreCorpus", deal)
            config = make_config(path, input={"rows_per_fragment": 3}, output={"path": str(tmp_path / name / word)})
            assert run_curation(config, scorer=StubFactory()).manifest["counts"]["read"] == 40
            assert bool(decoded_units._units) == is_held
        monkeypatch.undo()
        parts()
        assert tree(tmp_path / "parts" / word) == tree(tmp_path / "whole" / word)


def test_a_unit_that_breaks_is_skipped_once_however_many_parts_it_has(tmp_path, make_config, parts, caplog):
    rows = corpus_rows(40, 5)
    (tmp_path / "in").mkdir()
    write_jsonl(tmp_path / "in" / "a.jsonl", rows[:20])
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows[20:]).encode())
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(whole[: len(whole) * 2 // 3])
    settings = {"limits": {"skip_bad_files": True}, "input": {"rows_per_fragment": 3}}
    outputs = []
    for name in ("whole", "parts"):
        if name == "parts":
            dealt = parts()
        config = make_config(tmp_path / "in", **settings, output={"path": str(tmp_path / name)})
        caplog.clear()
        outputs.append(run_curation(config, scorer=StubFactory()).manifest)
        assert caplog.text.count("(skipped)") == 1
    assert max(stripes for _, _, stripes in dealt) > 1
    assert outputs[0] == outputs[1]
    assert [file["key"] for file in outputs[1]["skipped_files"]] == ["b.jsonl.gz"]
    assert tree(tmp_path / "parts" / "data") == tree(tmp_path / "whole" / "data")


def write(root, word="", rows=60):
    """Write a file with units of 30 rows."""
    texts = {name: [f"{name} {word} {n}" for n in range(rows)] for name in ("prompt", "response")}
    pq.write_table(pa.table(texts), root / "in.parquet", row_group_size=30)


def test_units_stay_whole_on_one_machine(tmp_path, make_config, monkeypatch):
    dealt, stripes_of = [], transform.stripes_of
    monkeypatch.setattr(curate, "ELEMENT_SECS", 1e-12)
    monkeypatch.setattr(transform, "stripes_of", lambda *given: dealt.extend(stripes_of(*given)) or stripes_of(*given))
    write(tmp_path)
    run_curation(make_config(tmp_path / "in.parquet", input={"rows_per_fragment": 3}), scorer=StubFactory())
    assert [part[2] for part in dealt] == [(0, 1)] * 2


def test_a_unit_that_is_scored_is_one_element(tmp_path, make_config, monkeypatch):
    write(tmp_path)
    config = make_config(tmp_path / "in.parquet", input={"rows_per_fragment": 3})
    plans, where = make_plans(config), score_directories(config)
    path, scorer, looked = plans.save(scores_path(config)).members[0], StubScorer(), []
    monkeypatch.setattr(transform, "bytes_in", lambda *given: looked.append(given) or 1)
    split = SplitUnits(path, where, config.limits, None, 1e-12)
    assert len(split.work(0)) == 20
    score = ScoreUnits(path, where, lambda _: scorer)
    list(score.begin_unit(0, split_units(plans.whole.files[0])[0]).score_files())
    assert [part[2] for part in split.work(0)] == [(0, 1), *((stripe, 10) for stripe in range(10))]
    assert len(looked) == 1


def test_a_file_that_changes_between_stripes_is_logged_once(tmp_path, make_config, caplog):
    write(tmp_path, "old", 30)
    config = make_config(tmp_path / "in.parquet", input={"rows_per_fragment": 3}, limits={"skip_bad_files": True})
    plans, scorer = make_plans(config), StubScorer()
    path, [unit] = plans.save(scores_path(config)).members[0], split_units(plans.whole.files[0])
    for stripes in ([0], [1, 2]):  # of two processes
        forget_units()
        score = ScoreUnits(path, score_directories(config), lambda _: scorer, limits=config.limits)
        for stripe in stripes:
            list(score.process((0, tuple(unit), (stripe, 3))))
        list(score.finish_bundle())
        write(tmp_path, "new", 31)
    assert caplog.text.count("(skipped)") == 1
