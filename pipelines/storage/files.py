"""Opening, listing and describing files on any fsspec file system, with errors that say what to do."""

from __future__ import annotations

import errno
import glob as local_glob
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, cast

from fsspec.config import conf
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import BestkeptError, InputError, StorageError
from pipelines.storage import gcs, s3
from pipelines.storage.remote import RemoteObject, remote_object
from pipelines.storage.retrying import patiently
from pipelines.storage.windows import open_remote


def filesystem(path: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path on it. Raises `StorageError` for an unknown or missing driver."""
    scheme = path.split("://", maxsplit=1)[0] if "://" in path else "file"
    extra = {"s3": "s3", "s3a": "s3", "gs": "gcp", "gcs": "gcp"}.get(scheme)
    try:
        return patiently(lambda _: _driver(path, scheme), doing="reach", place=path)
    except ImportError as error:
        remedy = f"pip install 'bestkept[{extra}]'" if extra else f"install the fsspec driver for {scheme}://"
        raise StorageError(f"{scheme}:// needs a driver that is not installed; {remedy}") from error
    except ValueError as error:
        raise StorageError(f"{path!r} names no known file system; use a local path, s3:// or gs://") from error


def _driver(path: str, scheme: str) -> tuple[Any, str]:
    if scheme in ("s3", "s3a"):
        fs, name = url_to_fs(path, **s3.options(conf.get("s3", {})))
        s3.prepare(fs)
        return fs, cast("str", name)
    if scheme in ("gs", "gcs"):
        fs = gcs.driver()(**gcs.options())
        return fs, cast("str", fs._strip_protocol(path))
    return cast("tuple[Any, str]", url_to_fs(path))


def remote(path: str) -> RemoteObject | None:
    """The object that a URL names; None for a local file."""
    fs, name = filesystem(path)
    return None if isinstance(fs, LocalFileSystem) else remote_object(fs, name, path)


def is_local(path: str) -> bool:
    return isinstance(filesystem(path)[0], LocalFileSystem)


def absolute(path: str) -> str:
    """`path` with a local one made absolute; URLs stay as they are."""
    return os.path.abspath(os.path.expanduser(path)) if "://" not in path else path


def join(root: str, *parts: str) -> str:
    return "/".join([root.rstrip("/"), *parts])


class Listed(NamedTuple):
    """A file that an input pattern names."""

    path: str  # full path or URL
    key: str  # relative to the directory above the first wildcard, which stays when the corpus grows
    info: dict[str, Any]


def expand(pattern: str) -> list[Listed]:
    """Files that a path, a directory or a glob names, sorted by path, and the directories that a glob names whose files it does
    not: whoever reads them decides whether something was meant.

    In directories, hidden files and those that start with an underscore are not data, as everywhere. Links to files are files;
    one to a place where nothing is has size 0. Raises `InputError` where nothing matches, a directory below the given one
    cannot be listed, or a link to a directory would have to be followed.
    """
    fs, path = filesystem(absolute(pattern))
    local = isinstance(fs, LocalFileSystem)
    with reading(pattern):
        found = _found_locally(fs, path) if local else _found_remotely(fs, path, pattern)
        root = _above_wildcard(path)
        listed = []
        for name, info in sorted(found.items()):
            key = name.removeprefix(root).lstrip("/") or name.rsplit("/", 1)[-1]
            if local and info.get("islink"):
                info = _followed(name, info, recursive=not local_glob.has_magic(path) or "**" in path)
            whole = info["type"] == "directory" and not any(other.startswith(name + "/") for other in found)
            mark = name.endswith("/")  # an empty object that stands for a directory
            if (info["type"] == "file" or whole) and not _hidden(key) and not mark:
                listed.append(Listed(fs.unstrip_protocol(name) if "://" in pattern else name, key, info))
    if not any(entry.info["type"] == "file" for entry in listed):
        inside = f"; to read the files in the directory {listed[0].path} write {listed[0].path}/*" if listed else ""
        raise InputError(f"input.path {pattern!r} matches no file; check the path and the pattern{inside}")
    return listed


def _found_locally(fs: LocalFileSystem, path: str) -> dict[str, dict[str, Any]]:
    if local_glob.has_magic(path):
        _refuse_links(fs, path)
        return cast("dict[str, dict[str, Any]]", fs.glob(path, detail=True))
    if fs.isdir(path):
        return _all_below(fs, path)
    return {path: fs.info(path)} if fs.exists(path) else {}


def _refuse_links(fs: LocalFileSystem, pattern: str) -> None:
    """Raise `InputError` where a wildcard matches a link to a directory that files of the pattern lie below: fsspec leaves these
    out."""
    parts, root = pattern.split("/"), _above_wildcard(pattern)
    for count in range(1, len(parts)):
        if not local_glob.has_magic(before := "/".join(parts[:count])):
            continue
        rest = "/".join(parts[count - 1 if parts[count - 1] == "**" else count :])
        for name, info in fs.glob(before, detail=True).items():
            below = local_glob.iglob(f"{local_glob.escape(name)}/{rest}", recursive=True)  # this one follows links
            meant = (os.path.isfile(file) and not _hidden(file.removeprefix(root)) for file in below)
            if info.get("islink") and os.path.isdir(name) and any(meant):
                raise _link_error(name)


def _found_remotely(fs: Any, path: str, pattern: str) -> dict[str, dict[str, Any]]:
    """By listing alone: drivers' `isdir` and `exists` take a refusal for an absence."""
    search = fs.glob if local_glob.has_magic(path) else fs.find
    try:
        found = cast(
            "dict[str, dict[str, Any]]", patiently(lambda _: search(path, detail=True), doing="list", place=pattern)
        )
    except FileNotFoundError:  # gcsfs, where there is no bucket
        raise StorageError(f"cannot list {pattern}: there is no such bucket; mend input.path") from None
    if not found and "s3" in fs.protocol and s3.bucket_is_missing(fs, path, pattern):
        raise StorageError(f"cannot list {pattern}: there is no such bucket; mend input.path")
    return found


def _all_below(fs: LocalFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """The files below a local directory. Raises `OSError` for a directory that cannot be listed, which fsspec leaves out."""
    found = fs.find(path, detail=True, withdirs=True)
    for name, info in found.items():
        if info["type"] == "directory":
            os.scandir(name).close()
    return {name: info for name, info in found.items() if info["type"] != "directory"}


def _followed(name: str, info: dict[str, Any], *, recursive: bool) -> dict[str, Any]:
    """What a local link leads to."""
    try:
        status = os.stat(name)
    except OSError:  # nothing there, or a circle: whoever opens it will say so
        return {**info, "type": "file", "size": 0, "mtime": 0.0}
    if stat.S_ISDIR(status.st_mode) and recursive:
        raise _link_error(name)
    kind = "directory" if stat.S_ISDIR(status.st_mode) else "file" if stat.S_ISREG(status.st_mode) else "other"
    return {**info, "type": kind, "size": status.st_size, "mtime": status.st_mtime}


def _link_error(name: str) -> InputError:
    return InputError(
        f"{name} is a link to a directory, and these are not followed below a directory or a wildcard; list the directories in "
        "input.path by name, this one too"
    )


def _above_wildcard(path: str) -> str:
    marks = [path.index(mark) for mark in "*?[" if mark in path]
    return path[: min(marks)].rsplit("/", 1)[0] if marks else path.rstrip("/")


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/") if part)


def version_of(info: dict[str, Any]) -> str:
    """What changes when an object does: its checksum or generation on object stores, its modification time locally."""
    for key in ("ETag", "etag", "md5Hash", "generation"):
        if info.get(key):
            return str(info[key]).strip('"')
    for key in ("mtime", "LastModified", "updated", "created"):
        if info.get(key) is not None:
            return str(info[key])
    return ""


def open_for_reading(path: str) -> BinaryIO:
    """An open binary file, local or remote; a remote one stays what it is now, or reading it raises `StorageError`."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return open(name, "rb")
    there = remote_object(fs, name, path)
    seen = there.look()
    if seen is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
    if seen.size is None:  # some web servers do not say
        return cast("BinaryIO", fs.open(name, "rb"))
    return open_remote(there, seen)


def read_bytes(path: str) -> bytes | None:
    """The whole object, or None where there is none."""
    fs, name = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        return remote_object(fs, name, path).read()
    try:
        with open(name, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {describe(error)}") from error


def read_seen(path: str) -> tuple[bytes, str] | None:
    """The whole object and what `publish.replace` must be told so that it replaces nothing else; None where there is none."""
    there = remote(path)
    if there is None:
        data = read_bytes(path)
        return None if data is None else (data, "")
    found = there.read_seen()
    return None if found is None else (found[0], found[1].version)


def size_of(path: str) -> int | None:
    """Bytes of a file as it is now, or None where there is none."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        return os.path.getsize(name) if os.path.isfile(name) else None
    seen = remote_object(fs, name, path).look()
    return None if seen is None else seen.size


def anything_below(path: str) -> bool:
    """Whether there is a file of this name, or any in a directory of this name; a local dot-name is not published yet."""
    fs, name = filesystem(path)
    if isinstance(fs, LocalFileSystem):
        below = itertools.chain.from_iterable(files for _, _, files in os.walk(name))
        return os.path.isfile(name) or any(not file.startswith(".") for file in below)
    return bool(patiently(lambda _: fs.find(name), doing="list", place=path))


def names_in(directory: str) -> list[str]:
    """Names of the published files right in a directory, sorted; none where there is no such directory."""
    fs, name = filesystem(directory)
    if isinstance(fs, LocalFileSystem):
        try:
            with os.scandir(name) as entries:
                return sorted(each.name for each in entries if not each.name.startswith(".") and each.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"cannot list {directory}: {describe(error)}") from error
    found = patiently(lambda _: fs.find(name, maxdepth=1), doing="list", place=directory)
    return sorted(path.rsplit("/", 1)[-1] for path in found)


class Stored(NamedTuple):
    """An object as a listing shows it."""

    bytes: int | None
    version: str  # see `version_of`


def stored_in(directory: str) -> dict[str, Stored]:
    """The objects right in a directory on an object store, by name; none where there is no such directory.

    Raises `StorageError`, and with some drivers `FileNotFoundError` where there is no bucket.
    """
    fs, name = filesystem(directory.rstrip("/"))
    found = patiently(lambda _: fs.find(name, maxdepth=1, detail=True), doing="list", place=directory)
    files = {path: info for path, info in found.items() if info["type"] == "file" and not path.endswith("/")}
    return {path.rsplit("/", 1)[-1]: Stored(info.get("size"), version_of(info)) for path, info in sorted(files.items())}


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what storage and decoders raise about `path` into an `InputError` that names it."""
    import pyarrow as pa

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
    """The cause of an `OSError` in a few words, without the file's content."""
    return error.strerror or type(error).__name__


__all__ = [
    "Listed",
    "Stored",
    "absolute",
    "anything_below",
    "describe",
    "expand",
    "filesystem",
    "is_local",
    "join",
    "names_in",
    "open_for_reading",
    "read_bytes",
    "read_seen",
    "reading",
    "remote",
    "size_of",
    "stored_in",
    "version_of",
]
