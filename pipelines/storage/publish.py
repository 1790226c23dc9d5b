"""Atomic, create-only publishing: an object is there whole, or not at all, and is never replaced.

Locally: a temporary dot-name in the same directory, fsync, a hard link that fails where the name exists, directory fsync (see
`local`).
On object stores: one create-only PUT to the final key. Copying and deleting are never used.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import ConflictError, StorageError, remedy
from pipelines.storage import local
from pipelines.storage.files import describe, filesystem, open_for_reading
from pipelines.storage.local import Writer

_EXISTS = {409, 412}
_CHUNK = 1 << 20


def create(path: str, write: Writer | bytes) -> bool:
    """Publish what `write` produces at `path`; False where something is there already (it stays as it is).

    Raises `StorageError` with the cause and the place where the object cannot be written.
    """
    write = _writer(write)
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        try:
            return local.create(Path(name), write)
        except OSError as error:
            raise _storage_error(name, error) from error
    return _create_object(fs, name, path, write)


def create_or_equal(path: str, write: Writer | bytes) -> str:
    """Publish at `path`, or find that the very same bytes are there; returns their xxh3-128 in hex.

    Raises `ConflictError` where other bytes are there: two selections must not share an output.
    """
    with tempfile.SpooledTemporaryFile(max_size=64 * 2**20) as spool:
        try:
            _writer(write)(spool)  # type: ignore[arg-type]
        except OSError as error:
            raise _storage_error(tempfile.gettempdir(), error) from error
        digest = _digest(spool)

        def copy(file: BinaryIO) -> None:
            spool.seek(0)
            while chunk := spool.read(_CHUNK):
                file.write(chunk)

        if not create(path, copy):
            with open_for_reading(path) as existing:
                if _digest(existing) != digest:
                    raise ConflictError(
                        f"{path} exists with other content than this run gives; choose another output.path, "
                        "or remove the old output first"
                    )
    return digest


def replace(path: str, data: bytes) -> None:
    """Overwrite an object that holds nothing anymore: damaged, or a claim that led to no output. Atomic like `create`."""
    fs, name = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        fs.pipe_file(name, data)
        return
    try:
        local.replace(Path(name), _writer(data))
    except OSError as error:
        raise _storage_error(name, error) from error


def sweep(directories: Iterable[str]) -> int:
    """Remove temporaries that killed runs have left in these directories; how many. Object stores have none."""
    places = [filesystem(directory) for directory in directories]
    return sum(local.sweep(Path(name)) for fs, name in places if isinstance(fs, LocalFileSystem))


def _writer(content: Writer | bytes) -> Writer:
    if not isinstance(content, bytes):
        return content

    def write(file: BinaryIO) -> None:
        file.write(content)

    return write


def _digest(file: Any) -> str:
    file.seek(0)
    digest = xxhash.xxh3_128()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _create_object(fs: Any, name: str, path: str, write: Writer) -> bool:
    with tempfile.SpooledTemporaryFile(max_size=64 * 2**20) as spool:
        write(spool)  # type: ignore[arg-type]
        spool.seek(0)
        try:
            fs.pipe_file(name, spool.read(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _status(error) in _EXISTS or error.errno == errno.EEXIST:
                return False
            raise _storage_error(path, error) from error
    return True


def _status(error: BaseException) -> int | None:
    """The HTTP status behind a driver's exception, where it tells."""
    for link in (error, error.__cause__, error.__context__):
        code = getattr(link, "code", None) or getattr(link, "status", None)
        if isinstance(code, int):
            return code
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) or None
    return None


def _storage_error(path: str, error: OSError) -> StorageError:
    known = {
        errno.EROFS: "choose a writable output.path",
        errno.EACCES: "grant write access, or choose another output.path",
        errno.EPERM: "grant write access, or choose another output.path",
        errno.ENOTDIR: "a file stands where a directory is needed; choose another output.path",
    }.get(error.errno or 0, "check the place and run the same command again")
    return StorageError(f"cannot write {path}: {describe(error)}; {remedy(error) or known}")
