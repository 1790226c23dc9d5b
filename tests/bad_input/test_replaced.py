"""Input files that are replaced between the plan and their turn, or while they are read: exit 3 with the name, or left out."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_rows
from support.stubs import StubFactory, StubScorer

from pipelines.commands import run as commands
from pipelines.commands.run import run_curation, run_scoring
from pipelines.corpus import files, rewritten_copy
from pipelines.errors import InputError
from pipelines.storage.files import read_bytes

ROWS, OTHER = corpus_rows(6), [{**row, "response": f"other {row['response']}"} for row in corpus_rows(6)]
KINDS = ["jsonl", "jsonl.gz", "parquet"]
SMALL = {"rows_per_fragment": 4}
CHANGED = r"{} has changed since the run was planned: it is not the one that had \d+ bytes"


def content(kind: str, rows: list[dict[str, Any]]) -> bytes:
    if kind == "parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=12)
        return sink.getvalue().to_pybytes()
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return gzip.compress(data) if kind == "jsonl.gz" else data


def put(path: Path, data: bytes, *, at: int | None = None) -> Path:
    """A file by rename, as careful people replace one."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_name(f".{path.name}")
    new.write_bytes(data)
    if at is not None:
        os.utime(new, (at, at))
    new.replace(path)
    return path


@pytest.fixture
def after_plan(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Call something once, right after the next plan is made."""

    def arrange(change: Callable[[], object]) -> None:
        make = commands.make_plans

        def planned(config):
            plans = make(config)
            monkeypatch.setattr(commands, "make_plans", make)
            change()
            return plans

        monkeypatch.setattr(commands, "make_plans", planned)

    return arrange


class ReplacingScorer(StubScorer):
    """Puts other data in the place of a file when it scores for the `at`-th time."""

    def __init__(self, factory: ReplacingFactory) -> None:
        super().__init__()
        self._factory = factory

    def score(self, groups):
        factory = self._factory
        if self.calls == factory.at:
            with open(factory.path, "r+b") as file:
                file.write(factory.data)
                file.truncate()
            os.utime(factory.path, (factory.time, factory.time))
        return super().score(groups)


@dataclass
class ReplacingFactory:
    path: str
    data: bytes = field(repr=False)
    at: int = 0
    time: int = 10**9

    def __call__(self, plan: Any) -> ReplacingScorer:
        return ReplacingScorer(self)


def outputs(folder: Path) -> dict[str, bytes]:
    names = ["manifest.json", *(f"data/{path.name}" for path in sorted((folder / "data").iterdir()))]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_replaced_before_its_turn_ends_the_run(tmp_path, make_config, after_plan, kind):
    """By one of another size, or of the same size and another time."""
    put(tmp_path / "in" / f"a.{kind}", content(kind, ROWS))
    for data in (content(kind, OTHER), content(kind, ROWS)):
        path = put(tmp_path / "in" / f"b.{kind}", content(kind, ROWS))
        after_plan(lambda data=data, path=path: put(path, data, at=5))
        with pytest.raises(InputError, match=CHANGED.format(rf"/b\.{kind}")) as caught:
            run_curation(make_config(tmp_path / "in", input=SMALL), scorer=StubFactory())
        assert caught.value.exit_code == 3
        assert not (tmp_path / "out" / "data").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no data at all",
        content("parquet", [{"question": "x"}]),
        content("parquet", []),
        content("parquet", ROWS[:5]),
    ],
    ids=["empty", "damaged", "other columns", "no rows", "fewer row groups"],
)
def test_whatever_comes_in_its_place_the_change_is_what_is_named(tmp_path, make_config, after_plan, data):
    """Not a damage, or a column that is missing; and a file without rows is no file of which nothing need be read."""
    put(tmp_path / "in" / "a.parquet", content("parquet", ROWS))
    path = put(tmp_path / "in" / "b.parquet", content("parquet", ROWS))
    after_plan(lambda: put(path, data))
    with pytest.raises(InputError, match=CHANGED.format(r"/b\.parquet")):
        run_curation(make_config(tmp_path / "in"), scorer=StubFactory())


def test_an_empty_file_that_gets_rows_is_not_taken_for_an_empty_one(tmp_path, make_config, after_plan):
    put(tmp_path / "in" / "a.jsonl", content("jsonl", ROWS))
    path = put(tmp_path / "in" / "b.jsonl", b"")
    after_plan(lambda: put(path, content("jsonl", OTHER)))
    with pytest.raises(InputError, match=CHANGED.format(r"/b\.jsonl")):
        run_curation(make_config(tmp_path / "in"), scorer=StubFactory())


@pytest.mark.parametrize("colocate", [None, "prompt"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_file_is_left_out_by_name(tmp_path, make_config, after_plan, kind, colocate):
    put(tmp_path / "in" / f"a.{kind}", content(kind, ROWS))
    path = put(tmp_path / "in" / f"b.{kind}", content(kind, ROWS))
    after_plan(lambda: put(path, content(kind, OTHER)))
    config = make_config(tmp_path / "in", limits={"skip_bad_files": True}, score={"colocate": colocate})
    done = run_curation(config, scorer=StubFactory())
    assert done.skipped == ({"key": f"b.{kind}", "reason": "changed"},)
    assert done.manifest["counts"]["read"] == 24


@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_changes_while_it_is_read(tmp_path, make_config, kind, at):
    """At its first fragment, in its midst, and at its last but one (of two row groups, in Parquet)."""
    path = put(tmp_path / "a" / f"a.{kind}", content(kind, ROWS))
    with pytest.raises(InputError, match=CHANGED.format(rf"/a\.{kind}")):
        run_curation(
            make_config(path, input={"rows_per_fragment": 3}),
            scorer=ReplacingFactory(str(path), content(kind, OTHER), at),
        )


def test_no_score_file_of_another_content_is_left_when_the_old_file_comes_back(tmp_path, make_config):
    """Written in place under the reader, beyond what is in its buffer; restored with its time stamp afterwards."""
    rows = [{"prompt": row["prompt"], "response": f"{number} {'x' * 500_000}"} for number, row in enumerate(ROWS)]
    before = content("jsonl", rows)
    path = put(tmp_path / "a.jsonl", before, at=7)
    config = make_config(path, input={"rows_per_fragment": 2})
    with pytest.raises(InputError, match=CHANGED.format(r"/a\.jsonl")):
        run_curation(config, scorer=ReplacingFactory(str(path), before.replace(b"xx", b"yy")))
    put(path, before, at=7)
    run_curation(config, scorer=StubFactory())
    plain = make_config(path, input={"rows_per_fragment": 2}, output={"path": str(tmp_path / "plain")})
    run_curation(plain, scorer=StubFactory())
    assert outputs(tmp_path / "out") == outputs(tmp_path / "plain")


def test_the_same_command_again_takes_the_file_as_it_is_then(tmp_path, make_config, after_plan):
    path = put(tmp_path / "a.jsonl", content("jsonl", ROWS))
    after_plan(lambda: put(path, content("jsonl", OTHER)))
    with pytest.raises(InputError, match="run the same command again, which reads the new file"):
        run_curation(make_config(path), scorer=StubFactory())
    run_curation(make_config(path), scorer=StubFactory())
    run_curation(make_config(path, output={"path": str(tmp_path / "plain")}), scorer=StubFactory())
    assert outputs(tmp_path / "out") == outputs(tmp_path / "plain")


@pytest.mark.parametrize("skip", [False, True])
def test_a_large_compressed_file_is_not_copied_from_another(tmp_path, make_config, after_plan, monkeypatch, skip):
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    put(tmp_path / "in" / "a.jsonl.gz", content("jsonl.gz", ROWS))
    path = put(tmp_path / "in" / "b.jsonl.gz", content("jsonl.gz", ROWS))
    after_plan(lambda: put(path, content("jsonl.gz", OTHER)))
    config = make_config(tmp_path / "in", limits={"skip_bad_files": skip})
    if skip:
        assert run_curation(config, scorer=StubFactory()).skipped == ({"key": "b.jsonl.gz", "reason": "changed"},)
    else:
        with pytest.raises(InputError, match=CHANGED.format(r"/b\.jsonl\.gz")):
            run_curation(config, scorer=StubFactory())
    copies = [str(copy) for copy in (tmp_path / "out" / "scores" / "rewritten").iterdir()]
    assert sum(read_bytes(f"{copy}/{rewritten_copy.INDEX}") is not None for copy in copies) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_store_that_fsspec_alone_knows(make_config, after_plan, kind):
    memory, where = fsspec.filesystem("memory"), f"/replaced-{kind}/a.{kind}"
    memory.pipe_file(where, content(kind, ROWS))
    after_plan(lambda: memory.pipe_file(where, content(kind, ROWS)))
    with pytest.raises(InputError, match=CHANGED.format(rf"/a\.{kind}")):
        run_scoring(make_config(f"memory:/{where}"), scorer=StubFactory())


@pytest.mark.parametrize(
    ("listed", "seen", "same"),
    [
        ("1795997549.735528", "2026-11-30 00:12:29.735528+00:00", True),  # as in fsspec's own store
        ("1795997549.735528", "2026-11-30 00:12:29.735530+00:00", False),
        ("1795997549.7355275", "1795997549.7355294", False),
        ("2026-11-30 00:12:29+00:00", "2026-11-30T00:12:29+00:00", True),
        ("0x8DC", "0x8DD", False),
        ("0x8DC", "2026-11-30 00:12:29+00:00", True),  # a checksum and a time: size alone can tell
        ("", "0x8DD", True),
        ("0x8DC", "", True),
    ],
)
def test_versions_of_one_file_in_several_forms(listed, seen, same):
    assert files._may_be_same(listed, seen) is same


def test_it_takes_two_looks_a_unit(tmp_path, make_config, monkeypatch):
    """And one more for each fragment of a local file, before it is scored; none for each row."""
    path = put(tmp_path / "a.jsonl", content("jsonl", corpus_rows(50)))
    looks, status_of = [], files.status_of
    for module in ("pipelines.corpus.files", "pipelines.storage.files"):
        monkeypatch.setattr(f"{module}.status_of", lambda path: looks.append(path) or status_of(path))
    run_scoring(make_config(path, input={"rows_per_fragment": 100}), scorer=StubFactory())
    assert len(looks) == 2 + 1
