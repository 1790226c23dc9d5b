"""Files of preferences → groups: files to rows (through `datasets`), rows to groups by a format's reader, groups merged."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from rm.conversations import Conversation, UnusableError, decode_bytes, from_prompt, to_messages
from rm.preferences.detection import add_roles, resolve_format, unread_columns
from rm.preferences.edges import score_edges
from rm.preferences.formats import Format
from rm.preferences.groups import EQUAL_RESPONSES, Group, Rejections, collapse, merge
from rm.preferences.row_values import PreferenceError, PreferenceRow, ReadSettings, read_tag

log = logging.getLogger(__name__)

_DETECTION_ROWS = 100  # first rows, from which the format is detected


def read_preferences(path: str, settings: ReadSettings) -> tuple[list[Group], Rejections]:
    """Read the groups of all files that `path` (a file, a glob or a URL) names; see `read_preference_rows`.

    Warns of columns that may belong to the prompt and are not read. Raises `PreferenceError`.
    """
    rows = load_rows(path)
    first_rows = list(islice(rows, _DETECTION_ROWS))
    if not first_rows:
        raise PreferenceError(f"data.path {path!r} has no rows; expected at least one comparison")
    try:
        for note in unread_columns(first_rows, resolve_format(first_rows, settings), settings):
            log.warning("data.path %s: %s", path, note)
        return read_preference_rows(chain(first_rows, rows), settings)
    except PreferenceError as error:
        if "data.path" in str(error):  # from loading the rows
            raise
        raise PreferenceError(f"data.path {path!r}: {error}") from error


def read_preference_rows(rows: Iterable[PreferenceRow], settings: ReadSettings) -> tuple[list[Group], Rejections]:
    """Read groups (merged by prompt, origin, source, subset and item), and count what was not used, by reason.

    Rows read = rows used + rows rejected; `EQUAL_RESPONSES` counts comparisons inside rows that were used. Scores
    become edges after the merge, so that responses of one prompt meet even where each has a row of its own. Raises
    `PreferenceError` where the format cannot be detected or does not go with the settings.
    """
    rows = iter(rows)
    first_rows = list(islice(rows, _DETECTION_ROWS))
    format = resolve_format(first_rows, settings)
    groups, rejections = read_unmerged(chain(first_rows, rows), format, settings)
    merged = merge(groups)
    if format.edges_from_scores:
        options: dict[str, Any] = {name: getattr(settings, name) for name in ("min_gap", "gap_use", "gap_scale")}
        merged = [replace(group, edges=score_edges(group.scores, **options)) for group in merged]
    return merged, rejections


def read_unmerged(
    rows: Iterable[PreferenceRow], format: Format, settings: ReadSettings
) -> tuple[list[Group], Rejections]:
    """Read one group from every usable row, without merging, and count what was not used, by reason."""
    groups: list[Group] = []
    rejections = Rejections()
    for row in rows:
        try:
            group, dropped = _read_row(add_roles(row, settings.columns), format, settings)
            if (system := row.get(settings.columns.get("system", ""))) is not None:
                group = replace(group, prompt=_with_system(group.prompt, system))
        except UnusableError as error:
            rejections[error.reason] += 1
            continue
        groups.append(group)
        if dropped:
            rejections[EQUAL_RESPONSES] += dropped
    return groups, rejections


def _read_row(row: PreferenceRow, format: Format, settings: ReadSettings) -> tuple[Group, int]:
    original = format.read(row, settings)
    group, dropped = collapse(original)
    if original.edges and not group.edges:
        raise UnusableError("equal_sides")
    item = read_tag(row.get("item", row.get(format.item))) if format.item else None
    subset = read_tag(row.get("subset", row.get(format.subset)))
    origin = settings.origin or format.origin
    return replace(group, origin=origin, source=read_tag(row.get("source")), subset=subset, item=item), dropped


def _with_system(prompt: Conversation, system: object) -> Conversation:
    if isinstance(system, bytes) or not isinstance(system, str):
        raise UnusableError("bad_utf8" if isinstance(system, bytes) else "wrong_type")
    return from_prompt(to_messages(prompt), system=system)


def load_rows(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of all files that `path` (a file, a glob or a URL) names. Raises `PreferenceError`.

    A local file that exists wins over the same text as a glob.
    """
    import datasets
    import zstandard

    local = "://" not in path
    named = local and os.path.isfile(path)  # whatever characters its name has
    if local and not named and not glob.glob(path, recursive=True):
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
        rows = datasets.load_dataset(kind, data_files=glob.escape(path) if named else path, split="train")
        with_bytes = "binary" in str(rows.features.arrow_schema)
        yield from map(decode_bytes, rows) if with_bytes else rows
    except StopIteration:  # what `datasets` raises where all files are empty
        return
    except (datasets.exceptions.DatasetGenerationError, zstandard.ZstdError, EOFError, OSError, ValueError) as error:
        raise PreferenceError(
            f"data.path {path!r} cannot be read as {kind} ({type(error).__name__}); check that the file is whole"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()
