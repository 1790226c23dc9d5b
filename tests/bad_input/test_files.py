"""Files that cannot be read: they end the run with exit code 3, or, with `limits.skip_bad_files`, are left out and named."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from support.corpora import corpus_rows
from support.stubs import NamedFactory, StubFactory, scored_rows, stub_reward

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation, run_scoring
from pipelines.commands.summary import summary_table
from pipelines.config import RunConfig
from pipelines.errors import ConflictError, Exit, InputError
from pipelines.storage import files, listing
from rm.conversations import from_prompt

ROWS = corpus_rows(6)  # 24 rows
BAD_ROWS = [{"prompt": row["prompt"], "response": f"better {row['response']}"} for row in corpus_rows(40)]
SKIP = {"skip_bad_files": True}


def text(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows, **how: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{n: row[n] for n in ("prompt", "response")} for row in rows]), sink, **how)
    return sink.getvalue().to_pybytes()


def damaged_pages() -> bytes:
    """A whole footer over a row group that is no data any more; the one before it can be read."""
    data = bytearray(parquet(BAD_ROWS, row_group_size=80, compression="zstd"))
    group = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(1)
    start = group.dictionary_page_offset or group.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    return bytes(data)


def cut(data: bytes, share: float = 0.7) -> bytes:
    return data[: int(len(data) * share)]


JSONL: dict[str, tuple[bytes | None, str]] = {
    "cut.jsonl.gz": (cut(gzip.compress(text(BAD_ROWS))), "truncated"),
    "cut.jsonl.zst": (cut(zstandard.compress(text(BAD_ROWS))), "truncated"),
    "last-byte.jsonl.gz": (gzip.compress(text(BAD_ROWS))[:-1], "truncated"),
    "last-byte.jsonl.zst": (zstandard.ZstdCompressor(write_checksum=True).compress(text(BAD_ROWS))[:-1], "truncated"),
    "plain.jsonl.gz": (text(BAD_ROWS), "damaged"),
    "plain.jsonl.zst": (text(BAD_ROWS), "damaged"),
    "other.jsonl.zst": (gzip.compress(text(BAD_ROWS)), "damaged"),
    "flipped.jsonl.gz": (gzip.compress(text(BAD_ROWS))[:-8] + bytes(8), "damaged"),
    "empty.jsonl.gz": (b"", "truncated"),
    "empty.jsonl.zst": (b"", "truncated"),
    "zeros.jsonl.gz": (bytes(512), "truncated"),
    "dangling.jsonl": (None, "missing"),
    "circle.jsonl": (None, "damaged"),
    "directory.jsonl": (None, "directory"),
    "locked.jsonl": (text(BAD_ROWS), "no_permission"),
}
PARQUET: dict[str, tuple[bytes | None, str]] = {
    "cut.parquet": (cut(parquet(BAD_ROWS)), "damaged"),
    "head-only.parquet": (parquet(BAD_ROWS)[:4], "damaged"),
    "text.parquet": (text(BAD_ROWS), "damaged"),
    "empty.parquet": (b"", "damaged"),
    "zeros.parquet": (bytes(4096), "damaged"),
    "pages.parquet": (damaged_pages(), "damaged"),
    "dangling.parquet": (None, "missing"),
    "directory.parquet": (None, "directory"),
    "locked.parquet": (parquet(BAD_ROWS), "no_permission"),
}


def make(path: Path, content: bytes | None) -> Path:
    path.parent.mkdir(exist_ok=True)
    if content is not None:
        path.write_bytes(content)
    elif "directory" in path.name:
        path.mkdir()
    else:
        path.symlink_to(path if "circle" in path.name else path.with_name("nowhere"))
    return path


@pytest.fixture
def locked(monkeypatch) -> list[str]:
    """Names of files that may not be read; said by a stand-in, since tests may run as root."""
    names = ["locked.jsonl", "locked.parquet"]

    def refuse(name, *args, **more):
        if os.path.basename(name) in names:
            raise PermissionError(13, "Permission denied")
        return open(name, *args, **more)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    return names


def best(rows) -> set[str]:
    found: dict[str, tuple[float, str]] = {}
    for row in rows:
        candidate = (float(stub_reward(from_prompt(row["prompt"]), row["response"])), row["response"])
        found[row["prompt"]] = max(found.get(row["prompt"], candidate), candidate)
    return {response for _, response in found.values()}


def kept(out: Path) -> set[str]:
    return {messages[-1]["content"] for messages in pq.read_table(out / "data")["messages"].to_pylist()}


@pytest.mark.parametrize("name", [*JSONL, *PARQUET])
def test_a_bad_file_ends_the_run_with_3_and_is_named(tmp_path, make_config, locked, name):
    """Whether it is the first file, which tells the columns, or the last."""
    content, _ = {**JSONL, **PARQUET}[name]
    good = parquet(ROWS) if name.endswith("parquet") else text(ROWS)
    suffix = ".parquet" if name.endswith("parquet") else ".jsonl"
    for place, neighbour in (("first", f"z{suffix}"), ("last", f"a{suffix}")):
        make(tmp_path / place / name, content)
        make(tmp_path / place / neighbour, good)
        config = make_config(tmp_path / place / "*", output={"path": str(tmp_path / f"out-{place}")})
        with pytest.raises(InputError, match=name.replace(".", r"\.")) as caught:
            run_curation(config, scorer=StubFactory())
        assert caught.value.exit_code == Exit.INPUT == 3
        assert not (tmp_path / f"out-{place}" / "data").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_bad_files_are_left_out_named_and_scored_alone_when_mended(tmp_path, make_config, locked, kind):
    bad = JSONL if kind == "jsonl" else PARQUET
    for name, rows in (("0.", ROWS[:12]), ("zz.", ROWS[12:])):
        make(tmp_path / "in" / (name + kind), parquet(rows) if kind == "parquet" else text(rows))
    for name, (content, _) in bad.items():
        make(tmp_path / "in" / name, content)
    log, scores = tmp_path / "log", {"path": str(tmp_path / "scores")}
    config = make_config(tmp_path / "in" / "*", limits=SKIP, scores=scores, input={"rows_per_fragment": 10})
    done = run_curation(config, scorer=StubFactory(log=str(log)))
    expected = [{"key": name, "reason": reason} for name, (_, reason) in sorted(bad.items())]
    assert done.manifest["skipped_files"] == list(done.skipped) == expected
    assert [entry["key"] for entry in done.manifest["inputs"]] == [f"0.{kind}", f"zz.{kind}"]
    assert (done.manifest["counts"]["read"], done.manifest["counts"]["scored"]) == (24, 24)
    assert kept(tmp_path / "out") == best(ROWS), "of a file that breaks at its end no row is taken"
    assert f"{len(bad)} files that could not be read" in (tmp_path / "out" / "README.md").read_text()
    table = summary_table(config, done)
    shown = dict(zip(*([str(cell) for cell in column._cells] for column in table.columns), strict=True))
    assert shown["skipped files"] == str(len(bad))
    first = min(bad)
    assert shown[f"  {first}"] == bad[first][1]
    before = scored_rows(log)
    mended = tmp_path / "in" / ("plain.jsonl.gz" if kind == "jsonl" else "text.parquet")
    mended.write_bytes(gzip.compress(text(BAD_ROWS)) if kind == "jsonl" else parquet(BAD_ROWS))
    again = make_config(
        tmp_path / "in" / "*",
        limits=SKIP,
        scores=scores,
        input={"rows_per_fragment": 10},
        output={"path": str(tmp_path / "again")},
    )
    done = run_curation(again, scorer=StubFactory(log=str(log)))
    assert done.manifest["skipped_files"] == [entry for entry in expected if entry["key"] != mended.name]
    assert scored_rows(log) - before == len(BAD_ROWS) == 160
    assert kept(tmp_path / "again") == best([*ROWS, *BAD_ROWS])


@pytest.fixture
def half_bad(tmp_path) -> Path:
    """A file that is whole, and one of which some fragments can be scored before its end is found missing."""
    make(tmp_path / "in" / "good.jsonl", text(ROWS))
    return make(tmp_path / "in" / "half.jsonl.gz", cut(gzip.compress(text(BAD_ROWS)), 0.95))


def test_score_select_and_explain_skip_the_same_files(tmp_path, make_config, half_bad):
    config = make_config(tmp_path / "in", limits=SKIP, input={"rows_per_fragment": 10})
    scored = run_scoring(config, scorer=StubFactory())
    assert scored.skipped == ({"key": "half.jsonl.gz", "reason": "truncated"},)
    assert (scored.totals["read"], scored.totals["rows"]) == (24, 24)
    selected = run_curation(config, scorer=None)
    assert selected.skipped == scored.skipped
    assert kept(tmp_path / "out") == best(ROWS)
    key = pq.read_table(tmp_path / "out" / "data")["prompt_id"][0].as_py()
    assert {row["file"] for row in explain(config, key)["rows"]} == {"good.jsonl"}
    strict = make_config(tmp_path / "in", input={"rows_per_fragment": 10})
    for command in (
        lambda: run_scoring(strict, scorer=StubFactory()),
        lambda: run_curation(strict, scorer=None),
    ):
        with pytest.raises(InputError, match=r"half\.jsonl\.gz is cut"):
            command()


def test_scores_are_summed_anew_when_the_file_is_mended(tmp_path, make_config, locked):
    """The plan is the same before and after `chmod`: what was left out then is in the totals now."""
    make(tmp_path / "in" / "a.jsonl", text(ROWS))
    make(tmp_path / "in" / "locked.jsonl", text(BAD_ROWS))
    config, log = make_config(tmp_path / "in", limits=SKIP), tmp_path / "log"
    first = run_scoring(config, scorer=StubFactory(log=str(log)))
    assert (first.totals["read"], first.skipped) == (24, ({"key": "locked.jsonl", "reason": "no_permission"},))
    locked.clear()
    second = run_scoring(config, scorer=StubFactory(log=str(log)))
    assert (second.totals["read"], second.skipped) == (24 + 160, ())
    assert scored_rows(log) == 24 + 160


def test_a_finished_output_is_not_taken_for_complete_when_files_were_skipped(tmp_path, make_config, locked):
    make(tmp_path / "in" / "a.jsonl", text(ROWS))
    make(tmp_path / "in" / "locked.jsonl", text(BAD_ROWS))
    config = make_config(tmp_path / "in", limits=SKIP)
    run_curation(config, scorer=StubFactory())
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    again = run_curation(config, scorer=StubFactory())
    assert (again.already_complete, len(again.skipped)) == (False, 1)
    with pytest.raises(InputError, match=r"locked\.jsonl cannot be read: Permission denied"):
        run_curation(make_config(tmp_path / "in"), scorer=StubFactory())
    locked.clear()
    with pytest.raises(ConflictError):
        run_curation(config, scorer=StubFactory())
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest


def test_a_file_that_breaks_when_its_scores_are_there_is_skipped_by_select(tmp_path, make_config, locked):
    make(tmp_path / "in" / "a.jsonl", text(ROWS))
    make(tmp_path / "in" / "locked.jsonl", text(BAD_ROWS))
    names = list(locked)
    locked.clear()
    config = make_config(tmp_path / "in", limits=SKIP)
    run_scoring(config, scorer=StubFactory())
    locked.extend(names)
    assert run_curation(config, scorer=None).skipped == ({"key": "locked.jsonl", "reason": "no_permission"},)
    assert kept(tmp_path / "out") == best(ROWS)


def test_an_ensemble_leaves_out_what_one_of_its_models_could_not_read(tmp_path, make_config, stub_model, locked):
    """The first model has scored the file; when the second comes, it is gone."""
    for name in ("anna", "bo"):
        shutil.copytree(stub_model, tmp_path / name)
    make(tmp_path / "in" / "a.jsonl", text(ROWS))
    make(tmp_path / "in" / "locked.jsonl", text(BAD_ROWS))
    names, scores = list(locked), {"path": str(tmp_path / "scores")}
    locked.clear()
    log = NamedFactory(str(tmp_path / "log"))

    def config(models: list[str], out: str):
        paths = [{"path": str(tmp_path / name)} for name in models]
        values = {"input": {"path": str(tmp_path / "in")}, "output": {"path": str(tmp_path / out)}}
        model = paths if len(paths) > 1 else paths[0]
        return RunConfig.model_validate({**values, "model": model, "scores": scores, "limits": SKIP})

    (tmp_path / "bo" / "config.json").write_text('{"model_type": "llama", "x": 1}')
    run_scoring(config(["anna"], "alone"), scorer=log)
    locked.extend(names)
    done = run_curation(config(["anna", "bo"], "both"), scorer=log)
    assert done.skipped == ({"key": "locked.jsonl", "reason": "no_permission"},)
    assert done.manifest["counts"]["read"] == 24
    assert len(kept(tmp_path / "both")) == 6


@pytest.mark.parametrize("limits", [{}, SKIP])
def test_a_corpus_of_bad_files_alone_is_an_input_error(tmp_path, make_config, limits):
    make(tmp_path / "in" / "a.jsonl.gz", cut(gzip.compress(text(BAD_ROWS)), 0.95))
    make(tmp_path / "in" / "b.jsonl.gz", cut(gzip.compress(text(BAD_ROWS)), 0.95))
    with pytest.raises(InputError, match=r"none of the 2 files .* can be read.*a\.jsonl\.gz" if limits else "is cut"):
        run_curation(make_config(tmp_path / "in", limits=limits), scorer=StubFactory())
    assert not (tmp_path / "out" / "data").exists()


def test_trouble_of_the_network_is_not_skipped(tmp_path, make_config, monkeypatch):
    make(tmp_path / "in" / "a.jsonl", text(ROWS))
    make(tmp_path / "in" / "b.jsonl", text(BAD_ROWS))

    def fail(name, *args, **more):
        if os.path.basename(name) == "b.jsonl":
            raise ConnectionResetError(104, "Connection reset by peer")
        return open(name, *args, **more)

    monkeypatch.setattr(files, "open", fail, raising=False)
    with pytest.raises(InputError, match=r"b\.jsonl cannot be read: Connection reset"):
        run_curation(make_config(tmp_path / "in", limits=SKIP), scorer=StubFactory())


def test_links_to_files_are_files(tmp_path, make_config):
    """Hub caches hold nothing else. Neither a pattern nor a directory leaves one out."""
    make(tmp_path / "store" / "blob-1", text(ROWS[:12]))
    make(tmp_path / "store" / "blob-2", text(ROWS[12:]))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jsonl").symlink_to(tmp_path / "store" / "blob-1")
    (tmp_path / "in" / "2.jsonl").symlink_to(tmp_path / "store" / "blob-2")
    for number, pattern in enumerate(["in", "in/*.jsonl", "in/**"]):
        config = make_config(tmp_path / pattern, output={"path": str(tmp_path / f"out-{number}")})
        assert run_curation(config, scorer=StubFactory()).manifest["counts"]["read"] == 24
    entry = next(iter(listing.expand(str(tmp_path / "in" / "1.jsonl"))))
    assert entry.info["size"] == len(text(ROWS[:12]))


def test_directories_that_would_be_left_out_silently_are_named(tmp_path, make_config):
    make(tmp_path / "in" / "a.parquet", parquet(ROWS))
    make(tmp_path / "in" / "b.parquet" / "part-0.parquet", parquet(BAD_ROWS))
    with pytest.raises(InputError, match=r"b\.parquet, which is a directory; .* write .*b\.parquet/\*"):
        run_curation(make_config(tmp_path / "in" / "*"), scorer=StubFactory())
    with pytest.raises(InputError, match=r"matches no file.*b\.parquet/\*"):
        run_curation(make_config(tmp_path / "in" / "b.*"), scorer=StubFactory())
    assert len(listing.expand(str(tmp_path / "in"))) == 2
    assert {Path(entry.path).name for entry in listing.expand(str(tmp_path / "in" / "**"))} == {
        "a.parquet",
        "part-0.parquet",
    }
    (tmp_path / "in" / "more").symlink_to(tmp_path / "in" / "b.parquet")
    with pytest.raises(InputError, match=r"more is a link to a directory"):
        listing.expand(str(tmp_path / "in"))


def test_a_directory_that_cannot_be_listed_is_not_left_out(tmp_path, make_config, monkeypatch):
    make(tmp_path / "in" / "a.jsonl", text(ROWS))
    (tmp_path / "in" / "closed").mkdir()
    original = os.scandir

    def refuse(path="."):
        if isinstance(path, str) and os.path.basename(path.rstrip("/")) == "closed":
            raise PermissionError(13, "Permission denied")
        return original(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"cannot be read: Permission denied"):
        run_curation(make_config(tmp_path / "in"), scorer=StubFactory())
