"""Opens and describes files on any fsspec file system, with errors that name the remedy."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import BestkeptError, ConfigError, InputError, StorageError, remedy
from pipelines.storage.stores import gcs, local, s3
from pipelines.storage.stores.ranged_reader import open_remote
from pipelines.storage.stores.remote_object import FsspecObject, RemoteObject
from pipelines.storage.stores.retry import with_retries

REQUESTS_AT_ONCE = 16  # threads of one process, which mostly wait for storage


def filesystem(path: str) -> tuple[Any, str]:
    """Return the file system of a path or URL, and the path on it. Raises `ConfigError` for an unknown or missing driver."""
    scheme = path.split("://", maxsplit=1)[0] if "://" in path else "file"
    extra = {"s3": "s3", "s3a": "s3", "gs": "gcp", "gcs": "gcp"}.get(scheme)
    try:
        return with_retries(lambda _: _driver(path, scheme), doing="reach", place=path)
    except ImportError as error:
        install = f"pip install 'bestkept[{extra}]'" if extra else f"install the fsspec driver for {scheme}://"
        install = "pip install aiohttp" if scheme in ("http", "https") else install
        raise ConfigError(f"{scheme}:// needs a driver that is not installed; {install}") from error
    except ValueError as error:
        raise ConfigError(f"{path!r} names no known file system; use a local path, s3:// or gs://") from error


def _driver(path: str, scheme: str) -> tuple[Any, str]:
    if scheme in ("s3", "s3a"):
        fs, name = url_to_fs(path, **s3.options(conf.get("s3", {})))
        s3.prepare(fs)
        return fs, cast("str", name)
    if scheme in ("gs", "gcs"):
        fs = gcs.driver()(**gcs.options())
        return fs, cast("str", fs._strip_protocol(path))
    return cast("tuple[Any, str]", url_to_fs(path))


def object_at(path: str) -> RemoteObject | None:
    """The object that a URL names; None for a local file."""
    fs, name = filesystem(path)
    return None if isinstance(fs, LocalFileSystem) else _object_on(fs, name, path)


def _object_on(fs: Any, name: str, place: str) -> RemoteObject:
    """The object at `name` on a driver's file system."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    kind = s3.S3Object if "s3" in protocols else gcs.GcsObject if "gs" in protocols else FsspecObject
    return kind(fs, name, place)


def is_local(path: str) -> bool:
    return isinstance(filesystem(path)[0], LocalFileSystem)


def absolute(path: str) -> str:
    """Return a local path made absolute, and a URL unchanged."""
    return os.path.abspath(os.path.expanduser(path)) if "://" not in path else path


def join(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


# Keys under which fsspec's drivers describe an object. The first one present decides. The order must not change: otherwise
# versions would change, and files would be read again.
_CHECKSUMS = (
    *("ETag", "etag", "md5Hash", "generation"),
    *("blob_id", "xet_hash"),  # the Hub
    *("Content-MD5", "Digest"),  # http
    *("sha", "hex", "checksum", "content_hash", "CRC"),  # GitHub, git, and others
)
_TIMES = (
    *("mtime", "LastModified", "updated"),
    *("last_modified", "Last-Modified", "modify", "modificationTime", "modified", "modifiedTime"),
    "created",  # on some stores unchanged when an object is overwritten
)


def version_of(info: dict[str, Any]) -> str:
    """Return a value that changes with the object: its checksum or generation on object stores, its modification time locally.

    It is empty if the driver gives neither.
    """
    for key in _CHECKSUMS:
        if info.get(key):
            return str(info[key]).strip('"')
    for key in _TIMES:
        if info.get(key) is not None:
            return str(info[key])
    return ""


def open_for_reading(path: str) -> BinaryIO:
    """Open a local or remote file for reading; reads of a remote file that has changed since then raise `StorageError`."""
    fs, name = filesystem(path)
    return _open_locally(name) if isinstance(fs, LocalFileSystem) else _open_object(_object_on(fs, name, path))[0]


def _open_locally(name: str) -> BinaryIO:
    return open(name, "rb", opener=local.open_without_waiting)


def _open_object(remote: RemoteObject) -> tuple[BinaryIO, StoredObject]:
    """Return the open object and its status at that time, from the same request."""
    seen = remote.stat()
    if seen is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", remote.place)
    status = StoredObject(seen.size, version_of(dict(seen.described)))
    if seen.size is None:  # some web servers do not report it
        return cast("BinaryIO", remote.fs.open(remote.name, "rb")), status
    return open_remote(remote, seen), status


class StoredObject(NamedTuple):
    """An object as a listing shows it."""

    bytes: int | None
    version: str  # see `version_of`


class OpenFile(NamedTuple):
    """A file opened by `open_with_status`."""

    stream: BinaryIO
    status: StoredObject  # when it was opened
    stays: bool  # whether reads raise `ObjectChanged` once the file no longer has this status


def open_with_status(path: str) -> OpenFile:
    """Open a file like `open_for_reading`, and return its status at that time. Sends no further request to a store."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return OpenFile(_open_locally(name), status_of(path), stays=False)
    remote = _object_on(fs, name, path)
    return OpenFile(*_open_object(remote), stays=remote.pins_reads)


def status_of(path: str) -> StoredObject:
    """The current status of a file. Raises `FileNotFoundError`, or `OSError` for a local file."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        status = os.stat(name)
        return StoredObject(status.st_size, version_of({"mtime": status.st_mtime}))
    seen = _object_on(fs, name, path).stat()
    if seen is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
    return StoredObject(seen.size, version_of(dict(seen.described)))


def read_bytes(path: str) -> bytes | None:
    """Read the whole object; None if there is none."""
    fs, name = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        return _object_on(fs, name, path).read()
    try:
        with _open_locally(name) as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):  # also below a file
        return None
    except OSError as error:
        known = remedy(error)
        raise StorageError(f"cannot read {path}: {describe(error)}" + (f"; {known}" if known else "")) from error


