"""Writes and finds the checkpoints from which the same command resumes a training."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from rm.train.data import EncodedGroup, hash_groups
from rm.train.settings import TrainingError, TrainSettings

if TYPE_CHECKING:
    from rm.train.trainer import GroupTrainer

log = logging.getLogger(__name__)

_SETTINGS_FILE, _DATA_FILE = "settings.json", "data.json"


def checkpoints_at(output_path: str) -> Path:
    """Return the folder of the checkpoints of a training that writes to `output_path`."""
    return Path(output_path) / "checkpoints"


def find_checkpoint(settings: TrainSettings) -> str | None:
    """Find the last checkpoint of an interrupted run with these settings; None for a fresh start.

    Raises `TrainingError` if the existing checkpoints belong to other settings.
    """
    folder = checkpoints_at(settings.output_path)
    key_file, step = folder / _SETTINGS_FILE, last_checkpoint(settings.output_path)
    if step is not None and key_file.is_file():
        if json.loads(key_file.read_text(encoding="utf-8")) != settings.key():
            raise TrainingError(
                f"{folder} holds checkpoints of a run with other settings, or of an earlier version; finish that run, remove the "
                "folder, or choose another output.path"
            )
        log.info("resuming from step %s, the checkpoint in %s", f"{step:,}", folder)
        return str(folder / f"checkpoint-{step}")
    return None


def last_checkpoint(output_path: str) -> int | None:
    """Return the step of the last whole checkpoint below a model's directory, from which the same command resumes."""
    states = checkpoints_at(output_path).glob("checkpoint-*/trainer_state.json")  # written last
    return max((int(path.parent.name.rpartition("-")[2]) for path in states), default=None)


def claim_checkpoints(settings: TrainSettings, data: Sequence[EncodedGroup], *, resumed: bool) -> None:
    """Make the folder of the checkpoints, with a record of their settings and data; called after data and model are checked.

    Raises `TrainingError` if a training would be resumed with other data.
    """
    folder = checkpoints_at(settings.output_path)
    data_file, data_hash = folder / _DATA_FILE, hash_groups(data)
    if resumed:
        if data_file.is_file() and json.loads(data_file.read_text(encoding="utf-8")) != data_hash:
            raise TrainingError(
                f"the preferences have changed since {folder} was written; restore them, remove the folder to start again, or "
                "choose another output.path"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SETTINGS_FILE).write_text(json.dumps(settings.key()), encoding="utf-8")
    data_file.write_text(json.dumps(data_hash), encoding="utf-8")


class SaveByTime(TrainerCallback):  # type: ignore[misc]
    """Requests a checkpoint `secs` after the last one, or the start, if the disk has room for it and for the model."""

    def __init__(self, trainer: GroupTrainer, secs: float) -> None:
        self._trainer, self._secs = trainer, secs
        self._last, self._warned = 0.0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        self._last = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        ranks = self._trainer.ranks
        due = time.monotonic() - self._last >= self._secs and state.global_step < state.max_steps
        due = ranks.rank == 0 and due and (control.should_save or self._has_room(args.output_dir))
        if ranks.any(due, args.device):  # one clock decides for all
            control.should_save = True

    def _has_room(self, folder: str) -> bool:
        parameters = list(self._trainer.model.parameters())
        weights = sum(parameter.nbytes for parameter in parameters)
        needed = 2 * weights + 2 * sum(parameter.nbytes for parameter in parameters if parameter.requires_grad)
        free: int = shutil.disk_usage(folder).free
        if free < needed and not self._warned:
            log.warning(
                "no checkpoint is written: with the model it takes %s bytes, and %s are free at %s; an interrupted training "
                "would start again",
                f"{needed:,}", f"{free:,}", folder,
            )  # fmt: skip
            self._warned = True
        return bool(free >= needed)
