"""The client of `server.py`, the corpus of the runs, and what must hold after a fault and after the same command again."""

from __future__ import annotations

import itertools
import json
import os
import queue
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file
from support.corpora import TIMED, corpus_rows, write_jsonl

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """What came of one run."""

    code: int  # minus the signal where one killed it
    hung: bool
    out: str
    err: str
    calls: list[tuple[str, str, int]]  # name, path, bytes of a write
    secs: float

    @property
    def last(self) -> str:
        return (self.err.strip().splitlines() or [""])[-1]


class Server:
    """A running `server.py`."""

    def __init__(self, *, cache: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(cache),
        }
        command = [sys.executable, "-m", "chaos.server"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(self, runs: Sequence[dict[str, Any]]) -> list[Ended]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(runs) + "\n")
        self._process.stdin.flush()
        return [Ended(**fields) for fields in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


class Servers:
    """Some servers; a run waits for a free one."""

    def __init__(self, count: int, *, cache: Path) -> None:
        self.cache = cache
        self._all = [Server(cache=cache) for _ in range(count)]
        self._free: queue.SimpleQueue[Server] = queue.SimpleQueue()
        for server in self._all:
            self._free.put(server)

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._all:
            server.close()

    def run(self, *runs: dict[str, Any]) -> list[Ended]:
        """Run these at the same time (fields of `server.Run`)."""
        server = self._free.get()
        try:
            return server.run(runs)
        finally:
            self._free.put(server)


class Subject:
    """A corpus of 47 rows in two files, four fragments, three shards and three rejected responses, and runs over it."""

    def __init__(self, servers: Servers, folder: Path, model: Path, *, stub: bool = True) -> None:
        self.servers, self.folder, self.model, self._stub = servers, folder, model, stub
        self._numbers = itertools.count()
        self.other_model = save_stub_model(folder / "other-model", weight=1.0)
        rows = [*corpus_rows(11), {"prompt": "prompt number 0", "response": "an UNSCORABLE answer", "generator": "g0"}]
        rows += [{"prompt": "prompt number 1", "response": text, "generator": "g1"} for text in (None, " ")]
        write_jsonl(folder / "in" / "a.jsonl", rows[:23])
        write_jsonl(folder / "in" / "b.jsonl", rows[23:])
        rated = [{**row, "quality": number % 7} for number, row in enumerate(rows)]
        write_jsonl(folder / "rated" / "a.jsonl", rated)  # rows with a reward of their own

    def place(self) -> Place:
        return Place(self, self.folder / f"run-{next(self._numbers)}")


class Place:
    """One output directory with its configuration, its scorer's log and its runs."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        folder.mkdir()
        self.subject, self.folder, self.log = subject, folder, folder / "log"
        self.config = folder / "config.yaml"
        self.move_output(folder / "out")

    def move_output(self, output: Path) -> None:
        self.output = output
        values = {
            "input": {"path": str(self.subject.folder / "in" / "*"), "rows_per_fragment": 12},
            "model": {"path": str(self.subject.model)},
            "output": {"path": str(self.output), "rows_per_shard": 4},
            "limits": {"max_rejected_fraction": 0.5},
        }
        self.config.write_text(yaml.safe_dump(values))

    def request(self, command: str = "run", **fields: Any) -> dict[str, Any]:
        words = [command, str(self.config), *fields.pop("overrides", [])]
        if fields.pop("watched", False):
            fields["watch"] = [str(self.output)]
        log = {"log": str(self.log)} if self.subject._stub else {}
        return {"words": words, "folder": str(self.folder), **log, **fields}

    def run(self, command: str = "run", **fields: Any) -> Ended:
        (ended,) = self.subject.servers.run(self.request(command, **fields))
        return ended

    def run_undisturbed(self, *overrides: str) -> Ended:
        """Run to the end, and tell the calls. Raises `RuntimeError` where that does not end with 0."""
        calm = self.run(watched=True, overrides=list(overrides))
        if calm.code != 0:
            raise RuntimeError(f"the undisturbed run with {overrides} ended with {calm.code}: {calm.last}")
        return calm

    def tree(self) -> dict[str, bytes]:
        """Every file of the output and its bytes, but for temporaries and what tells times."""
        files = sorted(file for file in self.output.rglob("[!.]*") if file.is_file())
        named = {str(file.relative_to(self.output)): file for file in files}
        return {name: file.read_bytes() for name, file in named.items() if name not in TIMED}

    def temporaries(self) -> list[str]:
        return sorted(str(path.relative_to(self.output)) for path in self.output.rglob(".*"))

    def scored_again(self) -> int:
        """Calls of the scorer for fragments that were scored before."""
        lines = self.log.read_text().split() if self.log.exists() else []
        return sum(count - 1 for line, count in Counter(lines).items() if line != "load")


def normal(call: tuple[str, str, int], output: Path) -> tuple[str, str]:
    """A call by name and kind of file: without what is random in the name of a temporary."""
    name, path, _ = call
    relative = os.path.relpath(path, os.path.realpath(output))
    parts = Path(relative).name.split(".")
    return name, relative if parts[-1] != "tmp" else str(Path(relative).with_name(".".join([*parts[:-2], "*", "tmp"])))


def save_stub_model(directory: Path, *, weight: float = 0.0) -> Path:
    """A directory that identifies as a model; only stub scorers use it."""
    directory.mkdir()
    save_file({"score.weight": np.full((1, 4), weight, dtype=np.float32)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return directory
