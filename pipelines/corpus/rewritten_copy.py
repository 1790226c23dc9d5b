"""Rewritten copies of large compressed JSONL files: their lines in small Parquet files, called parts, each read independently.

A compressed file can only be read from its beginning. Therefore the non-blank lines of a large one are written once, unchanged,
into parts of bounded size; each part is a unit. An index of all parts, with a hash of each part's lines, is published last:
without the index there is no copy. Lines are parsed when they are read (`jsonl`), so rows and reasons are those of the file.

    <scores>/rewritten/<hash of file and settings>/000000.parquet, 000001.parquet, ..., index.json
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.errors import StorageError
from pipelines.storage import publish
from pipelines.storage.files import join, names_in, read_bytes
from rm.conversations import load_json

# Limits of a part. Neither may depend on the size of a job, since score files are named by units.
PART_ROWS = 8_192
PART_BYTES = 64 * 2**20

FORMAT = 1
INDEX = "index.json"
_ROWS_AT_ONCE = 64
_SCHEMA = pa.schema(
    [
        pa.field("line", pa.large_binary()),  # without its newline; null if it is longer than limits.max_row_bytes
        pa.field("bytes", pa.int64()),  # of the line in the file
    ]
)

Line = tuple[bytes | None, int]
"""(a line, or None if it is too long; its size in bytes)"""


class Part(NamedTuple):
    """The entry of a part in the index."""

    rows: int
    bytes: int  # of its lines
    hash: str  # xxh3-128 of its lines, not of the Parquet file, whose bytes depend on the version of Arrow

    @classmethod
    def of(cls, table: pa.Table) -> Part:
        column, sizes = table["line"], table["bytes"].to_numpy()
        lines = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # the latter copies
        digest = xxhash.xxh3_128(sizes.astype("<i8").tobytes())
        digest.update(np.packbits(lines.is_null().to_numpy(zero_copy_only=False)).tobytes())
        _, offsets, data = lines.buffers()  # nulls take no space in `data`
        line_bytes = 0
        if len(lines):
            ends = np.frombuffer(offsets, dtype=np.int64, count=len(lines) + 1, offset=8 * lines.offset)
            digest.update(np.diff(ends).astype("<i8").tobytes())
            line_bytes = int(ends[-1] - ends[0])
            if data is not None:
                digest.update(data[int(ends[0]) : int(ends[-1])])
        return cls(table.num_rows, line_bytes, digest.hexdigest())


class Span(NamedTuple):
    """A part as a unit of its file. Numbers begin at 1, since unit 0 of a compressed file is the whole file."""

    number: int
    start: int  # its first row
    end: int
    input_bytes: int  # its share of the stored file


def copy_path(directory: str, *, key: str, size: int, version: str, max_row_bytes: int) -> str:
    """The folder of a file's copy below a directory of scores; a changed file gets a new folder."""
    identity = json.dumps([key, size, version, max_row_bytes, PART_ROWS, PART_BYTES, FORMAT])
    return join(directory, "rewritten", hashlib.sha256(identity.encode()).hexdigest()[:32])


def part_name(number: int) -> str:
    return f"{number:06d}.parquet"


def cut_into_parts(lines: Iterator[Line]) -> Iterator[pa.Table]:
    """Cut lines into tables of one part each; at least one table."""
    held: list[bytes | None] = []
    sizes: list[int] = []
    size, made = 0, 0
    for line, line_bytes in lines:
        if len(held) == PART_ROWS or size >= PART_BYTES:
            table = _table(held, sizes)
            held, sizes, size, made = [], [], 0, made + 1  # the lines are freed before the table is used,
            yield table
            del table  # and the table before the next lines are read
        held.append(line)
        sizes.append(line_bytes)
        size += 0 if line is None else line_bytes
    if held or not made:
        yield _table(held, sizes)


def _table(lines: Sequence[bytes | None], sizes: Sequence[int]) -> pa.Table:
    """A table of lines, built from buffers, since `pa.array` of a list takes three times the memory."""
    offsets = np.zeros(len(lines) + 1, np.int64)
    np.cumsum([0 if line is None else len(line) for line in lines], out=offsets[1:])
    validity = np.packbits(np.array([line is not None for line in lines], bool), bitorder="little")
    data = b"".join(line for line in lines if line is not None)
    buffers = [pa.py_buffer(validity), pa.py_buffer(offsets), pa.py_buffer(data)]
    column = pa.Array.from_buffers(pa.large_binary(), len(lines), buffers)
    return pa.table([column, pa.array(sizes, pa.int64())], schema=_SCHEMA)


