"""JSON lines → rows: byte ranges of plain files, compressed files as a whole, parts of rewritten copies. A bad line spoils itself
only."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

from pipelines.corpus.files import InputFile, RawRow, Unit
from pipelines.corpus.rewritten_copy import read_lines
from pipelines.corpus.unreadable import reading_input
from pipelines.storage.decompress import decompressed
from pipelines.storage.files import open_for_reading
from rm.conversations import UnusableError

_READ_BYTES = 1 << 20
_BOM = b"\xef\xbb\xbf"
_MANY_VALUES = 2000  # lists and objects in a row: below, they are not worth counting
_BYTES_PER_VALUE = 200
_MOST_HELD = 16  # times max_row_bytes
DEEPEST = 32  # lists and objects within one another; Arrow's files end at 64


def json_rows(file: InputFile, unit: Unit, *, max_row_bytes: int) -> Iterator[RawRow]:
    """(row, its bytes, those it counts in a fragment, those seen) per line; a line that is no JSON object comes as its reason."""
    for line, size, seen in row_lines(file, unit, max_row_bytes=max_row_bytes):
        if line is None:
            yield "row_too_large", size, size, seen
        else:
            held = held_bytes(line, size)
            row = parse_line(line) if held <= _MOST_HELD * max_row_bytes else "row_too_large"
            yield row, size, held, seen


def row_lines(file: InputFile, unit: Unit, *, max_row_bytes: int) -> Iterator[tuple[bytes | None, int, int]]:
    """(line, its bytes, the unit's bytes seen so far) of the lines that are rows, unparsed; None for one that is too long."""
    if file.copy is not None:
        rows = max(1, unit.end - unit.start)
        for number, (line, size) in enumerate(read_lines(file.copy, unit.number), start=1):
            yield line, size, unit.input_bytes * number // rows
        return
    with reading_input(file.path), open_for_reading(file.path) as stream:
        for line, size in _lines(stream, file, unit, max_row_bytes):
            if line is None or line.strip():
                yield line, size, stream.tell() - unit.start


def held_bytes(line: bytes, size: int) -> int:
    """What a row counts in a fragment: its bytes, or more where it is nearly nothing but lists and objects, of which each takes
    about 200 bytes of memory, and may be three in its file."""
    if size <= _MANY_VALUES:
        return size
    brackets = line.count(b"[") + line.count(b"{")
    return max(size, _BYTES_PER_VALUE * brackets) if brackets > _MANY_VALUES else size


def json_lines(file: InputFile, unit: Unit, *, max_row_bytes: int) -> Iterator[bytes | None]:
    """The lines that are rows, unparsed; None for one that is too long."""
    for line, _, _ in row_lines(file, unit, max_row_bytes=max_row_bytes):
        yield line


def parse_line(line: bytes) -> Mapping[str, Any] | str:
    """The object in a line, or the reason why there is none.

    JSON as RFC 8259 has it, and no more: a key that stands twice, `NaN` and `Infinity`, and numbers beyond a double's range or
    beyond Python's digits for an integer (4,300) mean something else to every reader. Values nested deeper than
    `DEEPEST` cannot be stored.
    """
    try:
        value = _DECODER.decode(line.removeprefix(_BOM).decode())
    except UnicodeDecodeError:
        return "bad_utf8"
    except UnusableError as error:
        return error.reason
    except json.JSONDecodeError:
        return "bad_json"
    except ValueError:  # an integer of too many digits
        return "huge_number"
    except RecursionError:
        return "deep_nesting"
    if not isinstance(value, dict):
        return "not_an_object"
    if b"\\u" in line and any(not _encodable(name) for name in value):
        return "lone_surrogate"  # no column can have that name
    brackets = line.count(b"[") + line.count(b"{")
    return value if brackets <= DEEPEST or _depth(value) <= DEEPEST else "deep_nesting"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise UnusableError("duplicate_key")
    return value


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise UnusableError("huge_number")
    return value


def _constant(_name: str) -> NoReturn:
    raise UnusableError("nan_literal")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


def _encodable(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _depth(value: Any) -> int:
    """How many lists and objects lie within one another; without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
        level = [child for child in inner if isinstance(child, dict | list)]
    return depth


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
