"""Runs batches through a model: launches the next before it reads the last, and divides batches that fail.

A GPU works asynchronously: a forward returns before it is done, and reading its rewards waits for it. So the next batch is
launched first, and the GPU never waits for this process. Before a call returns, it launches the first batches of the next
call, if they are known by then: the GPU computes them while the caller stores its results.
"""

from __future__ import annotations

import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rm.engine.device import DeviceError, is_out_of_memory, refuse_broken, works_apart
from rm.scores import Batch, Launched, Window, Work
from rm.text.templates import Encoded

log = logging.getLogger(__name__)

_AHEAD = 1  # batches launched before the rewards of an earlier batch are read


@dataclass
class WindowRun:
    """A window that the model is computing."""

    window: Window
    budget: int  # tokens per batch when its batches were planned
    waiting: list[Batch]  # not launched; the last one is next
    rewards: np.ndarray  # float32 [rows, 1 + named outputs], the reward first; vectors in an embedder
    failures: dict[int, str] = field(default_factory=dict)  # row → reason
    launched: int = 0  # batches not yet read
    begun: bool = False


_Unread = tuple[WindowRun, Batch, Launched]


@dataclass
class Call:
    """The windows of one call of `Scorer.score`, and those of them that are being computed."""

    windows: Iterator[WindowRun]  # not begun
    live: deque[WindowRun] = field(default_factory=deque)  # tokenised, and not yet read
    unread: deque[_Unread] = field(default_factory=deque)

    def launchable(self) -> WindowRun | None:
        """Return the first tokenised window with a batch to launch, if there is one."""
        return next((run for run in self.live if run.waiting), None)


class ForwardLoop(ABC):
    """The loop over windows within a token budget; `Scorer` and `Embedder` define how batches are planned and computed."""

    tokens_per_batch: int
    device: str
    on_batch: Callable[[Work], None] | None
    _known: Encoded | None = None  # a row that the model has scored
    _read_at = 0.0  # when the last batch was read

    @abstractmethod
    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> Launched:
        """Start computing the rewards of a batch's rows, in its order."""

    @abstractmethod
    def _plan(self, rows: Sequence[Encoded], groups: Sequence[Sequence[int]]) -> list[Batch]:
        """Divide these rows into batches; the batch to run first is the last of the list."""

    @abstractmethod
    def _cost(self, rows: Sequence[Encoded], batch: Batch) -> int:
        """Count the tokens that the forward of a batch computes."""

    def _run(self, call: Call, following: Callable[[], Call | None] = lambda: None) -> Iterator[WindowRun]:
        """Yield the windows of a call in order, once all of their rows have rewards or reasons.

        On a GPU, the next batch is launched before the rewards of the last one are read, also across windows, and across to the
        `following` call, if it is known by then.
        """
        ahead = _AHEAD if works_apart(self.device) else 0
        live, unread, after = call.live, call.unread, None
        # windows that have begun come first: the next one may not be tokenised yet
        for new in itertools.chain([[]], ([run] for run in call.windows), [None]):
            live.extend(new or ())
            while True:
                while live and not (live[0].waiting or live[0].launched):
                    yield self._finish(live.popleft())
                waiting = call.launchable()
                if waiting is not None:
                    self._launch(waiting, unread)
                elif new is None and ahead:
                    after = after or following()
                    self._launch_first(after, unread)
                if new is None and not live:
                    break
                if unread and (len(unread) > ahead or (waiting is None and new is None)):
                    self._settle(unread)
                elif waiting is None and new is not None:
                    break
        if after is not None:
            after.unread.extend(unread)

    def _launch_first(self, call: Call | None, unread: deque[_Unread]) -> None:
        """Launch the next batch of a call after those of another call."""
        run = None if call is None else call.launchable()
        if run is not None and len(unread) <= _AHEAD:
            self._launch(run, unread)

    def _launch(self, run: WindowRun, unread: deque[_Unread]) -> None:
        """Launch the next batch of a window; if that fails, read all earlier batches before dividing or rejecting it."""
        rows = run.window.rows
        if run.budget != self.tokens_per_batch:  # lowered since it was planned
            groups = [group for batch in run.waiting for group in batch] if run.begun else run.window.groups
            run.waiting, run.budget = self._plan(rows, groups), self.tokens_per_batch
        run.begun = True
        batch = run.waiting.pop()
        try:
            launched = self._forward(rows, batch)
        except Exception as error:
            while unread:
                self._settle(unread)
            self._recover(run, batch, error)
            return
        run.launched += 1
        unread.append((run, batch, launched))

    def _settle(self, unread: deque[_Unread]) -> None:
        """Read the rewards of the earliest batch."""
        run, batch, launched = unread.popleft()
        run.launched -= 1
        members = [row for group in batch for row in group]
        try:
            run.rewards[members] = launched.read()
        except Exception as error:
            self._recover(run, batch, error)
            return
        now = time.perf_counter()
        secs = now - max(launched.started, self._read_at)  # without its wait for the previous batch
        self._read_at = now
        self._known = self._known or run.window.rows[members[-1]]
        if self.on_batch is not None:
            self.on_batch(launched.work._replace(secs=secs, peak_flops=launched.work.peak_flops * secs))

    def _recover(self, run: WindowRun, batch: Batch, error: Exception) -> None:
        """Divide a batch that failed, or reject its only row: a single row may be the cause of any error.

        Raises `DeviceError`.
        """
        refuse_broken(error)
        rows, members = run.window.rows, [row for group in batch for row in group]
        memory = is_out_of_memory(error)
        if memory and self.device.startswith("cuda"):
            error.__traceback__ = None  # its frames hold the tensors that filled the memory
            torch.cuda.empty_cache()
        if len(members) == 1:
            run.failures[members[0]] = "out_of_memory" if memory else self._blame(rows[members[0]], error)
        elif memory:
            halved = max(1, self._cost(rows, batch) // 2)
            self.tokens_per_batch = run.budget = min(self.tokens_per_batch, halved)
            log.warning("out of memory: from now on batches have at most %d tokens", self.tokens_per_batch)
            run.waiting = self._plan(rows, [group for left in (batch, *run.waiting) for group in left])
        else:
            run.waiting += [[members[: len(members) // 2]], [members[len(members) // 2 :]]]

    def _finish(self, run: WindowRun) -> WindowRun:
        for index in np.flatnonzero(~np.isfinite(run.rewards).all(1)):
            run.failures.setdefault(int(index), "nan_reward")
        return run

    def _blame(self, row: Encoded, error: Exception) -> str:
        """Return the reason why this row has no reward.

        Raises `DeviceError` if a row that was scored before now fails as well: then this row is not the cause.
        """
        if self._known is not None:
            try:
                self._forward([self._known], [[0]]).read()
            except Exception:
                raise DeviceError(f"{type(error).__name__}, and a row that was scored before fails as well") from error
        log.warning(
            "the model fails on a row of %d tokens (%s); the row is rejected", len(row.ids), type(error).__name__
        )
        return "model_error"
