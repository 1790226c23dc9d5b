"""Input files and their units: what one worker streams once.

A unit is a Parquet row group, a byte range of plain JSONL, one compressed JSONL file, or of a large one a part of its rewritten
copy (see `copies`). It depends on nothing but the file, so that a grown corpus keeps the units of its old files.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipelines.corpus import rewritten_copy
from pipelines.corpus.unreadable import probe, reading_input
from pipelines.storage.files import open_for_reading

RANGE_BYTES = 64 * 2**20  # of plain JSONL per unit
LARGE_BYTES = 256 * 2**20  # stored; larger compressed JSONL is rewritten before it is scored

RawRow = tuple[Mapping[str, Any] | str, int, int, int]
"""Row (or reason), its bytes, the bytes it counts in a fragment, bytes of the unit seen so far."""


class InputFile(NamedTuple):
    """One file of the frozen plan."""

    path: str  # full path or URL
    key: str  # path relative to the input's fixed root; what names and order derive from
    kind: str  # parquet | jsonl
    compression: str | None  # gz | zst
    size: int  # bytes
    version: str  # etag, generation or mtime
    copy: str | None = None  # folder of its rewritten copy, which stands for it wherever rows are read


class Unit(NamedTuple):
    """What one worker streams once."""

    number: int  # within its file
    start: int  # Parquet and rewritten copies: its first row in the file; JSONL: first byte of the range
    end: int  # one past the last
    input_bytes: int  # of the stored file; for progress


class UnitKey(NamedTuple):
    """A unit of the corpus by its numbers; packed into one integer, the key under which a shuffle gathers what belongs to it."""

    file: int  # index in the plan
    unit: int  # number within the file

    def pack(self) -> int:
        return self.file << 32 | self.unit

    @classmethod
    def unpack(cls, packed: int) -> UnitKey:
        return cls(packed >> 32, packed & 0xFFFFFFFF)

    @staticmethod
    def pack_columns(files: npt.NDArray[np.int32], units: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        """The packed keys of many units, from aligned columns of their numbers."""
        return files.astype(np.int64) << 32 | units


def kind_of(path: str) -> tuple[str, str | None] | None:
    """(kind, compression) by file name; None for a kind that cannot be read."""
    name, compression = path.lower(), None
    for suffix, label in ((".gz", "gz"), (".zst", "zst"), (".zstd", "zst")):
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), label
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl", compression
    if name.endswith((".parquet", ".pq")) and compression is None:
        return "parquet", None
    return None


def with_copy(file: InputFile, directory: str, *, max_row_bytes: int) -> InputFile:
    """The file, told where its copy belongs below a directory of scores if it is one to be rewritten. Nothing is looked up."""
    if file.kind != "jsonl" or file.compression is None or file.size <= LARGE_BYTES:
        return file
    copy = rewritten_copy.copy_path(
        directory, key=file.key, size=file.size, version=file.version, max_row_bytes=max_row_bytes
    )
    return file._replace(copy=copy)


def split_units(file: InputFile) -> list[Unit]:
    """The units of a file, in order; opens a Parquet footer, the index of a rewritten copy, and what seems to be empty. Raises
    `InputError`, or `StorageError` where the copy is not there."""
    if file.copy is not None:
        return list(_copied_units(file.copy, file.size))
    if file.kind == "parquet":
        with reading_input(file.path), open_for_reading(file.path) as stream:
            return row_groups(file, pq.ParquetFile(stream).metadata)
    if file.size == 0:
        probe(file.path)  # a link to nowhere looks like an empty file, too
    if file.compression is not None:
        return [Unit(0, 0, file.size, file.size)]
    starts = range(0, file.size, RANGE_BYTES)
    return [
        Unit(number, start, min(start + RANGE_BYTES, file.size), min(RANGE_BYTES, file.size - start))
        for number, start in enumerate(starts)
    ]


def unit_of(file: InputFile, number: int) -> Unit | None:
    """The unit of a file with this number; None where the file has no such unit now. Opens what `split_units` opens."""
    return next((unit for unit in split_units(file) if unit.number == number), None)


@lru_cache(maxsize=64)
def _copied_units(copy: str, stored_bytes: int) -> tuple[Unit, ...]:
    return tuple(Unit(*span) for span in rewritten_copy.spans(copy, stored_bytes))


def row_groups(file: InputFile, metadata: pq.FileMetaData) -> list[Unit]:
    """The units of a Parquet file with this footer; each has the share of its rows of the file's bytes."""
    units, first = [], 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        units.append(Unit(number, first, first + rows, file.size * rows // max(1, metadata.num_rows)))
        first += rows
    return units


def place_of(file_name: str, unit_start: int, row: int) -> str:
    """Where a row is, for people: counted from 1, blank lines left out."""
    unit_start, row = place_in_file(file_name, unit_start, row)
    if kind_of(file_name) == ("parquet", None):
        return f"row {unit_start + row + 1}"
    return f"line {row + 1}" if unit_start == 0 else f"line {row + 1} after byte {unit_start}"


def place_in_file(file_name: str, unit_start: int, row: int) -> tuple[int, int]:
    """(start, row) of a unit; of a compressed file's, as they are without its rewritten copy."""
    _, compression = kind_of(file_name) or (None, None)
    return (unit_start, row) if compression is None else (0, unit_start + row)


def is_seekable(file: InputFile) -> bool:
    """Whether a unit of this file can be reached without streaming what lies before it."""
    return file.compression is None or file.copy is not None
