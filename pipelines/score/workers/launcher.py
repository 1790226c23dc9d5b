"""The launcher of a machine's workers: deals out pieces of work, largest first, and watches who does them.

A worker that dies or gives no sign of life is replaced once, and its piece given out again; score files are idempotent, so that
costs the fragment it was at. Where that does not help, all end, within a minute, and the same command goes on from there.
Pieces are given out as workers ask for them: no split beforehand would know what is scored already, or who is slow.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from pipelines.config import Limits
from pipelines.errors import StorageError, from_text
from pipelines.plan import PlanPaths, Plans
from pipelines.runtime import machine, progress
from pipelines.score.unit_scorer import ScorerFactory
from pipelines.score.unit_scores import ScoreDirectories
from pipelines.score.work import (
    PIECES_PER_WORKER,
    CorpusShard,
    WorkPiece,
    make_copies,
    pieces_of_shard,
    split_large,
    stripe,
    whole_files,
)

log = logging.getLogger(__name__)

SILENT_SECS = 25.0  # without a sign of life: two times that, and the start of a second worker, are less than a minute
_LOOK_SECS = 1.0
_LEAVE_SECS = 10.0  # for one that has no more work to end by itself
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told."""

    paths: PlanPaths
    directories: ScoreDirectories
    scorer: ScorerFactory
    limits: Limits


def score_ahead(job: Job, plans: Plans, count: int, shard: CorpusShard | None = None) -> dict[str, int]:
    """Score all there is, or a shard of it, with so many workers; what the model's counters say. Raises `BestkeptError`."""
    progress.set_stage("scoring")
    make_copies(plans.whole)
    files = plans.whole.files
    pieces = whole_files(files) if shard is None else pieces_of_shard(files, shard)
    most_bytes = sum(piece.stored_bytes for piece in pieces) // (PIECES_PER_WORKER * count)
    ready = stripe(split_large(files, pieces, most_bytes), count)
    work = deque((member, piece) for member in range(len(plans.members)) for piece in ready)
    log.info("scoring with %d workers, %d pieces of work", min(count, len(work)), len(work))
    return _Fleet(job, work, min(count, len(work))).run()


@dataclass
class _Worker:
    """One place among the workers, and the process that fills it now."""

    number: int
    process: subprocess.Popen[bytes]
    line: Connection
    heard: float  # monotonic seconds
    held: tuple[int, WorkPiece] | None = None  # in work: model, piece
    deaths: int = 0
    ended: bool = False
    now: progress.Progress = field(default_factory=progress.Progress)
    before: progress.Progress = field(default_factory=progress.Progress)  # when it asked for the piece that it holds
    counted: Mapping[str, int] = field(default_factory=dict)


class _Fleet:
    def __init__(self, job: Job, work: deque[tuple[int, WorkPiece]], count: int) -> None:
        self._job, self._work = job, work
        self._past: list[progress.Progress] = []  # of workers that died
        self._past_counts: list[Mapping[str, int]] = []
        self._devices = machine.list_gpus()
        self._threads = max(1, machine.count_cores() // max(1, count))
        self._cores = machine.split_cores(count)
        self._workers: list[_Worker] = []
        self._count = count

    def run(self) -> dict[str, int]:
        try:
            self._workers += [self._start(number) for number in range(self._count)]
            looked = time.monotonic()
            while waiting := [worker for worker in self._workers if not worker.ended]:
                for line in wait([worker.line for worker in waiting], timeout=_LOOK_SECS):
                    self._hear(next(worker for worker in waiting if worker.line is line))
                now = time.monotonic()
                # was this process stopped itself, nobody could be heard
                if now - looked > _LOOK_SECS + SILENT_SECS / 2:
                    for worker in waiting:
                        worker.heard = now
                looked = now
                for worker in waiting:
                    if not worker.ended and now - worker.heard > SILENT_SECS:
                        self._bury(worker, f"has given no sign of life for {SILENT_SECS:.0f} s")
                progress.set_from_workers([*self._past, *(worker.now for worker in self._workers)])
        finally:
            for worker in self._workers:
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(_LEAVE_SECS if worker.ended else 0)
                worker.process.kill()
                worker.process.wait()
                worker.line.close()
        progress.settle()
        counts = [*self._past_counts, *(worker.counted for worker in self._workers)]
        return {name: sum(count.get(name, 0) for count in counts) for name in sorted(set().union(*counts))}

    def _start(self, number: int) -> _Worker:
        """A process, in a session of its own: Ctrl-C is for the launcher, and when that is gone, the worker ends."""
        ours, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment |= {name: str(self._threads) for name in _THREADS if name not in os.environ}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[number]
        command = [sys.executable, "-m", "pipelines.score.workers.worker", str(theirs.fileno())]
        if not self._devices:  # a thread that moves to another core leaves its cache behind
            command += map(str, self._cores[number])
        process = subprocess.Popen(
            command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        theirs.close()
        ours.send(self._job)
        return _Worker(number, process, ours, time.monotonic())

    def _hear(self, worker: _Worker) -> None:
        """Take one message, or the end of the line."""
        try:
            kind, *content = worker.line.recv()
        except (EOFError, OSError):
            self._bury(worker, _how_it_ended(worker.process.wait()))
            return
        worker.heard = time.monotonic()
        match kind:
            case "lives":
                self._note(worker, *content)
            case "log":
                name, level, message = content
                logging.getLogger(name).log(level, "worker %d: %s", worker.number, message)
            case "failed":
                token, log_path = content
                if log_path is not None:
                    log.info("worker %d: more in %s", worker.number, log_path)
                raise from_text(token) or StorageError(f"worker {worker.number} failed, and did not say how")
            case "wants":
                self._note(worker, *content)
                worker.before = worker.now
                worker.held = self._work.popleft() if self._work else None
                worker.ended = worker.held is None
                worker.line.send(worker.held)

    def _note(self, worker: _Worker, now: progress.Progress | None, counted: Mapping[str, int]) -> None:
        worker.now, worker.counted = now or worker.now, counted or worker.counted

    def _bury(self, worker: _Worker, what: str) -> None:
        """Give what a dead worker held to others, and its place to a new one; the second time, end. Raises `StorageError`."""
        worker.process.kill()
        worker.process.wait()
        worker.ended = True
        if worker.deaths:
            raise StorageError(
                f"worker {worker.number} of {self._count} {what}, as the one before it did; what is scored stays, and the same "
                "command again goes on from there; if memory is short, with a smaller runner.workers or model.tokens_per_batch"
            )
        log.warning("worker %d %s; another takes its place", worker.number, what)
        self._past.append(progress.count_dead_worker(worker.now, worker.before))
        self._past_counts.append(worker.counted)
        if worker.held is not None:
            self._work.appendleft(worker.held)
        worker.line.close()
        fresh = self._start(worker.number)
        fresh.deaths = 1
        self._workers[worker.number] = fresh


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", as a machine does that runs out of memory" if name == "SIGKILL" else "")
