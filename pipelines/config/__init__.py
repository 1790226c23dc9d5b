"""The YAML configuration as pydantic models: every field, its meaning, and the only place with defaults."""

from pipelines.config.base import refuse_userinfo
from pipelines.config.curation import BestOfN, Columns, InputConfig, Limits, RunConfig, RunnerConfig, Step, Threshold
from pipelines.config.evaluation import EvaluateConfig
from pipelines.config.loading import load, validated
from pipelines.config.training import TrainConfig

__all__ = [
    "BestOfN",
    "Columns",
    "EvaluateConfig",
    "InputConfig",
    "Limits",
    "RunConfig",
    "RunnerConfig",
    "Step",
    "Threshold",
    "TrainConfig",
    "load",
    "refuse_userinfo",
    "validated",
]
