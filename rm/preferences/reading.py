"""Files of preferences → groups: files to rows (through `datasets`), rows to groups by a format's reader, groups merged."""

from __future__ import annotations

import glob
import logging
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from rm.conversations import UnusableError, after_prompt, are_repeated, decode_bytes, last_turn, text_of
from rm.preferences.detection import add_roles, resolve_format
from rm.preferences.edges import score_edges
from rm.preferences.formats import BESIDE, Format
from rm.preferences.groups import EQUAL_RESPONSES, Group, Rejections, collapse, merge
from rm.preferences.notes import prompt_notes, unread_columns, unread_fields
from rm.preferences.row_values import (
    PROMPTS,
    RESPONSES,
    PreferenceError,
    PreferenceRow,
    ReadSettings,
    extend_prompt,
    holds_tools,
    read_tag,
)
from rm.splits import SplitError, take_split

log = logging.getLogger(__name__)

_TEXTS = (*PROMPTS, *RESPONSES, "chosen", "rejected", "system", "response_a", "response_b", "response_1", "response_2")
_PEEK_BYTES = 1024
_MAGIC = {b"\x1f\x8b\x08": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz"}  # names of fsspec
_DETECTION_ROWS = 100  # first rows, from which the format is detected


def read_preferences(
    path: str, settings: ReadSettings, *, notes: list[str] | None = None
) -> tuple[list[Group], Rejections]:
    """Read the groups of all files that `path` (a file, a glob or a URL) names; see `read_preference_rows`.

    Warns of what is not read, or not as it stands (`reading_notes`), and adds that to `notes`. Raises `PreferenceError`.
    """
    rows = load_rows(path)
    first_rows = list(islice(rows, _DETECTION_ROWS))
    if not first_rows:
        raise PreferenceError(f"data.path {path!r} has no rows; expected at least one comparison")
    try:
        for note in reading_notes(first_rows, resolve_format(first_rows, settings), settings):
            log.warning("data.path %s: %s", path, note)
            if notes is not None:
                notes.append(f"{path}: {note}")
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
    """Read one group from every usable row, without merging, and count what was not used, by reason.

    A prompt that the responses of the first rows repeat is taken off them, and off those of all others; a transcript of the
    prompt and one more turn is that turn in any row.
    """
    groups: list[Group] = []
    rejections = Rejections()
    readings = (_read_row(row, format, settings) for row in rows)
    first = list(islice(readings, _DETECTION_ROWS))
    places = _repeating_places([reading for reading in first if isinstance(reading, Group)], settings)
    for reading in chain(first, readings):
        try:
            group, dropped = _collapse(reading, places)
        except UnusableError as error:
            rejections[error.reason] += 1
            continue
        groups.append(group)
        if dropped:
            rejections[EQUAL_RESPONSES] += dropped
    return groups, rejections


def reading_notes(rows: Sequence[PreferenceRow], format: Format, settings: ReadSettings) -> list[str]:
    """Return notes on what is not read of these first rows, or not as it stands, with remedies."""
    readings = [_read_row(row, format, settings) for row in rows]
    groups = [reading for reading in readings if isinstance(reading, Group)]
    unread = [*unread_columns(rows, format, settings), *unread_fields(rows, format)]
    return unread + prompt_notes(groups, _repeating_places(groups, settings), settings)


def _read_row(row: PreferenceRow, format: Format, settings: ReadSettings) -> Group | UnusableError:
    """Read a row as it stands; the error says why it cannot be used."""
    view = add_roles(row, settings.columns)
    try:
        group = format.read(view, settings)
        beside = {role: row.get(settings.columns[role]) for role in BESIDE if role in settings.columns}
        if "tools" not in beside and holds_tools(row.get("tools")):
            beside["tools"] = row["tools"]
        prompt = extend_prompt(group.prompt, **beside)
    except UnusableError as error:
        return error
    item = read_tag(view.get("item", view.get(format.item))) if format.item else None
    subset = read_tag(view.get("subset", view.get(format.subset)))
    origin = settings.origin or format.origin
    return replace(group, prompt=prompt, origin=origin, source=read_tag(view.get("source")), subset=subset, item=item)


def _repeating_places(groups: Sequence[Group], settings: ReadSettings) -> Collection[int] | None:
    """Return the places of the responses off which prompts are taken; None where all are kept."""
    if settings.repeated_prompt is not None:
        return range(sys.maxsize) if settings.repeated_prompt == "cut" else None
    count = max((len(group.responses) for group in groups), default=0)
    samples = [
        [(group.prompt, group.responses[place]) for group in groups if len(group.responses) > place]
        for place in range(count)
    ]
    return frozenset(place for place in range(count) if are_repeated(samples[place]))


def _cut_prompt(group: Group, places: Collection[int] | None) -> Group:
    """Return a group whose responses do not repeat the prompt. Raises `UnusableError` where nothing follows it."""
    if places is None:
        return group
    responses = []
    for place, response in enumerate(group.responses):
        rest = (after_prompt if place in places else last_turn)(group.prompt, response)
        responses.append(response if rest is None else text_of(rest, field="response"))
    return group if tuple(responses) == group.responses else replace(group, responses=tuple(responses))


def _collapse(reading: Group | UnusableError, places: Collection[int] | None) -> tuple[Group, int]:
    if isinstance(reading, UnusableError):
        raise reading
    group, dropped = collapse(_cut_prompt(reading, places))
    if reading.edges and not group.edges:
        raise UnusableError("equal_sides")
    return group, dropped


def load_rows(path: str) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of all files that `path` (a file, a directory, a glob or a URL) names. Raises `PreferenceError`.

    A local file that exists wins over the same text as a glob.
    """
    import datasets
    import zstandard

    files = _files_at(path)
    kind, options = _kind_of(path, files)
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(kind, data_files=files, split="train", **options)
        with_bytes = "binary" in str(rows.features.arrow_schema)
        yield from map(decode_bytes, rows) if with_bytes else rows
    except StopIteration:  # what `datasets` raises where all files are empty
        return
    except (datasets.exceptions.DatasetGenerationError, zstandard.ZstdError, EOFError, OSError, ValueError) as error:
        if "was specified twice" in str(error.__cause__):  # Arrow's words
            raise PreferenceError(
                f"data.path {path!r} has a row with a key twice, of which readers take one or the other; write each key once"
            ) from error
        raise PreferenceError(
            f"data.path {path!r} cannot be read as {kind} ({type(error).__name__}); check that the file is whole"
        ) from error
    finally:
        if bars:
            datasets.enable_progress_bars()


def _files_at(path: str) -> list[str]:
    """Return the patterns of the files that a path names: of a local directory, those of its only split."""
    if "://" in path:
        return [path]
    if os.path.isfile(path):
        return [glob.escape(path)]  # whatever characters its name has
    if os.path.isdir(path):
        names = [os.path.relpath(os.path.join(root, name), path) for root, _, found in os.walk(path) for name in found]
        shown = sorted(name for name in names if not any(part.startswith((".", "_")) for part in name.split(os.sep)))
        try:
            files = [glob.escape(os.path.join(path, name)) for name in take_split(shown, None)]
        except SplitError as error:
            remedy = f"give those of one, with a pattern such as {os.path.join(path, '**', 'train*')}"
            raise PreferenceError(f"data.path {path!r}: {error}; {remedy}") from error
    else:
        files = [path] if glob.glob(path, recursive=True) else []
    if not files:
        raise PreferenceError(f"data.path {path!r} matches no file; check the path and the pattern")
    return files


def _kind_of(path: str, files: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the kind of these files, as `datasets` calls it, and the options of its reader."""
    kinds = {_kind_of_name(name.lower()) for name in files}
    kind = kinds.pop()
    if kind is None and not kinds and _is_one_file(path):
        kind = _kind_inside(path)
    if kind is None or kinds:
        what = "holds files of several kinds, or is" if os.path.isdir(path) else "is"
        raise PreferenceError(
            f"data.path {path!r} {what} of no known kind; expected .parquet, .arrow, .jsonl, .json, .csv or .tsv (text also with "
            ".gz, .zst, .bz2, .xz), or one file named outright that begins as Parquet, Arrow or JSON does; name it for what it is"
        )
    if kind in (
        "csv",
        "tsv",
    ):  # an empty cell is null, and no word is; a column of texts stays one where all are numbers
        sep = "," if kind == "csv" else "\t"
        return "csv", {
            "sep": sep,
            "keep_default_na": False,
            "na_values": [""],
            "converters": dict.fromkeys(_TEXTS, str),
        }
    return kind, {}


def _is_one_file(path: str) -> bool:
    return not glob.has_magic(path.partition("?")[0]) if "://" in path else os.path.isfile(path)


def _kind_inside(path: str) -> str | None:
    """Return the kind that the first bytes of a file show, whatever its name; None where they do not tell, as of a table."""
    import fsspec

    try:
        with fsspec.open(path, "rb") as stream:
            start = stream.read(_PEEK_BYTES)
        codec = next((codec for magic, codec in _MAGIC.items() if start.startswith(magic)), None)
        if codec is not None:
            with fsspec.open(path, "rb", compression=codec) as stream:
                start = stream.read(_PEEK_BYTES)
    except Exception as error:  # each driver and each decoder has its own
        raise PreferenceError(
            f"data.path {path!r} cannot be read ({type(error).__name__}); check that it is there and whole"
        ) from error
    if codec is None and start.startswith(b"PAR1"):
        return "parquet"
    if codec is None and start.startswith((b"ARROW1\0\0", b"\xff\xff\xff\xff")):
        return "arrow"
    return "json" if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")) else None


def _kind_of_name(name: str) -> str | None:
    whole = name
    for compression in (".gz", ".zst", ".bz2", ".xz"):
        name = name.removesuffix(compression)
    for kind, suffixes in {"json": (".jsonl", ".json", ".ndjson"), "csv": (".csv",), "tsv": (".tsv",)}.items():
        if name.endswith(suffixes):
            return kind
    return "parquet" if whole.endswith(".parquet") else "arrow" if whole.endswith(".arrow") else None
