"""The YAML configuration as pydantic models: every field, its meaning, and the only place with defaults."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipelines.errors import ConfigError


def refuse_userinfo(path: str) -> str:
    """`path`, unless it is a URL that carries a user name or password: then a `ValueError`."""
    if re.match(r"^[a-z0-9+.-]+://[^/]*@", path, re.IGNORECASE):
        raise ValueError("URL holds credentials; give them through the environment instead")
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(refuse_userinfo)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Columns(_Model):
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


class InputConfig(_Model):
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


class ModelConfig(_Model):
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


class BestOfN(_Model):
    keep: int = Field(default=1, ge=1)
    """Responses kept per prompt."""
    min_candidates: int = Field(default=2, ge=1)
    """Prompts with fewer scored responses are dropped: a lone candidate is not a choice."""
    min_margin: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    """Least reward gap between the last kept response and the best dropped one."""


class Threshold(_Model):
    min_reward: float = Field(allow_inf_nan=False)
    """Responses with a lower reward are dropped."""


class Step(_Model):
    """One step of `select`: exactly one rule."""

    best_of_n: BestOfN | None = None
    threshold: Threshold | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Step:
        named = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"expected exactly one of {', '.join(type(self).model_fields)}, got {named or 'none'}")
        return self


class OutputConfig(_Model):
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


class ScoresConfig(_Model):
    path: PathText | None = None
    """Where score files live; default `<output.path>/scores`. Share it, and many selections score once."""


class Limits(_Model):
    max_rejected_fraction: float = Field(default=0.001, ge=0.0, le=1.0)
    """More rejected responses than this share of all that were read end the run with exit code 4."""
    max_row_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Larger rows are rejected."""


class RunnerConfig(_Model):
    name: Literal["local", "DataflowRunner", "PortableRunner", "FlinkRunner", "SparkRunner"] = "local"
    options: dict[str, Any] = {}
    """Beam pipeline options by name."""


class RunConfig(_Model):
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


class PreferencesConfig(_Model):
    path: PathText
    """Preference files: .parquet or .jsonl, plain or compressed; a path, a glob or a URL."""
    format: Literal["auto", "prompt_chosen_rejected", "chosen_rejected_messages", "hh"] = "auto"
    origin: Literal["human", "implicit", "model"] = "human"
    """Who judged."""
    heldout_fraction: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the prompts kept out of training to measure accuracy on."""
    heldout_path: PathText | None = None
    """Held-out comparisons from a file of their own, instead."""


class BackboneConfig(_Model):
    path: PathText
    """A pretrained encoder or causal model: a directory or a hub id."""
    revision: str | None = None
    max_length: int = Field(default=2048, ge=8)
    """In tokens; longer conversations lose their oldest turns."""


class TrainOptions(_Model):
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


class TrainOutput(_Model):
    path: PathText
    """Directory of the checkpoint."""


class TrainConfig(_Model):
    """`bestkept train`."""

    data: PreferencesConfig
    model: BackboneConfig
    train: TrainOptions = TrainOptions()
    output: TrainOutput


Config = TypeVar("Config", RunConfig, TrainConfig)


def load(kind: type[Config], path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with `key.sub=value` overrides (values are YAML) applied over it.

    Raises `ConfigError` with every mistake at once, each with its path, and a did-you-mean for unknown keys.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the configuration {path!r}: {cause}; give the path of a YAML file") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{path} is not valid YAML{where}; check indentation, quotes and colons there") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds {type(values).__name__}; expected a mapping with {', '.join(kind.model_fields)}"
        )
    for override in overrides:
        _override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_describe(kind, problem) for problem in error.errors()]
        text = re.sub(r"://[^/\s@]*@", "://***@", "; ".join(problems))  # credentials in a refused URL
        raise ConfigError(f"{path}: {text}") from error


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    *parents, last = key.split(".")
    target = values
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {key!r}: {parent!r} is not a mapping in the configuration")
        target = child
    try:
        target[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML; put it in quotes") from error


def _describe(kind: type[BaseModel], problem: Any) -> str:
    location = problem["loc"]
    path = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        known = list(_keys_at(kind, location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if problem["type"] == "missing":
        return f"{path} is missing; it is required"
    message = problem["msg"].removeprefix("Value error, ")
    given = problem["input"]
    shown = f"{given!r}" if isinstance(given, str | int | float | bool | type(None)) else type(given).__name__
    return f"{path} is {shown}: {message}"


def _keys_at(kind: Any, location: Sequence[int | str]) -> Iterator[str]:
    """The field names of the model that stands at `location` inside `kind`."""
    for part in location:
        if isinstance(part, int):
            continue
        kind = kind.model_fields[part].annotation
        kind = next((c for c in (kind, *_inner(kind)) if isinstance(c, type) and issubclass(c, BaseModel)), kind)
    yield from getattr(kind, "model_fields", {})


def _inner(annotation: Any) -> Iterator[Any]:
    for argument in getattr(annotation, "__args__", ()):
        yield argument
        yield from _inner(argument)
