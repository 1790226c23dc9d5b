"""Side files through the graph: made with the score files of any way to score, or later without a model; found again, cleaned."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import NamedFactory, StubFactory, save_named_model, scored_rows

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.config.duplicates import signature_settings
from pipelines.corpus import split_units
from pipelines.errors import InputError
from pipelines.plan import make_plans, with_absolute_paths
from pipelines.score import score_files
from pipelines.score.minhash import pack, prompt_text, signatures_of
from pipelines.score.score_files import ScoreFile
from pipelines.score.unit_scorer import UnitScorer
from pipelines.score.unit_scores import score_directories
from pipelines.score.work import CorpusShard

MEASURES = (signature_settings("prompt", 3), signature_settings("response", 2))
PLACES = ["row", "response_index", "response_hash"]
COLUMNS = ["minhash.prompt.3", "minhash.response.2"]


@pytest.fixture
def measured(monkeypatch):
    monkeypatch.setattr(RunConfig, "measures", property(lambda config: MEASURES))


@pytest.fixture
def corpus(tmp_path) -> Path:
    rows: list[Any] = corpus_rows(6, 3)
    rows[4]["response"] = None
    rows[5]["prompt"] = ""
    for number in range(2):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::2])
    with gzip.open(tmp_path / "in" / "2.jsonl.gz", "wt") as file:
        file.write('{"prompt": "last", "response": "one"}\n')
    return tmp_path / "in"


@pytest.fixture
def make(tmp_path, configure, corpus):
    def config(**changes: Any) -> RunConfig:
        given = {"input": {"rows_per_fragment": 3}, "limits": {"max_rejected_fraction": 1.0}, **changes}
        return configure(tmp_path, corpus, **given)

    return config


def descriptors(config: RunConfig) -> list[ScoreFile]:
    """The descriptors of all fragments, read from what is on disk."""
    config = with_absolute_paths(config)
    plan = make_plans(config).whole
    files = []
    for number, file in enumerate(plan.files):
        for unit in split_units(file):
            scorer = UnitScorer(plan, score_directories(config), None, read_only=True)
            files += scorer.score_unit(number, unit, scorer.read_leading(number, unit))
    return files


def assert_whole(config: RunConfig) -> None:
    """Every score file has both side files, row by row those of its texts."""
    plan = make_plans(with_absolute_paths(config)).whole
    seen = 0
    for file in descriptors(config):
        table = score_files.read_joined(file, ["row", "response_index", "response_hash", "reward", *COLUMNS])
        assert [side.columns for side in file.sides] == [(name,) for name in COLUMNS]
        sides = [score_files.read(side.path) for side in file.sides]
        for content in sides:
            assert content is not None
            assert content[0].select(PLACES).equals(table.select(PLACES))
            assert content[1].content_hash == file.footer.content_hash
        unit = next(u for u in split_units(plan.files[file.file]) if u.number == file.footer.unit)
        fragment = next(f for f in plan.fragments(plan.files[file.file], unit) if f.index == file.footer.fragment)
        texts = [(row.parsed.prompt, text) for row in fragment.rows for text in row.parsed.responses]
        for column, words, pick in (
            (COLUMNS[0], 3, lambda prompt, text: None if prompt is None else prompt_text(prompt)),
            (COLUMNS[1], 2, lambda prompt, text: None if prompt is None else text),
        ):
            wanted = [pick(prompt, text) for prompt, text in texts]
            assert table[column].to_pylist() == [w if w is None else pack(signatures_of([w], words))[0] for w in wanted]
            seen += sum(text is not None for text in wanted)
    assert seen == 18 + 17  # of 19 responses one has no prompt, and one is null


def plain_folders(root: Path) -> set[str]:
    return {path.name for path in (root / "out" / "scores").iterdir() if len(path.name) == 24}


@pytest.mark.slow
def test_they_are_made_in_the_pass_that_scores(tmp_path, make, measured):
    log = tmp_path / "log"
    run_curation(make(), scorer=StubFactory(log=str(log)))
    assert len(plain_folders(tmp_path)) == 3
    assert_whole(make())


def test_old_score_files_get_theirs_without_a_model(tmp_path, make, request):
    log = tmp_path / "log"
    run_curation(make(), scorer=StubFactory(log=str(log)))
    assert len(plain_folders(tmp_path)) == 1
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "scores").glob("*/*.parquet")}
    request.getfixturevalue("measured")
    with pytest.raises(InputError, match=r"no minhash\.prompt\.3 yet .* `bestkept select` .* needs no model"):
        explain(
            make(output={"path": str(tmp_path / "out2")}, scores={"path": str(tmp_path / "out" / "scores")}), "last"
        )
    again = make(output={"path": str(tmp_path / "out2")}, scores={"path": str(tmp_path / "out" / "scores")})
    run_curation(again, scorer=None)
    assert_whole(again)
    assert {path: path.read_bytes() for path in before} == before
    kept = (tmp_path / "out2" / "data").glob("*.parquet")
    assert [path.read_bytes() for path in kept] == [
        p.read_bytes() for p in (tmp_path / "out" / "data").glob("*.parquet")
    ]
    assert explain(again, "last")["rows"][0]["kept"] is False


@pytest.mark.slow
def test_a_missing_or_damaged_one_is_made_again_and_the_others_stand(tmp_path, make, measured):
    run_curation(make(), scorer=StubFactory())
    config = make(output={"path": str(tmp_path / "out2")}, scores={"path": str(tmp_path / "out" / "scores")})
    sides = [side.path for file in descriptors(config) for side in file.sides]
    before = {path: Path(path).read_bytes() for path in sides}
    os.remove(sides[0])
    Path(sides[3]).write_bytes(b"damaged")
    run_curation(config, scorer=None)
    assert {path: Path(path).read_bytes() for path in sides} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"score": {"colocate": "prompt"}}, {"limits": {"verify": True, "max_rejected_fraction": 1.0}}]
)
def test_other_ways_to_score_make_the_same_ones(tmp_path, make, measured, changes):
    run_curation(make(), scorer=StubFactory())
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "scores").glob("*/*.parquet")}
    shutil.rmtree(tmp_path / "out")
    run_curation(make(**changes), scorer=StubFactory())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "scores").glob("*/*.parquet")} == before
    assert_whole(make())


@pytest.mark.slow
def test_colocated_score_files_get_theirs_later(tmp_path, make, request):
    changes = {"score": {"colocate": "prompt"}}
    log = tmp_path / "log"
    run_scoring(make(**changes), scorer=StubFactory(log=str(log)))
    scored = scored_rows(log)
    request.getfixturevalue("measured")
    run_scoring(make(**changes), scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == scored
    assert_whole(make())


@pytest.mark.slow
def test_shards_and_further_directories(tmp_path, make, measured):
    for index in range(2):
        run_scoring(make(), scorer=StubFactory(), shard=CorpusShard(index, 2))
    other = tmp_path / "other"
    shutil.move(tmp_path / "out" / "scores", other)
    config = make(scores={"also": [str(other)]})
    run_curation(config, scorer=None)
    assert_whole(config)
    assert not list((tmp_path / "out" / "scores").glob("*/*.parquet"))


@pytest.mark.slow
def test_changed_text_has_files_of_its_own(tmp_path, make, corpus, measured):
    run_curation(make(), scorer=StubFactory())
    write_jsonl(corpus / "0.jsonl", [{"prompt": "another", "response": "text", "generator": "g"}])
    config = make(output={"path": str(tmp_path / "out2")}, scores={"path": str(tmp_path / "out" / "scores")})
    run_curation(config, scorer=StubFactory())
    (file,) = [file for file in descriptors(config) if file.file == 0]
    table = score_files.read_joined(file, COLUMNS)
    assert table.to_pylist() == [
        {COLUMNS[0]: pack(signatures_of(["another"], 3))[0], COLUMNS[1]: pack(signatures_of(["text"], 2))[0]}
    ]


@pytest.mark.slow
def test_models_of_an_ensemble_share_them(tmp_path, corpus, measured):
    values = {
        "input": {"path": str(corpus), "rows_per_fragment": 3},
        "limits": {"max_rejected_fraction": 1.0},
        "model": [{"path": str(save_named_model(tmp_path / "models" / name))} for name in ("anna", "bo")],
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "log").touch()
    run_curation(RunConfig.model_validate(values), scorer=NamedFactory(str(tmp_path / "log")))
    assert len(plain_folders(tmp_path)) == 2 + 1 + 2  # two models, the ensemble, two measures


@pytest.mark.slow
def test_clean_knows_whose_they_are(tmp_path, make, monkeypatch, bestkept, measured):
    version = {"path": str(tmp_path / "out"), "versions": True}
    run_curation(make(output=version), scorer=StubFactory())
    with_sides = plain_folders(tmp_path)
    assert len(with_sides) == 3
    words = ("clean", tmp_path / "out", "--scores", "--unfinished-days", "0", "--keep", "1")
    assert bestkept(*words)[0] == 0
    assert plain_folders(tmp_path) == with_sides
    monkeypatch.setattr(RunConfig, "measures", property(lambda config: MEASURES[:1]))
    run_curation(make(output=version), scorer=StubFactory())
    assert bestkept(*words)[0] == 0
    assert len({path.parent.name for path in (tmp_path / "out" / "scores").glob("*/*.parquet")}) == 2
