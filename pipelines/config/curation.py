"""`bestkept run`, `score` and `select`: every field, its meaning and its default."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, WrapValidator, field_validator, model_validator

from pipelines.config.base import PathText, Strict
from pipelines.config.rules import BestOfN, Step, check_order, refuse_unused
from pipelines.config.running import RunnerConfig
from pipelines.config.scoring import ScoreConfig


class Columns(Strict):
    """Which input columns hold what; only where detection needs help."""

    messages: str | None = None
    """Whole conversations; the last assistant turn is the response."""
    prompt: str | None = None
    """Text, or a list of messages."""
    response: str | None = None
    """One response a row: text, an assistant message, or a list with one."""
    responses: str | None = None
    """A list of responses a row: texts, messages, or records, whose field may be named: `outputs.text`."""
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


class InputFiles(Strict):
    """Which files are read, and which of their columns hold what."""

    path: PathText | Annotated[list[PathText], Field(min_length=1)] = Field(examples=["corpus/*.parquet"])
    """Files, globs, or directories; local or any fsspec URL (s3://, gs://, ...)."""
    format: Literal["auto", "messages", "sharegpt", "prompt_response", "responses_list", "alpaca", "hh"] = "auto"
    """How the rows are shaped; `auto` tells it from their columns and values. `hh`: `columns.messages` holds transcripts,
    "Human: ... Assistant: ..."."""
    columns: Columns = Columns()
    """Which columns hold what; only where detection needs help."""

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else list(self.path)


class InputConfig(InputFiles):
    carry: list[str] = []
    """Further columns kept in the score files, as text."""
    group_by: Literal["prompt"] | list[str] = "prompt"
    """What makes responses compete: the same prompt, or equal values in these columns."""
    rows_per_fragment: int = Field(default=2048, ge=1)
    """Rows per score file: the most that an interruption costs. Changing it rescores."""


class ReadingModel(Strict):
    """A model, as far as what it reads goes."""

    path: PathText = Field(examples=["reward-model"])
    """A model directory, a hub id, or a directory on an object store (s3://, gs://, ...), of which each machine makes a copy."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    max_length: int = Field(default=4096, ge=8)
    """In tokens; the least of this, the model's positions and the tokenizer's limit holds."""


class ModelConfig(ReadingModel):
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: bfloat16 on GPUs that have it natively, else float32."""
    too_long: Literal["truncate", "reject"] = "truncate"
    """A response that does not fit into `max_length` by itself: cut at its end, or rejected. Both are counted. Prompts lose their
    oldest turns, then their left."""
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Tokens per forward, shared prompts counted once and padding too; bounds memory, does not change rewards beyond rounding.
    Default: 32768 on a GPU; 4096 on a CPU, where a batch is full earlier unless that would repeat long prompts."""


_Several = TypeAdapter(Annotated[list[ModelConfig], Field(min_length=1)])


def _one_or_several(value: Any, _union: Any) -> ModelConfig | list[ModelConfig]:
    """Validated one way or the other, not as a union: an error then names `model.dtype`, and nothing of the union's members."""
    if not isinstance(value, list):
        return ModelConfig.model_validate(value)
    models = _Several.validate_python(value)
    described = [model.model_dump(exclude={"tokens_per_batch"}) for model in models]
    for number, model in enumerate(described):
        if model in described[:number]:
            raise ValueError(
                f"model.{described.index(model)} and model.{number} are the same, {model['path']!r}, and would count twice; "
                "name each model once"
            )
    return models[0] if len(models) == 1 else models


class EnsembleConfig(Strict):
    """How the rewards of several models become one. Each model's rewards are standardised first: less their mean, divided by
    their standard deviation, over all responses that every model has scored. So `min_reward` and gaps count in standard
    deviations, and a grown corpus shifts them."""

    combine: Literal["mean", "min", "lower_bound"] = "mean"
    """`mean`; `min`, what the most sceptical model gives; `lower_bound`, the mean less `penalty` times the (population) standard
    deviation over the models: less where they disagree. After Coste et al. 2024, who take the variance."""
    penalty: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    """Of `lower_bound`."""

    @model_validator(mode="after")
    def _penalty_is_used(self) -> EnsembleConfig:
        refuse_unused(self, {"penalty"}, used=self.combine == "lower_bound", by="combine: lower_bound")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a combined reward."""
        return self.model_dump(exclude=set() if self.combine == "lower_bound" else {"penalty"})


class HubConfig(Strict):
    """A data set repository on the Hugging Face Hub. The token comes from HF_TOKEN, or from `hf auth login`."""

    repo: str
    """`organisation/name`, or `user/name`; made if it is not there."""
    private: bool | None = None
    """Of a repository that is made: whether only its owners may see it; default: yes. One that is there stays as it is."""
    revision: str | None = Field(default=None, min_length=1)
    """A branch instead of the default one; made if it is not there."""

    @field_validator("repo")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        parts = value.split("/")
        named = all(re.fullmatch(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", part, re.ASCII) for part in parts)
        if len(parts) != 2 or not named or "--" in value or ".." in value or value.endswith(".git") or len(value) > 96:
            raise ValueError("expected organisation/name, of letters, digits, '-', '_' and '.', at most 96 of them")
        return value


def _bare_repo(value: Any) -> Any:
    return {"repo": value} if isinstance(value, str) else value


class OutputConfig(Strict):
    path: PathText = Field(examples=["curated"])
    """Where the curated data set goes; one selection per path. `{date}` expands to today, UTC."""
    versions: bool = False
    """For runs again and again over a corpus that grows: `path` is a root, each run writes to `versions/ID` in it, where ID is
    the same for the same files, model and settings, and `latest.json` names the last complete one (`bestkept latest`)."""
    shape: Literal["messages", "prompt_completion", "preference", "original"] = "messages"
    """`preference` is for the rule `pairs`."""
    include_columns: list[str] = []
    """Further columns of the input, beside those of the shape."""
    add: list[Literal["rank", "margin", "probability"]] = []
    """Further columns from the rewards: rank within the prompt (1 is best), margin (gap to the next worse response, null for the
    worst) and probability, sigma(margin / T) with T of the model's `calibration.json`."""
    rows_per_shard: int = Field(default=100_000, ge=1)
    """Most rows of a shard."""
    bytes_per_shard: int = Field(default=512 * 2**20, ge=1)
    """Text after which a shard ends, before compression; a shard has at least one row."""
    test_fraction: float | None = Field(default=None, gt=0.0, lt=1.0)
    """Share of the prompts that go to `data/test-*.parquet` instead of `data/train-*.parquet`, each with all its kept responses;
    in expectation: which side a prompt is on is a hash of it alone (of the group, with `input.group_by`), and does not change as
    the corpus grows. Default: no split."""
    split_seed: int = Field(default=0, ge=0, lt=2**32)
    """Other seeds give other test prompts."""
    license: str | None = None
    """Named in the dataset card."""
    push_to_hub: Annotated[HubConfig | None, BeforeValidator(_bare_repo)] = None
    """Upload the finished data set to this repository: `organisation/name`, or a mapping of `repo`, `private` and `revision`. Not
    what it is made of (`scores/`, `rejected/`)."""

    @field_validator("path")
    @classmethod
    def _expand(cls, value: str) -> str:
        return value.replace("{date}", datetime.now(UTC).strftime("%Y-%m-%d"))

    @model_validator(mode="after")
    def _seed_is_used(self) -> OutputConfig:
        used = self.test_fraction is not None or not self.split_seed  # that of the printed example changes nothing
        refuse_unused(self, {"split_seed"}, used=used, by="test_fraction")
        return self

    @model_validator(mode="after")
    def _uploads_from_here(self) -> OutputConfig:
        if self.push_to_hub is not None and "://" in self.path:
            raise ValueError(
                f"push_to_hub uploads from a directory of this machine, and path is {self.path}; give a local path, or leave "
                "push_to_hub out and upload a copy of the finished output"
            )
        return self


class ScoresConfig(Strict):
    path: PathText | None = None
    """Where score files live; default `<output.path>/scores`. Share it, and many selections score once."""
    also: list[PathText] = []
    """More directories of score files, of other runs of the same model on the same files: read where `path` has none, never
    written to."""
    column: str | None = None
    """An input column that holds the rewards already (of a judge, or of another model), instead of `model`."""


class ReportConfig(Strict):
    """`report.html`, with its numbers in `report.json` and its conversations in `samples.parquet`."""

    write: bool = True
    """Whether there is one. It takes a second reading of the score files after selection."""
    samples: int = Field(default=10, ge=0, le=100)
    """Conversations of each kind that it shows: the best, the worst, those at the border, and the closest calls. None at 0: then
    it holds no text of the corpus."""
    gold: str | None = None
    """A column under `input.carry` with numbers (or true and false) that say what a response is really worth: best-of-n is
    measured by it. Rules never see it."""


class RowLimits(Strict):
    max_row_bytes: int = Field(default=16 * 2**20, ge=1024)
    """Larger rows are rejected."""


class Limits(RowLimits):
    max_rejected_fraction: float = Field(default=0.001, ge=0.0, le=1.0)
    """More rejected responses than this share of all that were read end the run with exit code 4."""
    skip_bad_files: bool = False
    """Leave out files that cannot be read (cut, damaged, gone, no permission, a directory), each as a whole, and name them in the
    manifest, instead of ending with exit code 3. A run with the mended file scores that one alone. A file that breaks when
    its rows are scored already ends the run all the same; with `verify`, it is found before selection."""
    verify: bool = False
    """Read all inputs again, and end with exit code 3 where one is not what was scored, though its size and version are the same.
    Else only files of other size or version are read again, and rows that are exported."""


class RunConfig(Strict):
    """`bestkept run`, `score` and `select`."""

    input: InputConfig
    """The corpus."""
    model: Annotated[ModelConfig | list[ModelConfig], WrapValidator(_one_or_several)] | None = None
    """One model, or a list: an ensemble, whose rewards are combined. Each model scores by itself, and its score files serve it
    alone, too; the order of the list means nothing."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """Of two models or more."""
    score: ScoreConfig = ScoreConfig()
    """How the corpus goes through the model."""
    select: list[Step] = [Step(best_of_n=BestOfN())]
    """Steps apply in order, each to what the one before kept; an empty list keeps every scored row."""
    output: OutputConfig
    """The curated data set."""
    scores: ScoresConfig = ScoresConfig()
    """Where rewards are kept, or come from."""
    report: ReportConfig = ReportConfig()
    """What `report.html` and `samples.parquet` show."""
    limits: Limits = Limits()
    """What a run puts up with."""
    runner: RunnerConfig = RunnerConfig()
    """Where Beam runs."""

    @model_validator(mode="after")
    def _one_source_of_rewards(self) -> RunConfig:
        if (self.model is None) == (self.scores.column is None):
            given = "both are given" if self.model is not None else "neither is"
            raise ValueError(f"rewards come from model.path or from scores.column, and {given}; give one of them")
        if self.score.colocate is not None and self.model is None:
            raise ValueError("score.colocate is for scoring with a model, and scores.column has none; remove it")
        if self.score.colocate is not None and self.runner.workers > 1:
            raise ValueError(
                f"score.colocate regroups the whole corpus in one process, and runner.workers is {self.runner.workers}; "
                "remove one of them"
            )
        if self.model is None and self.runner.workers > 1:
            raise ValueError(
                f"runner.workers is {self.runner.workers}, and workers are for scoring with a model, which scores.column "
                "has not; remove it"
            )
        if "ensemble" in self.model_fields_set and len(self.models) < 2:
            raise ValueError(
                f"ensemble is given, and model names {len(self.models)} of the two or more models that it combines; remove "
                "it, or give a list: model=[{path: ...}, {path: ...}]"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> RunConfig:
        check_order(self.select)
        known = ["source", *self.input.carry]
        for number, step in enumerate(self.select):
            for setting, column in step.columns():
                if column not in known:
                    raise ValueError(
                        f"select.{number}.{setting} names the column {column!r}, and score files have {', '.join(known)}; "
                        f"add it: input.carry=[{', '.join([*self.input.carry, column])}]"
                    )
            if step.top is not None and step.top.tokens is not None and self.model is None:
                raise ValueError(
                    f"select.{number}.top.tokens is counted by a reward model's tokenizer, and scores.column has none; "
                    "use rows or fraction"
                )
            if step.needs_temperature and len(self.models) != 1:
                lacking = "an ensemble has no calibration" if self.models else "scores.column has none"
                raise ValueError(f"select.{number}.{step.name} needs a temperature, and {lacking}; give it")
        if "probability" in self.output.add and len(self.models) != 1:
            lacking = ", and an ensemble has no calibration" if self.models else ""
            raise ValueError(f"output.add names probability, which needs a model's calibration{lacking}; remove it")
        has_pairs = any(step.pairs is not None for step in self.select)
        if has_pairs != (self.output.shape == "preference"):
            raise ValueError(
                f"output.shape is {self.output.shape!r}, and select {'ends with' if has_pairs else 'has no'} pairs; "
                "pairs and the shape preference go together"
            )
        return self

    @model_validator(mode="after")
    def _gold_is_carried(self) -> RunConfig:
        if self.report.gold is not None and self.report.gold not in self.input.carry:
            known = ", ".join(["source", *self.input.carry])
            raise ValueError(
                f"report.gold names the column {self.report.gold!r}, and score files have {known}; "
                f"add it: input.carry=[{', '.join([*self.input.carry, self.report.gold])}]"
            )
        return self

    @property
    def models(self) -> list[ModelConfig]:
        """None where rewards come with the corpus, two or more of an ensemble."""
        if self.model is None:
            return []
        return self.model if isinstance(self.model, list) else [self.model]

    @property
    def scores_path(self) -> str:
        return self.scores.path or self.output.path.rstrip("/") + "/scores"

    @property
    def path(self) -> str:
        return self.output.path.rstrip("/")
