"""The files that a path, a directory or a glob names."""

from __future__ import annotations

import glob as local_glob
import os
import stat
from typing import Any, NamedTuple, cast

from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import InputError, StorageError
from pipelines.storage.files import absolute, filesystem, reading
from pipelines.storage.stores import s3
from pipelines.storage.stores.retry import with_retries


class ListedFile(NamedTuple):
    """A file that an input pattern names."""

    path: str  # full path or URL
    key: str  # relative to the directory above the first wildcard, which stays when the corpus grows
    info: dict[str, Any]


def expand(pattern: str) -> list[ListedFile]:
    """Files that a path, a directory or a glob names, sorted by path, and directories that a glob names without their files.

    The caller decides whether the files of such a directory were meant. In directories, hidden files and those that start with
    an underscore are not data. A link to a file counts as a file, a broken link as one of size 0.

    Raises `InputError` where nothing matches, a directory below the named one cannot be listed, or a link to a directory would
    have to be followed.
    """
    fs, path = filesystem(absolute(pattern))
    local = isinstance(fs, LocalFileSystem)
    with reading(pattern):
        entries = _find_locally(fs, path) if local else _find_remotely(fs, path, pattern)
        root = _above_wildcard(path)
        listed = []
        for name, info in sorted(entries.items()):
            key = name.removeprefix(root).lstrip("/") or name.rsplit("/", 1)[-1]
            if local and info.get("islink"):
                info = _follow_link(name, info, recursive=not local_glob.has_magic(path) or "**" in path)
            whole = info["type"] == "directory" and not any(other.startswith(name + "/") for other in entries)
            mark = name.endswith("/")  # an empty object that stands for a directory
            if (info["type"] == "file" or whole) and not _is_hidden(key) and not mark:
                listed.append(ListedFile(fs.unstrip_protocol(name) if "://" in pattern else name, key, info))
    if not any(entry.info["type"] == "file" for entry in listed):
        inside = f"; to read the files in the directory {listed[0].path} write {listed[0].path}/*" if listed else ""
        raise InputError(f"input.path {pattern!r} matches no file; check the path and the pattern{inside}")
    return listed


def _find_locally(fs: LocalFileSystem, path: str) -> dict[str, dict[str, Any]]:
    if local_glob.has_magic(path):
        _refuse_links(fs, path)
        return cast("dict[str, dict[str, Any]]", fs.glob(path, detail=True))
    if fs.isdir(path):
        return _all_below(fs, path)
    return {path: fs.info(path)} if fs.exists(path) else {}


def _refuse_links(fs: LocalFileSystem, pattern: str) -> None:
    """Raise `InputError` where a wildcard matches a link to a directory with files of the pattern below it: fsspec leaves these
    out."""
    parts, root = pattern.split("/"), _above_wildcard(pattern)
    for count in range(1, len(parts)):
        if not local_glob.has_magic(before := "/".join(parts[:count])):
            continue
        rest = "/".join(parts[count - 1 if parts[count - 1] == "**" else count :])
        for name, info in fs.glob(before, detail=True).items():
            below = local_glob.iglob(f"{local_glob.escape(name)}/{rest}", recursive=True)  # this one follows links
            meant = (os.path.isfile(file) and not _is_hidden(file.removeprefix(root)) for file in below)
            if info.get("islink") and os.path.isdir(name) and any(meant):
                raise _link_error(name)


def _find_remotely(fs: Any, path: str, pattern: str) -> dict[str, dict[str, Any]]:
    """The entries of a listing by path. Drivers' `isdir` and `exists` are not used: they take a refusal for an absence."""
    search = fs.glob if local_glob.has_magic(path) else fs.find
    try:
        entries = cast(
            "dict[str, dict[str, Any]]", with_retries(lambda _: search(path, detail=True), doing="list", place=pattern)
        )
    except FileNotFoundError:  # gcsfs, where there is no bucket
        raise StorageError(f"cannot list {pattern}: there is no such bucket; fix input.path") from None
    if not entries and "s3" in fs.protocol and s3.bucket_is_missing(fs, path, pattern):
        raise StorageError(f"cannot list {pattern}: there is no such bucket; fix input.path")
    return entries


def _all_below(fs: LocalFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """The files below a local directory. Raises `OSError` for a directory that cannot be listed, which fsspec leaves out."""
    entries = fs.find(path, detail=True, withdirs=True)
    for name, info in entries.items():
        if info["type"] == "directory":
            os.scandir(name).close()
    return {name: info for name, info in entries.items() if info["type"] != "directory"}


def _follow_link(name: str, info: dict[str, Any], *, recursive: bool) -> dict[str, Any]:
    """The entry of the file or directory that a local link leads to."""
    try:
        status = os.stat(name)
    except OSError:  # broken or circular: opening it will report that
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


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/") if part)