def publish_part(copy: str, number: int, table: pa.Table, part: Part, *, look: bool) -> None:
    """Publish a part, unless a valid one with the same lines exists; replace a damaged one. With `look`, this checks for an
    existing part before it encodes the table. Raises `StorageError`."""
    path = join(copy, part_name(number))
    if look and _decode(read_bytes(path), part) is not None:
        return
    publish.settle(path, _encode(table), accepts=lambda data: _decode(data, part), ours=table)


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, table.num_rows),
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,  # they would contain lines
        write_page_checksum=True,
        write_batch_size=_ROWS_AT_ONCE,  # minimum rows of a page
    )
    return sink.getvalue()


def _decode(data: bytes | None, part: Part) -> pa.Table | None:
    """The table of a part; None if the bytes are not a complete, undamaged file of its lines."""
    if data is None:
        return None
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
        return table if table.schema.equals(_SCHEMA) and Part.of(table) == part else None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None


def publish_index(copy: str, parts: Sequence[Part], about: Mapping[str, object]) -> None:
    """Publish the index, which completes a copy, once all `parts` are durable; `about` describes the file for people.

    Raises `StorageError`, also if the folder contains a copy of other lines.
    """
    path = join(copy, INDEX)
    content = {"format": FORMAT, **about, "parts": [list(part) for part in parts]}
    data = json.dumps({**content, "hash": _hash_of(content)}, sort_keys=True).encode()
    if publish.settle(path, data, accepts=_parse_index, ours=tuple(parts)) != tuple(parts):
        raise StorageError(f"{copy} holds a copy of other lines; remove that folder and run the same command again")


def _hash_of(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _parse_index(data: bytes) -> tuple[Part, ...] | None:
    try:
        content = load_json(data)
        stored_hash = content.pop("hash")
        if stored_hash != _hash_of(content) or content["format"] != FORMAT:
            return None
        return tuple(Part(*part) for part in content["parts"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_index(copy: str) -> tuple[Part, ...] | None:
    """Read the parts of a copy from its index; None if the index is missing or damaged."""
    data = read_bytes(join(copy, INDEX))
    return None if data is None else _parse_index(data)


def is_whole(copy: str) -> bool:
    """Return whether a copy has its index and every part. The content of parts is checked when they are read."""
    parts = read_index(copy)
    return parts is not None and not missing_parts(copy, parts)


def missing_parts(copy: str, parts: Sequence[Part]) -> set[str]:
    """The names of the parts of an index that are missing."""
    return {part_name(number) for number in range(len(parts))} - set(names_in(copy))


@lru_cache(maxsize=64)
def parts_of(copy: str) -> tuple[Part, ...]:
    """The parts of a copy that this run has found or written. Raises `StorageError` if the index is missing."""
    parts = read_index(copy)
    if parts is None:
        raise _missing(copy, INDEX)
    return parts


@lru_cache(maxsize=64)
def spans(copy: str, stored_bytes: int) -> tuple[Span, ...]:
    """The units of a copy in order. They share the `stored_bytes` of the file in proportion to the bytes of their lines. Raises
    `StorageError`."""
    parts = parts_of(copy)
    total = sum(part.bytes for part in parts)
    units: list[Span] = []
    first_row = seen = stored_before = 0
    for number, part in enumerate(parts, start=1):
        seen += part.bytes
        stored_after = stored_bytes if number == len(parts) else stored_bytes * seen // max(1, total)
        units.append(Span(number, first_row, first_row + part.rows, stored_after - stored_before))
        first_row, stored_before = first_row + part.rows, stored_after
    return tuple(units)


def read_lines(copy: str, number: int) -> Iterator[Line]:
    """Read the lines of unit `number`. Raises `StorageError` if its part is missing, or its lines differ from the index."""
    table = _decode(read_bytes(join(copy, part_name(number - 1))), parts_of(copy)[number - 1])
    if table is None:
        raise _missing(copy, part_name(number - 1))
    for batch in table.to_batches(_ROWS_AT_ONCE):
        yield from zip(batch["line"].to_pylist(), batch["bytes"].to_pylist(), strict=True)


def _missing(copy: str, name: str) -> StorageError:
    return StorageError(
        f"{join(copy, name)}, part of the copy of a compressed input, is missing or damaged; remove it if it exists, and run the "
        "same command again to rewrite it"
    )