def read_with_version(path: str) -> tuple[bytes, str] | None:
    """Read the whole object and its version, for `publish.replace` to replace only this version; None if there is none."""
    remote = object_at(path)
    if remote is None:
        data = read_bytes(path)
        return None if data is None else (data, "")
    existing = remote.read_with_stat()
    return None if existing is None else (existing[0], existing[1].version)


def size_of(path: str) -> int | None:
    """The current size of a file in bytes, or None if there is no file."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return os.path.getsize(name) if os.path.isfile(name) else None
    seen = _object_on(fs, name, path).stat()
    return None if seen is None else seen.size


def anything_below(path: str) -> bool:
    """Return whether there is a file of this name, or any below a directory of this name; unpublished files are ignored."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        below = itertools.chain.from_iterable(files for _, _, files in os.walk(name))
        return os.path.isfile(name) or any(not file.startswith(".") for file in below)
    return bool(with_retries(lambda _: fs.find(name), doing="list", place=path))


def names_in(directory: str) -> list[str]:
    """Names of the published files directly in a directory, sorted; empty if there is no such directory."""
    fs, name = filesystem(directory)
    if isinstance(fs, LocalFileSystem):
        try:
            with os.scandir(name) as entries:
                return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"cannot list {directory}: {describe(error)}") from error
    paths = with_retries(lambda _: fs.find(name, maxdepth=1), doing="list", place=directory)
    return sorted(path.rsplit("/", 1)[-1] for path in paths)


def sizes_in(directory: str) -> dict[str, int | None]:
    """Sizes of the published files directly in a directory, in bytes, by name; empty if there is no such directory."""
    if not is_local(directory):
        return {name: stored.bytes for name, stored in stored_in(directory).items()}
    return {name: size_of(join(directory, name)) for name in names_in(directory)}


def stored_in(directory: str) -> dict[str, StoredObject]:
    """The objects directly in a directory on an object store, by name; empty if there is no such directory.

    Raises `StorageError`, and with some drivers `FileNotFoundError` if there is no such bucket.
    """
    fs, name = filesystem(directory.rstrip("/"))
    entries = with_retries(lambda _: fs.find(name, maxdepth=1, detail=True), doing="list", place=directory)
    files = {path: info for path, info in entries.items() if info["type"] == "file" and not path.endswith("/")}
    return {
        path.rsplit("/", 1)[-1]: StoredObject(info.get("size"), version_of(info))
        for path, info in sorted(files.items())
    }


def check_writable(directory: str, *, named: str, remedy: str = "choose another output.path") -> None:
    """Check that a local directory is writable or can be created, before hours of work depend on it. No file remains.

    Raises `StorageError`, which calls the directory `named`, or `ConfigError` if a file is in its place.
    """
    place = filesystem(absolute(directory))[1]
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        kind = ConfigError if isinstance(error, NotADirectoryError) else StorageError
        raise kind(f"cannot write {named}: {describe(error)}; {remedy}") from error


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn errors that storage and decoders raise for `path` into an `InputError` that names it."""
    try:
        yield
    except BestkeptError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"input file {path} is gone since the run was planned; restore it or plan again") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, EOFError) as error:
        raise InputError(
            f"input file {path} is cut or damaged ({type(error).__name__}); write it again, or leave it out of input.path"
        ) from error
    except OSError as error:
        raise InputError(f"input file {path} cannot be read: {describe(error)}") from error


def describe(error: OSError) -> str:
    """The cause of an `OSError` in a few words, without content of the file."""
    return error.strerror or type(error).__name__
