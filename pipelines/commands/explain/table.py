"""The verdicts on a prompt's responses, as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.commands.summary import print_tables


def print_explanation(found: Mapping[str, Any], *, as_json: bool) -> None:
    """What `explain` found, on standard output: a table, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        print_tables(explanation_table(found))


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
