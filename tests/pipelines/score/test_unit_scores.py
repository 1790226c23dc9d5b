"""Which score files of a unit hold: the input's version, its text, its columns' types, and the order of directories."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipelines.corpus import InputFile, Unit
from pipelines.errors import InputError
from pipelines.score import score_files
from pipelines.score.score_files import COLUMNS, Footer
from pipelines.score.unit_scores import ScoreDirectories, UnitScores

FILE = InputFile(path="/in/a.jsonl", key="a.jsonl", kind="jsonl", compression=None, size=10, version="1")
COLUMNS_OF_TWO = pa.Table.from_pylist(
    [{"row": 0, "reward": 0.5, "truncated": True}, {"row": 1, "reason": "empty", "truncated": False}], schema=COLUMNS
)


@pytest.fixture
def scores(tmp_path) -> UnitScores:
    plan = SimpleNamespace(files=(None, FILE), rows_per_fragment=2, fingerprint="f")
    directories = ScoreDirectories(str(tmp_path / "own"), (str(tmp_path / "b"), str(tmp_path / "c"))).of("f")
    assert directories == tuple(str(tmp_path / name / "f") for name in ("own", "b", "c"))
    return UnitScores(plan, directories, 1, Unit(number=3, start=100, end=200, input_bytes=100))  # type: ignore[arg-type]


def fragment(index: int, *, last: bool = False, content_hash: str = "text"):
    parsed = SimpleNamespace(cut=0)
    rows = [SimpleNamespace(row_bytes=7, parsed=parsed), SimpleNamespace(row_bytes=8, parsed=parsed)]
    hashed, keys = (lambda: content_hash), list
    return SimpleNamespace(index=index, rows=rows, last=last, content_hash=hashed, message_keys=keys)


def footer(scores: UnitScores, index: int, **how) -> Footer:
    part = fragment(index, **how)
    return scores.footer(part, COLUMNS_OF_TWO, part.content_hash(), 9, {})


def put(path: str, known: Footer, original: str = "types") -> str:
    score_files.write(path, COLUMNS_OF_TWO, known, original)
    return path


def plain(scores: UnitScores, directory: int, index: int) -> str:
    return score_files.path_of(scores.directories[directory], scores._name(index))


def test_a_footer_says_what_the_fragment_was(scores):
    assert footer(scores, 4, last=True) == Footer(
        fingerprint="f", file_key="a.jsonl", file_size=10, file_version="1", unit=3, unit_start=100, fragment=4, rows=2,
        last=True, responses=2, scored=1, rejected={"empty": 1}, first_rejected=[[1, "empty"]], truncated=1, tokens=9,
        text_bytes=15, content_hash="text",
    )  # fmt: skip


def test_names_tell_places_apart(scores):
    others = (
        replace(scores, unit=scores.unit._replace(number=4)),
        replace(scores, unit=scores.unit._replace(start=101)),
        replace(scores, plan=SimpleNamespace(files=(None, FILE._replace(key="b.jsonl")), rows_per_fragment=2)),
        replace(scores, plan=SimpleNamespace(files=(None, FILE), rows_per_fragment=3)),
    )
    assert len({scores._name(0), scores._name(1), *(other._name(0) for other in others)}) == 6


def test_files_are_found_from_the_first_on_as_far_as_they_go_and_own_ones_first(scores):
    assert scores.read_leading() == []
    put(plain(scores, 0, 1), footer(scores, 1))
    assert scores.read_leading() == []
    paths = [put(plain(scores, 2, 0), footer(scores, 0)), plain(scores, 0, 1)]
    assert [found.path for found in scores.read_leading()] == paths
    paths.append(put(plain(scores, 1, 2), footer(scores, 2, last=True)))
    put(plain(scores, 0, 3), footer(scores, 3))  # beyond the last: of a file that was longer
    assert [found.path for found in scores.read_leading()] == paths
    assert {found.file for found in scores.read_leading()} == {1}
    paths[0] = put(plain(scores, 0, 0), footer(scores, 0))
    assert [found.path for found in scores.read_leading()] == paths
    assert [found.footer.fragment for found in scores.read_leading()] == [0, 1, 2]


@pytest.mark.parametrize("change", [{"file_size": 11}, {"file_version": "2"}])
def test_files_of_another_size_or_version_are_not_taken_unread(scores, change):
    put(plain(scores, 0, 0), replace(footer(scores, 0), **change))
    assert scores.read_leading() == []
    path = put(plain(scores, 1, 0), footer(scores, 0))
    assert [found.path for found in scores.read_leading()] == [path]


def test_nothing_there_belongs_under_the_plain_name_of_the_own_directory(scores):
    assert scores.find(0, "text", "types") == (plain(scores, 0, 0), None)


@pytest.mark.parametrize("directory", [0, 1, 2])
def test_the_same_text_and_types_are_found_where_they_are(scores, directory):
    path = put(plain(scores, directory, 0), replace(footer(scores, 0), file_version="old"))
    where, there = scores.find(0, "text", "types")
    assert (where, there[1].content_hash, there[0].num_rows) == (path, "text", 2)


def test_changed_text_has_its_own_name_in_the_own_directory(scores):
    first = put(plain(scores, 0, 0), footer(scores, 0))
    where, there = scores.find(0, "changed", "types")
    assert there is None
    assert where.startswith(first.removesuffix(".parquet") + "-")
    put(where, footer(scores, 0, content_hash="changed"))
    again, there = scores.find(0, "changed", "types")
    assert (again, there[1].content_hash) == (where, "changed")
    assert scores.find(0, "third", "types")[0] not in (first, where)


def test_the_same_text_of_other_types_lends_its_scores(scores):
    first = put(plain(scores, 0, 0), footer(scores, 0))
    where, there = scores.find(0, "text", "others")
    assert (where != first, there[1].content_hash, score_files.original_schema(there[0])) == (True, "text", "types")
    put(where, footer(scores, 0), "others")
    again, there = scores.find(0, "text", "others")
    assert (again, score_files.original_schema(there[0])) == (where, "others")


def test_another_directory_lends_scores_of_other_types_and_gives_those_of_the_same(scores):
    put(plain(scores, 1, 0), footer(scores, 0), "old types")
    where, there = scores.find(0, "text", "types")
    assert (where, score_files.original_schema(there[0])) == (plain(scores, 0, 0), "old types")
    path = put(plain(scores, 2, 0), footer(scores, 0))
    where, there = scores.find(0, "text", "types")
    assert (where, score_files.original_schema(there[0])) == (path, "types")


def test_another_text_in_another_directory_is_none(scores):
    put(plain(scores, 1, 0), footer(scores, 0, content_hash="other"))
    assert scores.find(0, "text", "types") == (plain(scores, 0, 0), None)


@pytest.mark.parametrize("change", [{"content_hash": "other"}, {"last": True}])
def test_a_fragment_that_is_not_what_was_scored_is_an_input_error(scores, change):
    scores.check(fragment(0), footer(scores, 0))
    with pytest.raises(
        InputError, match=r"input file /in/a\.jsonl is not what was scored, .*limits\.verify.*restore it"
    ):
        scores.check(fragment(0, **change), footer(scores, 0))


@pytest.mark.parametrize(
    ("path", "also", "rows", "waiting"),
    [
        ("/scores", (), 2048, False),
        ("s3://bucket/scores", (), 2048, True),
        ("s3://bucket/scores", (), 65536, True),
        ("s3://bucket/scores", (), 65537, False),
        ("/scores", ("memory://more",), 2048, True),
    ],
)
def test_many_are_read_at_once_where_that_is_mostly_waiting(path, also, rows, waiting):
    plan = SimpleNamespace(rows_per_fragment=rows)
    assert ScoreDirectories(path, also).on_object_store(plan) is waiting
