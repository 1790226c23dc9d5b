"""Launches the workers of a machine, assigns pieces of work, the largest first, and replaces workers that die.

Pieces are assigned when workers request them: it is not known beforehand which are already scored, or which workers are slow.
A worker that dies, sends no sign of life, or whose device fails is replaced once, and its piece is assigned again. Score files
are idempotent, so this costs only the fragment in progress. If the replacement also dies, the run ends within a minute; the same
command resumes it.

Example of a launcher (L) and a worker (W):

    L → W  the `Job`
    W → L  wants, progress and counters
    L → W  (model 0, a `WorkPiece`), or None: then the worker ends
    W → L  lives, progress and counters    (every second)
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
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
from pipelines.runtime.progress import Progress
from pipelines.score.load_model import TURN
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

SILENT_SECS = 25.0  # without a sign of life; twice that, and the start of a second worker, are less than a minute
_POLL_SECS = 1.0
_EXIT_SECS = 10.0  # for a worker without work to end by itself
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_MEMORY_REMEDY = "if memory is short, with a smaller runner.workers or model.tokens_per_batch"
_DEVICE_REMEDY = "if it fails again, look at the device (nvidia-smi) or use another one"


@dataclass(frozen=True)
class Job:
    """The settings that all workers of a run share."""

    paths: PlanPaths
    directories: ScoreDirectories
    scorer: ScorerFactory
    limits: Limits


def run_workers(job: Job, plans: Plans, count: int, shard: CorpusShard | None = None) -> dict[str, int]:
    """Score the corpus, or a shard of it, with `count` workers, and return the sums of their models' counters.

    Raises `BestkeptError`.
    """
    progress.set_stage("scoring")
    make_copies(plans.whole)
    files = plans.whole.files
    pieces = whole_files(files) if shard is None else pieces_of_shard(files, shard)
    most_bytes = sum(piece.stored_bytes for piece in pieces) // (PIECES_PER_WORKER * count)
    ready = stripe(split_large(files, pieces, most_bytes), count)
    work = deque((member, piece) for member in range(len(plans.members)) for piece in ready)
    log.info("scoring with %d workers, %d pieces of work", min(count, len(work)), len(work))
    on_cpu = all(member.model["device"] == "cpu" for member in plans.members)
    count = min(count, len(work))
    gpus = machine.share_gpus(count, [member.model["devices"] for member in plans.members])
    return _Launcher(job, work, count, [] if on_cpu else gpus).run()


@dataclass
class _Worker:
    """A numbered worker: its current process, and the last report of that process."""

    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    last_message: float  # monotonic seconds
    assignment: tuple[int, WorkPiece] | None = None  # model, piece
    deaths: int = 0
    ended: bool = False
    progress: Progress = field(default_factory=Progress)
    progress_before: Progress = field(default_factory=Progress)  # when its assignment began
    counters: Mapping[str, int] = field(default_factory=dict)


class _Launcher:
    def __init__(self, job: Job, work: deque[tuple[int, WorkPiece]], count: int, gpus: list[str]) -> None:
        self._job, self._work = job, work
        self._dead_progress: list[Progress] = []
        self._dead_counters: list[Mapping[str, int]] = []
        self._gpus = gpus
        self._threads = max(1, machine.count_cores() // max(1, count))
        self._cores = machine.split_cores(count)
        self._workers: list[_Worker] = []
        self._count = count
        self._turn = -1  # file descriptor, locked by the worker that loads its model

    def run(self) -> dict[str, int]:
        """Let the workers do all the work, and return the sums of their counters. Raises `BestkeptError`."""
        with tempfile.TemporaryFile() as turn:
            self._turn = turn.fileno()
            try:
                self._workers += [self._start(number) for number in range(self._count)]
                self._follow()
            finally:
                self._stop()
        progress.settle()
        counters = [*self._dead_counters, *(worker.counters for worker in self._workers)]
        return {name: sum(count.get(name, 0) for count in counters) for name in sorted(set().union(*counters))}

    def _follow(self) -> None:
        """Answer the workers until all have ended."""
        polled = time.monotonic()
        while running := [worker for worker in self._workers if not worker.ended]:
            for connection in wait([worker.connection for worker in running], timeout=_POLL_SECS):
                self._receive(next(worker for worker in running if worker.connection is connection))
            now = time.monotonic()
            # if this process was itself suspended, no worker could report
            if now - polled > _POLL_SECS + SILENT_SECS / 2:
                for worker in running:
                    worker.last_message = now
            polled = now
            for worker in running:
                if not worker.ended and now - worker.last_message > SILENT_SECS:
                    self._replace_dead(worker, f"has given no sign of life for {SILENT_SECS:.0f} s")
            progress.set_from_workers([*self._dead_progress, *(worker.progress for worker in self._workers)])

    def _stop(self) -> None:
        """Wait for workers that have no more work, and kill all others."""
        for worker in self._workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(_EXIT_SECS if worker.ended else 0)
            worker.process.kill()
            worker.process.wait()
            worker.connection.close()

    def _start(self, number: int) -> _Worker:
        """Start a process in a new session: Ctrl-C goes only to the launcher, and a worker ends with its launcher."""
        connection, worker_end = Pipe()
        # this process's own `sys.path`: `-P` does not add the working directory, which may have another `pipelines`
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        environment |= {name: str(self._threads) for name in _THREADS if name not in os.environ}
        environment[TURN] = f"{self._turn}:{self._count}"
        if self._gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self._gpus[number]
        command = [sys.executable, "-P", "-m", "pipelines.score.workers.worker", str(worker_end.fileno())]
        if not self._gpus:  # a thread that moves to another core leaves its cache behind
            command += map(str, self._cores[number])
        process = subprocess.Popen(
            command, env=environment, pass_fds=[worker_end.fileno(), self._turn], stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        worker_end.close()
        connection.send(self._job)
        return _Worker(number, process, connection, time.monotonic())

    def _receive(self, worker: _Worker) -> None:
        """Handle one message, or the end of the connection."""
        try:
            kind, *content = worker.connection.recv()
        except (EOFError, OSError):
            self._replace_dead(worker, _describe_end(worker.process.wait()))
            return
        worker.last_message = time.monotonic()
        match kind:
            case "lives":
                self._record(worker, *content)
            case "log":
                name, level, message = content
                logging.getLogger(name).log(level, "worker %d: %s", worker.number, message)
            case "broken":
                (cause,) = content
                self._replace_dead(worker, f"has lost its device ({cause})", remedy=_DEVICE_REMEDY)
            case "failed":
                token, log_path = content
                if log_path is not None:
                    log.info("worker %d: more in %s", worker.number, log_path)
                raise from_text(token) or StorageError(f"worker {worker.number} failed, and did not say how")
            case "wants":
                self._record(worker, *content)
                worker.progress_before = worker.progress
                worker.assignment = self._work.popleft() if self._work else None
                worker.ended = worker.assignment is None
                worker.connection.send(worker.assignment)

    def _record(self, worker: _Worker, latest: Progress | None, counters: Mapping[str, int]) -> None:
        worker.progress, worker.counters = latest or worker.progress, counters or worker.counters

    def _replace_dead(self, worker: _Worker, cause: str, *, remedy: str = _MEMORY_REMEDY) -> None:
        """Requeue a dead worker's piece, and start a replacement. Raises `StorageError` if the worker was a replacement."""
        worker.process.kill()
        worker.process.wait()
        worker.ended = True
        if worker.deaths:
            raise StorageError(
                f"worker {worker.number} of {self._count} {cause}, as the one before it did; finished scores are kept; run the "
                f"same command again to resume; {remedy}"
            )
        log.warning("worker %d %s; another takes its place", worker.number, cause)
        self._dead_progress.append(progress.count_dead_worker(worker.progress, worker.progress_before))
        self._dead_counters.append(worker.counters)
        if worker.assignment is not None:
            self._work.appendleft(worker.assignment)
        worker.connection.close()
        replacement = self._start(worker.number)
        replacement.deaths = 1
        self._workers[worker.number] = replacement


def _describe_end(code: int) -> str:
    """The end of a process with this exit code, as the predicate of a sentence."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", as when the machine runs out of memory" if name == "SIGKILL" else "")
