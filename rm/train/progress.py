"""Progress reports of a training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from rm.train.trainer import GroupTrainer


@dataclass(frozen=True)
class TrainProgress:
    """The state of a training after a step or another `event`."""

    event: str  # step | log, of a twentieth of the training | evaluation | saved, of the model, after the last step
    step: int
    steps: int
    loss: float | None = None  # mean of the last steps, or since the previous line
    learning_rate: float | None = None
    accuracy: float | None = None  # of the last evaluation
    heldout_loss: float | None = None
    judgements_per_sec: float | None = None
    secs_left: float | None = None


Watch = Callable[[TrainProgress], None]


class ReportProgress(TrainerCallback):  # type: ignore[misc]
    """Reports every step, line of the log and evaluation to `watch`."""

    def __init__(self, trainer: GroupTrainer, watch: Watch) -> None:
        self._trainer, self._watch = trainer, watch
        self._started, self._first, self._evaluations = 0.0, 0, 0
        self._last = TrainProgress("step", 0, 0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        secs = max(1e-9, time.monotonic() - self._started - trainer.evaluation_secs)
        left = (state.max_steps - state.global_step) * secs / (state.global_step - self._first)
        if self._evaluations:
            due = _evaluations(args, state.max_steps) - _evaluations(args, state.global_step)
            left += due * trainer.evaluation_secs / self._evaluations
        rate = trainer.judgements * trainer.ranks.count / secs
        self._tell("step", state, loss=trainer.recent_loss, judgements_per_sec=rate, secs_left=left)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._tell("log", state, loss=float(logs["loss"]), learning_rate=float(logs["learning_rate"]))
        if logs and "eval_accuracy" in logs:
            self._evaluations += 1
            self._tell("evaluation", state, accuracy=logs["eval_accuracy"], heldout_loss=logs["eval_loss"])

    def tell_saved(self) -> None:
        """Report that the model is saved."""
        self._tell("saved", self._trainer.state)

    def _tell(self, event: str, state: Any, **changes: Any) -> None:
        now = replace(self._last, event=event, step=state.global_step, steps=state.max_steps, **changes)
        self._last = now
        self._watch(now)


def _evaluations(args: Any, step: int) -> int:
    """Return the number of evaluations up to a step; the last step always has one."""
    return step // int(args.eval_steps) + (step == args.max_steps and step % int(args.eval_steps) > 0)
