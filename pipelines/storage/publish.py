"""Atomic, create-only publishing: an object is there whole, or not at all, and is never replaced.

Locally: a temporary dot-name in the same directory, fsync, a hard link that fails where the name exists, directory fsync.
On object stores: one create-only PUT to the final key. Copying and deleting are never used.
"""

from __future__ import annotations

import errno
import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import ConflictError, StorageError
from pipelines.storage.files import describe, filesystem, open_for_reading

Writer = Callable[[BinaryIO], None]

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_EXISTS = {409, 412}
_CHUNK = 1 << 20


def create(path: str, write: Writer | bytes) -> bool:
    """Publish what `write` produces at `path`; False where something is there already (it stays as it is).

    Raises `StorageError` with the cause and the place where the object cannot be written.
    """
    write = _writer(write)
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return _create_local(Path(name), write)
    return _create_object(fs, name, path, write)


def create_or_equal(path: str, write: Writer | bytes) -> str:
    """Publish at `path`, or find that the very same bytes are there; returns their xxh3-128 in hex.

    Raises `ConflictError` where other bytes are there: two selections must not share an output.
    """
    with tempfile.SpooledTemporaryFile(max_size=64 * 2**20) as spool:
        _writer(write)(spool)  # type: ignore[arg-type]
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
        temporary = _write_temporary(Path(name), _writer(data))
        os.replace(temporary, name)
        _sync_directory(Path(name).parent)
    except OSError as error:
        raise _storage_error(name, error) from error


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


def _create_local(path: Path, write: Writer) -> bool:
    try:
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_temporary(path, write)
        try:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if path.exists():  # no hard links here (some network and FUSE mounts): the closest there is
                    return False
                os.rename(temporary, path)
            _sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _storage_error(str(path), error) from error
    return True


def _write_temporary(path: Path, write: Writer) -> Path:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    remedy = {
        errno.ENOSPC: "free some space there and run the same command again",
        errno.EDQUOT: "raise the quota and run the same command again",
        errno.EROFS: "choose a writable output.path",
        errno.EACCES: "grant write access, or choose another output.path",
        errno.EPERM: "grant write access, or choose another output.path",
        errno.ENOTDIR: "a file stands where a directory is needed; choose another output.path",
    }.get(error.errno or 0, "check the place and run the same command again")
    return StorageError(f"cannot write {path}: {describe(error)}; {remedy}")
