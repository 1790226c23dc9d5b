"""`bestkept run`, `score` and `select`: every field, its meaning and its default."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WrapValidator, model_validator

from pipelines.config.base import PathText, Strict
from pipelines.config.corpus import InputConfig, RowLimits
from pipelines.config.expression import Expression, parse
from pipelines.config.expression_terms import OF_TOKENIZER, check_name
from pipelines.config.model import EnsembleConfig, ModelConfig, _one_or_several
from pipelines.config.output import OutputConfig, ReportConfig
from pipelines.config.rules import BestOfN, Step, check_order
from pipelines.config.runner import RunnerConfig
from pipelines.config.signals import EmbeddingConfig, SignalConfig


class ScoresConfig(Strict):
    path: PathText | None = None
    """Directory of the score files; default `<output.path>/scores`. Selections that share it score only once."""
    also: list[PathText] = []
    """Additional directories of score files, from other runs of the same model on the same files. They are read for what
    `path` lacks, and never written to."""
    column: str | None = None
    """An input column, or a field of its records (`completions.overall_score`), that already contains the rewards, from a
    judge or another model. Replaces `model`."""


_REJECTED_FRACTION, _REJECTED_RESPONSES = 0.001, 5


class Limits(RowLimits):
    max_rejected_fraction: float | None = Field(default=None, ge=0.0, le=1.0)
    """Maximum share of rejected responses; a larger share ends the run with exit code 4. Default: 0.001, but 5 rejected
    responses are always allowed unless they are all that were read: one empty answer does not end the run of a small corpus."""
    skip_bad_files: bool = False
    """Whether to skip unreadable files (truncated, damaged, missing, without permission, a directory, replaced during the
    run) and name them in the manifest, instead of ending with exit code 3. Once a file is fixed, the next run scores only
    that file. A file that breaks after its rows were scored still ends the run; with `verify`, it is found before selection."""
    trust_unversioned: bool = False
    """Whether input files from a store that reports neither checksum nor modification time count as unchanged while their
    size is the same. Otherwise they are refused, because different text of equal size would pass for the scored text."""
    max_reward_shift: float | None = Field(default=None, gt=0.0)
    """With `output.versions`: end with exit code 4, and leave `latest.json` unchanged, if the mean reward of the new rows
    differs from that of the previous version by more than this many standard deviations. For a growing corpus, 0.5 is a lot."""
    max_rejected_shift: float | None = Field(default=None, gt=0.0, le=1.0)
    """The same, if the share of rejected responses among the new rows is larger by more than this."""
    require_verdict: Literal["better_than_length"] | None = None
    """End with exit code 7 before scoring, unless `bestkept train` or `evaluate` has stored with the model the verdict that
    it is better than chance and than length; for an ensemble, with each model."""
    verify: bool = False
    """Whether to read all inputs again, and end with exit code 3 if one differs from what was scored, even if its size and
    version are the same. Otherwise only exported rows and files with a different size or version are read again."""

    def most_rejected(self, read: int) -> float:
        """The number of `read` responses that may be rejected."""
        if self.max_rejected_fraction is None:
            return max(min(_REJECTED_RESPONSES, read - 1), _REJECTED_FRACTION * read)
        return self.max_rejected_fraction * read

    @property
    def described_most_rejected(self) -> str:
        """`most_rejected` in words, for errors."""
        if self.max_rejected_fraction is None:
            return f"limits.max_rejected_fraction allows ({_REJECTED_FRACTION}, or {_REJECTED_RESPONSES}, if not all)"
        return f"limits.max_rejected_fraction={self.max_rejected_fraction}"


class ScoreConfig(Strict):
    colocate: Literal["prompt"] | None = None
    """`prompt`: regroup the corpus by prompt before scoring, if the responses to a prompt are in different files or far apart
    in one. A causal model then reads each prompt once. Rewards are the same up to rounding. The text is shuffled and the
    input read twice, so this pays off for long prompts and large models; `bestkept plan` estimates by how much. Existing
    score files are used either way."""


class RunConfig(Strict):
    """`bestkept run`, `score` and `select`."""

    input: InputConfig
    """The corpus."""
    model: Annotated[ModelConfig | list[ModelConfig], WrapValidator(_one_or_several)] | None = None
    """One model, or a list: an ensemble, whose rewards are combined. Each model scores separately, and its score files also
    serve runs of that model alone; the order of the list does not matter."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """The combination of two or more models."""
    signals: dict[str, SignalConfig] = {}
    """Named numbers besides the reward, for use in `where` and `reward`: `{correct: {column: is_correct}, terse: {model:
    {path: ...}}}`. `column`: a column of the corpus, or a field of its records, with numbers or with true and false (1 and
    0); a row with a list of responses may have a list of as many values. The column need not be in `input.carry`, and about
    seven digits count. `model`: another reward model, with the settings of `model`; it scores separately, once. `embedding`:
    the cosine of prompt and response in an embedding model, `{relevance: {embedding: {path: all-MiniLM-L6-v2}}}`, which the
    step `on_topic` reads. Adding a signal computes only that signal."""
    score: ScoreConfig = ScoreConfig()
    """The order in which the model reads the corpus."""
    select: list[Step] = [Step(best_of_n=BestOfN())]
    """Steps apply in order, each to the responses that the previous one kept; an empty list keeps every scored row."""
    output: OutputConfig
    """The curated data set."""
    scores: ScoresConfig = ScoresConfig()
    """The score files, or the column with the rewards."""
    report: ReportConfig = ReportConfig()
    """The contents of `report.html` and `samples.parquet`."""
    limits: Limits = Limits()
    """The limits that end a run."""
    runner: RunnerConfig = RunnerConfig()
    """The Beam runner and its options."""

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
        for setting, model in self.named_models.items():
            if self.runner.accelerator is not None and model.device in ("cpu", "mps"):
                raise ValueError(
                    f"runner.accelerator asks for a GPU, and {setting}.device is {model.device!r}; remove one of them"
                )
        if self.model is None and self.runner.workers > 1:
            raise ValueError(
                f"runner.workers is {self.runner.workers}, and workers score with a model, but scores.column has none; "
                "remove it"
            )
        shifts = [name for name in ("max_reward_shift", "max_rejected_shift") if getattr(self.limits, name) is not None]
        if shifts and not (self.output.versions and self.report.write):
            raise ValueError(
                f"limits.{shifts[0]} compares a version with the one before, by the numbers of both reports; set "
                "output.versions=true, and leave report.write at true"
            )
        if self.limits.require_verdict is not None and self.model is None:
            raise ValueError("limits.require_verdict is for a reward model, and scores.column has none; remove it")
        if "ensemble" in self.model_fields_set and len(self.models) < 2:
            raise ValueError(
                f"ensemble is given, and model names {len(self.models)} of the two or more models that it combines; remove "
                "it, or give a list: model=[{path: ...}, {path: ...}]"
            )
        names = self.ensemble.names
        if names and len(names) != len(self.models):
            raise ValueError(
                f"ensemble.names has {len(names)} names, and model {len(self.models)} models; name each of them"
            )
        if twice := sorted({*names} & {*self.input.carry}):
            raise ValueError(f"{twice[0]!r} is a name in ensemble.names and a column in input.carry; rename the model")
        return self

    @model_validator(mode="after")
    def _outputs_are_used(self) -> RunConfig:
        combined = len(self.models) == 1 and any(step.reward is not None for step in self.select)
        of_signals = {
            f"signals.{name}.model": [one.model] for name, one in self.signals.items() if one.model is not None
        }
        named = {"model": self.models} | of_signals
        for setting, models in named.items():
            for model in models:
                if len(model.outputs) > 1 and model.reward_output is None and not (combined and setting == "model"):
                    raise ValueError(
                        f"{setting}.outputs names {', '.join(model.outputs)}; name the reward in "
                        f"{setting}.reward_output, or combine the outputs of a single model in the step reward"
                    )
                if model.too_long == "truncate_group" and self.score.colocate is not None:
                    reason = "score.colocate scores the responses to a prompt in parts, which would be cut differently"
                    raise ValueError(f"{setting}.too_long is truncate_group, and {reason}; remove one")
                if model.outputs and self.score.colocate is not None:
                    raise ValueError(
                        f"score.colocate keeps one reward per response, and {setting}.outputs names more; remove one"
                    )
        for name in self.outputs:
            if name in self.input.carry or name in self.signals:
                raise ValueError(
                    f"{name!r} is a name in model.outputs and in input.carry or signals; rename the output"
                )
        return self

    @model_validator(mode="after")
    def _signals_have_names(self) -> RunConfig:
        for name in self.signals:
            check_name(name, "signal")
            for other, names in (("ensemble.names", self.ensemble.names), ("input.carry", self.input.carry)):
                if name in names:
                    raise ValueError(f"{name!r} is a name in signals and in {other}; rename the signal")
        if self.signal_models and self.model is None:
            name, one = next(iter(self.signal_models.items()))
            if isinstance(one, EmbeddingConfig):
                raise ValueError(
                    f"signals.{name} is an embedding model beside scores.column, and it scores only beside a reward model; give "
                    "model, and name the column under signals, which the step reward combines"
                )
            raise ValueError(
                f"signals.{name} is a model beside scores.column; name that model under model, and the column under signals, "
                "which the step reward combines"
            )
        return self

    @model_validator(mode="after")
    def _steps_fit(self) -> RunConfig:
        check_order(self.select)
        known = ["source", *self.input.carry]
        combines = any(step.reward is not None for step in self.select)
        for number, step in enumerate(self.select):
            for setting, column in step.columns():
                if column not in known:
                    raise ValueError(
                        f"select.{number}.{setting} names the column {column!r}, and score files have {', '.join(known)}; "
                        f"add it: input.carry=[{', '.join([*self.input.carry, column])}]"
                    )
            if step.on_topic is not None:
                step.on_topic.check([*self.signals])
            if step.condition is not None and step.decontaminate is None:
                setting = f"select.{number}.{'where' if step.where is not None else 'pairs.chosen.where'}"
                self._check_expression(setting, parse(step.condition))
            if step.reward is not None:
                self._check_expression(f"select.{number}.reward", parse(step.reward, "number"))
            if step.top is not None and step.top.tokens is not None and self.model is None:
                raise ValueError(
                    f"select.{number}.top.tokens is counted by a reward model's tokenizer, and scores.column has none; "
                    "use rows or fraction"
                )
            if step.drop_prompts is not None and step.drop_prompts.min_worst_tokens is not None and self.model is None:
                raise ValueError(
                    f"select.{number}.drop_prompts.min_worst_tokens is counted by a reward model's tokenizer, and "
                    "scores.column has none; leave it out"
                )
            if step.needs_temperature and (len(self.models) != 1 or combines):
                lacking = "an ensemble has no calibration" if self.models else "scores.column has none"
                lacking = "a combined reward has no calibration" if combines else lacking
                raise ValueError(f"select.{number}.{step.name} needs a temperature, and {lacking}; give it")
        if "probability" in self.output.add and (len(self.models) != 1 or combines):
            lacking = ", and an ensemble has no calibration" if self.models else ""
            lacking = ", and a combined reward has none" if combines else lacking
            raise ValueError(f"output.add names probability, which needs a model's calibration{lacking}; remove it")
        judged = [number for number, step in enumerate(self.select) if step.preferences is not None]
        if judged and self.input.format != "preferences":
            raise ValueError(
                f"select.{judged[0]}.preferences compares the sides of each row, and input.format is {self.input.format!r}; set "
                "input.format=preferences"
            )
        if "flipped" in self.output.add and not judged:
            raise ValueError(
                "output.add names flipped, which the step preferences computes, and select has none; remove it"
            )
        has_pairs = any(step.makes_pairs for step in self.select)
        if has_pairs != (self.output.shape == "preference"):
            raise ValueError(
                f"output.shape is {self.output.shape!r}, and select {'ends with' if has_pairs else 'has no'} pairs; "
                "pairs (or preferences) and the shape preference go together"
            )
        return self

    def _check_expression(self, setting: str, expression: Expression) -> None:
        try:
            marks = [name for name, signal in self.signals.items() if signal.column is not None]
            expression.check(self.input.carry, self.numbers, marks)
            self._check_corpus_calls(expression)
        except ValueError as error:
            raise ValueError(f"{setting} is {expression.text!r}: {error}") from None
        counted = next((use.name for use in expression.uses if use.name in OF_TOKENIZER and not use.is_column), None)
        if counted is not None and self.model is None:
            raise ValueError(
                f"{setting} names {counted}, which a reward model's tokenizer counts, and scores.column has none; use characters"
            )

    def _check_corpus_calls(self, expression: Expression) -> None:
        """Raise `ValueError` if `corpus_z` takes a reward that is known only once the responses to a prompt are together."""
        late = any(step.reward is not None and parse(step.reward, "number").of_prompt for step in self.select)
        names = [node.arguments[0] for call in expression.of_corpus for node in call.walk() if node.operation == "name"]
        if late and expression.root.kind == "condition" and "reward" in names:
            raise ValueError(
                "corpus_z takes the combined reward, which compares the responses to a prompt; leave it out, or combine the "
                "reward without rank and prompt_z"
            )

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
        """The models that score: none if the corpus contains rewards, two or more for an ensemble."""
        if self.model is None:
            return []
        return self.model if isinstance(self.model, list) else [self.model]

    @property
    def named_models(self) -> dict[str, ModelConfig | EmbeddingConfig]:
        """All models that score, including those of signals, by setting."""
        several = len(self.models) > 1
        named: dict[str, ModelConfig | EmbeddingConfig] = {
            f"model.{number}" if several else "model": model for number, model in enumerate(self.models)
        }
        for name, model in self.signal_models.items():
            named[f"signals.{name}.{'model' if isinstance(model, ModelConfig) else 'embedding'}"] = model
        return named

    @property
    def measures(self) -> tuple[dict[str, Any], ...]:
        """The settings of what is measured on the text without a model, without duplicates."""
        measures = [step.measure for step in self.select if step.measure is not None]
        measures += [one.measure(name) for name, one in sorted(self.signals.items()) if one.column is not None]
        return tuple(measure for at, measure in enumerate(measures) if measure not in measures[:at])

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers that expressions can use besides the built-in ones: the rewards of an ensemble's models, raw and
        standardised, the outputs of a single model, and signals."""
        names = self.ensemble.names
        return (*names, *(f"z({name})" for name in names), *self.outputs, *self.signals)

    @property
    def outputs(self) -> dict[str, int]:
        """The named outputs of a single model, which its score files contain."""
        return self.models[0].outputs if len(self.models) == 1 else {}

    @property
    def leaks(self) -> tuple[str, ...]:
        """The names of the numbers of test files that rows share words with, one for each `decontaminate`."""
        return tuple(step.decontaminate.number for step in self.select if step.decontaminate is not None)

    @property
    def signal_models(self) -> dict[str, ModelConfig | EmbeddingConfig]:
        """The models of signals by name, in order."""
        return {name: one.scorer for name, one in sorted(self.signals.items()) if one.scorer is not None}

    @property
    def embeddings(self) -> list[int]:
        """The indices of embedding models among all models that score, `models` and `signal_models`."""
        scoring = [*self.models, *self.signal_models.values()]
        return [number for number, model in enumerate(scoring) if isinstance(model, EmbeddingConfig)]

    @property
    def scores_path(self) -> str:
        return self.scores.path or self.output.path.rstrip("/") + "/scores"

    @property
    def path(self) -> str:
        return self.output.path.rstrip("/")
