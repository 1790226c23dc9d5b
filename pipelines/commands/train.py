"""`bestkept train`: settings to `rm.train`, its errors to exit codes, its result to a table."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.commands.summary import print_result
from pipelines.config import TrainConfig
from pipelines.errors import ConfigError, InputError, ModelLoadError, StorageError
from pipelines.report.evaluation_tables import percent_interval
from pipelines.storage.models import is_remote, whole_directory

if TYPE_CHECKING:
    from rm.train import TrainResult, TrainSettings


def run_training(config: TrainConfig) -> TrainResult:
    """Train, print the result. Raises `InputError`, `ModelLoadError` or `StorageError`."""
    from rm import train as training

    _check_writable(config.output.path)
    settings = settings_of(config)
    if is_remote(config.model.path):
        directory = whole_directory(config.model.path, config.model.revision)
        settings = replace(settings, model_path=str(directory), revision=None)
    try:
        result = training.train(settings)
    except training.PreferenceError as error:
        raise InputError(str(error)) from error
    except (training.ModelError, training.TrainingError) as error:
        raise ModelLoadError(str(error)) from error
    print_result("trained", _facts(result), path=result.output_path, table=lambda: [_table(result)])
    return result


def settings_of(config: TrainConfig) -> TrainSettings:
    from rm.train import TrainSettings

    options = config.train.model_dump()
    return TrainSettings(
        sources=tuple((source.path, source.reading_options()) for source in config.data),
        heldout_fraction=config.heldout.fraction,
        heldout_path=config.heldout.path,
        model_path=config.model.path,
        revision=config.model.revision,
        max_length=config.model.max_length,
        output_path=config.output.path,
        **{**options, "report_to": tuple(options["report_to"])},
    )


def _check_writable(path: str) -> None:
    """Find out before an hour of training, not after it."""
    import tempfile
    from pathlib import Path

    if "://" in path:
        raise ConfigError(f"output.path {path!r} is a URL; train into a local directory and copy it")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; choose another output.path") from error


def _facts(result: TrainResult) -> dict[str, Any]:
    """What the closing table says, as fields of a JSON line."""
    measured = None if result.heldout is None else result.heldout.to_json()
    return {
        "prompts": result.groups,
        "judgements": dict(result.judgements),
        "origins": dict(result.origins),
        "rejected": dict(result.rejected),
        "learning_rate": result.learning_rate,
        "loss": result.train_loss,
        "judgements_per_sec": result.judgements_per_sec,
        "tokens_per_sec": result.tokens_per_sec,
        "heldout_accuracy": None if measured is None else measured["accuracy"]["overall"],
    }


def _table(result: TrainResult) -> Table:
    table = Table(show_header=False, title="trained", title_justify="left")
    table.add_row("prompts", f"{result.groups:,}")
    for kind, count in result.judgements.items():
        if count:
            table.add_row(kind, f"{count:,}")
    table.add_row("judged by", ", ".join(f"{origin} {count:,}" for origin, count in sorted(result.origins.items())))
    for reason, count in sorted(result.rejected.items()):
        table.add_row(f"rejected: {reason}", f"{count:,}")
    table.add_row("learning rate", f"{result.learning_rate:g}")
    table.add_row("loss", f"{result.train_loss:.4f}")
    table.add_row("speed", f"{result.judgements_per_sec:,.1f} judgements/s, {result.tokens_per_sec:,.0f} tokens/s")
    if result.heldout is None:
        table.add_row("held-out accuracy, %", "-")
    else:
        measured = result.heldout.to_json()
        row = measured["accuracy"]["overall"]
        counts = f"{row['comparisons']:,} comparisons, {row['prompts']:,} prompts"
        table.add_row("held-out accuracy, %", f"{percent_interval(row['model'])} on {counts}")
        table.add_row("  the longer response", percent_interval(row["length"]))
        if measured["calibration"] is not None:
            table.add_row("temperature", f"{measured['calibration']['temperature']['value']:.3g}")
    table.add_row("saved", result.output_path)
    return table
