"""Rewrite: large compressed JSONL files → copies of their lines in parts, once and durably, before anything is scored.

A compressed file can only be read from its beginning, by one worker. Its copy is read part by part, by as many as there are, in
scoring and in all that comes after it. See `inputs.copies` for what a copy is, and `InputFile.copy` for which files have one.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator

from pipelines.corpus import InputFile, Unit, rewritten_copy
from pipelines.corpus.jsonl import row_lines
from pipelines.corpus.unreadable import reading_input
from pipelines.errors import InputError, StorageError
from pipelines.storage.files import filesystem, is_local, names_in, size_of

log = logging.getLogger(__name__)


def rewrite(file: InputFile, copy: str, *, max_row_bytes: int, verify: bool = False) -> None:
    """Make a file's copy, or what is missing of it. Where all of it is there, nothing is read, unless `verify` asks for that.

    The file is streamed from its beginning in any case; parts that are there already are compared, not written again. What
    takes memory is one part. Raises `UnreadableError` for a file that is cut or damaged, `InputError` for one that is not what
    a whole copy was made of, `StorageError` for one that has changed since it was listed, and where nothing can be written.
    """
    known = rewritten_copy.read_index(copy)
    if known is not None and not verify and not rewritten_copy.missing_parts(copy, known):
        return
    log.info("rewriting %s, %.0f MB, as %s", file.path, file.size / 1e6, copy)
    started, there = time.monotonic(), set(names_in(copy))
    refuse_changed(file)
    parts: list[rewritten_copy.Part] = []
    for table in rewritten_copy.cut_into_parts(_lines(file, max_row_bytes)):
        number, part = len(parts), rewritten_copy.Part.of(table)
        if known is not None and known[number : number + 1] != (part,):
            raise _other(file, copy)
        rewritten_copy.publish_part(copy, number, table, part, look=rewritten_copy.part_name(number) in there)
        parts.append(part)
        del table  # before the next one is read
    refuse_changed(file)
    if known is not None and len(parts) != len(known):
        raise _other(file, copy)
    if known is None:
        about = {"file": file.key, "size": file.size, "version": file.version, "max_row_bytes": max_row_bytes}
        rewritten_copy.publish_index(copy, parts, about)
    rows, secs = sum(part.rows for part in parts), time.monotonic() - started
    log.info("rewrote %s: %d rows in %d parts, %.0f s", file.path, rows, len(parts), secs)


def _lines(file: InputFile, max_row_bytes: int) -> Iterator[rewritten_copy.Line]:
    """Of the file itself."""
    whole = Unit(0, 0, file.size, file.size)
    for line, size, _ in row_lines(file._replace(copy=None), whole, max_row_bytes=max_row_bytes):
        yield line, size


def refuse_changed(file: InputFile) -> None:
    """Raise `StorageError` where the file is not the one anymore that was listed: its copy would be believed to be of that one.

    An object on a store stays the one that was opened; of its version, the size is compared.
    """
    now: tuple[int | None, str] = (size_of(file.path), file.version)
    if is_local(file.path):
        with reading_input(file.path):
            status = os.stat(filesystem(file.path)[1])
        now = (status.st_size, str(status.st_mtime))
    if now != (file.size, file.version):
        raise StorageError(f"input file {file.path} has changed since it was listed; run the same command again")


def _other(file: InputFile, copy: str) -> InputError:
    return InputError(
        f"input file {file.path} is not what its copy in {copy} was made of, although its size and version are the same; restore "
        "it, or give it another modification time: then it is scored as changed"
    )
