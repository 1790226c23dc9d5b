"""Bradley-Terry training on groups: K forwards per group, then the loss of every judgement in it.

Training is a `transformers.Trainer` with its own loss; schedules, devices, logging and checkpoints are the Trainer's.
"""

from rm.identity import ModelError
from rm.preferences import PreferenceError
from rm.train.checkpoints import last_checkpoint
from rm.train.progress import TrainProgress, Watch
from rm.train.ranks import is_first_rank
from rm.train.settings import (
    RankError,
    SettingsError,
    TrainingError,
    TrainResult,
    TrainSettings,
    refuse_missing_packages,
)
from rm.train.training_run import train

__all__ = [
    "ModelError",
    "PreferenceError",
    "RankError",
    "SettingsError",
    "TrainProgress",
    "TrainResult",
    "TrainSettings",
    "TrainingError",
    "Watch",
    "is_first_rank",
    "last_checkpoint",
    "refuse_missing_packages",
    "train",
]
