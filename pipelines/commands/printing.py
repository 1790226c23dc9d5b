"""Output of finished commands: tables for people, only a path with `--quiet`, one JSON line with `--json-logs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.errors import escape_controls, hide_credentials_in
from pipelines.runtime import logs

if TYPE_CHECKING:
    from pipelines.finish.retention import CleanResult
    from pipelines.storage.models.fetch import FetchResult

_WIDEST = 10_000  # characters


class PlainConsole(Console):
    """A console that shows text unchanged: brackets and colons in a path are not markup, and no text controls the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_controls(text), **{**options, "markup": False, "emoji": False})


def print_result(message: str, fields: Mapping[str, Any], *, path: str, table: Callable[[], Iterable[Table]]) -> None:
    """Print the tables on standard output; with `--json` the fields as one object; with `--quiet` only `path`, which the command
    has made; with `--json-logs` one line of `fields` on standard error."""
    mode = logs.output_mode()
    if mode.json_logs:
        sys.stderr.write(logs.json_line("INFO", message, **{**fields, "output": path}))
    if mode.json:
        print_json({**fields, "output": path})
    elif mode.json_logs:
        return
    elif mode.quiet:
        _write_path(path)
    else:
        print_tables(*table())


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(hide_credentials_in(dict(fields)), indent=2, ensure_ascii=False, default=str) + "\n")


def print_tables(*tables: Table) -> None:
    """Print tables on standard output: as wide as the terminal, or, without one, as wide as their content."""
    console = PlainConsole()
    for table in tables:
        if not console.is_terminal:
            unlimited = console.options.update(width=_WIDEST)
            console.width = max(console.width, console.measure(table, options=unlimited).maximum)
        for column in table.columns:
            column.overflow = "fold"  # a cut path is useless
        console.print(table)


def print_path(path: str) -> None:
    """Print the path that a command has written or looked up."""
    if logs.output_mode().json_logs:
        sys.stderr.write(logs.json_line("INFO", "written", output=path))
    else:
        _write_path(path)


def _write_path(path: str) -> None:
    """Write a path on a line of its own: unchanged for scripts, escaped on a terminal."""
    sys.stdout.write(f"{escape_controls(path) if sys.stdout.isatty() else path}\n")


def print_cleaned(cleaned: CleanResult, *, dry_run: bool) -> None:
    """Print what `bestkept clean` has removed, one path a line."""
    from pipelines.finish.versions import path_of

    removed = [path_of(cleaned.root, version) for version in cleaned.versions]
    removed += [f"{cleaned.root}/scores/{name}" for name in cleaned.scores]
    mode = logs.output_mode()
    fields = {"removed": removed, "kept": cleaned.kept, "dry_run": dry_run, "output": cleaned.root}
    if mode.json_logs:
        sys.stderr.write(logs.json_line("INFO", "done", **fields))
    if mode.json:
        print_json(fields)
    elif mode.json_logs:
        return
    elif not mode.quiet:
        for path in removed:
            sys.stdout.write(f"{'would remove' if dry_run else 'removed'} {escape_controls(path)}\n")
        sys.stdout.write(f"versions kept: {len(cleaned.kept)}\n")
    else:
        _write_path(cleaned.root)


def print_fetched(sent: FetchResult) -> None:
    """Print the place where `bestkept model fetch` has put the model, and the setting that names it."""
    size_bytes = sum(file.bytes for file in sent.files.values())
    fields = {"source": sent.source, "files": len(sent.files), "bytes": size_bytes, "files_sent": sent.sent}

    def tables() -> Iterable[Table]:
        table = Table(show_header=False, title="fetched", title_justify="left")
        table.add_row("model", sent.source)
        table.add_row(
            "files", f"{len(sent.files):,}, {size_bytes:,} bytes; {sent.sent:,} sent, the others were already there"
        )
        table.add_row("in the configuration", f"model: {{path: {sent.destination}}}")
        return [table]

    print_result("fetched", fields, path=sent.destination, table=tables)


def format_duration(secs: float) -> str:
    """Return hours, minutes and seconds, as in `1:02:03`, or minutes and seconds."""
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
