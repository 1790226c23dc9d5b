"""`bestkept train`: passes settings to `rm.train`, and turns its errors into exit codes and its result into a table."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from os.path import expanduser
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.commands.printing import print_result
from pipelines.commands.progress_bar import showing_training, showing_work
from pipelines.commands.signals import ending_with
from pipelines.config import TrainConfig
from pipelines.corpus.own_files import Place, refuse_places
from pipelines.corpus.preference_rows import preference_rows
from pipelines.errors import ConfigError, InputError, ModelLoadError, StorageError, reporting_broken_devices
from pipelines.report import gate, stress, verdict
from pipelines.report.evaluation_tables import temperature_words
from pipelines.report.text import percent_interval, rate
from pipelines.runtime import logs
from pipelines.storage.files import check_writable
from pipelines.storage.models import is_remote, whole_directory

if TYPE_CHECKING:
    from rm.train import TrainProgress, TrainResult, TrainSettings

Showing = Callable[[], AbstractContextManager[Callable[["TrainProgress"], None]]]
"""Gives a body the function to which it reports the course of a training, such as `showing_training`."""

_NAMES = (
    *("config.json", "generation_config.json", "model.safetensors.index.json", "calibration.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *(
        "checkpoints/settings.json",
        *(f"checkpoints/checkpoint-{'#' * digits}/trainer_state.json" for digits in range(1, 8)),
    ),
)
"""Templates of a model's files that could be read as preferences, since they are also JSON."""


def run_training(config: TrainConfig) -> TrainResult:
    """Train and print the result, in the first process of `torchrun`. Raises as `train_model` does."""
    waiting = showing_work("starting") if os.environ.get("RANK", "0") == "0" else nullcontext()
    with waiting:  # the libraries take seconds
        from rm.train import is_first_rank

    first = is_first_rank()
    if not first:
        logs.only_warnings()
    result = train_model(config, showing_training)
    if first:
        figures = None if result.heldout is None else result.heldout.to_json()
        used = {name for name in ("foreign", "length_balance", "length_head") if getattr(config.train, name)}
        advice = [*stress.advice(figures and figures["stress"], used=used), *gate.advice(figures)]
        print_result(
            "trained",
            _summary_fields(result, advice),
            path=result.output_path,
            table=lambda: [_summary_table(result, advice)],
        )
    return result


def train_model(config: TrainConfig, showing: Showing) -> TrainResult:
    """Train with the course shown by `showing`, and print nothing.

    Raises `ConfigError`, `InputError`, `ModelLoadError` or `StorageError`.
    """
    from rm import train as training

    path = config.output.path
    if "://" in path:
        raise ConfigError(f"output.path {path!r} is a URL; train into a local directory and copy it")
    refuse_places("data.path", [source.path for source in config.data], [Place("output.path", path, _NAMES)])
    if config.heldout.path is not None:
        refuse_places("heldout.path", [config.heldout.path], [Place("output.path", path, _NAMES)])
    check_writable(path, named=path)
    settings = settings_of(config)
    try:
        training.refuse_missing_packages(settings)
        if is_remote(config.model.path):
            directory = whole_directory(config.model.path, config.model.revision)
            settings = replace(settings, model_path=str(directory), revision=None)
        with reporting_broken_devices():
            return _train(settings, showing)
    except training.PreferenceError as error:
        raise InputError(str(error)) from error
    except training.SettingsError as error:
        raise ConfigError(str(error)) from error
    except training.RankError as error:
        raise StorageError(str(error)) from error
    except (training.ModelError, training.TrainingError) as error:
        raise ModelLoadError(str(error)) from error


def _train(settings: TrainSettings, showing: Showing) -> TrainResult:
    """Train with progress shown; if interrupted, report what is saved."""
    from rm import train as training

    now: TrainProgress | None = None

    def follow(progress: TrainProgress) -> None:
        nonlocal now
        now = progress
        show(progress)

    with showing() as show, ending_with(lambda: words_of_interruption(settings, now)):
        return training.train(settings, follow)


