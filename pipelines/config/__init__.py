"""The YAML configuration as pydantic models: every field, its meaning, and the only place with defaults."""

from pipelines.config.base import refuse_userinfo
from pipelines.config.curation import (
    Columns,
    EnsembleConfig,
    HubConfig,
    InputConfig,
    InputFiles,
    Limits,
    ModelConfig,
    RunConfig,
)
from pipelines.config.evaluation import EvaluateConfig
from pipelines.config.inspection import InspectConfig
from pipelines.config.loading import load, validated
from pipelines.config.rules import (
    BestOfN,
    DropPrompts,
    LengthCorrection,
    Longest,
    Pairs,
    Random,
    Step,
    Threshold,
    Top,
)
from pipelines.config.running import RunnerConfig
from pipelines.config.training import TrainConfig

__all__ = [
    "BestOfN",
    "Columns",
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
    "Pairs",
    "Random",
    "RunConfig",
    "RunnerConfig",
    "Step",
    "Threshold",
    "Top",
    "TrainConfig",
    "load",
    "refuse_userinfo",
    "validated",
]
