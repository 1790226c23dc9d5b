"""A worker: `python -m pipelines.fleet.worker CONNECTION [CORE]...`, started by the launcher; scores the pieces that it is given.

What it says goes through the connection: a sign of life every second, with what it has counted; lines for the log; that it wants
more work; or what it failed of. It ends when the launcher does.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.score.work import WorkPiece
    from pipelines.score.workers.launcher import Job

SIGN_OF_LIFE_SECS = 1.0


class Line:
    """The connection to the launcher; whoever sends through it when the launcher is gone ends."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: str, *content: Any) -> None:
        try:
            with self._sending:
                self._connection.send((kind, *content))
        except OSError:
            os._exit(1)  # nobody is there to be told

    def receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            os._exit(1)


class _ToLauncher(logging.Handler):
    """Our log lines, for the launcher to show among its own."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        from pipelines.runtime.logs import is_ours

        if is_ours(record):
            self._line.send("log", record.name, record.levelno, record.getMessage())


def main() -> None:
    faulthandler.enable()
    line = Line(Connection(int(sys.argv[1])))
    if own := {int(core) for core in sys.argv[2:]}:
        with suppress(OSError):  # they may have been taken from this process since: then it runs on those that are left
            os.sched_setaffinity(0, own)
    threading.Thread(target=_show_life, args=(line,), daemon=True).start()  # before the imports, which take seconds
    from pipelines.errors import failure
    from pipelines.runtime.logs import discard, keep, set_up

    set_up(_ToLauncher(line))
    try:
        job: Job = line.receive()
        _score(job, line)
    except Exception as error:
        line.send("failed", failure(error, "a worker").pack(), keep(error))
        return
    discard()


def _score(job: Job, line: Line) -> None:
    """Piece after piece, until there are no more."""
    from pipelines.corpus import UnreadableError, split_units
    from pipelines.corpus.rewrite import rewrite
    from pipelines.plan import plan_at
    from pipelines.score.load_model import LoadAlone
    from pipelines.score.transform import ScoreUnits

    load = job.scorer if len(job.paths.members) == 1 else LoadAlone(job.scorer)
    members = [ScoreUnits(path, job.directories, load, limits=job.limits) for path in job.paths.members]
    while True:
        line.send("wants", *_counted())
        given: tuple[int, WorkPiece] | None = line.receive()
        if given is None:
            return
        member, piece = given
        plan = plan_at(job.paths.members[member])
        file = plan.files[piece.file]
        passed_over = (UnreadableError,) if job.limits.skip_bad_files else ()
        with suppress(*passed_over):  # found, and skipped, once more afterwards
            if file.copy is not None and piece.unit is None:  # there already, unless the file cannot be read
                rewrite(file, file.copy, max_row_bytes=plan.max_row_bytes)
            for unit in split_units(file) if piece.unit is None else [piece.unit]:
                for _ in members[member].score_unit(piece.file, unit, stripe=piece.stripe, stripes=piece.stripes):
                    line.send("lives", *_counted())  # should this worker die, it is known what it has published


def _show_life(line: Line) -> None:
    stop = threading.Event()
    while True:
        line.send("lives", *(_counted() if "pipelines.runtime.counters" in sys.modules else (None, {})))
        stop.wait(SIGN_OF_LIFE_SECS)


def _counted() -> tuple[Any, dict[str, int]]:
    from pipelines.runtime import counters, progress

    return progress.current(), counters.local_counters()


if __name__ == "__main__":
    main()
