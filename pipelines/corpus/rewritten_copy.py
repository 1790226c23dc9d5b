"""Rewritten copies of large compressed JSONL files: their lines as small Parquet files, which can be read one by one.

A compressed file can only be read from its beginning. Of a large one, the lines that are rows are therefore written once, as they
are, into parts of bounded size; each part is a unit. An index of all parts, with a hash of the lines of each, is published last:
without it there is no copy. Parsing is left to whoever reads the lines (`jsonl`), so that rows and reasons are those of the file
itself.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipelines.errors import StorageError
from pipelines.storage import publish
from pipelines.storage.files import join, names_in, read_bytes

PART_ROWS = 8_192
PART_BYTES = (
    64 * 2**20
)  # of lines, after which a part ends; both never change for a job's size: score files are named by units

FORMAT = 1
INDEX = "index.json"
_ROWS_AT_ONCE = 64
_SCHEMA = pa.schema(
    [
        pa.field("line", pa.large_binary()),  # without its newline; null where it is longer than limits.max_row_bytes
        pa.field("bytes", pa.int64()),  # of the line, as it is in the file
    ]
)

Line = tuple[bytes | None, int]
"""A line, or None where it is too long, and its bytes."""


class Part(NamedTuple):
    """What the index says of a part."""

    rows: int
    bytes: int  # of its lines
    hash: str  # xxh3-128 of its lines, not of the file they are in: other versions of Arrow may write another one

    @classmethod
    def of(cls, table: pa.Table) -> Part:
        column, sizes = table["line"], table["bytes"].to_numpy()
        lines = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # the latter copies
        digest = xxhash.xxh3_128(sizes.astype("<i8").tobytes())
        digest.update(np.packbits(lines.is_null().to_numpy(zero_copy_only=False)).tobytes())
        _, offsets, data = lines.buffers()  # a null takes no space
        count = 0
        if len(lines):
            ends = np.frombuffer(offsets, dtype=np.int64, count=len(lines) + 1, offset=8 * lines.offset)
            digest.update(np.diff(ends).astype("<i8").tobytes())
            count = int(ends[-1] - ends[0])
            if data is not None:
                digest.update(data[int(ends[0]) : int(ends[-1])])
        return cls(table.num_rows, count, digest.hexdigest())


class Span(NamedTuple):
    """A part as a unit of its file. Numbers begin at 1: unit 0 of a compressed file is the file itself."""

    number: int
    start: int  # its first row
    end: int
    input_bytes: int  # its share of the stored file


def copy_path(directory: str, *, key: str, size: int, version: str, max_row_bytes: int) -> str:
    """The folder of a file's copy below a directory of scores; a file that has changed has another one."""
    told = json.dumps([key, size, version, max_row_bytes, PART_ROWS, PART_BYTES, FORMAT])
    return join(directory, "rewritten", hashlib.sha256(told.encode()).hexdigest()[:32])


def part_name(number: int) -> str:
    return f"{number:06d}.parquet"


def cut_into_parts(lines: Iterator[Line]) -> Iterator[pa.Table]:
    """The lines in tables of one part each, at least one."""
    held: list[bytes | None] = []
    sizes: list[int] = []
    size, made = 0, 0
    for line, line_bytes in lines:
        if len(held) == PART_ROWS or size >= PART_BYTES:
            full = [_table(held, sizes)]
            held, sizes, size, made = [], [], 0, made + 1
            yield full.pop()  # nothing of it stays here
        held.append(line)
        sizes.append(line_bytes)
        size += 0 if line is None else line_bytes
    if held or not made:
        yield _table(held, sizes)


def _table(lines: Sequence[bytes | None], sizes: Sequence[int]) -> pa.Table:
    """Arrow's own way from a list takes three times the memory."""
    offsets = np.zeros(len(lines) + 1, np.int64)
    np.cumsum([0 if line is None else len(line) for line in lines], out=offsets[1:])
    there = np.packbits(np.array([line is not None for line in lines], bool), bitorder="little")
    data = b"".join(line for line in lines if line is not None)
    buffers = [pa.py_buffer(there), pa.py_buffer(offsets), pa.py_buffer(data)]
    column = pa.Array.from_buffers(pa.large_binary(), len(lines), buffers)
    return pa.table([column, pa.array(sizes, pa.int64())], schema=_SCHEMA)


