"""Files of preferences → rows, through `datasets` (Parquet, JSON lines plain or compressed, local or fsspec URLs)."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from typing import Any


class PreferenceError(Exception):
    """Preferences that cannot be read; the message names the value, what was expected, and the remedy."""


def load_rows(path: str) -> Iterator[Mapping[str, Any]]:
    """Rows of all files that `path` (a file, a glob or a URL) names. Raises `PreferenceError`."""
    import datasets
    import zstandard

    local = "://" not in path
    if local and not glob.glob(path, recursive=True):
        raise PreferenceError(f"data.path {path!r} matches no file; check the path and the pattern")
    suffix = path.lower()
    for compression in (".gz", ".zst"):
        suffix = suffix.removesuffix(compression)
    if suffix.endswith(".parquet"):
        kind = "parquet"
    elif suffix.endswith((".jsonl", ".json", ".ndjson")):
        kind = "json"
    else:
        raise PreferenceError(f"data.path {path!r} is of no known kind; expected .parquet or .jsonl (also .gz, .zst)")
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(kind, data_files=path, split="train")
    except (datasets.exceptions.DatasetGenerationError, zstandard.ZstdError, EOFError, OSError, ValueError) as error:
        raise PreferenceError(
            f"data.path {path!r} cannot be read as {kind} ({type(error).__name__}); check that the file is whole"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
