"""Input files and their units; one worker streams a unit.

A unit is a Parquet row group, a byte range of plain JSONL, a whole file that can only be read from its beginning (compressed
JSONL, a JSON array, CSV, TSV), or a part of the rewritten copy of such a file, if it is large (see `rewritten_copy`). Units
depend only on the file: the units of old files are unchanged when a corpus grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipelines.corpus import rewritten_copy
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.records import LAYOUTS, UTF8_BOM
from pipelines.corpus.unreadable import UnreadableError, reading_input
from pipelines.errors import InputError, StorageError
from pipelines.storage.decompress import MAGIC, decompress
from pipelines.storage.files import StoredObject, open_for_reading, open_with_status, status_of
from pipelines.storage.stores.remote_object import ObjectChanged

_CODECS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
_PEEK_BYTES = 1024
_PARQUET, _ARROW = b"PAR1", (b"ARROW1\0\0", b"\xff\xff\xff\xff")  # first bytes; for Arrow, of a file and of a stream
RANGE_BYTES = 64 * 2**20  # of plain JSONL per unit
_SAME_SECS = 1e-6
LARGE_BYTES = 256 * 2**20  # stored bytes; a larger file that cannot be split is rewritten before it is scored
_ROWS = 1 << 60  # added to the first row of a unit of an array or a table, whose rows are not lines


class RawRow(NamedTuple):
    """A row as it is read from a file, before it is parsed."""

    values: RowValues | str  # column → value; a reason if the row could not be read
    row_bytes: int = 0
    held_bytes: int = 0  # the bytes that it counts in a fragment
    seen_bytes: int = 0  # of the unit's `input_bytes`, up to and including this row; approximate, for progress


class InputFile(NamedTuple):
    """One file of the frozen plan."""

    path: str  # full path or URL
    key: str  # path relative to the input's fixed root; determines names and order
    kind: str  # parquet | jsonl
    compression: (
        str | None
    )  # gz | zst | bz2 | xz; a layout other than lines of JSON comes before it: array | csv | tsv | arrow, as in `csv.gz`
    size: int  # bytes
    version: str  # etag, generation or mtime
    copy: str | None = None  # folder of its rewritten copy, which is read instead

    @property
    def layout(self) -> str | None:
        """`array`, `csv`, `tsv` or `arrow`; None for lines of JSON, and for Parquet."""
        first = (self.compression or "").partition(".")[0]
        return first if first in LAYOUTS else None

    @property
    def codec(self) -> str | None:
        """The compression without the layout."""
        last = (self.compression or "").rpartition(".")[2]
        return None if last in ("", *LAYOUTS) else last


class Unit(NamedTuple):
    """A part of a file that one worker streams."""

    number: int  # within its file
    start: int  # Parquet and rewritten copies: its first row in the file; JSONL: first byte of the range
    end: int  # one past the last
    input_bytes: int  # of the stored file; for progress


class UnitKey(NamedTuple):
    """The numbers that identify a unit of the corpus; packed into one integer, they are the unit's key in a shuffle."""

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
    """The (kind, compression) that a file name shows; None for a kind that cannot be read. The parameters of a web address,
    as in `a.jsonl?download=true`, are not part of the name."""
    name, mark, _ = path.lower().rpartition("?")
    return _kind_of(path.lower()) or (_kind_of(name) if mark else None)


def _kind_of(name: str) -> tuple[str, str | None] | None:
    codec = None
    for suffix, label in _CODECS.items():
        if name.endswith(suffix):
            name, codec = name.removesuffix(suffix), label
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return "jsonl", codec
    if name.endswith((".csv", ".tsv")):
        return "jsonl", name[-3:] if codec is None else f"{name[-3:]}.{codec}"
    if name.endswith((".arrow", ".feather")) and codec is None:
        return "jsonl", "arrow"
    if name.endswith((".parquet", ".pq")) and codec is None:
        return "parquet", None
    return None