def publish_part(copy: str, number: int, table: pa.Table, wanted: Part, *, look: bool) -> None:
    """Publish a part; a valid one with the same lines stands, one that is damaged is replaced. With `look`, one is likely to be
    there, and nothing is encoded before that is known. Raises `StorageError`."""
    path = join(copy, part_name(number))
    if look and _decoded(read_bytes(path), wanted) is not None:
        return
    publish.settle(path, _encode(table), accepts=lambda data: _decoded(data, wanted), ours=table)


def _encode(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=max(1, table.num_rows),
        compression="zstd",
        use_dictionary=False,
        write_statistics=False,  # they would hold lines
        write_page_checksum=True,
        write_batch_size=_ROWS_AT_ONCE,  # rows that are in one page at least
    )
    return sink.getvalue()


def _decoded(data: bytes | None, part: Part) -> pa.Table | None:
    """The table of a part, or None where the bytes are not a whole and unharmed file of its lines."""
    if data is None:
        return None
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
        return table if table.schema.equals(_SCHEMA) and Part.of(table) == part else None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError, IndexError, OverflowError):
        return None


def publish_index(copy: str, parts: Sequence[Part], about: dict[str, Any]) -> None:
    """Publish what makes a copy whole: its parts, in order, each of them durable by then.

    Raises `StorageError`, also where a copy of other lines stands there.
    """
    path = join(copy, INDEX)
    content = {"format": FORMAT, **about, "parts": [list(part) for part in parts]}
    data = json.dumps({**content, "hash": _hash_of(content)}, sort_keys=True).encode()
    if publish.settle(path, data, accepts=_index, ours=tuple(parts)) != tuple(parts):
        raise StorageError(f"{copy} holds a copy of other lines; remove that folder and run the same command again")


def _hash_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _index(data: bytes) -> tuple[Part, ...] | None:
    try:
        content = json.loads(data)
        told = content.pop("hash")
        if told != _hash_of(content) or content["format"] != FORMAT:
            return None
        return tuple(Part(*part) for part in content["parts"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def read_index(copy: str) -> tuple[Part, ...] | None:
    """The parts of a copy as they are now; None where there is no whole one, or its index is damaged."""
    data = read_bytes(join(copy, INDEX))
    return None if data is None else _index(data)


def is_whole(copy: str) -> bool:
    """Whether a copy has its index and every part; their content is looked at when they are read."""
    parts = read_index(copy)
    return parts is not None and not missing_parts(copy, parts)


def missing_parts(copy: str, parts: Sequence[Part]) -> set[str]:
    """Names of the parts that are not there."""
    return {part_name(number) for number in range(len(parts))} - set(names_in(copy))


@lru_cache(maxsize=64)
def parts_of(copy: str) -> tuple[Part, ...]:
    """The parts of a copy that has been found or made in this run. Raises `StorageError`."""
    parts = read_index(copy)
    if parts is None:
        raise _gone(copy, INDEX)
    return parts


@lru_cache(maxsize=64)
def spans(copy: str, stored_bytes: int) -> tuple[Span, ...]:
    """The units of a file of so many bytes, in order. Raises `StorageError`."""
    parts = parts_of(copy)
    total = sum(part.bytes for part in parts)
    found, row, seen, share = [], 0, 0, 0
    for number, part in enumerate(parts, start=1):
        seen += part.bytes
        upto = stored_bytes if number == len(parts) else stored_bytes * seen // max(1, total)
        found.append(Span(number, row, row + part.rows, upto - share))
        row, share = row + part.rows, upto
    return tuple(found)


def read_lines(copy: str, number: int) -> Iterator[Line]:
    """The lines of unit `number`. Raises `StorageError` where its part is gone, or holds other lines than the index tells."""
    table = _decoded(read_bytes(join(copy, part_name(number - 1))), parts_of(copy)[number - 1])
    if table is None:
        raise _gone(copy, part_name(number - 1))
    for batch in table.to_batches(_ROWS_AT_ONCE):
        yield from zip(batch["line"].to_pylist(), batch["bytes"].to_pylist(), strict=True)


def _gone(copy: str, name: str) -> StorageError:
    return StorageError(
        f"{join(copy, name)}, part of the copy of a compressed input, is gone or damaged; remove it if it is there, and run the "
        "same command again: it is written anew"
    )
