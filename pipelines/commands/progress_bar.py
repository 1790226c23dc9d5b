"""Progress of a command: a bar on a terminal, and a log line every 15 seconds elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pipelines.commands.printing import format_duration
from pipelines.report.text import rate
from pipelines.runtime import logs, progress

if TYPE_CHECKING:
    from rm.scorer import Work
    from rm.train import TrainProgress

log = logging.getLogger(__name__)

ShowPart = Callable[[str, float, float], None]
"""(words, done, total): names the part of some work in progress, and how much of it is done."""

_LINE_EVERY_SECS = 15.0
_TRAINING_LINE_EVERY_SECS = 60.0
_REFRESH_SECS = 0.25


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show progress while the body runs: a bar with rows/s, tokens/s and time left, or a log line now and then."""
    progress.reset()
    stop = threading.Event()
    thread = threading.Thread(target=_follow_bar if shows_bar() else _follow_lines, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2)


@contextmanager
def showing_work(words: str) -> Iterator[ShowPart]:
    """Show work on a terminal: a moving bar and the time so far; for a part of known length, named by calling the function, also
    the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shows_bar()) as bar:
        task = bar.add_task(words, total=None)
        part = words

        def show(now: str, done: float, total: float) -> None:
            nonlocal part
            if now != part:
                part = now
                bar.reset(task, description=now, total=total)
            bar.update(task, completed=done)

        yield show


@contextmanager
def showing_batches(total: int) -> Iterator[Callable[[Work], None]]:
    """Show how many of `total` responses have been scored, of which the body reports each batch by calling the function."""
    console, with_bar, pace = Console(stderr=True), shows_bar(), _LinePace()
    done = 0
    columns = (TextColumn("scoring"), BarColumn(), TextColumn("{task.completed:,} responses"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not with_bar) as bar:
        task = bar.add_task("", total=total)

        def report(work: Work) -> None:
            nonlocal done
            done += work.rows
            bar.update(task, completed=done)
            if not with_bar and pace.is_due():
                fields = {"stage": "scoring", "responses": done, "share": round(done / max(1, total), 4)}
                log.info("scoring: %s of %s responses", f"{done:,}", f"{total:,}", extra={"fields": fields})

        yield report


@contextmanager
def showing_nothing(*_: object) -> Iterator[Callable[..., None]]:
    """Take the place of `showing_batches`, `showing_training` or `showing_work`, and show nothing."""
    yield lambda *_: None


def describe(now: progress.Progress, secs: float) -> tuple[float, str]:
    """Return (share done, words) at the monotonic time `secs`: of scoring, with rates since the first fragment that this run has
    scored, and then of the export."""
    if now.to_export:
        return _describe_export(now, secs)
    known = now.input_bytes - now.found_bytes
    done = now.found_bytes + max(known, now.scored_bytes)
    share = min(1.0, done / now.total_bytes) if now.total_bytes else 0.0
    words = f"{now.found_responses + now.scored:,} responses"
    if now.since is not None and now.scored:
        elapsed = max(1e-9, secs - now.since)
        words += f", {rate(now.scored / elapsed)} rows/s, {rate(now.tokens / elapsed)} tokens/s"
        if now.scored_bytes and done < now.total_bytes:
            words += f", {format_duration((now.total_bytes - done) * elapsed / now.scored_bytes)} left"
    if now.found:
        words += f", {now.found:,} of {now.fragments:,} fragments were scored before"
    return share, words


def _describe_export(now: progress.Progress, secs: float) -> tuple[float, str]:
    words = f"{now.exported:,} of {now.to_export:,} rows written"
    if 0 < now.exported < now.to_export and now.export_since is not None:
        elapsed = max(1e-9, secs - now.export_since)
        left = (now.to_export - now.exported) * elapsed / now.exported
        words += f", {rate(now.exported / elapsed)} rows/s, {format_duration(left)} left"
    return min(1.0, now.exported / now.to_export), words


@contextmanager
def showing_training() -> Iterator[Callable[[TrainProgress], None]]:
    """Show the course of a training, which the body reports by calling the function: a bar, or a line for each twentieth of
    the steps, at least once a minute, and for each evaluation."""
    console, with_bar, pace = Console(stderr=True), shows_bar(), _LinePace(_TRAINING_LINE_EVERY_SECS)
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not with_bar) as bar:
        task = bar.add_task("reading preferences and loading the model", total=None)

        def report(now: TrainProgress) -> None:
            bar.update(task, completed=now.step, total=now.steps, description=describe_training(now))
            if with_bar or (now.event == "step" and not pace.is_due()) or now.event == "saved":
                return
            pace.restart()
            log.info("%s", training_line(now), extra={"fields": _training_fields(now)})

        yield report


def describe_training(now: TrainProgress) -> str:
    """Return the words beside a training's bar: step, loss, held-out accuracy, rate and time left, if known."""
    words = [f"step {now.step:,} of {now.steps:,}"]
    if now.loss is not None:
        words.append(f"loss {now.loss:.4f}")
    if now.accuracy is not None:
        words.append(f"held-out accuracy {now.accuracy:.1%}")
    if now.judgements_per_sec is not None and now.secs_left is not None:
        words.append(f"{rate(now.judgements_per_sec)} judgements/s, {format_duration(now.secs_left)} left")
    return ", ".join(words)