def words_of_interruption(settings: TrainSettings, now: TrainProgress | None) -> str:
    """Return the words for a training that ends after the step that `now` reports: what is saved, and how to resume."""
    from rm.train import last_checkpoint

    path = settings.output_path
    if now is not None and now.event == "saved":
        return (
            f" after the last step: the model is saved in {path}, but not evaluated; `bestkept evaluate {path} PREFERENCES` "
            "does that"
        )
    at = " before the first step" if now is None else f" at step {now.step:,} of {now.steps:,}"
    step = last_checkpoint(path)
    if step is not None:
        return f"{at}; the same command resumes from step {step:,}, the last checkpoint in {path}/checkpoints"
    if now is None:
        return f"{at}; nothing is saved, and the same command starts again"
    return (
        f"{at}, before the first checkpoint; nothing is saved, and the same command starts again (train.checkpoint_every sets "
        "how often one is made)"
    )


def settings_of(config: TrainConfig) -> TrainSettings:
    """Return the configuration as `rm.train` takes it."""
    from rm.train import TrainSettings

    options = config.train.model_dump()
    if config.train.checkpoint_secs is not None:
        options["checkpoint_every"] = None
    heldout = config.heldout
    if heldout.path is None and heldout.split is not None:
        heldout = heldout.model_copy(update={"path": config.data[0].path})
    return TrainSettings(
        sources=tuple((expanduser(source.path), source.reading_options()) for source in config.data),
        heldout_fraction=heldout.fraction,
        heldout_path=None if heldout.path is None else expanduser(heldout.path),
        heldout_split=heldout.split,
        stress_prompts=config.stress.prompts,
        relevance=None if config.relevance is None else config.relevance.model_dump(),
        model_path=config.model.path,
        revision=config.model.revision,
        max_length=config.model.max_length,
        device=config.model.device,
        output_path=expanduser(config.output.path),
        read_rows=partial(preference_rows, max_row_bytes=config.limits.max_row_bytes),
        checkpoint_secs=config.train.checkpoint_secs,
        **{**options, "report_to": tuple(options["report_to"])},
    )


def _summary_fields(result: TrainResult, advice: list[str]) -> dict[str, Any]:
    """Return the content of the closing table as fields of a JSON line."""
    evaluation = None if result.heldout is None else result.heldout.to_json()
    return {
        "prompts": result.groups,
        "judgements": dict(result.judgements),
        "origins": dict(result.origins),
        "rejected": dict(result.rejected),
        "notes": result.notes,
        "learning_rate": result.learning_rate,
        "loss": result.train_loss,
        "judgements_per_sec": result.judgements_per_sec,
        "tokens_per_sec": result.tokens_per_sec,
        "heldout_accuracy": None if evaluation is None else evaluation["accuracy"]["overall"],
        "gated": None if evaluation is None else evaluation["gated"],
        "verdict": None if evaluation is None else evaluation["verdict"]["verdict"],
        "advice": advice,
    }


def _summary_table(result: TrainResult, advice: list[str]) -> Table:
    table = Table(show_header=False, title="trained", title_justify="left")
    table.add_row("prompts", f"{result.groups:,}")
    for kind, count in result.judgements.items():
        if count:
            table.add_row(kind, f"{count:,}")
    table.add_row("judged by", ", ".join(f"{origin} {count:,}" for origin, count in sorted(result.origins.items())))
    for reason, count in sorted(result.rejected.items()):
        table.add_row(f"rejected: {reason}", f"{count:,}")
    for note in result.notes:
        table.add_row("note", note)
    table.add_row("learning rate", f"{result.learning_rate:g}")
    table.add_row("loss", f"{result.train_loss:.4f}")
    table.add_row("speed", f"{rate(result.judgements_per_sec)} judgements/s, {rate(result.tokens_per_sec)} tokens/s")
    if result.heldout is None:
        table.add_row("held-out accuracy, %", "-")
    else:
        evaluation = result.heldout.to_json()
        row = evaluation["accuracy"]["overall"]
        counts = f"{row['comparisons']:,} comparisons, {row['prompts']:,} prompts"
        table.add_row("held-out accuracy, %", f"{percent_interval(row['model'])} on {counts}")
        table.add_row(f"  the {row['rule']} response", percent_interval(row["length"]))
        if evaluation["gated"]:
            table.add_row("  behind the relevance gate", gate.words(evaluation["gated"]))
        table.add_row("verdict", verdict.sentence(evaluation["verdict"]))
        for warning in verdict.warnings({**evaluation["verdict"], "stress": evaluation["stress"]}):
            table.add_row("", warning)
        for line in advice:
            table.add_row("to try", line)
        if evaluation["calibration"] is not None:
            table.add_row("temperature", temperature_words(evaluation["calibration"]["temperature"]))
    table.add_row("saved", result.output_path)
    return table
