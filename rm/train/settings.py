"""The settings of a training run, the default learning rate of a model, the result, and the errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from rm.evaluate import Evaluation
from rm.preferences import RowReader

_SMALL_PARAMETERS, _LARGE_PARAMETERS = 100_000_000, 1_000_000_000
_NOT_IN_KEY = frozenset(
    [
        *("output_path", "report_to", "device", "read_rows", "checkpoint_every", "checkpoint_secs"),
        *("stress_prompts", "relevance"),
    ]
)
_UNLESS_USED = ("length_balance", "foreign", "length_head", "language_loss")
"""Settings added later: a run without them keeps the key that it had before."""
_SMALL_RATE, _MEDIUM_RATE, _LARGE_RATE = 1e-4, 3e-5, 9e-6


class TrainingError(Exception):
    """A training without a usable model; the message has the observation and the remedy."""


class SettingsError(TrainingError):
    """Settings that this machine cannot carry out, detected before anything is loaded."""


class RankError(Exception):
    """Another process of a training on several devices ended."""


# modules that trackers of the Trainer import, and their names for pip, if these differ
_TRACKER_MODULES = {"azure_ml": ["azureml"], "dagshub": ["dagshub", "mlflow"], "flyte": ["flytekit"], "kubeflow": []}
_PIP_NAMES = {"azureml": "azureml-sdk", "comet_ml": "comet-ml", "peft": "'bestkept[lora]'"}


def refuse_missing_packages(settings: TrainSettings) -> None:
    """Raise `SettingsError` for an unknown tracker, or a missing package of a tracker or of LoRA."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    needed = {"train.lora": ["peft"]} if settings.lora is not None else {}
    for name in settings.report_to:
        if name in ("none", "all"):
            continue
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise SettingsError(f"train.report_to has the unknown tracker {name!r}; expected some of {known}")
        needed[f"train.report_to: [{name}]"] = _TRACKER_MODULES.get(name, [name])
    for setting, modules in needed.items():
        missing = [module for module in modules if not _is_installed(module)]
        if missing:
            names = " ".join(_PIP_NAMES.get(module, module) for module in missing)
            raise SettingsError(f"{setting} needs {' and '.join(missing)}, not installed; run: pip install {names}")


def _is_installed(module: str) -> bool:
    names = (module, "tensorboardX") if module == "tensorboard" else (module,)
    return any(find_spec(name) is not None for name in names)


def default_learning_rate(parameters: int, *, lora: bool) -> float:
    """The peak learning rate for a model of this many parameters if the configuration sets none.

    At the rates of large language models, small encoders hardly change in an epoch; adapters start from zero and need a
    high rate at any size. The help text of `train.learning_rate` has these numbers.
    """
    if lora or parameters < _SMALL_PARAMETERS:
        return _SMALL_RATE
    return _LARGE_RATE if parameters >= _LARGE_PARAMETERS else _MEDIUM_RATE


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One training run; `pipelines.config.train.TrainConfig` documents the fields and holds the defaults."""

    sources: tuple[tuple[str, Mapping[str, Any]], ...]  # (path, fields of rm.preferences.ReadSettings)
    heldout_fraction: float
    heldout_path: str | None
    heldout_split: str | None  # of the files at heldout_path
    stress_prompts: int  # held-out prompts of the stress tests; 0 for none
    relevance: Mapping[str, Any] | None = None  # path, arguments of `Embedder.open`, and gap: of the evaluation
    model_path: str
    revision: str | None
    max_length: int
    device: str  # auto, cuda, cpu or mps
    loss: str
    label_smoothing: float
    centring: float
    length_balance: bool
    foreign: Mapping[str, Any] | None  # the fields of rm.train.foreign.ForeignSettings
    length_head: Mapping[str, Any] | None  # the fields of rm.train.length_head.LengthHeadSettings
    language_loss: Mapping[str, Any] | None  # weight
    epochs: float
    learning_rate: float | None
    groups_per_batch: int
    responses_per_group: int | None
    tokens_per_batch: int | None
    precision: str
    gradient_checkpointing: bool
    lora: Mapping[str, Any] | None  # rank, alpha, targets
    evaluations_per_epoch: int
    early_stopping: int | None
    checkpoint_every: int | None  # steps
    checkpoint_secs: float | None
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    report_to: tuple[str, ...]
    output_path: str
    read_rows: RowReader  # of all files of preferences

    def key(self) -> str:
        """Hash everything that determines the result: checkpoints with another key are not resumed."""
        fields = {
            name: value
            for name, value in asdict(self).items()
            if name not in _NOT_IN_KEY and (value or name not in _UNLESS_USED)
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True, default=dict).encode()).hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The result of a training run; `heldout` is None if no prompts were held out."""

    output_path: str
    groups: int
    judgements: dict[str, int]  # by kind: comparisons, labels
    origins: dict[str, int]  # judgements by who judged
    rejected: dict[str, int]
    notes: list[str]  # on data that were ignored or converted
    steps: int
    train_loss: float
    learning_rate: float
    precision: str
    packed: bool
    judgements_per_sec: float  # while training, evaluations left out
    tokens_per_sec: float
    heldout: Evaluation | None
    offset: float | None  # b of labels of single responses, P(accepted) = sigmoid(r + b)
