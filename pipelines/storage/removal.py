"""Lists files with their ages and removes them, for `bestkept clean` only.

Code that writes outputs never removes a published file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import StorageError
from pipelines.storage.files import REQUESTS_AT_ONCE, describe, filesystem, join
from pipelines.storage.stores.retry import with_retries


class DatedFile(NamedTuple):
    """A file below a directory."""

    name: str  # relative to the directory
    modified: datetime | None  # None if the store does not report it


def files_below(directory: str) -> list[DatedFile]:
    """All files below a directory, including unpublished ones, sorted by name; empty if there is no such directory."""
    fs, root = filesystem(directory)
    if isinstance(fs, LocalFileSystem):
        paths = [Path(place, name) for place, _, names in os.walk(root) for name in names]
        return sorted(DatedFile(str(path.relative_to(root)), _local_time(path)) for path in paths)
    listed = with_retries(lambda _: fs.find(root, detail=True), doing="list", place=directory)
    prefix = root.rstrip("/") + "/"
    return sorted(
        DatedFile(name.removeprefix(prefix), modified_of(info))
        for name, info in listed.items()
        if name.startswith(prefix)
    )


def directories_in(directory: str) -> list[str]:
    """Names of the directories directly in a directory, sorted; empty if there is no such directory."""
    fs, root = filesystem(directory)
    if isinstance(fs, LocalFileSystem):
        return sorted(path.name for path in Path(root).iterdir() if path.is_dir()) if os.path.isdir(root) else []
    try:
        listed = with_retries(lambda _: fs.ls(root, detail=True), doing="list", place=directory)
    except FileNotFoundError:
        return []
    below = (entry["name"].rstrip("/") for entry in listed if entry["type"] == "directory")
    return sorted(name.rsplit("/", 1)[-1] for name in below if name != root.rstrip("/"))


def remove(path: str) -> None:
    """Remove a file, if it still exists. Raises `StorageError`."""
    fs, name = filesystem(path)
    if not isinstance(fs, LocalFileSystem):
        with suppress(FileNotFoundError):
            with_retries(lambda _: fs.rm_file(name), doing="remove", place=path)
        return
    try:
        os.unlink(name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(
            f"cannot remove {path}: {describe(error)}; grant write access to its directory, and run the same command again"
        ) from error


def remove_all(directory: str, names: Iterable[str]) -> None:
    """Remove files by their names below a directory, in any order, and then the empty local directories."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        list(pool.map(lambda name: remove(join(directory, name)), names))
    fs, root = filesystem(directory)
    if isinstance(fs, LocalFileSystem):
        for place, _, _ in os.walk(root, topdown=False):
            with suppress(OSError):  # not empty
                os.rmdir(place)


def modified_of(info: dict[str, Any]) -> datetime | None:
    """The time at which an object was written, from its entry in a listing."""
    for key in ("LastModified", "mtime", "updated", "created"):
        value = info.get(key)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None


def _local_time(path: Path) -> datetime | None:
    with suppress(OSError):
        return datetime.fromtimestamp(path.lstat().st_mtime, UTC)
    return None
