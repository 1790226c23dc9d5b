"""JSON arrays and tables as text (CSV, TSV) → JSON lines, streamed in bounded memory.

Like compressed files, they can only be read from their beginning; large ones are rewritten once (`rewrite`). A malformed record
is rejected without its neighbours. If it makes the rest ambiguous, as a quote that is never closed does, the file is damaged.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence

LAYOUTS = ("array", "csv", "tsv", "arrow")
UTF8_BOM = b"\xef\xbb\xbf"
Line = tuple[bytes | None, int]
"""(a line, or None if it is too long; the size of its record in the file, in bytes)"""

_STRUCTURE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_TYPED_ROWS, _TYPED_BYTES = 1000, 8 * 2**20  # first rows of a table, from which the types of its columns are inferred
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?([eE][+-]?\d{1,2})?")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_IS_TEXT = re.compile(
    r"instruction|question|query|input|context|history|system(_prompt)?|chosen|rejected|"
    r"(prompt|response|completion|output|answer|text|content|message)s?([ _-]?([a-z]|\d+))?",
    re.IGNORECASE,
)
_REASON = b"\xff\xff\xff "  # no line of text begins like this
_REASONS = ("bad_table_row", "bad_utf8", "bad_value", "bad_json")
csv.field_size_limit(2**31 - 1)  # `_records` bounds fields by the size of a row


def reason_line(reason: str) -> bytes:
    """The line that replaces a rejected record; `reason_of` reads the reason from it."""
    return _REASON + reason.encode()


def reason_of(line: bytes) -> str | None:
    """The reason that `reason_line` has written into a line; None for a line of a file."""
    reason = line.removeprefix(_REASON).decode(errors="replace") if line.startswith(_REASON) else ""
    return reason if reason in _REASONS else None


def to_lines(chunks: Iterable[bytes], layout: str, limit: int) -> Iterator[Line]:
    """Read the records of an array or a table as JSON lines; None for a record of more than `limit` bytes.

    Raises `EOFError` if the input ends inside a record, and `OSError` if it does not have this layout.
    """
    return _elements(chunks, limit) if layout == "array" else _table_lines(chunks, layout, limit)


class _Element:
    """The bytes of an array's element that have been read so far; beyond `limit` only their count."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        part = part if self._size else part.lstrip()
        self._size += len(part)
        if self._size <= self._limit:
            self._parts.append(part)
        else:
            self._parts = []

    def take(self) -> Line:
        """Return the element as a line; a missing one, as between two commas, becomes a line that is not JSON."""
        line = (b"".join(self._parts).rstrip() or b",") if self._size <= self._limit else None, self._size
        self.clear()
        return line

    def __bool__(self) -> bool:
        return self._size > 0


def _elements(chunks: Iterable[bytes], limit: int) -> Iterator[Line]:
    """Split a JSON array into elements by its brackets, commas and quotes alone; the elements are parsed later."""
    element, depth, in_string, escaped, ended = _Element(limit), 0, False, False, False
    for chunk in chunks:
        at = begin = 0
        if depth == 0 and not ended:
            at = begin = _after_bracket(chunk)
            depth = 1 if at else 0
            if not at:
                continue
        if ended:
            _refuse_more(chunk)
            continue
        while True:
            if in_string:
                at = _IN_STRING.match(chunk, at + 1 if escaped else at).end()  # type: ignore[union-attr]
                escaped = chunk[at : at + 1] == b"\\"
                if at >= len(chunk) or escaped:  # the string continues in the next chunk
                    break
                in_string, at = False, at + 1
                continue
            mark = _STRUCTURE.search(chunk, at)
            if mark is None:
                break
            at, sign = mark.end(), mark[0]
            in_string = sign == b'"'
            depth += (sign in b"[{") - (sign in b"]}")
            if depth == 0:
                if sign != b"]":
                    raise OSError(0, "it is not a JSON array: a bracket is closed but not opened")
                element.add(chunk[begin : at - 1])
                if element:
                    yield element.take()
                _refuse_more(chunk[at:])
                ended = True
                break
            if sign == b"," and depth == 1:
                element.add(chunk[begin : at - 1])
                yield element.take()
                begin = at
        if not ended:
            element.add(chunk[begin:])
    if not ended:
        raise EOFError("the array is not closed")


