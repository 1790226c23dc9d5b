"""`bestkept train`: every field, its meaning and its default."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.base import PathText, Strict


class PreferencesConfig(Strict):
    path: PathText
    """Preference files: .parquet or .jsonl, plain or compressed; a path, a glob or a URL."""
    format: Literal["auto", "prompt_chosen_rejected", "chosen_rejected_messages", "hh"] = "auto"
    origin: Literal["human", "implicit", "model"] = "human"
    """Who judged."""
    heldout_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept out of training to measure accuracy on."""
    heldout_path: PathText | None = None
    """Held-out comparisons from a file of their own, instead."""


class BackboneConfig(Strict):
    path: PathText
    """A pretrained encoder or causal model: a directory or a hub id."""
    revision: str | None = None
    max_length: int = Field(default=2048, ge=8)
    """In tokens; longer conversations lose their oldest turns."""


class TrainOptions(Strict):
    epochs: float = Field(default=1.0, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)
    """Default: 9e-6 from a billion parameters up, else 3e-5."""
    groups_per_batch: int = Field(default=8, ge=1)
    """Prompts per step, each with all its responses."""
    gradient_accumulation: int = Field(default=1, ge=1)
    warmup_fraction: float = Field(default=0.03, ge=0.0, le=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    report_to: list[str] = []
    """Trackers of the transformers Trainer, such as tensorboard or wandb."""


class TrainOutput(Strict):
    path: PathText
    """Directory of the checkpoint."""


class TrainConfig(Strict):
    """`bestkept train`."""

    data: PreferencesConfig
    model: BackboneConfig
    train: TrainOptions = TrainOptions()
    output: TrainOutput
