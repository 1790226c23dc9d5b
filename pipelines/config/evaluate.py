"""`bestkept evaluate`: every field, its meaning and its default."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from pipelines.config.base import PathText, Strict
from pipelines.config.corpus import RowLimits
from pipelines.config.model import ModelConfig
from pipelines.config.signals import RelevanceConfig
from pipelines.config.train import PreferencesConfig, StressConfig


class EvaluatedModel(ModelConfig):
    max_length: int = Field(default=2048, ge=8)
    """Longest input in tokens; the smallest of this, the model's positions and the tokenizer's limit applies."""

    @model_validator(mode="after")
    def _one_output_is_the_reward(self) -> Self:
        if len(self.outputs) > 1 and self.reward_output is None:
            raise ValueError(
                f"outputs names {', '.join(self.outputs)}; name the one to evaluate in model.reward_output"
            )
        return self


class EvaluationData(PreferencesConfig):
    heldout_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Above 0: only the prompts that `bestkept train` holds out at this fraction are evaluated."""


class BootstrapConfig(Strict):
    resamples: int = Field(default=2000, ge=100, le=1_000_000)
    """Number of bootstrap draws of the prompts per interval."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap draws."""


class EvaluationOutput(Strict):
    path: PathText = "evaluation"
    """Directory for evaluation.json and evaluation.html; those of an earlier evaluation are replaced."""


class EvaluateConfig(Strict):
    """`bestkept evaluate`."""

    model: EvaluatedModel
    """The reward model; its path is the command's first argument."""
    data: EvaluationData
    """Preferences; their path is the command's second argument."""
    bootstrap: BootstrapConfig = BootstrapConfig()
    """The confidence intervals."""
    stress: StressConfig = StressConfig()
    """The stress tests."""
    relevance: RelevanceConfig | None = None
    """An embedding model for a relevance gate. The verdict then compares the model alone with the best of the longer, the
    shorter, and the nearer or longer response: the one nearer to the prompt if the cosines of the two differ by more than `gap`.
    The model is also measured behind the gate: a response that the step `on_topic` would drop loses to one that it would keep,
    and the reward decides between all others. `gap: auto` is settled on the evaluated responses."""
    output: EvaluationOutput = EvaluationOutput()
    """The files with the results."""
    limits: RowLimits = RowLimits()
    """The size above which rows are not read."""
    store_temperature: bool | None = None
    """Whether temperature and verdict are stored in the model's directory, as calibration.json, for runs to use and report.
    Default: yes, if it is a writable local directory, and training is not known to have used more than 5 % of the prompts."""
