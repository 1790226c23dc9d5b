"""Rewrites large compressed JSONL files as copies of their lines in parts, once and durably, before scoring.

A compressed file can only be read from its beginning, by one worker. The parts of its copy can be read by many workers, during
and after scoring. See `rewritten_copy` for the format of a copy, and `files.with_copy` for the files that have one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from pipelines.corpus import InputFile, Unit, rewritten_copy
from pipelines.corpus.files import refuse_changed
from pipelines.corpus.jsonl import row_lines
from pipelines.errors import InputError
from pipelines.storage.files import names_in

log = logging.getLogger(__name__)


def rewrite(file: InputFile, copy: str, *, max_row_bytes: int, verify: bool = False) -> None:
    """Write a file's copy, or its missing parts. A complete copy is not read, unless `verify` is true.

    The file is streamed from its beginning, one part in memory at a time, and existing parts are compared instead of
    written. Raises `UnreadableError` for a file that is truncated, damaged, or has changed since it was listed, `InputError` for
    a file whose lines differ from a complete copy, and `StorageError` if writing fails.
    """
    known = rewritten_copy.read_index(copy)
    if known is not None and not verify and not rewritten_copy.missing_parts(copy, known):
        return
    log.info("rewriting %s, %.0f MB, as %s", file.path, file.size / 1e6, copy)
    started, existing = time.monotonic(), set(names_in(copy))
    parts: list[rewritten_copy.Part] = []
    for table in rewritten_copy.cut_into_parts(_lines(file, max_row_bytes)):
        number, part = len(parts), rewritten_copy.Part.of(table)
        if known is not None and known[number : number + 1] != (part,):
            raise _other_lines(file, copy)
        rewritten_copy.publish_part(copy, number, table, part, look=rewritten_copy.part_name(number) in existing)
        parts.append(part)
        del table  # freed before the next one is read
    refuse_changed(file)
    if known is not None and len(parts) != len(known):
        raise _other_lines(file, copy)
    if known is None:
        about = {"file": file.key, "size": file.size, "version": file.version, "max_row_bytes": max_row_bytes}
        rewritten_copy.publish_index(copy, parts, about)
    rows, secs = sum(part.rows for part in parts), time.monotonic() - started
    log.info("rewrote %s: %d rows in %d parts, %.0f s", file.path, rows, len(parts), secs)


def _lines(file: InputFile, max_row_bytes: int) -> Iterator[rewritten_copy.Line]:
    """Read the lines of the compressed file itself."""
    whole = Unit(0, 0, file.size, file.size)
    for line, size, _ in row_lines(file._replace(copy=None), whole, max_row_bytes=max_row_bytes, as_planned=True):
        yield line, size


def _other_lines(file: InputFile, copy: str) -> InputError:
    return InputError(
        f"input file {file.path} differs from its copy in {copy}, although its size and version are the same; restore "
        "it, or change its modification time to have it scored again"
    )