def _after_bracket(chunk: bytes) -> int:
    """The position after the bracket that opens the array; 0 if there have been only blanks so far."""
    start = chunk.removeprefix(UTF8_BOM).lstrip()
    if start and not start.startswith(b"["):
        raise OSError(0, "it is not a JSON array")
    return len(chunk) - len(start) + 1 if start else 0


def _refuse_more(chunk: bytes) -> None:
    if chunk.strip():
        raise OSError(0, "there is more text after its JSON array")


def _table_lines(chunks: Iterable[bytes], layout: str, limit: int) -> Iterator[Line]:
    records = _records(chunks, layout, limit)
    header, _ = next(records, ([], 0))
    if header is None:
        raise OSError(0, "its first line is not the header of a table")
    names = [name.strip() or f"Unnamed: {position}" for position, name in enumerate(header)]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise OSError(0, f"it has two columns named {doubled!r}; rename one of them")
    first: list[tuple[list[str] | None, int]] = []
    size = 0
    for record in records:
        first.append(record)
        size += record[1]
        if len(first) >= _TYPED_ROWS or size >= _TYPED_BYTES:
            break
    whole = [cells for cells, _ in first if cells is not None and len(cells) == len(names)]
    typed = [
        not _IS_TEXT.fullmatch(name) and _one_type([cells[position] for cells in whole])
        for position, name in enumerate(names)
    ]
    for cells, size in itertools.chain(first, records):
        if cells is None or size > limit:
            yield (reason_line("bad_table_row") if size <= limit else None), size
        elif len(cells) != len(names):
            yield reason_line("bad_table_row"), size
        else:
            values = [_value(cell) if of_type else cell for cell, of_type in zip(cells, typed, strict=True)]
            text = json.dumps(dict(zip(names, values, strict=True)), ensure_ascii=False)
            yield text.encode(errors="surrogateescape"), size


def _one_type(cells: Sequence[str]) -> bool:
    """Return whether the non-empty cells of a column are all numbers, or all true or false."""
    filled = [cell for cell in cells if cell]
    return bool(filled) and (all(map(_NUMBER.fullmatch, filled)) or all(cell in _TRUTH for cell in filled))


def _value(cell: str) -> object:
    """The value of a cell in a column of numbers or booleans; None if it is empty. Other text is unchanged."""
    if cell in _TRUTH:
        return _TRUTH[cell]
    if not cell:
        return None
    number = _NUMBER.fullmatch(cell)
    return cell if number is None else float(cell) if number[2] or number[3] else int(cell)


def _records(chunks: Iterable[bytes], layout: str, limit: int) -> Iterator[tuple[list[str] | None, int]]:
    """Read (cells, bytes) of each record that is not blank; cells are None for a record that breaks the rules of RFC 4180.

    Only the quotes of a record of more than `limit` bytes are kept, to find its end.
    """
    lines = _split_lines(chunks, 2 * limit)
    first = next(lines, None)
    if first is None:
        return
    size = 0

    def feed() -> Iterator[str]:
        nonlocal size
        for line in itertools.chain([first], lines):
            begun = size
            size += len(line)
            text = line.decode(errors="surrogateescape")
            yield text if begun <= limit else '"' * (text.count('"') % 2)
        if size:
            raise EOFError("a quote is not closed")

    reader = csv.reader(feed(), delimiter=_delimiter(first, layout), strict=True)
    while True:
        try:
            cells: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error:
            cells = None
        if cells is None or cells:
            yield cells, size
        size = 0


def _delimiter(header: bytes, layout: str) -> str:
    """The delimiter of a table, from its first line: Excel writes semicolons in locales with decimal commas."""
    if layout == "tsv":
        return "\t"
    return next((mark for mark in ",;\t" if mark.encode() in header), ",")


def _split_lines(chunks: Iterable[bytes], most_bytes: int) -> Iterator[bytes]:
    """Split a stream into lines with their ends. Raises `OSError` for a line of more than `most_bytes`."""
    parts: list[bytes] = []
    size, begun = 0, False
    for chunk in chunks:
        data, begun = chunk if begun else chunk.removeprefix(UTF8_BOM), True
        *whole, rest = data.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line, b"\n"])
            parts, size = [], 0
        parts.append(rest)
        size += len(rest)
        if size > most_bytes:
            raise OSError(0, "one of its lines is longer than twice limits.max_row_bytes")
    if size:
        yield b"".join(parts)
