"""A worker process, which scores the pieces that the launcher gives it.

    python -m pipelines.score.workers.worker CONNECTION [CORE]...

It sends to the launcher: a sign of life every second, with its progress and counters; log lines; requests for work; and the
error that ended it. It ends when the launcher ends, or when its device fails; in the latter case it is replaced.
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


class LauncherConnection:
    """The connection to the launcher. The process ends if it sends or receives after the launcher has ended."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, kind: str, *content: Any) -> None:
        try:
            with self._sending:
                self._connection.send((kind, *content))
        except OSError:
            os._exit(1)

    def receive(self) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            os._exit(1)


class _LauncherHandler(logging.Handler):
    """Sends our log lines to the launcher, which shows them among its own."""

    def __init__(self, launcher: LauncherConnection) -> None:
        super().__init__()
        self._launcher = launcher

    def emit(self, record: logging.LogRecord) -> None:
        from pipelines.runtime.logs import is_ours

        if is_ours(record):
            self._launcher.send("log", record.name, record.levelno, record.getMessage())


def main() -> None:
    faulthandler.enable()
    launcher = LauncherConnection(Connection(int(sys.argv[1])))
    if cores := {int(core) for core in sys.argv[2:]}:
        # cores may have been taken from this process since; then it runs on the remaining ones
        with suppress(OSError):
            os.sched_setaffinity(0, cores)
    # before the imports, which take seconds
    imported = threading.Event()
    threading.Thread(target=_send_signs_of_life, args=(launcher, imported), daemon=True).start()
    from pipelines.errors import BrokenDeviceError, error_to_report
    from pipelines.runtime.logs import discard, keep, set_up

    set_up(_LauncherHandler(launcher))
    try:
        job: Job = launcher.receive()
        from pipelines.runtime import counters, progress  # noqa: F401

        imported.set()
        _score(job, launcher)
    except BrokenDeviceError as error:
        launcher.send("broken", error.cause)
        os._exit(int(error.exit_code))  # no clean-up, which would wait for the device
    except Exception as error:
        launcher.send("failed", error_to_report(error, "a worker").pack(), keep(error))
        return
    discard()


def _score(job: Job, launcher: LauncherConnection) -> None:
    """Score pieces until there are no more."""
    from pipelines.corpus import UnreadableError, decoded_units, split_units
    from pipelines.corpus.rewrite import rewrite
    from pipelines.plan import plan_at
    from pipelines.score.load_model import LoadAfterRelease
    from pipelines.score.transform import ScoreUnits
    from pipelines.score.unit_scorer import score_in_line

    decoded_units.keep_at_most(1)  # the stripes of a unit are assigned one after the other
    load = job.scorer if len(job.paths.members) == 1 else LoadAfterRelease(job.scorer)
    members = [ScoreUnits(path, job.directories, load, limits=job.limits) for path in job.paths.members]
    while True:
        launcher.send("wants", *_report())
        assignment: tuple[int, WorkPiece] | None = launcher.receive()
        if assignment is None:
            return
        member, piece = assignment
        plan = plan_at(job.paths.members[member])
        file = plan.files[piece.file]
        skippable = (UnreadableError,) if job.limits.skip_bad_files else ()
        with suppress(*skippable):  # the graph that runs afterwards detects and skips such a file again
            if file.copy is not None and piece.unit is None:  # exists already, unless the file cannot be read
                rewrite(file, file.copy, max_row_bytes=plan.max_row_bytes)
            units = split_units(file, as_planned=True) if piece.unit is None else [piece.unit]
            runs = (
                members[member].begin_unit(piece.file, unit, stripe=piece.stripe, stripes=piece.stripes)
                for unit in units
            )
            for _ in score_in_line(runs):
                launcher.send("lives", *_report())  # if this worker dies, the launcher knows what it has published


def _send_signs_of_life(launcher: LauncherConnection, imported: threading.Event) -> None:
    stop = threading.Event()
    while True:
        # a report before that would wait for the imports, which can take longer than a worker may be silent
        launcher.send("lives", *(_report() if imported.is_set() else (None, {})))
        stop.wait(SIGN_OF_LIFE_SECS)


def _report() -> tuple[Any, dict[str, int]]:
    """Progress and counters of this process."""
    from pipelines.runtime import counters, progress

    return progress.current(), counters.local_counters()


if __name__ == "__main__":
    main()
