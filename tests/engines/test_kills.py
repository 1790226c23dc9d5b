"""`kill -9` of each part of a run on Prism with an S3 server: it ends, nothing is left, and the same command finishes it."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from services.engines import engines, kill, until
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import StubFactory, scored_rows

from pipelines.commands.run import run_curation
from pipelines.errors import Exit, StorageError

pytestmark = engines("prism", "beam-boot", "versitygw")
ROWS, FRAGMENTS, ROWS_PER_FRAGMENT = 24, 8, 3
SETTINGS = {
    "input": {"rows_per_fragment": ROWS_PER_FRAGMENT},
    "select": [{"top": {"fraction": 0.8}}, {"best_of_n": {"keep": 2}}],
}
SCORE_FILE = r"/out/scores/\w+/[0-9a-f]{32}\.parquet"
MOMENTS = {  # the request at which the part is killed, after so many score files, and whether it comes to the store
    "before": ("^PUT.*" + SCORE_FILE, 0, False),
    "middle": ("^PUT.*" + SCORE_FILE, 3, True),  # the fourth
    "grouping": ("^GET.*" + SCORE_FILE, FRAGMENTS, True),
    "publishing": ("^PUT.*/out/data/train-00001", FRAGMENTS, False),
}
THREADS = 2  # fragments that a worker has in hand
AWAY_SECS = 3  # of the S3 server, between its end and its start


def ours(contents: dict[str, bytes]) -> dict[str, str]:
    """Hashes of what must be the same; claim.json names the plan, and that where the corpus is."""
    names = ("manifest.json", "README.md", "data/", "report.json", "samples.parquet")
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items() if name.startswith(names)}


@pytest.fixture
def expected(tmp_path, make_config, bucket):
    """The bytes of the run in memory; the corpus is put into the bucket."""
    for number in range(2):
        path = write_jsonl(tmp_path / "in" / f"{number}.jsonl", corpus_rows()[:ROWS][number::2])
        bucket.put(f"in/{number}.jsonl", path.read_bytes())
    output = {"path": str(tmp_path / "out"), "rows_per_shard": 4}
    run_curation(make_config(tmp_path / "in" / "*.jsonl", **SETTINGS, output=output), scorer=StubFactory())
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name not in TIMED]
    return ours({str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in files})


class Command:
    """Runs of one command on an engine."""

    def __init__(self, make_config, bucket, log: Path) -> None:
        self.log, self._bucket, self._make_config = log, bucket, make_config

    def run(self, prism, after: Callable[[], bool] = lambda: True) -> StorageError | None:
        """Run; the error where it ends with one. It ends within two minutes after something holds."""
        output = {"path": f"{self._bucket.url}/out", "rows_per_shard": 4}
        runner = {"name": "PortableRunner", "options": prism.options}
        config = self._make_config(f"{self._bucket.url}/in/*.jsonl", **SETTINGS, output=output, runner=runner)
        ends: list[Exception | None] = []

        def run() -> None:
            try:
                run_curation(config, scorer=StubFactory(log=str(self.log), secs=0.05))
                ends.append(None)
            except Exception as error:
                ends.append(error)

        threading.Thread(target=run, daemon=True).start()
        until(lambda: bool(ends) or after(), "the moment", secs=300)
        until(lambda: bool(ends), "the end of the run", secs=120)
        if ends[0] is not None and not isinstance(ends[0], StorageError):
            raise ends[0]
        return ends[0]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("part", ["worker", "boot", "engine", "store"])
def test_a_killed_part(part, moment, request, expected, bucket, s3_server, start_prism, make_config, tmp_path):
    server, proxy = s3_server
    pattern, published, arrives = MOMENTS[moment]
    command, killed, at_work = Command(make_config, bucket, tmp_path / "log"), [], []
    fault = proxy.add("call" if arrives else "reset", pattern, times=0)

    def act() -> None:
        killed.append(part)
        at_work.extend(prism.workers())
        if part == "store":
            server.kill()
            threading.Thread(target=lambda: (time.sleep(AWAY_SECS), server.start()), daemon=True).start()
        for pid in {"worker": prism.workers, "boot": prism.boots, "engine": lambda: [prism.engine.pid]}.get(
            part, list
        )():
            kill(pid)

    def arm() -> None:
        fault.times, fault.hook = 1, act

    if published:
        proxy.add("call", "^PUT.*" + SCORE_FILE, skip=published - 1, hook=arm)
    else:
        arm()
    with ExitStack() as stack:
        prism = stack.enter_context(start_prism()) if part == "engine" else request.getfixturevalue("prism")
        error = command.run(prism, after=lambda: bool(killed))
        assert killed == [part]
        if error is not None:
            assert error.exit_code is Exit.STORAGE
            assert "finished scores are kept" in error.message
            assert re.search("the same command", error.message)
            assert not re.search("report it|Rendezvous|StatusCode|RuntimeError|Traceback", error.message)
        assert part not in ("worker", "engine") or error is not None
        assert part != "store" or error is None, "it came back, and the run waited for it"
        until(lambda: not {*at_work} & {*prism.workers()}, "the end of the workers", secs=120)
        if part != "engine":  # for which the boot program starts others for some minutes, in vain
            until(lambda: not prism.workers() and not prism.boots(), "the end of the boot program", secs=120)
        assert ours(bucket.contents("out")).items() <= expected.items(), "nothing false is published"
        if part == "engine":
            prism = stack.enter_context(start_prism())
        assert error is None or command.run(prism) is None
    assert ours(bucket.contents("out")) == expected
    in_flight = ROWS_PER_FRAGMENT * THREADS
    assert ROWS <= scored_rows(command.log) <= ROWS + in_flight
