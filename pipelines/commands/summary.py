"""What a run shows: a progress bar on a terminal, plain lines elsewhere, and a closing table."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.commands.format import format_duration
from pipelines.config import RunConfig
from pipelines.runtime import logs, progress

if TYPE_CHECKING:
    from pipelines.commands.run import Outcome
    from pipelines.finish.retention import Cleaned
    from pipelines.storage.models.fetch import Sent

log = logging.getLogger(__name__)

_SKIPPED_SHOWN = 10
_WIDEST = 10_000  # characters


def print_summary(config: RunConfig, outcome: Outcome) -> None:
    """The end of a finished `run`, `score` or `select`."""
    message = "already complete" if outcome.already_complete else "done"
    place = outcome.output(config) if outcome.manifest else config.scores_path
    print_result(message, summary_fields(config, outcome), path=place, table=lambda: [summary_table(config, outcome)])


def print_path(path: str) -> None:
    """The end of a command that writes one page."""
    if logs.output_mode().json_logs:
        sys.stderr.write(logs.json_line("INFO", "written", output=path))
    else:
        sys.stdout.write(f"{path}\n")


def print_cleaned(cleaned: Cleaned, *, dry_run: bool) -> None:
    """The end of `clean`: what was removed, one path a line, or as one JSON line."""
    from pipelines.finish.versions import path_of

    found = {"removed": [path_of(cleaned.root, one) for one in cleaned.versions]}
    found["removed"] += [f"{cleaned.root}/scores/{name}" for name in cleaned.scores]
    if logs.output_mode().json_logs:
        fields = {**found, "kept": cleaned.kept, "dry_run": dry_run}
        sys.stderr.write(logs.json_line("INFO", "done", **fields, output=cleaned.root))
        return
    if not logs.output_mode().quiet:
        for path in found["removed"]:
            sys.stdout.write(f"{'would remove' if dry_run else 'removed'} {path}\n")
    sys.stdout.write(f"{cleaned.root}\n" if logs.output_mode().quiet else f"versions kept: {len(cleaned.kept)}\n")


def print_fetched(sent: Sent) -> None:
    """The end of `bestkept model fetch`: where the model is, and what to write for it."""
    size_bytes = sum(file.bytes for file in sent.files.values())
    facts = {"source": sent.source, "files": len(sent.files), "bytes": size_bytes, "files_sent": sent.sent}

    def table() -> Iterator[Table]:
        table = Table(show_header=False, title="fetched", title_justify="left")
        table.add_row("model", Text(sent.source))
        table.add_row("files", f"{len(sent.files):,}, {size_bytes:,} bytes; {sent.sent:,} sent, the others were there")
        table.add_row("in the configuration", Text(f"model: {{path: {sent.destination}}}"))
        yield table

    print_result("fetched", facts, path=sent.destination, table=table)


def print_result(message: str, fields: Mapping[str, Any], *, path: str, table: Callable[[], Iterable[Table]]) -> None:
    """The end of a finished command: tables on standard output; of `--quiet` the path of what was made, alone; of
    `--json-logs` one line with `fields` on standard error."""
    now = logs.output_mode()
    if now.json_logs:
        sys.stderr.write(logs.json_line("INFO", message, **{**fields, "output": path}))
    elif now.quiet:
        sys.stdout.write(f"{path}\n")
    else:
        print_tables(*table())


def print_tables(*tables: Table) -> None:
    """Tables on standard output: as wide as the terminal, and as wide as they are where nobody has one."""
    console = Console()
    for table in tables:
        if not console.is_terminal:
            anything = console.options.update(width=_WIDEST)
            console.width = max(console.width, console.measure(table, options=anything).maximum)
        for column in table.columns:
            column.overflow = "fold"  # a path that is cut is none
        console.print(table)


def summary_fields(config: RunConfig, outcome: Outcome) -> dict[str, Any]:
    """What the closing table says, as fields of a JSON line."""
    manifest: dict[str, Any] = outcome.manifest or {}
    found: dict[str, Any] = {
        **(manifest.get("counts") or outcome.totals),
        "scored_by_run": 0 if outcome.already_complete else progress.current().published,
        "scores": config.scores_path,
        "skipped_files": [dict(file) for file in outcome.skipped],
        "secs": round(outcome.secs, 3),
    }
    found.pop("examples", None)
    if outcome.members:
        found["models"] = [{k: v for k, v in member.items() if k != "examples"} for member in outcome.members]
    if manifest:
        controls = {name: manifest["controls"][name] for name in ("random", "longest")}
        found |= {"rejected": manifest["rejected"], "mean_reward": manifest["mean_reward"], "controls": controls}
    return found


def summary_table(config: RunConfig, outcome: Outcome) -> Table:
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
        table.add_row("output", outcome.output(config))
        if manifest["report"]:
            table.add_row("report", f"{outcome.output(config)}/report.html")
        if outcome.pushed is not None:
            table.add_row("pushed", outcome.pushed.url if outcome.pushed.fresh else f"before, to {outcome.pushed.url}")
    elif not outcome.members:
        table.add_row("scores", f"{config.scores_path}/{outcome.plan.fingerprint}")
    table.add_row("time", format_duration(outcome.secs))
    return table


def print_inspection(document: Mapping[str, Any], *, as_json: bool) -> None:
    """What `inspect` found, on standard output: tables and conversations, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    from pipelines.commands.inspect.tables import render

    console = Console()
    for part in render(document):
        console.print(part, soft_wrap=not isinstance(part, Table))


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
