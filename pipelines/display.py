"""What a run shows: a progress bar on a terminal, plain lines elsewhere, and a closing table."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipelines import progress
from pipelines.config import RunConfig

if TYPE_CHECKING:
    from pipelines.curate import Outcome

_LINE_EVERY_SECS = 15.0
_REFRESH_SECS = 0.25
_SKIPPED_SHOWN = 10


def quieten() -> None:
    """Keep the libraries' chatter off the terminal; our own log lines and every error still show."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    for name in ("pipelines", "rm"):
        logging.getLogger(name).setLevel(logging.INFO)
    for name in ("apache_beam", "transformers", "datasets", "httpx", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().handlers[0].addFilter(lambda record: record.name != "root")  # Beam logs there, too


@contextmanager
def progress_shown() -> Iterator[None]:
    """Show progress while the body runs: a bar with rows/s, tokens/s and time left, or a log line now and then."""
    progress.reset()
    stop = threading.Event()
    console = Console(stderr=True)
    follow = _follow_bar if console.is_terminal else _follow_lines
    thread = threading.Thread(target=follow, args=(console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=2)


def describe(now: progress.Progress, secs: float) -> tuple[float, str]:
    """(share done, words) at the monotonic time `secs`; rates count from the first fragment this run has scored."""
    known = now.input_bytes - now.found_bytes
    done = now.found_bytes + max(known, now.scored_bytes)
    share = min(1.0, done / now.total_bytes) if now.total_bytes else 0.0
    words = f"{now.found_responses + now.scored:,} responses"
    if now.since is not None and now.scored:
        elapsed = max(1e-9, secs - now.since)
        words += f", {now.scored / elapsed:,.0f} rows/s, {now.tokens / elapsed:,.0f} tokens/s"
        if now.scored_bytes and done < now.total_bytes:
            words += f", {_duration((now.total_bytes - done) * elapsed / now.scored_bytes)} left"
    if now.found:
        words += f", {now.found:,} of {now.fragments:,} fragments were scored before"
    return share, words


def _follow_bar(console: Console, stop: threading.Event) -> None:
    columns = (TextColumn("{task.fields[stage]}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=1.0, stage="planning")
        while not stop.wait(_REFRESH_SECS):
            now = progress.current()
            share, words = describe(now, time.monotonic())
            bar.update(task, completed=share, description=words, stage=now.stage)


def _follow_lines(console: Console, stop: threading.Event) -> None:
    last, shown = time.monotonic(), progress.current()
    while not stop.wait(_REFRESH_SECS):
        now = progress.current()
        share, words = describe(now, time.monotonic())
        if now != shown and time.monotonic() - last >= _LINE_EVERY_SECS:
            console.print(f"{now.stage}: {share:.0%}, {words}", highlight=False, soft_wrap=True)
            last, shown = time.monotonic(), now


def closing_table(config: RunConfig, outcome: Outcome) -> None:
    """The summary of a finished command, on standard output."""
    Console().print(summary(config, outcome))


def summary(config: RunConfig, outcome: Outcome) -> Table:
    now = progress.current()
    table = Table(
        show_header=False, title="already complete" if outcome.already_complete else "done", title_justify="left"
    )
    manifest: dict[str, Any] = outcome.manifest or {}
    counts = manifest.get("counts") or outcome.totals
    by_run = None if outcome.already_complete else now.published
    for member in outcome.members:
        table.add_row("model", member["name"])
        _add_counts(table, member, member["rejected"], by_run=None)  # known of all models together
        table.add_row("scores", f"{config.scores_path}/{member['fingerprint']}")
    if outcome.members:
        table.add_row("scored by this run", f"{by_run:,}")
    else:
        _add_counts(table, counts, manifest.get("rejected", outcome.totals.get("rejected", {})), by_run=by_run)
    _add_skipped(table, outcome.skipped)
    if manifest:
        if counts["prompts"] is not None:
            table.add_row("prompts", f"{counts['prompts']:,}")
        table.add_row("kept", f"{counts['kept']:,} for {counts['kept_prompts']:,} prompts")
        if "splits" in manifest:
            table.add_row("splits", ", ".join(f"{name} {rows:,}" for name, rows in manifest["splits"].items()))
        mean = {key: "-" if value is None else f"{value:.4f}" for key, value in manifest["mean_reward"].items()}
        table.add_row("mean reward", f"kept {mean['kept']}, dropped {mean['dropped']}")
        controls = {name: manifest["controls"][name] for name in ("random", "longest")}
        shown = [f"{name} {value:.4f}" for name, value in controls.items() if value is not None]
        if shown:
            table.add_row("for comparison", ", ".join(shown))
        table.add_row("output", config.path)
        if outcome.pushed is not None:
            table.add_row("pushed", outcome.pushed.url if outcome.pushed.fresh else f"before, to {outcome.pushed.url}")
    elif not outcome.members:
        table.add_row("scores", f"{config.scores_path}/{outcome.plan.fingerprint}")
    table.add_row("time", _duration(outcome.secs))
    return table


def explanation_shown(found: Mapping[str, Any], *, as_json: bool) -> None:
    """What `explain` found, on standard output: a table, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        Console().print(explanation_table(found))


def explanation_table(found: Mapping[str, Any]) -> Table:
    """One row a response in the order of the input, one column a step."""
    kept = sum(row["kept"] for row in found["rows"])
    title = f"prompt {found['prompt_id']}: {kept:,} of {len(found['rows']):,} responses kept"
    table = Table(title=title, title_justify="left")
    rules = [next(iter(step)) for step in found["steps"]]
    for name in ("file", "place", "response", "reward", "tokens", *rules, "kept"):
        table.add_column(name, overflow="fold")
    for row in found["rows"]:
        reward = row["rejected"] if row["reward"] is None else f"{row['reward']:.6g}"
        tokens = "-" if row["tokens"] is None else f"{row['tokens']:,}"
        cells = [row["file"], row["place"], str(row["response_index"]), reward, tokens]
        cells += [_verdict(step) for step in row["steps"]]
        table.add_row(*map(Text, cells), "yes" if row["kept"] else "no")  # as Text: a file's name is not markup
    return table


def _verdict(step: Mapping[str, Any]) -> str:
    """`dropped: rank 2, of 4, keep 1`"""
    numbers = [f"{name} {_short(value)}" for name, value in step.items() if name not in ("rule", "verdict")]
    return f"{step['verdict']}: {', '.join(numbers)}" if numbers else str(step["verdict"])


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _add_counts(table: Table, counts: Mapping[str, Any], rejected: Mapping[str, int], *, by_run: int | None) -> None:
    table.add_row("read", f"{counts['read']:,} responses in {counts['rows']:,} rows")
    table.add_row("scored", f"{counts['scored']:,}")
    if by_run is not None:
        table.add_row("scored by this run", f"{by_run:,}")
    table.add_row("rejected", f"{sum(rejected.values()):,}")
    for reason, count in rejected.items():
        table.add_row(f"  {reason}", f"{count:,}")
    if counts["truncated"]:
        share = counts["truncated"] / max(1, counts["scored"])
        table.add_row("truncated", f"{counts['truncated']:,} ({share:.1%} of scored)")


def _add_skipped(table: Table, skipped: Sequence[Mapping[str, str]]) -> None:
    """The files that could not be read; the manifest has all of them."""
    if not skipped:
        return
    table.add_row("skipped files", f"{len(skipped):,}")
    for file in skipped[:_SKIPPED_SHOWN]:
        table.add_row(Text(f"  {file['key']}"), file["reason"])
    if len(skipped) > _SKIPPED_SHOWN:
        table.add_row("  ...", f"{len(skipped) - _SKIPPED_SHOWN:,} more")


def _duration(secs: float) -> str:
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
