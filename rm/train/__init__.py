"""Bradley-Terry training on groups: K forwards a group, then the loss of every judgement in it.

Training is a `transformers.Trainer` with another loss; schedules, devices, logging and checkpoints are the Trainer's.
"""

from rm.identity import ModelError
from rm.preferences import PreferenceError
from rm.train.settings import SettingsError, TrainingError, TrainResult, TrainSettings, refuse_missing_packages
from rm.train.training_run import train

__all__ = [
    "ModelError",
    "PreferenceError",
    "SettingsError",
    "TrainResult",
    "TrainSettings",
    "TrainingError",
    "refuse_missing_packages",
    "train",
]
