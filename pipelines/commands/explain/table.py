"""The printed form of `bestkept select --explain`: a table, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.printing import print_tables
from pipelines.commands.progress_bar import showing_progress
from pipelines.config import RunConfig


def explain_and_print(config: RunConfig, prompt: str, flags: Sequence[str], *, as_json: bool) -> None:
    """Explain the selection for one prompt with progress shown, and print the explanation. Raises as `explain` does."""
    with showing_progress():
        explanation = explain(config, prompt, flags)
    if as_json:
        sys.stdout.write(json.dumps(explanation) + "\n")
    else:
        print_tables(explanation_table(explanation))


def explanation_table(explanation: Mapping[str, Any]) -> Table:
    """Return one row for each response in the order of the input, with one column for each step."""
    rows = explanation["rows"]
    kept = sum(row["kept"] for row in rows)
    title = f"prompt {explanation['prompt_id']}: {kept:,} of {len(rows):,} responses kept"
    table = Table(title=title, title_justify="left")
    rules = [next(iter(step)) for step in explanation["steps"]]
    for name in ("file", "place", "response", "reward", "tokens", *rules, "kept"):
        table.add_column(name, overflow="fold")
    for row in rows:
        reward = row["rejected"] if row["reward"] is None else f"{row['reward']:.6g}"
        tokens = "-" if row["tokens"] is None else f"{row['tokens']:,}"
        cells = [row["file"], row["place"], str(row["response_index"]), reward, tokens]
        cells += [_verdict(step) for step in row["steps"]]
        table.add_row(*cells, "yes" if row["kept"] else "no")
    return table


def _verdict(step: Mapping[str, Any]) -> str:
    """Return a verdict with its numbers, such as `dropped: rank 2, of 4, keep 1`."""
    numbers = [f"{name} {_short(value)}" for name, value in step.items() if name not in ("rule", "verdict")]
    return f"{step['verdict']}: {', '.join(numbers)}" if numbers else str(step["verdict"])


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
