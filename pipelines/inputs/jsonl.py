"""JSON lines → rows: byte ranges of plain files, and compressed files as a whole. A bad line spoils itself only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from pipelines.inputs.files import InputFile, RawRow, Unit
from pipelines.storage.decompress import decompressed
from pipelines.storage.files import open_for_reading, reading

_READ_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"


def json_rows(file: InputFile, unit: Unit, *, max_row_bytes: int) -> Iterator[RawRow]:
    """(row, its bytes) per line; a line that is no JSON object comes as its reason."""
    with reading(file.path), open_for_reading(file.path) as stream:
        for line, size in _lines(stream, file, unit, max_row_bytes):
            if line is None:
                yield "row_too_large", size, stream.tell() - unit.start
            elif line.strip():
                yield parse_line(line), size, stream.tell() - unit.start


def json_lines(file: InputFile, unit: Unit, *, max_row_bytes: int) -> Iterator[bytes | None]:
    """The lines that are rows, unparsed; None for one that is too long."""
    with reading(file.path), open_for_reading(file.path) as stream:
        for line, _ in _lines(stream, file, unit, max_row_bytes):
            if line is None or line.strip():
                yield line


def parse_line(line: bytes) -> Mapping[str, Any] | str:
    """The object in a line, or the reason why there is none."""
    try:
        value = json.loads(line.removeprefix(_BOM).decode())
    except UnicodeDecodeError:
        return "bad_utf8"
    except ValueError:
        return "bad_json"
    except RecursionError:
        return "deep_nesting"
    return value if isinstance(value, dict) else "not_an_object"


def _lines(stream: BinaryIO, file: InputFile, unit: Unit, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """(line or None where it is longer than `limit`, its bytes), for lines whose first byte lies in the unit."""
    if file.compression is not None:
        chunks = decompressed(stream, file.compression)
        position, end = 0, None
    else:
        position, end = unit.start, unit.end
        if position > 0:  # a line that starts exactly here follows a newline at position - 1
            position -= 1
        stream.seek(position)
        chunks = iter(lambda: stream.read(_READ_BYTES), b"")
    skipping = position != unit.start
    parts: list[bytes] = []
    size = 0
    line_start = position
    for chunk in chunks:
        begin = 0
        while (newline := chunk.find(b"\n", begin)) >= 0:
            if not skipping:
                size += newline - begin
                parts.append(chunk[begin:newline])
                yield (b"".join(parts) if size <= limit else None), size
            skipping, parts, size = False, [], 0
            begin = newline + 1
            line_start = position + begin
            if end is not None and line_start >= end:
                return
        rest = len(chunk) - begin
        if not skipping:
            size += rest
            if size <= limit:
                parts.append(chunk[begin:])
            else:
                parts = []
        position += len(chunk)
    if size and not skipping:
        yield (b"".join(parts) if size <= limit else None), size
