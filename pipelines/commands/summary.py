"""The closing table of `run`, `score` and `select`, or the fields of their last JSON line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pipelines.commands.printing import format_duration, print_json, print_result
from pipelines.commands.progress_bar import showing_progress
from pipelines.commands.verdict import verdicts_of
from pipelines.config import RunConfig
from pipelines.report.text import describe_gap
from pipelines.report.verdict import NO_VERDICT, label
from pipelines.runtime import logs, progress

if TYPE_CHECKING:
    from pipelines.commands.run import Outcome

_SKIPPED_SHOWN = 10


def run_and_summarise(config: RunConfig, work: Callable[[], Outcome]) -> Outcome:
    """Do the work with progress shown, print its summary unless the runner continues alone, and return its outcome."""
    with showing_progress():
        outcome = work()
    if not outcome.handed_over:
        print_summary(config, outcome)
    elif logs.output_mode().json:
        print_json({"handed_over": True, "scores": config.scores_path, "output": outcome.output(config)})
    return outcome


def print_summary(config: RunConfig, outcome: Outcome) -> None:
    """Print the outcome of a finished `run`, `score` or `select`."""
    path = outcome.output(config) if outcome.manifest else config.scores_path
    fields = summary_fields(config, outcome)
    print_result(_title(outcome), fields, path=path, table=lambda: [summary_table(config, outcome)])


def _title(outcome: Outcome) -> str:
    return "already complete" if outcome.already_complete else "done"


def summary_fields(config: RunConfig, outcome: Outcome) -> dict[str, Any]:
    """Return the content of the closing table as fields of a JSON line."""
    manifest: dict[str, Any] = outcome.manifest or {}
    fields: dict[str, Any] = {
        **(manifest.get("counts") or outcome.totals),
        "scored_by_run": 0 if outcome.already_complete else progress.current().published,
        "scores": config.scores_path,
        "skipped_files": [dict(file) for file in outcome.skipped],
        "secs": round(outcome.secs, 3),
    }
    fields.pop("examples", None)
    fields["verdicts"] = [
        {"model": name, "verdict": None if known is None else known["verdict"]}
        for name, known in verdicts_of(config, outcome.plan)
    ]
    if outcome.members:
        fields["models"] = [{k: v for k, v in member.items() if k != "examples"} for member in outcome.members]
    if manifest:
        controls = {name: manifest["controls"][name] for name in ("random", "longest")}
        fields |= {"rejected": manifest["rejected"], "mean_reward": manifest["mean_reward"], "controls": controls}
    return fields


def summary_table(config: RunConfig, outcome: Outcome) -> Table:
    """Return the closing table: counts by model, skipped files, the selection, and the paths of all results."""
    table = Table(show_header=False, title=_title(outcome), title_justify="left")
    manifest: dict[str, Any] = outcome.manifest or {}
    by_run = None if outcome.already_complete else progress.current().published
    for member in outcome.members:
        table.add_row("model", member["name"])
        _add_counts(table, member, member["rejected"], by_run=None)  # known only for all models together
        table.add_row("scores", f"{config.scores_path}/{member['fingerprint']}")
    if outcome.members:
        table.add_row("scored by this run", f"{by_run:,}")
    else:
        rejected = manifest.get("rejected", outcome.totals.get("rejected", {}))
        _add_counts(table, manifest.get("counts") or outcome.totals, rejected, by_run=by_run)
    _add_skipped(table, outcome.skipped)
    if manifest:
        _add_selection(table, manifest)
        _add_output(table, outcome, manifest, path=outcome.output(config))
    elif not outcome.members:
        table.add_row("scores", f"{config.scores_path}/{outcome.plan.fingerprint}")
    known_models = list(verdicts_of(config, outcome.plan))
    for name, known in known_models:
        words = NO_VERDICT if known is None else label(known)
        table.add_row("verdict on the model", f"{name}: {words}" if len(known_models) > 1 else words)
    table.add_row("time", format_duration(outcome.secs))
    return table


def _add_selection(table: Table, manifest: Mapping[str, Any]) -> None:
    counts = manifest["counts"]
    if counts["prompts"] is not None:
        table.add_row("prompts", f"{counts['prompts']:,}")
    for gate in manifest.get("on_topic", ()):
        table.add_row("dropped as off topic", f"{gate['dropped']:,}, {describe_gap(gate)}")
    table.add_row("kept", f"{counts['kept']:,} for {counts['kept_prompts']:,} prompts")
    if "splits" in manifest:
        table.add_row("splits", ", ".join(f"{name} {rows:,}" for name, rows in manifest["splits"].items()))
    mean = {key: "-" if value is None else f"{value:.4f}" for key, value in manifest["mean_reward"].items()}
    table.add_row("mean reward", f"kept {mean['kept']}, dropped {mean['dropped']}")
    controls = {name: manifest["controls"][name] for name in ("random", "longest")}
    comparisons = [f"{name} {value:.4f}" for name, value in controls.items() if value is not None]
    if comparisons:
        table.add_row("for comparison", ", ".join(comparisons))


def _add_output(table: Table, outcome: Outcome, manifest: Mapping[str, Any], *, path: str) -> None:
    table.add_row("output", path)
    if manifest["report"]:
        table.add_row("report", f"{path}/report.html")
    if outcome.pushed is not None:
        table.add_row("pushed", outcome.pushed.url if outcome.pushed.fresh else f"earlier, to {outcome.pushed.url}")


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
    for key, count in counts.get("left_out", {}).items():
        table.add_row(f"template leaves out {key}", f"{count:,} ({count / max(1, counts['scored']):.1%} of scored)")
    if counts.get("cut_prompts"):
        table.add_row("repeated prompts", f"removed from {counts['cut_prompts']:,} responses")


def _add_skipped(table: Table, skipped: Sequence[Mapping[str, str]]) -> None:
    """Add the first unreadable files; the manifest lists all of them."""
    if not skipped:
        return
    table.add_row("skipped files", f"{len(skipped):,}")
    for file in skipped[:_SKIPPED_SHOWN]:
        table.add_row(f"  {file['key']}", file["reason"])
    if len(skipped) > _SKIPPED_SHOWN:
        table.add_row("  ...", f"{len(skipped) - _SKIPPED_SHOWN:,} more")
