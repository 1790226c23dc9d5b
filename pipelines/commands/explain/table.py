"""The printed form of `bestkept select --explain`: a table, followed by the texts with `--text`, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.explain.verdicts import DROPPED_BEFORE
from pipelines.commands.inspect.tables import visible
from pipelines.commands.printing import PlainConsole, print_tables
from pipelines.commands.progress_bar import showing_progress
from pipelines.config import RunConfig
from pipelines.errors import escape_controls
from rm.conversations import describe_message


def explain_and_print(config: RunConfig, prompt: str, flags: Sequence[str], *, as_json: bool, with_text: bool) -> None:
    """Explain the selection for one prompt while showing progress, and print the explanation. Raises the errors of `explain`."""
    with showing_progress():
        explanation = explain(config, prompt, flags, with_text=with_text)
    if as_json:
        sys.stdout.write(json.dumps(explanation) + "\n")
        return
    print_tables(explanation_table(explanation))
    if with_text:
        for text in texts_of(explanation):
            PlainConsole().print(text, soft_wrap=True)


def explanation_table(explanation: Mapping[str, Any]) -> Table:
    """Return one row for each response in the order of the input, with a line for each step that it reached.

    The title has the number of kept responses and, if it is zero, the steps that dropped them.
    """
    rows = explanation["rows"]
    several, counted = (any(row[name] for row in rows) for name in ("response_index", "tokens"))
    table = Table(title=_summary(explanation), title_justify="left")
    for name in ("place", *["response"] * several, "reward", *["tokens"] * counted, "steps", "kept"):
        table.add_column(name, overflow="fold")
    for row in rows:
        cells = [f"{row['file']} {row['place']}"]
        cells += [str(row["response_index"])] * several
        cells += ["-" if row["reward"] is None else f"{row['reward']:.6g}"]
        cells += ["-" if row["tokens"] is None else f"{row['tokens']:,}"] * counted
        reached = [_verdict(step) for step in row["steps"] if step["verdict"] != DROPPED_BEFORE]
        steps = reached if row["rejected"] is None else [f"rejected: {row['rejected']}"]
        table.add_row(*cells, Text("\n".join(map(escape_controls, steps))), "yes" if row["kept"] else "no")
    return table


def _summary(explanation: Mapping[str, Any]) -> str:
    rows, prompt = explanation["rows"], explanation["prompt_id"]
    name = "a row without a usable prompt" if prompt is None else f"prompt {prompt}"
    kept = sum(row["kept"] for row in rows)
    if kept:
        return f"{name}: {kept:,} of {len(rows):,} responses kept"
    ends = Counter(_end(row) for row in rows)
    return f"{name}: none of {len(rows):,} responses kept: " + ", ".join(f"{n:,} {end}" for end, n in ends.items())


def _end(row: Mapping[str, Any]) -> str:
    """Return, in words, why a response is not kept."""
    if row["rejected"] is not None:
        return f"rejected ({row['rejected']})"
    number, step = next(
        (number, step) for number, step in enumerate(row["steps"], start=1) if step["verdict"] != "kept"
    )
    return f"{step['verdict']} by step {number} ({step['rule']})"


def _verdict(step: Mapping[str, Any]) -> str:
    """Return a verdict with its numbers, such as `best_of_n dropped: rank 2, of 4, keep 1`."""
    numbers = [f"{name} {_short(value)}" for name, value in step.items() if name not in ("rule", "verdict")]
    words = f"{step['rule']} {step['verdict']}"
    return f"{words}: {', '.join(numbers)}" if numbers else words


def _short(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def texts_of(explanation: Mapping[str, Any]) -> Iterator[Text]:
    """Yield the full messages of the prompt, and each full response under its place, in a form that is safe on a terminal."""
    for message in explanation.get("prompt") or ():
        yield Text.assemble((f"\n{message['role']}: ", "bold cyan"), visible(describe_message(message)))
    for row in explanation["rows"]:
        fate = "kept" if row["kept"] else _end(row)
        head = f"── {row['file']} {row['place']}, response {row['response_index']}: {fate}"
        yield Text(f"\n{escape_controls(head)}", style="bold")
        yield visible(row["text"] or "(unreadable)")