def kind_inside(path: str) -> tuple[str, str | None] | None:
    """The (kind, compression) that the first bytes of a file show, whatever its name; None if they do not, as in a table.
    Compressed lines of JSON are reported as plain ones: `with_codec` and the reader detect compression. Raises
    `UnreadableError`."""
    with reading_input(path), open_for_reading(path) as stream:
        start = stream.read(_PEEK_BYTES)
        if start.startswith(_PARQUET):
            return "parquet", None
        if start.startswith(_ARROW):
            return "jsonl", "arrow"
        codec = codec_inside(start)
        if codec is not None:
            stream.seek(0)
            start = next(decompress(stream, codec), b"")
    first = start.removeprefix(UTF8_BOM).lstrip()[:1]
    if first == b"[":
        return "jsonl", "array" if codec is None else f"array.{codec}"
    return ("jsonl", None) if first == b"{" else None


def with_layout(file: InputFile) -> InputFile:
    """The file with the layout that its first bytes show, if its name allows both lines and an array."""
    if file.kind != "jsonl" or not file.size or not re.search(r"\.json(\.[a-z0-9]+)?(\?[^?]*)?$", file.path.lower()):
        return file
    try:
        with open_input(file) as stream:
            chunks = iter([stream.read(_PEEK_BYTES)]) if file.codec is None else decompress(stream, file.codec)
            start = next(chunks, b"").removeprefix(UTF8_BOM).lstrip()
    except InputError:
        return file  # the error is raised when its rows are read
    if not start.startswith(b"["):
        return file
    return file._replace(compression="array" if file.codec is None else f"array.{file.codec}")


def with_codec(file: InputFile) -> InputFile:
    """The file with the compression that its first bytes show, if its name shows none."""
    if file.kind != "jsonl" or file.compression is not None or not file.size:
        return file
    with open_input(file) as stream:
        return file._replace(compression=codec_inside(stream.read(_PEEK_BYTES)))


def codec_inside(start: bytes) -> str | None:
    """The compression of a file that begins with these bytes, whatever its name."""
    codec = next((codec for magic, codec in MAGIC.items() if start.startswith(magic)), None)
    return None if codec == "bz2" and start[4:10] != b"1AY&SY" else codec  # a line may begin with BZh


def with_copy(file: InputFile, directory: str, *, max_row_bytes: int) -> InputFile:
    """The file with the path of its rewritten copy below a scores directory, if it is to be rewritten. Accesses no storage."""
    if file.kind != "jsonl" or file.compression is None or file.size <= LARGE_BYTES:
        return file
    copy = rewritten_copy.copy_path(
        directory, key=file.key, size=file.size, version=file.version, max_row_bytes=max_row_bytes
    )
    return file._replace(copy=copy)


@contextmanager
def open_input(file: InputFile, *, as_planned: bool = False) -> Iterator[BinaryIO]:
    """An open input file. Raises `UnreadableError`.

    With `as_planned`, the file must have the size and version in the plan. They are compared when it is opened, when the body
    ends, and when the body fails, since a file that was replaced fails in many ways. On a store whose objects do not change
    while they are open, this takes no request.
    """
    with reading_input(file.path):
        if not as_planned:
            with open_for_reading(file.path) as stream:
                yield stream
            return
        opened = open_with_status(file.path)
        with opened.stream as stream:
            _compare(file, opened.status)
            try:
                yield stream
            except ObjectChanged:
                raise _changed(file) from None
            except StorageError:
                raise
            except Exception:
                refuse_changed(file)
                raise
        if not opened.stays:
            refuse_changed(file)


def refuse_changed(file: InputFile) -> None:
    """Raise `UnreadableError` if the file no longer has the size and version that were listed."""
    with reading_input(file.path):
        _compare(file, status_of(file.path))


def _compare(file: InputFile, status: StoredObject) -> None:
    if status.bytes not in (file.size, None) or not _may_be_same(file.version, status.version):
        raise _changed(file)


def _may_be_same(listed: str, seen: str) -> bool:
    """Return whether two versions may be of one file: outside a listing, drivers give no version, another kind of version, or
    times in another format."""
    if listed == seen or not listed or not seen:
        return True
    instants = [_instant(listed), _instant(seen)]
    if None in instants:
        return instants != [None, None]
    return abs(cast("float", instants[0]) - cast("float", instants[1])) < _SAME_SECS


