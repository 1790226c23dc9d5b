"""Lists the files that a path, a directory or a glob names."""

from __future__ import annotations

import glob as local_glob
import os
import stat
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, NamedTuple, cast

from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import CREDENTIALS, InputError, StorageError, holds_credentials
from pipelines.storage.files import REQUESTS_AT_ONCE, absolute, filesystem, reading, version_of
from pipelines.storage.stores import s3
from pipelines.storage.stores.retry import with_retries


class ListedFile(NamedTuple):
    """A file that an input pattern names."""

    path: str  # full path or URL
    key: str  # relative to the directory above the first wildcard, which does not change when the corpus grows
    info: dict[str, Any]
    named: bool  # whether the pattern is the file's name, not a glob or a directory


class Search(NamedTuple):
    """The request for a pattern to a driver."""

    path: str  # a name, or a glob in which special characters of existing names are escaped
    root: str  # the name, or the directory above the first wildcard
    is_glob: bool


def expand(pattern: str) -> list[ListedFile]:
    """List the files that a path, a directory or a glob names, sorted by path, and directories that a glob matches without their
    files. The caller decides whether the files of such a directory are wanted.

    Files and directories whose names begin with a dot or an underscore are skipped, unless the path names them exactly. A link to
    a file counts as a file, and a broken link as a file of size 0.

    An existing path has priority over the same text as a glob: if there is a file `shard[1].jsonl`, the pattern names this file
    and not `shard1.jsonl`; if there is a directory `run[1]`, then `run[1]/*.jsonl` names the files in it.

    Raises `InputError` if nothing matches, a directory below the named one cannot be listed, or a link to a directory would
    have to be followed.
    """
    fs, path = filesystem(absolute(pattern))
    local = isinstance(fs, LocalFileSystem)
    with reading(pattern):
        search = search_for(path, lambda name: exists_on(fs, name, pattern))
        if search.is_glob and any("**" in part and part != "**" for part in search.path.split("/")):
            raise InputError(
                f"input.path {pattern!r} has ** beside other characters; ** must be alone between slashes: DIR/**/*"
            )
        entries = _find_locally(fs, search) if local else _find_remotely(fs, search, pattern)
        if not local:
            _refuse_credentials(entries, pattern)
            entries = _complete(fs, entries, pattern)
        listed = []
        for name, info in sorted(entries.items()):
            key = name.removeprefix(search.root).lstrip("/") or name.rsplit("/", 1)[-1]
            if local and info.get("islink"):
                info = _follow_link(name, info, recursive=not search.is_glob or "**" in search.path)
            whole = info["type"] == "directory" and not any(other.startswith(name + "/") for other in entries)
            mark = name.endswith("/")  # an empty object that stands for a directory
            named = name == search.path and not search.is_glob
            if (info["type"] == "file" or whole) and (named or not is_hidden(key)) and not mark:
                shown = fs.unstrip_protocol(name) if "://" in pattern else name
                listed.append(ListedFile(shown, key, info, named))
    if not any(entry.info["type"] == "file" for entry in listed):
        inside = f"; to read the files in the directory {listed[0].path} write {listed[0].path}/*" if listed else ""
        raise InputError(f"input.path {pattern!r} matches no file; check the path and the pattern{inside}")
    return listed


def _complete(fs: Any, entries: dict[str, dict[str, Any]], pattern: str) -> dict[str, dict[str, Any]]:
    """Complete the entries of a listing by requests for single files if it lacks their sizes or versions, as that of a web server
    does. Raises `InputError` for a file of unknown size."""

    def look_at(name: str) -> dict[str, Any]:
        info = {**entries[name], **with_retries(lambda _: fs.info(name), doing="look at", place=pattern)}
        if info["type"] == "file" and info.get("size") is None:
            raise InputError(
                f"the size of input file {name} is unknown: its server does not say; copy it to a disk or a bucket"
            )
        return info

    partial = [
        name
        for name, info in entries.items()
        if info.get("type") != "directory" and (info.get("size") is None or not version_of(info))
    ]
    if not partial:
        return entries
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return {**entries, **dict(zip(partial, pool.map(look_at, partial), strict=True))}


