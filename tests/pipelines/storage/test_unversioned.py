"""Stores that give no version in the usual words, or none at all."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.corpora import corpus_rows, write_jsonl

from pipelines.config import RunConfig, validate
from pipelines.errors import InputError
from pipelines.plan import make_plans
from pipelines.storage.files import version_of
from pipelines.storage.listing import expand


@pytest.mark.parametrize(
    ("info", "version"),
    [
        ({"blob_id": "3f2a", "xet_hash": "9c", "last_commit": None}, "3f2a"),
        ({"xet_hash": "9c"}, "9c"),
        ({"ETag": '"5-a"', "Last-Modified": "Mon"}, "5-a"),
        ({"Last-Modified": "Mon, 30 Nov 2026 00:25:23 GMT"}, "Mon, 30 Nov 2026 00:25:23 GMT"),
        ({"Content-MD5": "x=="}, "x=="),
        ({"etag": "a", "last_modified": "b"}, "a"),
        ({"last_modified": "b"}, "b"),
        ({"ETag": '"e"', "LastModified": "t", "blob_id": "b"}, "e"),
        ({"mtime": 3.5, "created": 1.0}, "3.5"),
        ({"created": 1.0, "modified": 2.0}, "2.0"),
        ({"created": 1.0}, "1.0"),
        ({"hex": "5e1c", "mode": "100644"}, "5e1c"),
        ({"size": 3, "type": "file"}, ""),
    ],
)
def test_the_versions_of_drivers(info, version):
    assert version_of(info) == version


@pytest.fixture
def served(tmp_path) -> Iterator[tuple[str, Path]]:
    """(URL, folder) of a web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "www").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "www"
        server.shutdown()


@pytest.mark.parametrize("pattern", ["a.jsonl", "*.jsonl"])
def test_files_of_a_web_server_have_a_size_and_a_version(served, pattern):
    url, folder = served
    path = write_jsonl(folder / "a.jsonl", corpus_rows())
    os.utime(path, (10**9, 10**9))
    listed = expand(f"{url}/{pattern}")
    assert [file.path for file in listed] == [f"{url}/a.jsonl"]
    assert (listed[0].info["size"], version_of(listed[0].info)) == (
        path.stat().st_size,
        "Sun, 09 Sep 2001 01:46:40 GMT",
    )


@pytest.fixture
def unversioned(tmp_path, monkeypatch) -> dict[str, object]:
    """A configuration whose input lies on a store that says nothing but sizes."""
    info, glob = MemoryFileSystem.info, MemoryFileSystem.glob

    def strip(described):
        return {key: described[key] for key in ("name", "size", "type")}

    def glob_stripped(fs, path, **options):
        return {name: strip(described) for name, described in glob(fs, path, **options).items()}

    monkeypatch.setattr(MemoryFileSystem, "info", lambda fs, path, **_: strip(info(fs, path)))
    monkeypatch.setattr(MemoryFileSystem, "glob", glob_stripped)
    rows = [{**row, "reward": 0.5} for row in corpus_rows()]
    content = write_jsonl(tmp_path / "a.jsonl", rows).read_bytes()
    MemoryFileSystem().pipe_file(f"/{tmp_path.name}/a.jsonl", content)
    return {
        "input": {"path": f"memory://{tmp_path.name}/*.jsonl"},
        "scores": {"column": "reward"},
        "output": {"path": str(tmp_path / "out")},
    }


def test_files_without_a_version_are_refused_by_name(unversioned):
    config = validate(RunConfig, unversioned, [], where="c.yaml")
    with pytest.raises(InputError, match=r"memory://.*/a\.jsonl has no version: .*limits\.trust_unversioned=true"):
        make_plans(config)


def test_whoever_trusts_them_may_read_them(unversioned):
    config = validate(RunConfig, unversioned, ["limits.trust_unversioned=true"], where="c.yaml")
    assert [file.version for file in make_plans(config).whole.files] == [""]