def _instant(version: str) -> float | None:
    """The version as a time in seconds; None for a checksum."""
    try:
        return float(version)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(version).timestamp()
    except ValueError:
        return None


def _changed(file: InputFile) -> UnreadableError:
    return UnreadableError(
        f"input file {file.path} has changed since the run was planned: it is not the one that had {file.size} bytes and version "
        f"{file.version!r}; run the same command again, which reads the new file",
        "changed",
    )


def split_units(file: InputFile, *, as_planned: bool = False) -> list[Unit]:
    """Split a file into its units, in order. This reads a Parquet footer, the index of a rewritten copy, and the first bytes of
    a file that seems to be empty or may be compressed although its name shows no compression. See `open_input` for
    `as_planned`. Raises `InputError`, and `StorageError` if the copy is missing."""
    first = 0 if file.layout is None else _ROWS
    if file.copy is not None:
        units = _copy_units(file.copy, file.size)
        return [unit._replace(start=first + unit.start, end=first + unit.end) for unit in units]
    if file.kind == "parquet":
        with open_input(file, as_planned=as_planned) as stream:
            return row_groups(file, pq.ParquetFile(stream).metadata)
    if file.size == 0:
        with open_input(file, as_planned=as_planned) as stream:
            stream.read(1)  # a broken link looks like an empty file
    whole = file.compression is not None
    if not whole and file.size > RANGE_BYTES:
        with open_input(file, as_planned=as_planned) as stream:
            whole = codec_inside(stream.read(_PEEK_BYTES)) is not None
    if whole:
        return [Unit(0, first, first + file.size, file.size)]
    starts = range(0, file.size, RANGE_BYTES)
    return [
        Unit(number, start, min(start + RANGE_BYTES, file.size), min(RANGE_BYTES, file.size - start))
        for number, start in enumerate(starts)
    ]


def unit_of(file: InputFile, number: int) -> Unit | None:
    """The unit of a file with this number; None if the file has no such unit now. Reads what `split_units` reads."""
    return next((unit for unit in split_units(file) if unit.number == number), None)


@lru_cache(maxsize=64)
def _copy_units(copy: str, stored_bytes: int) -> tuple[Unit, ...]:
    return tuple(Unit(*span) for span in rewritten_copy.spans(copy, stored_bytes))


def row_groups(file: InputFile, metadata: pq.FileMetaData) -> list[Unit]:
    """The units of a Parquet file with this footer; `input_bytes` are in proportion to rows."""
    units: list[Unit] = []
    first = 0
    for number in range(metadata.num_row_groups):
        rows = metadata.row_group(number).num_rows
        units.append(Unit(number, first, first + rows, file.size * rows // max(1, metadata.num_rows)))
        first += rows
    return units


def place_of(file_name: str, unit_start: int, row: int) -> str:
    """The place of a row in words, such as `row 17`, counted from 1; blank lines are not counted."""
    unit_start, row = place_in_file(file_name, unit_start, row)
    if unit_start >= _ROWS:
        return f"row {row + 1}"
    kind = kind_of(file_name)
    if kind == ("parquet", None):
        return f"row {unit_start + row + 1}"
    if kind is None:  # detected from its content, which is not read again
        return f"row {row + 1}" if unit_start == 0 else f"row {row + 1} of the unit at {unit_start}"
    return f"line {row + 1}" if unit_start == 0 else f"line {row + 1} after byte {unit_start}"


def place_in_file(file_name: str, unit_start: int, row: int) -> tuple[int, int]:
    """Return (unit start, row in the unit), the same whether or not a compressed file was read from its rewritten copy."""
    if unit_start >= _ROWS:
        return _ROWS, unit_start - _ROWS + row
    _, compression = kind_of(file_name) or (None, None)
    return (unit_start, row) if compression is None else (0, unit_start + row)


def is_seekable(file: InputFile) -> bool:
    """Return whether a unit of this file can be read without streaming the units before it."""
    return file.compression is None or file.copy is not None
