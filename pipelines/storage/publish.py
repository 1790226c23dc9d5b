"""Atomic publishing: an object is created whole or not at all, only if its name is free, and is never replaced.

Locally: a temporary dot-name in the same directory, fsync, a hard link that fails if the name exists, directory fsync (see
`local`).
On object stores: one PUT to the final key, which fails if the key exists; a larger body is sent in parts, and its completion
fails in the same way (see `s3`, `gcs`). After an unanswered request the object is read. Nothing is copied or deleted.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import xxhash

from pipelines.errors import BestkeptError, ConfigError, ConflictError, StorageError, remedy
from pipelines.storage.files import (
    describe,
    filesystem,
    is_local,
    object_at,
    open_for_reading,
    read_with_version,
    size_of,
)
from pipelines.storage.stores import local
from pipelines.storage.stores.local import Writer
from pipelines.storage.stores.ranged_reader import open_remote
from pipelines.storage.stores.remote_object import RemoteObject

T = TypeVar("T")

_CHUNK = 1 << 20
_ATTEMPTS = 20
_SPOOL_BYTES = 64 * 2**20


def create(path: str, write: Writer | bytes) -> bool:
    """Publish the output of `write` at `path`; False if something exists there, which remains unchanged.

    On an object store, the result is also True if the same bytes exist there: this process may have written them, and the
    acknowledgement was lost.
    Raises `StorageError` with the cause and the place if the object cannot be written.
    """
    write = _writer(write)
    remote = object_at(path)
    if remote is not None:
        with _spool(write) as spool:
            return _create_object(remote, spool)
    name = filesystem(path)[1]
    try:
        return local.create(Path(name), write)
    except OSError as error:
        raise _storage_error(name, error) from error


def create_or_equal(path: str, write: Writer | bytes, *, first: Callable[[], None] = lambda: None) -> str:
    """Publish at `path`, or find the same bytes there; return their xxh3-128 in hex.

    `first` is called when all bytes are known, and before any are written there; it may raise.
    Raises `ConflictError` if other bytes exist there: two selections must not share an output.
    """
    with _spool(_writer(write)) as spool:
        digest, remote = _digest(spool), object_at(path)
        first()

        def copy(file: BinaryIO) -> None:
            spool.seek(0)
            while chunk := spool.read(_CHUNK):
                file.write(chunk)

        created = create(path, copy) if remote is None else _create_object(remote, spool)
        if not created and (remote is not None or not _holds(path, digest)):
            if size_of(path) is None:
                raise StorageError(f"{path} was removed while it was written; run the same command again")
            raise ConflictError(
                f"{path} exists with other content than this run gives; choose another output.path, or remove the old output "
                "first"
            )
    return digest


def replace(path: str, data: bytes, *, version: str | None = None) -> bool:
    """Overwrite an object that is no longer of use: a damaged one, or a claim that led to no output. Atomic like `create`.

    On an object store, only the `version` from `files.read_with_version` is replaced; False if another version exists there.
    """
    remote = object_at(path)
    if remote is not None:
        return remote.replace(data, version) or remote.read() == data
    name = filesystem(path)[1]
    try:
        local.replace(Path(name), _writer(data))
    except OSError as error:
        raise _storage_error(name, error) from error
    return True


def settle(path: str, data: bytes, *, accepts: Callable[[bytes], T | None], ours: T) -> T:
    """Publish `data` at `path`, unless `accepts` can read an object that exists there; return the value of the final object.

    `accepts` returns the value of an object, or None for a damaged one, which is replaced; it may raise for an object that must
    not be there. `ours` is the value of `data`. Several processes may settle the same path at once: an accepted object is never
    replaced, and every process returns the value of an object that was published there. Raises `StorageError`.

        footer = settle(path, encode(table, footer), accepts=footer_of, ours=footer)
    """
    for _ in range(_ATTEMPTS):
        existing = create_or_read(path, data)
        if existing is None:
            return ours
        content, version = existing
        value = accepts(content)
        if value is not None:
            return value
        if replace(path, data, version=version):
            return ours
    raise StorageError(
        f"cannot write {path}: the object there is different each time it is read ({_ATTEMPTS} times); remove it and run the "
        "same command again"
    )


def create_or_read(path: str, data: bytes) -> tuple[bytes, str] | None:
    """Publish `data` at `path` and return None, or return the content and version of the object that exists there.

    Raises `StorageError`, also if something exists there that cannot be read.
    """
    for _ in range(_ATTEMPTS):
        if create(path, data):
            return None
        existing = read_with_version(path)
        if existing is not None:  # otherwise it has been removed since
            return existing
    raise StorageError(
        f"cannot write {path}: it exists each time it is written, and is missing each time it is read ({_ATTEMPTS} times); in a "
        "bucket with versions, a delete marker may count as an object: remove all versions of it, or choose another place, and "
        "run the same command again"
    )


def _holds(path: str, digest: str) -> bool:
    try:
        with open_for_reading(path) as existing:
            return _digest(existing) == digest
    except FileNotFoundError:  # removed since
        return False
    except OSError as error:
        raise StorageError(
            f"cannot read {path}: {describe(error)}; {remedy(error) or 'run the same command again'}"
        ) from error


@contextmanager
def _spool(write: Writer) -> Iterator[Any]:
    """The output of `write`, in memory up to 64 MiB and on the local disk beyond."""
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        try:
            write(spool)  # type: ignore[arg-type]
        except OSError as error:
            raise _storage_error(tempfile.gettempdir(), error) from error
        yield spool


def sweep(directories: Iterable[str]) -> int:
    """Remove temporary files that killed runs have left in these directories; return their number. Object stores have none."""
    return sum(local.sweep(Path(filesystem(directory)[1])) for directory in directories if is_local(directory))


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


def _create_object(remote: RemoteObject, spool: Any) -> bool:
    """Write an object; return whether it has these bytes, which an unanswered request may have written. Deletes nothing."""
    size = spool.seek(0, os.SEEK_END)
    spool.seek(0)
    if remote.create(spool, size):
        return True
    seen = remote.stat()
    if seen is None or seen.size != size:
        return False
    with open_remote(remote, seen) as existing:
        return _digest(existing) == _digest(spool)


def _storage_error(path: str, error: OSError) -> BestkeptError:
    """The error to raise for an error of the system: a `ConfigError` if a second attempt cannot help."""
    known = {
        errno.EROFS: "choose a writable output.path",
        errno.EACCES: "grant write access, or choose another output.path",
        errno.EPERM: "grant write access, or choose another output.path",
        errno.EEXIST: "remove it and run the same command again",
        errno.ENOTDIR: "a file is in the place of a directory; choose another output.path",
        errno.ENAMETOOLONG: "choose an output.path with shorter names",
    }.get(error.errno or 0, "check the place and run the same command again")
    kind = ConfigError if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG) else StorageError
    return kind(f"cannot write {path}: {describe(error)}; {remedy(error) or known}")
