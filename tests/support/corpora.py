"""Small corpora, and the paths of larger real ones, for machines that have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.corpus.preference_rows import preference_rows
from rm.preferences import ReadSettings

SHARED = Path(__file__).parents[3] / "shared" / "data"

TIMED = ("run.json", "report.html")
"""Files of an output that tell times, and so are never the same twice."""

READING: dict[str, Any] = {
    "split": None,
    "format": "auto",
    "origin": None,
    "columns": {},
    "sides": None,
    "winner": None,
    "vote_smoothing": 0.5,
    "min_gap": 0.0,
    "gap_use": "none",
    "gap_scale": 1.0,
    "repeated_prompt": None,
}
"""Fields of `rm.preferences.ReadSettings`, as a configuration without settings gives them."""


READ_ROWS = partial(preference_rows, max_row_bytes=16 * 2**20)
"""The reader of preferences that `bestkept train` and `bestkept evaluate` have, without settings."""


def load_rows(path: Path | str, **changes: Any) -> list[Any]:
    """Read the rows of preferences at a path, with changes to `READING`."""
    return list(READ_ROWS(str(path), ReadSettings(**{**READING, **changes}), section="data"))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def corpus_rows(prompts: int = 12, responses: int = 4) -> list[dict[str, str]]:
    """One response a row; the prompts are interleaved, as they are when every generator writes its own file."""
    return [
        {"prompt": f"prompt number {p}", "response": f"answer {p * 7 + r * 13} of generator {r}", "generator": f"g{r}"}
        for r in range(responses)
        for p in range(prompts)
    ]


def kept_rows(output: Path) -> set[tuple[str, str]]:
    """(prompt, response) of an output in the shape `messages`."""
    rows = pq.read_table(output / "data").to_pylist()
    return {(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows}


def best_rows(rows: Iterable[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> set[tuple[str, str]]:
    """(prompt, response) of the rows with the greatest value of each prompt, one after the other."""
    prompts: dict[str, list[tuple[float, str]]] = {}
    for row in rows:
        prompts.setdefault(row["prompt"], []).append((value(row), row["response"]))
    return {(prompt, max(group)[1]) for prompt, group in prompts.items()}
