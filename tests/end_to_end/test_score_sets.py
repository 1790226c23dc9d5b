"""`scores.also`: score files of other runs are read where the run's own directory has none, and never written to."""

from __future__ import annotations

import shutil

import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory, loads, scored_rows

from pipelines.commands.run import run_curation, run_scoring
from pipelines.errors import InputError


@pytest.fixture
def corpus(tmp_path):
    """Three files, scored by two runs into directories of their own: a and b by the one, b and c by the other."""
    rows = corpus_rows(12)
    for number, name in enumerate("abc"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows[number::3])
    return tmp_path / "in" / "*.jsonl"


@pytest.fixture
def made(tmp_path, corpus, make_config):
    def make(name, *, path="[abc].jsonl", scores="own", also=(), **changes):
        places = {"path": str(tmp_path / scores), "also": [str(tmp_path / other) for other in also]}
        output = {"path": str(tmp_path / name)}
        return make_config(
            tmp_path / "in" / path, scores=places, output=output, input={"rows_per_fragment": 4}, **changes
        )

    return make


def data(tmp_path, name):
    return {path.name: path.read_bytes() for path in (tmp_path / name / "data").iterdir()}


def files(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*.parquet"))}


def test_several_runs_are_selected_from_at_once(tmp_path, made):
    log = tmp_path / "log"
    run_curation(made("whole", scores="whole-scores"), scorer=StubFactory(log=str(log)))
    total = scored_rows(log)
    run_scoring(made("x", path="[ab].jsonl", scores="one"), scorer=StubFactory())
    run_scoring(made("x", path="[bc].jsonl", scores="two"), scorer=StubFactory())
    before = files(tmp_path / "one"), files(tmp_path / "two")
    with pytest.raises(InputError, match="not scored yet") as caught:
        run_curation(made("out", scores="one"), scorer=None)
    assert str(tmp_path / "one") in caught.value.message
    run_curation(made("out", scores="one", also=["two"]), scorer=None)
    assert data(tmp_path, "out") == data(tmp_path, "whole")
    run_curation(made("third", scores="new", also=["one", "two"]), scorer=StubFactory(log=str(log)))
    assert data(tmp_path, "third") == data(tmp_path, "whole")
    assert (scored_rows(log), loads(log)) == (total, 1), "nothing was scored again, and no model loaded"
    assert (files(tmp_path / "one"), files(tmp_path / "two")) == before
    assert not files(tmp_path / "new")


def test_only_what_no_run_has_is_scored(tmp_path, made):
    log = tmp_path / "log"
    run_scoring(made("x", path="[ab].jsonl", scores="one"), scorer=StubFactory())
    run_curation(made("out", scores="own", also=["one"]), scorer=StubFactory(log=str(log)))
    own = len((tmp_path / "in" / "c.jsonl").read_text().splitlines())
    assert scored_rows(log) == own
    assert len(files(tmp_path / "own")) == -(-own // 4)
    with pytest.raises(InputError, match="not scored yet") as caught:
        run_curation(made("other", scores="nothing", also=["one"]), scorer=None)
    assert f"looked in {tmp_path / 'nothing'}" in caught.value.message
    assert str(tmp_path / "one") in caught.value.message


def test_scores_of_other_text_and_of_another_version_are_told_apart(tmp_path, made):
    """A file that was only touched is found by its content in any directory; one that has changed is scored."""
    log = tmp_path / "log"
    run_scoring(made("x", scores="one"), scorer=StubFactory())
    (tmp_path / "in" / "a.jsonl").touch()
    run_curation(made("touched", also=["one"]), scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == 0
    rows = corpus_rows(30)[-5:]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    run_curation(made("changed", also=["one"]), scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == len(rows)
    shutil.rmtree(tmp_path / "one")
    run_curation(made("gone", also=["one"]), scorer=StubFactory(log=str(log)))
    assert scored_rows(log) > len(rows), "what lay there alone is scored"


def test_a_damaged_file_of_another_run_is_left_as_it_is(tmp_path, made):
    log = tmp_path / "log"
    run_scoring(made("x", scores="one"), scorer=StubFactory())
    damaged = min((tmp_path / "one").rglob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-40])
    cut = damaged.read_bytes()
    run_curation(made("out", also=["one"]), scorer=StubFactory(log=str(log)))
    assert 0 < scored_rows(log) <= 4
    assert damaged.read_bytes() == cut
    assert len(files(tmp_path / "own")) == 1