def training_line(now: TrainProgress) -> str:
    """Return a log line on a training: the measurements of an evaluation, or the words of `describe_training`."""
    if now.event != "evaluation" or now.accuracy is None:
        return describe_training(replace(now, accuracy=None))
    return (
        f"step {now.step:,} of {now.steps:,}, held-out judgements: {now.accuracy:.1%} ordered as judged, "
        f"loss {now.heldout_loss:.4f}"
    )


def _training_fields(now: TrainProgress) -> dict[str, Any]:
    names = ("accuracy", "heldout_loss") if now.event == "evaluation" else ("loss", "learning_rate")
    fields = {name: getattr(now, name) for name in ("step", "steps", *names)}
    if now.event != "evaluation":
        fields |= {"judgements_per_sec": now.judgements_per_sec, "secs_left": now.secs_left}
    return {{"accuracy": "heldout_accuracy"}.get(name, name): value for name, value in fields.items()}


def shows_bar() -> bool:
    """Return whether a bar is wanted: standard error is a terminal, and neither `--quiet` nor `--json-logs` is given."""
    mode = logs.output_mode()
    return Console(stderr=True).is_terminal and not mode.quiet and not mode.json_logs


class _LinePace:
    """The pace of log lines: one every 15 seconds, counted from its making and then from the line before."""

    def __init__(self, every_secs: float = _LINE_EVERY_SECS) -> None:
        self._last, self._every_secs = time.monotonic(), every_secs

    def is_due(self) -> bool:
        """Return whether a line is due, and count from now on if it is."""
        due = time.monotonic() - self._last >= self._every_secs
        if due:
            self.restart()
        return due

    def restart(self) -> None:
        """Count from now on."""
        self._last = time.monotonic()


def _follow_bar(stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.fields[stage]}", table_column=Column(no_wrap=True, min_width=9)),
        BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=8)),  # takes what the words leave of the line
        TextColumn("{task.description}"),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as bar:
        task = bar.add_task("", total=1.0, stage="planning")
        while not stop.wait(_REFRESH_SECS):
            now = progress.current()
            share, words = describe(now, time.monotonic())
            bar.update(task, completed=share, description=words, stage=now.stage)


def _follow_lines(stop: threading.Event) -> None:
    pace, logged = _LinePace(), progress.current()
    while not stop.wait(_REFRESH_SECS):
        now = progress.current()
        if now != logged and pace.is_due():
            share, words = describe(now, time.monotonic())
            fields = progress_fields(now, time.monotonic())
            log.info("%s: %s, %s", now.stage, f"{share:.0%}", words, extra={"fields": fields})
            logged = now


def progress_fields(now: progress.Progress, secs: float) -> dict[str, Any]:
    """Return the content of `describe` as fields of a JSON line; rates are null until they are known."""
    elapsed = max(1e-9, secs - now.since) if now.since is not None and now.scored else None
    return {
        "stage": now.stage,
        "share": round(describe(now, secs)[0], 4),
        "responses": now.found_responses + now.scored,
        "rows_per_sec": None if elapsed is None else round(now.scored / elapsed, 3),
        "tokens_per_sec": None if elapsed is None else round(now.tokens / elapsed, 3),
        "fragments": now.fragments,
        "fragments_found": now.found,
        "rows_written": now.exported,
        "rows_to_write": now.to_export,
    }
