"""Copies of large compressed files on object stores: the bytes of a run on local disk, whatever goes wrong meanwhile."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from support.corpora import corpus_rows
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.corpus import files, rewritten_copy
from pipelines.errors import StorageError

OURS = ("README.md", "data/", "rejected/")
SETTINGS = {"limits": {"max_rejected_fraction": 0.5}, "input": {"rows_per_fragment": 4}}
WRITE = r"^(PUT /bucket|POST /upload).*rewritten"


@pytest.fixture
def source(monkeypatch) -> bytes:
    """48 rows and one that is rejected; large, in 7 parts."""
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(rewritten_copy, "PART_ROWS", 8)
    rows = [*corpus_rows(), {"prompt": "p", "response": ""}]
    return gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def hashes(contents: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if name.startswith(OURS)}


@pytest.fixture
def on_disk(source, make_config, tmp_path, monkeypatch):
    """What a run on local disk gives that reads the file itself."""
    (tmp_path / "a.jsonl.gz").write_bytes(source)
    with monkeypatch.context() as patch:
        patch.setattr(files, "LARGE_BYTES", 2**30)
        run(make_config(tmp_path / "a.jsonl.gz", **SETTINGS))
    root = tmp_path / "out"
    assert not (root / "scores" / "rewritten").exists()
    return hashes({str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()})


def run(config):
    return run_curation(config, scorer=StubFactory())


def config_on(store, make_config):
    return make_config(f"{store.url}/in/a.jsonl.gz", output={"path": f"{store.url}/out"}, **SETTINGS)


def parts_on(store) -> list[str]:
    names = [name.rsplit("/", 1) for name in store.contents("out") if "/rewritten/" in name]
    assert len({folder for folder, _ in names}) <= 1
    return sorted(name for _, name in names)


def test_a_run_on_a_store_gives_the_bytes_of_one_on_disk(store, source, on_disk, make_config):
    store.put("in/a.jsonl.gz", source)
    run(config_on(store, make_config))
    assert hashes(store.contents("out")) == on_disk
    assert parts_on(store) == [*(f"{number:06d}.parquet" for number in range(7)), "index.json"]
    assert not store.proxy.lines("^DELETE")


@pytest.mark.slow
def test_a_copy_that_breaks_off_goes_on_where_it_was(store, source, on_disk, make_config):
    store.put("in/a.jsonl.gz", source)
    expired = store.proxy.add("refuse", WRITE, times=-1, skip=3, status=401)
    with pytest.raises(
        StorageError, match=rf"^cannot write {store.url}/out/scores/rewritten/.*: 401; check the credentials"
    ):
        run(config_on(store, make_config))
    expired.times = 0
    assert len(parts_on(store)) == 3
    before = len(store.proxy.lines(WRITE))
    store.proxy.add("lose", WRITE + ".*000005")
    store.proxy.add("lose", WRITE + ".*index")
    run(config_on(store, make_config))
    assert hashes(store.contents("out")) == on_disk
    again = [line for line in store.proxy.lines(WRITE)[before:] if "000000" in line or "000002" in line]
    assert again == []
