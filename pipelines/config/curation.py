"""`bestkept run`, `score` and `select`: every field, its meaning and its default."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import PathText, Strict


class Columns(Strict):
    """Which input columns hold what; only where detection needs help."""

    messages: str | None = None
    """Whole conversations; the last assistant turn is the response."""
    prompt: str | None = None
    """Text, or a list of messages."""
    response: str | None = None
    """One response a row: text, or a list with one assistant message."""
    responses: str | None = None
    """A list of responses a row."""
    input: str | None = None
    """Further input that is appended to the prompt after an empty line (Alpaca)."""
    system: str | None = None
    """A system prompt put before the conversation."""
    source: str | None = None
    """Where a row comes from; carried into score files and output."""

    @model_validator(mode="after")
    def _one_role_each(self) -> Columns:
        named = [name for name in self.model_dump().values() if name is not None]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is named for two roles; give each role a column of its own")
        if self.response is not None and self.responses is not None:
            raise ValueError("response and responses exclude each other; name the one that the rows have")
        return self


class InputConfig(Strict):
    path: PathText | Annotated[list[PathText], Field(min_length=1)]
    """Files, globs, or directories; local or any fsspec URL (s3://, gs://, ...)."""
    format: Literal["auto", "messages", "sharegpt", "prompt_response", "responses_list", "alpaca"] = "auto"
    columns: Columns = Columns()
    carry: list[str] = []
    """Further columns kept in the score files, as text."""
    group_by: Literal["prompt"] | list[str] = "prompt"
    """What makes responses compete: the same prompt, or equal values in these columns."""
    rows_per_fragment: int = Field(default=2048, ge=1)
    """Rows per score file: the most that an interruption costs. Changing it rescores."""

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else list(self.path)


class ModelConfig(Strict):
    path: PathText
    """A model directory or a hub id."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on GPUs that have it natively, else float32."""
    max_length: int = Field(default=4096, ge=8)
    """In tokens; the least of this, the model's positions and the tokenizer's limit holds."""
    too_long: Literal["truncate", "reject"] = "truncate"
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Padded tokens per forward; bounds memory, does not change rewards beyond rounding. Default: 32768 on a GPU, 4096 on
    a CPU, where larger batches leave the cache and are slower."""


class BestOfN(Strict):
    keep: int = Field(default=1, ge=1)
    """Responses kept per prompt."""
    min_candidates: int = Field(default=2, ge=1)
    """Prompts with fewer scored responses are dropped: a lone candidate is not a choice."""
    min_margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Least reward gap between the last kept response and the best dropped one."""


class Threshold(Strict):
    min_reward: float = Field(allow_inf_nan=False)
    """Responses with a lower reward are dropped."""


class Step(Strict):
    """One step of `select`: exactly one rule."""

    best_of_n: BestOfN | None = None
    threshold: Threshold | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Step:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}, got {named or 'none'}")
        return self


class OutputConfig(Strict):
    path: PathText
    """Where the curated data set goes; one selection per path. `{date}` expands to today, UTC."""
    shape: Literal["messages", "prompt_completion", "original"] = "messages"
    rows_per_shard: int = Field(default=100_000, ge=1)
    license: str | None = None
    """Named in the dataset card."""

    @field_validator("path")
    @classmethod
    def _expand(cls, value: str) -> str:
        return value.replace("{date}", datetime.now(UTC).strftime("%Y-%m-%d"))


class ScoresConfig(Strict):
    path: PathText | None = None
    """Where score files live; default `<output.path>/scores`. Share it, and many selections score once."""


class Limits(Strict):
    max_rejected_fraction: float = Field(default=0.001, ge=0.0, le=1.0)
    """More rejected responses than this share of all that were read end the run with exit code 4."""
    max_row_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Larger rows are rejected."""


class RunnerConfig(Strict):
    name: Literal["local", "DataflowRunner", "PortableRunner", "FlinkRunner", "SparkRunner"] = "local"
    options: dict[str, Any] = {}
    """Beam pipeline options by name."""


class RunConfig(Strict):
    """`bestkept run`, `score` and `select`."""

    input: InputConfig
    model: ModelConfig
    select: list[Step] = [Step(best_of_n=BestOfN())]
    """Steps apply in order, each to what the one before kept; an empty list keeps every scored row."""
    output: OutputConfig
    scores: ScoresConfig = ScoresConfig()
    limits: Limits = Limits()
    runner: RunnerConfig = RunnerConfig()

    @property
    def scores_path(self) -> str:
        return self.scores.path or self.output.path.rstrip("/") + "/scores"

    @property
    def path(self) -> str:
        return self.output.path.rstrip("/")
