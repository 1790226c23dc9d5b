"""Arrow IPC files and streams, as `datasets.save_to_disk` and Feather write them → JSON lines, one record batch at a time."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipelines.corpus.parquet import batch_rows
from pipelines.corpus.records import Line, reason_line

_FILE_MAGIC = b"ARROW1\0\0"  # an IPC file is a stream between this and a footer
_BATCH_ROWS = 64


def arrow_lines(chunks: Iterable[bytes], limit: int) -> Iterator[Line]:
    """Read the rows of a stream of record batches as JSON lines; None for a line of more than `limit` bytes.

    Values that JSON lacks become text: times in ISO 8601, bytes that are not UTF-8 in base64. Numbers that are not finite become
    null. Raises `EOFError` if the stream has no end mark, and pyarrow's exceptions for a damaged stream.
    """
    stream = _Stream(chunks)
    is_file = stream.start == _FILE_MAGIC
    if not is_file:
        stream.rewind()
    with pa.ipc.open_stream(stream) as batches:
        names = batches.schema.names
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise OSError(0, f"it has two columns named {doubled!r}; rename one of them")
        strict = [field.name for field in batches.schema if not pa.types.is_temporal(field.type)]
        for batch in batches:
            for first in range(0, batch.num_rows, _BATCH_ROWS):
                part = batch.slice(first, _BATCH_ROWS)
                for row in batch_rows(part, strict, tools="tools"):
                    line = reason_line(row) if isinstance(row, str) else _encode({name: row[name] for name in names})
                    yield (line if len(line) <= limit else None), len(line)
    if stream.ended or (is_file and not stream.read().endswith(_FILE_MAGIC[:6])):
        raise EOFError("the stream has no end mark")


class _Stream(io.RawIOBase):
    """A file over chunks that is read once, from its beginning; `ended` is true after a read beyond the end."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._held = b""
        self.ended = False
        self.start = self._take(len(_FILE_MAGIC))

    def rewind(self) -> None:
        """Put the first bytes back, to be read again."""
        self._held = self.start + self._held

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join([self._held, *self._chunks])
        data = self._take(size)
        self.ended |= len(data) < size
        return data

    def _take(self, size: int) -> bytes:
        parts, length = [self._held], len(self._held)
        while length < size and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            length += len(chunk)
        data = b"".join(parts)
        self._held = data[size:]
        return data[:size]


def _encode(row: dict[str, Any]) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False, default=_as_text)
    except ValueError:
        text = json.dumps(_finite(row), ensure_ascii=False, default=_as_text)
    return text.encode(errors="surrogatepass")


def _as_text(value: Any) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value.isoformat()) if hasattr(value, "isoformat") else str(value)


def _finite(value: Any) -> Any:
    """The value with each number that is not finite replaced by None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
