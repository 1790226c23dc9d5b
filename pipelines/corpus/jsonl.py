"""JSON lines → rows, from byte ranges of plain files, whole compressed files and parts of rewritten copies. A bad line does not
affect its neighbours."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from pipelines.corpus.arrow_lines import arrow_lines
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.files import InputFile, RawRow, Unit, codec_inside, open_input
from pipelines.corpus.records import UTF8_BOM, reason_of, to_lines
from pipelines.corpus.rewritten_copy import read_lines
from pipelines.storage.decompress import decompress
from rm.conversations import UnusableError, depth_of

_READ_BYTES = 1 << 20
_PEEK_BYTES = 1024
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_MANY_VALUES = 2000  # lists and objects in a row; fewer are not counted
_BYTES_PER_VALUE = 200
_MOST_HELD = 16  # times max_row_bytes
_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)  # strings and brackets
DEEPEST = 32  # levels of nested lists and objects; Arrow's files allow 64


def json_rows(file: InputFile, unit: Unit, *, max_row_bytes: int, as_planned: bool = False) -> Iterator[RawRow]:
    """Read the rows of a unit; a line that is not a JSON object has a reason in place of values."""
    for line, size, seen in row_lines(file, unit, max_row_bytes=max_row_bytes, as_planned=as_planned):
        if line is None:
            yield RawRow("row_too_large", size, size, seen)
        else:
            held = held_bytes(line, size)
            values = parse_line(line) if held <= _MOST_HELD * max_row_bytes else "row_too_large"
            yield RawRow(values, size, held, seen)


def row_lines(
    file: InputFile, unit: Unit, *, max_row_bytes: int, as_planned: bool = False
) -> Iterator[tuple[bytes | None, int, int]]:
    """Read (line, its size, the unit's bytes read so far) for each line that is not blank; None for a line that is too long."""
    if file.copy is not None:
        rows = max(1, unit.end - unit.start)
        for number, (line, size) in enumerate(read_lines(file.copy, unit.number), start=1):
            yield line, size, unit.input_bytes * number // rows
        return
    with open_input(file, as_planned=as_planned) as stream:
        for line, size in _lines(stream, file, unit, max_row_bytes):
            if line is None or line.strip():
                yield line, size, stream.tell() - (unit.start if file.compression is None else 0)


def held_bytes(line: bytes, size: int) -> int:
    """The bytes that a row counts in a fragment: its own size, or more if it consists of many small lists and objects, each of
    which may be three bytes in the file and takes about 200 bytes of memory."""
    if size <= _MANY_VALUES:
        return size
    brackets = line.count(b"[") + line.count(b"{")
    return max(size, _BYTES_PER_VALUE * brackets) if brackets > _MANY_VALUES else size


def json_lines(file: InputFile, unit: Unit, *, max_row_bytes: int) -> Iterator[bytes | None]:
    """Read the lines that are not blank, unparsed; None for a line that is too long."""
    for line, _, _ in row_lines(file, unit, max_row_bytes=max_row_bytes):
        yield line


def parse_line(line: bytes) -> RowValues | str:
    """Parse the object in a line, or return the reason why it is rejected.

    Only interoperable JSON (RFC 8259) is accepted. Duplicate keys, `NaN` and `Infinity`, numbers beyond a double's range and
    integers beyond Python's limit of 4,300 digits are rejected, since parsers disagree on them. Values nested deeper than
    `DEEPEST` are rejected, since they cannot be stored.
    """
    if (reason := reason_of(line)) is not None:
        return reason
    try:
        value = _DECODER.decode(line.removeprefix(UTF8_BOM).decode())
    except (ValueError, RecursionError) as error:
        return _reason_of(error, line)
    if line.count(b"[") + line.count(b"{") > DEEPEST and depth_of(value) > DEEPEST:
        return "deep_nesting"
    if not isinstance(value, dict):
        return "not_an_object"
    if b"\\u" in line and any(not _encodable(name) for name in value):
        return "lone_surrogate"  # no column can have that name
    return value


def _reason_of(error: ValueError | RecursionError, line: bytes) -> str:
    """The reason for a parser's error. Depth is checked first, since the parser's own limit depends on the interpreter."""
    if isinstance(error, UnicodeDecodeError):
        return "bad_utf8"
    if isinstance(error, RecursionError) or _opened(line) > DEEPEST:
        return "deep_nesting"
    if isinstance(error, UnusableError):
        return error.reason
    return "bad_json" if isinstance(error, json.JSONDecodeError) else "huge_number"  # an integer with too many digits


def _opened(line: bytes) -> int:
    """The maximum nesting of brackets outside strings, in a line that need not be JSON."""
    depth = deepest = 0
    for mark in _MARKS.finditer(line):
        depth += (mark[0] in b"[{") - (mark[0] in b"]}")
        deepest = max(deepest, depth)
    return deepest


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


def _chunks_from_start(stream: BinaryIO, codec: str | None) -> tuple[Iterator[bytes], str | None]:
    """The decompressed chunks of a stream from its beginning, and its compression, which only its first bytes may show."""
    stream.seek(0)
    chunks = iter(lambda: stream.read(_READ_BYTES), b"") if codec is None else decompress(stream, codec)
    start = next(chunks, b"")
    if codec is None and (inside := codec_inside(start)) is not None:
        return _chunks_from_start(stream, inside)
    if start.startswith(_UTF16_BOMS) and b"\0" in start[:_PEEK_BYTES]:
        raise OSError(0, "it is UTF-16 text; write it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE")
    return itertools.chain([start] if start else [], chunks), codec


def _lines(stream: BinaryIO, file: InputFile, unit: Unit, limit: int) -> Iterator[tuple[bytes | None, int]]:
    """Read (line, its size) for each line whose first byte is in the unit; None for a line longer than `limit`."""
    whole = file.compression is not None
    position, end = (0, None) if whole else (unit.start, unit.end)
    if position > 0:  # a line that starts exactly here follows a newline at position - 1
        position -= 1
        stream.seek(position)
        chunks = iter(lambda: stream.read(_READ_BYTES), b"")
    else:
        chunks, codec = _chunks_from_start(stream, file.codec)
        end = end if codec is None else None
    if file.layout is not None:
        yield from arrow_lines(chunks, limit) if file.layout == "arrow" else to_lines(chunks, file.layout, limit)
        return
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
