"""Loads the model of a run, once per process, for one forward at a time; a process ends if its device fails."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from apache_beam.utils.shared import Shared

from pipelines.errors import BrokenDeviceError, ModelLoadError, reporting_broken_devices
from pipelines.plan import Plan
from pipelines.runtime import counters
from pipelines.score.unit_scorer import Groups, PreparingScorer, Scorer, ScorerFactory
from pipelines.storage.models import carrying_model_errors, loadable_directory, refuse_other_versions

log = logging.getLogger(__name__)

TURN = "BESTKEPT_LOADING_TURN"
"""The environment variable `FILE:NUMBER`: the descriptor of the file of `loading_turn`, open in all workers, and their number."""

_PLACEHOLDER = Shared()
_SEND_SECS = 5.0  # for the last log lines of a process


@dataclass(frozen=True)
class LoadScorer:
    """Loads the plan's model on the worker that scores with it. A picklable value, so that tests can replace it."""

    def __call__(self, plan: Plan) -> Scorer:
        from rm.checkpoint.embedding_config import EmbeddingSettings
        from rm.checkpoint.memory_check import available_bytes
        from rm.embedder import Embedder
        from rm.engine.device import resolve_device
        from rm.scorer import ModelError
        from rm.scorer import Scorer as ModelScorer
        from rm.scores import Outputs

        refuse_other_versions(plan.model["versions"])
        directory = loadable_directory(plan.model, plan.identity)
        try:
            with loading_turn(available_bytes) as share:
                if "embedding" in plan.model:
                    embedder = Embedder.load(
                        directory,
                        EmbeddingSettings.from_json(plan.model["embedding"]),
                        device=resolve_device(plan.model["device"]),
                        tokens_per_batch=plan.model["tokens_per_batch"],
                    )
                    embedder.on_batch = counters.count_forward
                    return embedder
                scorer = ModelScorer.load(
                    directory,
                    dtype=plan.model["dtype"],
                    max_length=plan.model["max_length"],
                    too_long=plan.model["too_long"],
                    tokens_per_batch=plan.model["tokens_per_batch"],
                    device=resolve_device(plan.model["device"]),
                    devices=plan.model["devices"],
                    memory=share,
                    outputs=Outputs.of(plan.model.get("outputs")),
                )
        except ModelError as error:
            raise ModelLoadError(str(error)) from error
        scorer.on_batch = counters.count_forward
        return scorer


@contextmanager
def loading_turn(available_bytes: Callable[[], int | None]) -> Iterator[int | None]:
    """Wait until no other worker of this machine loads a model; yield this worker's share of the memory that was free at first.

    None if this process is the only worker, or the system does not report memory. A worker that ends releases its turn.
    """
    turn = os.environ.get(TURN)
    if turn is None:
        yield None
        return
    file, count = (int(number) for number in turn.split(":"))
    fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        if not os.fstat(file).st_size:
            os.pwrite(file, str(available_bytes() or 0).encode(), 0)
        yield int(os.pread(file, 32, 0)) // count or None
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN)


def acquire_scorer(shared: Any, make: ScorerFactory, plan: Plan) -> Scorer:
    """The process's scorer of a plan, made once for all threads; `shared` is Beam's `Shared` of a DoFn."""
    with reporting_broken_devices():
        handle: _LockedScorer = shared.acquire(lambda: _LockedScorer(make(plan)), tag=plan.fingerprint)
    return handle


def process_name() -> str:
    """A name of this process, unique among all machines."""
    return f"{socket.gethostname()}/{os.getpid()}"


@contextmanager
def ending_with_device(launcher: str) -> Iterator[None]:
    """Inside a DoFn, end this process if its device has failed, unless it is the `launcher`, which the error ends.

    Runners replace workers that end and reassign their work; a worker that continued would fail on every element.
    """
    try:
        yield
    except BrokenDeviceError as error:
        if process_name() == launcher:
            raise
        log.critical("%s; this worker ends", error.message)
        sending = threading.Thread(target=logging.shutdown, daemon=True)  # Beam's handler waits for the runner to read
        sending.start()
        sending.join(_SEND_SECS)
        os._exit(int(error.exit_code))


class _LockedScorer:
    """A scorer behind a lock: one forward at a time, whatever the number of harness threads."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._lock = threading.Lock()

    def prepare(self, groups: Groups) -> Groups:
        """Tokenize the first of these groups, possibly while others are scored; no effect if the scorer cannot prepare."""
        with carrying_model_errors(), reporting_broken_devices():
            return self._scorer.prepare(groups) if isinstance(self._scorer, PreparingScorer) else groups

    def score(self, groups: Groups, following: Callable[[], Groups | None] = lambda: None) -> Sequence[Any]:
        with self._lock, carrying_model_errors(), reporting_broken_devices():
            if isinstance(self._scorer, PreparingScorer):
                return self._scorer.score(groups, following)
            return self._scorer.score(groups)


class _Placeholder:
    """Replaces a model in Beam's `Shared`."""


@dataclass(frozen=True)
class LoadAfterRelease:
    """Loads a model once the previous one has been released. Beam's `Shared` keeps the last object that was acquired, and would
    release it only after the next one is loaded."""

    load: Callable[[Plan], Any]

    def __call__(self, plan: Plan) -> Any:
        release_model()
        return self.load(plan)


def release_model() -> None:
    """Release the model that Beam's `Shared` keeps after the last use."""
    _PLACEHOLDER.acquire(_Placeholder)
    gc.collect()  # a model may be part of a cycle