def _refuse_credentials(names: Iterable[str], pattern: str) -> None:
    """Raise `InputError` for a name that contains a secret, such as a signed link: names are printed and stored."""
    for name in filter(holds_credentials, names):
        raise InputError(f"input.path {pattern!r} matches {name!r}: {CREDENTIALS}, and list the files by plain URLs")


def search_for(path: str, exists: Callable[[str], bool]) -> Search:
    """The search for a path. `exists` is called only for names with special characters of a glob."""
    parts, names = path.split("/"), 0
    for count, part in enumerate(parts, start=1):
        if local_glob.has_magic(part) and not exists("/".join(parts[:count])):
            break
        names = count
    root = "/".join(parts[:names])
    if names == len(parts):
        return Search(path, root.rstrip("/"), is_glob=False)
    return Search("/".join([*map(local_glob.escape, parts[:names]), *parts[names:]]), root, is_glob=True)


def _find_locally(fs: LocalFileSystem, search: Search) -> dict[str, dict[str, Any]]:
    path = search.path
    if search.is_glob:
        _refuse_links(fs, search)
        return cast("dict[str, dict[str, Any]]", fs.glob(path, detail=True))
    if fs.isdir(path):
        return _all_below(fs, path)
    return {path: fs.info(path)} if fs.exists(path) else {}


def _refuse_links(fs: LocalFileSystem, search: Search) -> None:
    """Raise `InputError` if a wildcard matches a link to a directory that contains files of the pattern, which fsspec would
    omit."""
    parts = search.path.split("/")
    for count in range(1, len(parts)):
        if not local_glob.has_magic(before := "/".join(parts[:count])):
            continue
        rest = "/".join(parts[count - 1 if parts[count - 1] == "**" else count :])
        for name, info in fs.glob(before, detail=True).items():
            below = local_glob.iglob(f"{local_glob.escape(name)}/{rest}", recursive=True)  # this one follows links
            meant = (os.path.isfile(file) and not is_hidden(file.removeprefix(search.root)) for file in below)
            if info.get("islink") and os.path.isdir(name) and any(meant):
                raise _link_error(name)


def exists_on(fs: Any, name: str, pattern: str) -> bool:
    """Return whether a file or a directory has this name; on a store, whether an object has this name or is below it."""
    if isinstance(fs, LocalFileSystem):
        return os.path.exists(name)
    try:
        return bool(with_retries(lambda _: fs.find(name), doing="list", place=pattern))
    except FileNotFoundError:  # raised by gcsfs for a missing bucket
        return False


def _find_remotely(fs: Any, search: Search, pattern: str) -> dict[str, dict[str, Any]]:
    """The entries of a listing by path. Drivers' `isdir` and `exists` are not used: they report denied access as absence."""
    path, ask = search.path, fs.glob if search.is_glob else fs.find
    try:
        entries = cast(
            "dict[str, dict[str, Any]]", with_retries(lambda _: ask(path, detail=True), doing="list", place=pattern)
        )
    except FileNotFoundError:  # raised by gcsfs for a missing bucket
        raise StorageError(f"cannot list {pattern}: there is no such bucket; fix input.path") from None
    if (
        not entries and "http" in fs.protocol and not search.is_glob
    ):  # `find` reports a server that is down as a missing file
        with suppress(FileNotFoundError):
            with_retries(lambda _: fs.ls(path), doing="list", place=pattern)
    if not entries and "s3" in fs.protocol and s3.bucket_is_missing(fs, path, pattern):
        raise StorageError(f"cannot list {pattern}: there is no such bucket; fix input.path")
    return entries


def _all_below(fs: LocalFileSystem, path: str) -> dict[str, dict[str, Any]]:
    """The files below a local directory. Raises `OSError` for a directory that cannot be listed, which fsspec would omit."""
    entries = fs.find(path, detail=True, withdirs=True)
    for name, info in entries.items():
        if info["type"] == "directory":
            os.scandir(name).close()
    return {name: info for name, info in entries.items() if info["type"] != "directory"}


def _follow_link(name: str, info: dict[str, Any], *, recursive: bool) -> dict[str, Any]:
    """The entry of the target of a local link."""
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
        "input.path by name, including this one"
    )


def is_hidden(name: str) -> bool:
    return any(part.startswith((".", "_")) for part in name.split("/") if part)
