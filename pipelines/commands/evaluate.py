"""`bestkept evaluate`: read preferences, score them, hand the rewards to `rm.evaluate`, show and write what it says."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.commands.progress_bar import shows_bar
from pipelines.commands.summary import print_result
from pipelines.config import EvaluateConfig
from pipelines.errors import ConfigError, InputError, ModelLoadError, StorageError
from pipelines.report import evaluation_tables
from pipelines.report.pages import evaluation as page
from pipelines.storage import files, publish
from pipelines.storage.models import whole_directory

if TYPE_CHECKING:
    from rm.preferences import Group
    from rm.scorer import GroupScores, Work

log = logging.getLogger(__name__)

_LINE_EVERY_SECS = 15.0


@dataclass(frozen=True)
class _Scored:
    """What the scorer said of all groups, and what it could not say."""

    scores: list[GroupScores]
    max_length: int
    dtype: str

    @property
    def truncated(self) -> int:
        return sum(int(score.truncated.sum()) for score in self.scores)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(reason for score in self.scores for reason in score.reasons if reason is not None))


def run_evaluation(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate, print the tables, write evaluation.json and evaluation.html; returns what the former holds.

    Raises `ConfigError`, `InputError`, `ModelLoadError` or `StorageError`.
    """
    from rm.evaluate import Bootstrap, evaluate
    from rm.identity import ModelError

    _check_writable(config.output.path)
    keep_in = _temperature_directory(config)
    groups, rejected = _read(config)
    directory = whole_directory(config.model.path, config.model.revision)
    try:
        scored = _score(config, directory, groups)
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
    evaluation = evaluate(
        groups,
        [score.rewards for score in scored.scores],  # and no lengths: token counts are cut where the text is
        bootstrap=Bootstrap(config.bootstrap.resamples, config.bootstrap.seed),
    )
    stored = None
    if keep_in is not None and evaluation.calibration is not None:
        stored = _store(keep_in, evaluation.calibration, config)
    document: dict[str, Any] = {
        "model": {**config.model.model_dump(), "dtype": scored.dtype, "max_length": scored.max_length},
        "data": {"path": config.data.path, "part": _part(config), "rejected": dict(sorted(rejected.items()))},
        "truncated": scored.truncated,
        "unscored": dict(sorted(scored.reasons.items())),
        "temperature_stored": stored,
        "evaluation": evaluation.to_json(),
    }
    _write(config.output.path, document)
    facts = {"accuracy": document["evaluation"]["accuracy"]["overall"], "temperature_stored": stored}
    place = config.output.path
    print_result(
        "evaluated", facts, path=place, table=lambda: evaluation_tables.evaluation_tables(document, written_to=place)
    )
    return document


def _part(config: EvaluateConfig) -> str:
    fraction = config.data.heldout_fraction
    return f"held-out part at heldout_fraction {fraction:g}" if fraction else "all rows"


def _read(config: EvaluateConfig) -> tuple[list[Group], Counter[str]]:
    from rm.preferences import PreferenceError, ReadSettings, heldout_split, read_preferences

    try:
        groups, rejected = read_preferences(config.data.path, ReadSettings(**config.data.reading_options()))
    except PreferenceError as error:
        raise InputError(str(error)) from error
    if config.data.heldout_fraction:
        groups = heldout_split(groups, config.data.heldout_fraction)[1]
    if not any(group.edges or group.labels or group.scores for group in groups):
        raise InputError(
            f"data.path {config.data.path!r} ({_part(config)}) leaves nothing to evaluate on; rejected: {dict(rejected)}"
        )
    return groups, rejected


def _score(config: EvaluateConfig, directory: Path, groups: Sequence[Group]) -> _Scored:
    from rm.identity import resolve_dtype
    from rm.scorer import Scorer

    dtype = resolve_dtype(config.model.dtype)
    scorer = Scorer.load(
        directory,
        dtype=dtype,
        max_length=config.model.max_length,
        too_long=config.model.too_long,
        tokens_per_batch=config.model.tokens_per_batch,
    )
    with _progress(sum(len(group.responses) for group in groups)) as told:
        scorer.on_batch = told
        scores = scorer.score([(group.prompt, group.responses) for group in groups])
    return _Scored(scores, scorer.template.max_length, dtype)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Work], None]]:
    """What the scorer tells of each batch, as a bar on a terminal and as a line now and then elsewhere."""
    console, watched = Console(stderr=True), shows_bar()
    done, shown = 0, time.monotonic()
    columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.completed:,} responses"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not watched) as bar:
        task = bar.add_task("", total=total)

        def told(work: Work) -> None:
            nonlocal done, shown
            done += work.rows
            bar.update(task, completed=done)
            if not watched and time.monotonic() - shown >= _LINE_EVERY_SECS:
                shown = time.monotonic()
                fields = {"stage": "scoring", "responses": done, "share": round(done / max(1, total), 4)}
                log.info("scoring: %s of %s responses", f"{done:,}", f"{total:,}", extra={"fields": fields})

        yield told


def _temperature_directory(config: EvaluateConfig) -> Path | None:
    """Where the temperature is to be stored; None where it is not. Asked before anything is scored."""
    directory = Path(config.model.path).expanduser()
    if config.store_temperature is False:
        return None
    if not directory.is_dir():
        if config.store_temperature:
            raise ConfigError(
                f"store_temperature is true and model.path {config.model.path!r} is no local directory; "
                "copy the model to one, or leave store_temperature out"
            )
        return None
    if os.access(directory, os.W_OK):
        return directory
    if config.store_temperature:
        raise StorageError(
            f"cannot write {directory}/calibration.json; grant write access, or set store_temperature=false"
        )
    return None


def _store(directory: Path, calibration: Any, config: EvaluateConfig) -> str:
    from rm.evaluate import store_temperature

    try:
        return str(store_temperature(directory, calibration, data=config.data.path, fitted_on=_part(config)))
    except OSError as error:
        raise StorageError(
            f"cannot write {directory}/calibration.json: {files.describe(error)}; set store_temperature=false"
        ) from error


def _check_writable(path: str) -> None:
    """Find out before an hour of scoring, not after it."""
    import tempfile

    if not files.is_local(path):
        return
    try:
        Path(files.absolute(path)).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=files.absolute(path)):
            pass
    except OSError as error:
        raise StorageError(f"cannot write {path}: {files.describe(error)}; choose another output.path") from error


def _write(path: str, document: dict[str, Any]) -> None:
    root = files.absolute(path)
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    publish.replace(files.join(root, "evaluation.html"), page.render(document).encode())
    publish.replace(files.join(root, "evaluation.json"), text.encode())
