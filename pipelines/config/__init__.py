"""The YAML configuration as pydantic models: every field, its meaning, and the only place with defaults."""

from pipelines.config.base import refuse_credentials
from pipelines.config.corpus import Columns, InputConfig, InputFiles
from pipelines.config.duplicates import Decontaminate, Diverse, NearDuplicates
from pipelines.config.evaluate import EvaluateConfig
from pipelines.config.inspect import InspectConfig
from pipelines.config.loading import load, read_values, validate
from pipelines.config.model import EnsembleConfig, ModelConfig
from pipelines.config.output import HubConfig
from pipelines.config.prompt_rules import DropPrompts, Pairs, Preferences
from pipelines.config.rules import (
    BestOfN,
    LengthCorrection,
    Longest,
    Random,
    Step,
    Threshold,
    Top,
)
from pipelines.config.run import Limits, RunConfig
from pipelines.config.runner import RunnerConfig
from pipelines.config.train import TrainConfig

__all__ = [
    "BestOfN",
    "Columns",
    "Decontaminate",
    "Diverse",
    "DropPrompts",
    "EnsembleConfig",
    "EvaluateConfig",
    "HubConfig",
    "InputConfig",
    "InputFiles",
    "InspectConfig",
    "LengthCorrection",
    "Limits",
    "Longest",
    "ModelConfig",
    "NearDuplicates",
    "Pairs",
    "Preferences",
    "Random",
    "RunConfig",
    "RunnerConfig",
    "Step",
    "Threshold",
    "Top",
    "TrainConfig",
    "load",
    "read_values",
    "refuse_credentials",
    "validate",
]
