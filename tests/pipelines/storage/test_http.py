"""Corpora on web servers: with and without ranges, ETags and listings; what cannot be read is refused by name."""

from __future__ import annotations

import hashlib
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support.corpora import write_jsonl

from pipelines.storage.stores import remote_object, retry

ROWS = [{"prompt": f"p{n % 3}", "response": f"r{n} ä", "grade": n} for n in range(30)]


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder; `ranges`, `etags` and `sizes` say what it can do, `status` answers every request."""

    daemon_threads = True
    ranges, etags, sizes, status, folder = True, True, True, 0, Path()

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent = folder, 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if self.server.status or not path.exists():
            self.send_error(self.server.status or 404)
            return
        if path.is_dir():
            data, kind = "".join(f'<a href="{p.name}">x</a>' for p in sorted(path.iterdir())).encode(), "text/html"
        else:
            data, kind = path.read_bytes(), "application/octet-stream"
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.ranges else None
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.send_response(206 if asked else 200)
        self.send_header("Content-Type", kind)
        if self.server.sizes:
            self.send_header("Content-Length", str(len(part)))
        if self.server.etags:
            self.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        self.end_headers()
        if body:
            self.wfile.write(part)
            self.server.sent += len(part)


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(retry, "PATIENCE", retry.Patience(deadline_secs=0.2, first_pause_secs=0.01))
    (tmp_path / "www").mkdir()
    with Server(tmp_path / "www") as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def write_parquet(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)


@pytest.fixture
def run(tmp_path, bestkept):
    """(input path, words) → exit code and messages of a run."""

    def run(path: str, *words: str) -> tuple[int, str]:
        values = {"input": {"path": path}, "scores": {"column": "grade"}, "report": {"write": False}}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**values, "output": {"path": str(tmp_path / "out")}}))
        code, _, err = bestkept("run", tmp_path / "run.yaml", *words)
        return code, err

    return run


def kept(tmp_path) -> list[int]:
    return sorted(pq.read_table(tmp_path / "out" / "data", columns=["reward"])["reward"].to_pylist())


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["a.jsonl", "*.jsonl", "sub/*.parquet", "sub", "a.jsonl?download=true"])
def test_files_of_a_web_server_are_read(server, run, tmp_path, name, ranges):
    server.ranges = ranges
    write_jsonl(server.folder / "a.jsonl", ROWS)
    (server.folder / "sub").mkdir()
    write_parquet(server.folder / "sub" / "b.parquet", ROWS)
    code, err = run(f"{server.url}/{name}")
    assert code == 0, err
    assert kept(tmp_path) == [27, 28, 29]
    assert run(f"{server.url}/{name}")[0] == 0


@pytest.mark.parametrize("name", ["a.jsonl", "*.parquet"])
def test_a_server_without_ranges_sends_small_files_whole_and_large_ones_are_refused(
    server, run, tmp_path, monkeypatch, name
):
    server.ranges = False
    rows = [{**row, "response": f"{row['response']} {'x' * 20_000}"} for row in ROWS]
    write_jsonl(server.folder / "a.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), server.folder / "b.parquet", compression="none", use_dictionary=False)
    code, err = run(f"{server.url}/{name}")
    assert code == 0, err
    assert kept(tmp_path) == [27, 28, 29]
    monkeypatch.setattr(remote_object, "PART_BYTES", 300_000)
    if name == "a.jsonl":  # read from end to end
        return
    code, err = run(f"{server.url}/{name}", f"output.path={tmp_path / 'more'}")
    assert code == 2
    assert re.search(r"http://.*/(a\.jsonl|b\.parquet) cannot be read in parts: its server ignores ranges", err), err


@pytest.mark.parametrize(
    ("changes", "path", "code", "words"),
    [
        ({"etags": False}, "a.jsonl", 3, "has no version"),
        ({"sizes": False}, "a.jsonl", 3, "the size of input file .* is unknown"),
        ({}, "b.jsonl", 3, "matches no file"),
        ({}, "*.parquet", 3, "matches no file"),
        ({"status": 403}, "a.jsonl", 5, "403"),
        ({"status": 401}, "a.jsonl", 5, "401"),
        ({"status": 500}, "a.jsonl", 5, "500"),
        ({"status": 403}, "*.jsonl", 5, "403"),
        ({"status": 500}, "*.jsonl", 5, "500"),
    ],
)
def test_what_a_web_server_does_not_give_is_named(server, run, changes, path, code, words):
    write_jsonl(server.folder / "a.jsonl", ROWS)
    for name, value in changes.items():
        setattr(server, name, value)
    ended, err = run(f"{server.url}/{path}")
    assert (ended, len(err.splitlines()[-1:])) == (code, 1), err
    assert re.search(words, err.splitlines()[-1]), err


@pytest.mark.parametrize("path", ["a.jsonl", "*.jsonl"])
def test_a_web_server_that_is_down(server, run, path):
    server.shutdown()
    server.server_close()
    code, err = run(f"{server.url}/{path}")
    assert code == 5, err
    assert "the connection failed" in err


@pytest.mark.parametrize("setting", ["output.path", "scores.path"])
def test_nothing_is_written_to_a_web_server(server, run, setting):
    write_jsonl(server.folder / "a.jsonl", ROWS)
    code, err = run(f"{server.url}/a.jsonl", f"{setting}={server.url}/out")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert f"cannot write {server.url}/out" in err


@pytest.mark.parametrize("path", ["data", "data.txt", "data?format=rows"])
def test_a_file_that_is_named_outright_is_told_by_its_content(server, run, tmp_path, path):
    file = server.folder / path.partition("?")[0]
    for write in (write_parquet, write_jsonl):
        write(file, ROWS)
        code, err = run(
            f"{server.url}/{path}", f"output.path={tmp_path / 'out'}", f"scores.path={tmp_path / write.__name__}"
        )
        assert code == 0, err
        assert kept(tmp_path) == [27, 28, 29]
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("name", ["_a.jsonl", ".a.jsonl", "sub/_b/_c.jsonl"])
def test_a_file_that_is_named_outright_is_read_whatever_its_name(server, run, tmp_path, name):
    (server.folder / "sub" / "_b").mkdir(parents=True)
    write_jsonl(server.folder / name, ROWS)
    for place in (server.folder, server.url):
        code, err = run(f"{place}/{name}", f"output.path={tmp_path / 'out'}")
        assert code == 0, err
        assert kept(tmp_path) == [27, 28, 29]
