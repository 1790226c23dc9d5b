"""Inputs that change after they were scored: noticed where export reads them, and everywhere with `limits.verify`; a copy of them
is read again and not scored again."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory, scored_rows, stub_reward

from pipelines.commands.run import run_curation, run_scoring
from pipelines.corpus import Fragment
from pipelines.errors import InputError
from rm.conversations import from_prompt

ROWS = corpus_rows(6)
LOOSE = {"max_rejected_fraction": 0.5}  # of its rows, one change spoils two
VERIFY = {"verify": True, **LOOSE}
SMALL = {"rows_per_fragment": 5}


def in_place(path: Path, data: bytes) -> None:
    """Other content, and nothing to see from outside."""
    status = path.stat()
    assert len(data) == status.st_size
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def dropped_row() -> dict[str, str]:
    """The worst response to its prompt, which export has no reason to read."""
    own = [row for row in ROWS if row["prompt"] == ROWS[0]["prompt"]]
    return min(own, key=lambda row: stub_reward(from_prompt(row["prompt"]), row["response"]))


def lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def changed_word(data: bytes) -> bytes:
    text = dropped_row()["response"].encode()
    return data.replace(text, text.replace(b"answer", b"ANSWER"))


def swapped(data: bytes) -> bytes:
    first, second, rest = data.split(b"\n", 2)
    return b"\n".join([second, first, rest])


def without_its_last_row(data: bytes) -> bytes:
    last = data.rstrip(b"\n").rsplit(b"\n", 1)[1]
    return data[: -len(last) - 1] + b" " * len(last) + b"\n"


def without_its_last_fragment(data: bytes) -> bytes:
    """Of 24 rows the last four: all that is left is as it was."""
    rows = data.split(b"\n")
    kept, gone = rows[:20], rows[20:]
    return b"\n".join([*kept, b" " * len(b"\n".join(gone)[:-1])]) + b"\n"


def one_row_more(data: bytes) -> bytes:
    """The last row becomes a bad one and a further line."""
    last = data.rstrip(b"\n").rsplit(b"\n", 1)[1]
    return data[: -len(last) - 1] + last[:5] + b"\n" + last[6:] + b"\n"


CHANGES = [changed_word, swapped, without_its_last_row, without_its_last_fragment, one_row_more]


@pytest.mark.parametrize("rows_per_fragment", [5, 24])
@pytest.mark.parametrize("change", CHANGES)
def test_verify_finds_what_size_and_time_do_not_show(tmp_path, make_config, change, rows_per_fragment):
    path = write_jsonl(tmp_path / "in" / "a.jsonl", ROWS)
    write_jsonl(tmp_path / "in" / "b.jsonl", corpus_rows(3))
    read, log = {"rows_per_fragment": rows_per_fragment}, tmp_path / "log"
    run_scoring(make_config(tmp_path / "in", input=read, limits=LOOSE), scorer=StubFactory(log=str(log)))
    before = scored_rows(log)
    in_place(path, change(path.read_bytes()))
    verifying = make_config(tmp_path / "in", input=read, limits=VERIFY)
    commands = (
        lambda: run_scoring(verifying, scorer=StubFactory(log=str(log))),
        lambda: run_curation(verifying, scorer=StubFactory(log=str(log))),
        lambda: run_curation(verifying, scorer=None),
    )
    for command in commands:
        with pytest.raises(
            InputError, match=r"a\.jsonl is not what was scored, although its size and version"
        ) as caught:
            command()
        assert caught.value.exit_code == 3
    assert not (tmp_path / "out" / "data").exists()
    assert scored_rows(log) == before
    os.utime(path, (1, 1))
    done = run_curation(verifying, scorer=StubFactory(log=str(log)))  # the way out that the message names
    rows = sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))
    assert done.manifest["counts"]["read"] == rows + 12
    only_shorter = change is without_its_last_fragment and rows_per_fragment == 5
    assert (scored_rows(log) == before) == only_shorter


def test_verify_leaves_an_unchanged_corpus_alone(tmp_path, make_config, monkeypatch):
    """All content is hashed, nothing is scored, the same bytes come out, and a finished output is checked as well."""
    path, log = write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "log"
    run_curation(make_config(path, input=SMALL), scorer=StubFactory(log=str(log)))
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    hashed, original = [], Fragment.content_hash
    monkeypatch.setattr(Fragment, "content_hash", lambda self: hashed.append(self.index) or original(self))
    done = run_curation(make_config(path, input=SMALL, limits=VERIFY), scorer=StubFactory(log=str(log)))
    assert sorted(hashed) == [0, 1, 2, 3, 4]
    assert not done.already_complete
    assert scored_rows(log) == 24
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    in_place(path, changed_word(path.read_bytes()))
    with pytest.raises(InputError, match="is not what was scored"):
        run_curation(make_config(path, input=SMALL, limits=VERIFY), scorer=StubFactory(log=str(log)))
    plain = run_curation(make_config(path, input=SMALL), scorer=StubFactory(log=str(log)))
    assert plain.already_complete, "without it, size and version decide"


def test_verify_and_skip_bad_files_together(tmp_path, make_config):
    """A file that broke in place is found before selection, and left out."""
    data = gzip.compress(lines(corpus_rows(40)), mtime=0)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(data)
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress(lines(ROWS)))
    run_scoring(make_config(tmp_path / "in"), scorer=StubFactory())
    in_place(tmp_path / "in" / "a.jsonl.gz", b"no" + data[2:])
    both = {"skip_bad_files": True, **VERIFY}
    done = run_curation(make_config(tmp_path / "in", limits=both), scorer=None)
    assert done.skipped == ({"key": "a.jsonl.gz", "reason": "damaged"},)
    assert done.manifest["counts"]["read"] == 24


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
@pytest.mark.parametrize("what", ["prompt", "response"])
def test_export_notices_a_kept_row_that_changed(tmp_path, make_config, kind, what):
    def write(rows) -> bytes:
        if kind == "parquet":
            sink = pa.BufferOutputStream()
            pq.write_table(
                pa.Table.from_pylist(rows), sink, compression="none", use_dictionary=False, write_statistics=False
            )
            return sink.getvalue().to_pybytes()
        return gzip.compress(lines(rows), compresslevel=0, mtime=0) if kind == "jsonl.gz" else lines(rows)

    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / f"a.{kind}"
    path.write_bytes(write(ROWS))
    run_scoring(make_config(path), scorer=StubFactory())
    own = [row for row in ROWS if row["prompt"] == ROWS[0]["prompt"]]
    best = max(own, key=lambda row: stub_reward(from_prompt(row["prompt"]), row["response"]))
    in_place(path, write([{**row, what: row[what].upper()} if row == best else row for row in ROWS]))
    with pytest.raises(InputError, match=rf"a\.{kind} has changed since it was scored"):
        run_curation(make_config(path), scorer=None)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_copied_tree_is_read_again_and_not_scored_again(tmp_path, make_config, monkeypatch):
    """Another place and other versions, as in a copied bucket: content decides, and the result has the same bytes."""
    log, scores = tmp_path / "log", {"path": str(tmp_path / "scores")}
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"part-{number}" / "a.jsonl", ROWS[number::3])
    first = make_config(tmp_path / "in" / "*" / "*.jsonl", scores=scores, output={"path": str(tmp_path / "o1")})
    one = run_curation(first, scorer=StubFactory(log=str(log))).manifest
    memory = fsspec.filesystem("memory")
    for path in (tmp_path / "in").rglob("*.jsonl"):
        memory.pipe_file(f"/copied/{path.relative_to(tmp_path / 'in')}", path.read_bytes())
    hashed, original = [], Fragment.content_hash
    monkeypatch.setattr(Fragment, "content_hash", lambda self: hashed.append(1) or original(self))
    second = make_config("memory://copied/*/*.jsonl", scores=scores, output={"path": str(tmp_path / "o2")})
    two = run_curation(second, scorer=StubFactory(log=str(log))).manifest
    assert len(hashed) == 3
    assert scored_rows(log) == 24
    assert one == two
    memory.pipe_file("/copied/part-1/a.jsonl", lines([{**ROWS[1], "response": "other"}, *ROWS[4::3]]))
    third = make_config("memory://copied/*/*.jsonl", scores=scores, output={"path": str(tmp_path / "o3")})
    run_curation(third, scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == 24 + 8, "the changed fragment alone"
