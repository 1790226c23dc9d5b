"""A corpus and versions of its outputs, on disk or on an emulated store; and a reader that polls the output in `latest.json`."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from support.corpora import corpus_rows
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.storage.files import join, read_bytes

KEEP_2 = {"select": [{"best_of_n": {"keep": 2}}]}


@dataclass
class Place:
    """A directory or a bucket."""

    url: str
    put: Callable[[str, bytes], None]
    contents: Callable[[str], dict[str, bytes]]
    configure: Callable[..., RunConfig]

    @property
    def root(self) -> str:
        return f"{self.url}/out"

    def add(self, name: str, rows: list[Any]) -> None:
        """A file of the corpus."""
        self.put(f"in/{name}", "".join(json.dumps(row) + "\n" for row in rows).encode())

    def config(self, **changes: Any) -> RunConfig:
        given = {"input": {"rows_per_fragment": 4}, **changes}
        output = {"path": self.root, "versions": True, **given.pop("output", {})}
        return self.configure(self.url + "/in/*.jsonl", **given, output=output)

    def outputs(self) -> dict[str, set[str]]:
        """Version → names of its files."""
        found: dict[str, set[str]] = {}
        for name in self.contents("out"):
            first, _, rest = name.partition("/")
            if first == "versions":
                version, _, file = rest.partition("/")
                found.setdefault(version, set()).add(file)
        return found


def on_disk(directory: Path, configure: Callable[..., RunConfig]) -> Place:
    def put(name: str, data: bytes) -> None:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def contents(below: str) -> dict[str, bytes]:
        root = directory / below
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return Place(str(directory), put, contents, configure)


class Reader:
    """Reads what `latest.json` names, by nothing but what the files say, again and again."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.seen: list[tuple[str, int]] = []  # version, rows; each once as long as it is the latest
        self.wrong: list[str] = []
        self.turns = 0

    def look(self) -> None:
        data = read_bytes(join(self.root, "latest.json"))
        if data is None:
            return
        latest = json.loads(data)
        output = join(self.root, latest["path"])
        manifest = read_bytes(join(output, "manifest.json"))
        if manifest is None or hashlib.sha256(manifest).hexdigest() != latest["manifest"]:
            self.wrong.append(f"{latest['version']}: another manifest, or none")
            return
        rows = 0
        for shard in json.loads(manifest)["shards"]:
            content = read_bytes(join(output, shard["name"]))
            if content is None or xxhash.xxh3_128_hexdigest(content) != shard["xxh3_128"]:
                self.wrong.append(f"{latest['version']}: {shard['name']} is another one, or gone")
                return
            rows += pq.read_table(io.BytesIO(content)).num_rows
        if (latest["version"], rows) not in self.seen[-1:]:
            self.seen.append((latest["version"], rows))

    @contextmanager
    def polling(self) -> Iterator[Reader]:
        stop = threading.Event()

        def poll() -> None:
            while not stop.is_set():
                try:
                    self.look()
                except Exception as error:
                    self.wrong.append(repr(error))
                self.turns += 1
                time.sleep(0.005)

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(30)

    def catch_up(self) -> None:
        """Wait until all that is there now has been looked at."""
        wanted = self.turns + 2
        while self.turns < wanted:
            time.sleep(0.005)


@pytest.fixture
def disk(tmp_path, make_config) -> Place:
    return on_disk(tmp_path / "place", make_config)


@pytest.fixture(params=["disk", *(pytest.param(scheme, marks=pytest.mark.slow) for scheme in ("s3", "gs"))])
def place(request, tmp_path, make_store, make_config) -> Place:
    if request.param == "disk":
        return on_disk(tmp_path / "place", make_config)
    store = make_store(request.param)
    return Place(store.url, store.put, store.contents, make_config)


def fill(place: Place) -> None:
    """48 responses to 12 prompts, in three files."""
    for number in range(3):
        place.add(f"{number}.jsonl", corpus_rows()[number::3])


def run(place: Place, log: Path | None = None, **changes):
    return run_curation(place.config(**changes), scorer=StubFactory(log=None if log is None else str(log)))
