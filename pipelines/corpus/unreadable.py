"""Errors about input files that cannot be read; they end the run, unless `limits.skip_bad_files` skips such files."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from pipelines.errors import InputError
from pipelines.storage.files import open_for_reading, reading

_DAMAGED = (pa.ArrowException, UnicodeDecodeError, OverflowError, IndexError, MemoryError)  # what decoders raise
_OF_THE_FILE = {None, 0, errno.ELOOP, errno.ENOTDIR, errno.EINVAL}  # None and 0: raised by a decoder, not by the system


class UnreadableError(InputError):
    """An input file that cannot be read; `reason` is a code for the manifest, such as `truncated`."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@contextmanager
def reading_input(path: str) -> Iterator[None]:
    """Turn errors of storage and decoders into an `UnreadableError` that names the input file `path`.

    The file is not at fault if a network or a device fails: the error stays a plain `InputError`, which always ends the run.
    """
    try:
        with reading(path):
            yield
    except InputError as error:
        reason = _reason(error.__cause__)
        if reason is None:
            raise
        raise UnreadableError(error.message, reason) from error.__cause__
    except _DAMAGED as error:
        raise UnreadableError(
            f"input file {path} is damaged ({type(error).__name__}); write it again, or leave it out of input.path",
            "damaged",
        ) from error


def _reason(cause: BaseException | None) -> str | None:
    """The code for an error that `reading` has caught; None if the file is not at fault."""
    match cause:
        case FileNotFoundError():
            return "missing"
        case PermissionError():
            return "no_permission"
        case IsADirectoryError():
            return "directory"
        case EOFError():
            return "truncated"
        case pa.ArrowException():
            return "damaged"
        case OSError() if not isinstance(cause, ConnectionError | TimeoutError) and cause.errno in _OF_THE_FILE:
            return "damaged"
    return None


def probe(path: str) -> None:
    """Open a file and read its first byte. Raises `UnreadableError`."""
    with reading_input(path), open_for_reading(path) as stream:
        stream.read(1)
