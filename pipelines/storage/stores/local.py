"""Publishes files on a POSIX file system, and removes temporary files that killed writers have left.

An object is written under a temporary dot-name in its own directory, synced, and only then given its name. A writer that is
killed leaves its temporary file, which the next run removes. A lock, not a clock, shows whether a temporary file still has a
writer: the writer holds `flock` on it as long as it needs the file, and the kernel releases the lock when the writer ends for
any reason. Therefore a sweep removes nothing of a live run, on the same machine or in another container on it.

On a shared disk, other machines usually see the locks (NFS, Lustre with `flock`, CephFS), and the same is true. If the file
system has no locks, temporary files remain. If it has locks but hides them from other machines, a sweep may remove a live
temporary file of another machine: its writer then finds the name missing and writes the file again. This costs a second write,
but never loses an object or publishes half of one.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

Writer = Callable[[BinaryIO], None]

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
_ATTEMPTS = 5


def create(path: Path, write: Writer) -> bool:
    """Publish the output of `write` at `path`; False if a file exists there. In both cases the file is durable. Raises `OSError`,
    also if something other than a file exists there, which later readers would report as missing, or wait for.

    `write` is called again if another machine has removed its temporary file.
    """
    if not path.exists():
        _make_directory(path.parent)
        try:
            _put(path, write, _link)
            return True
        except FileExistsError:
            pass
    _refuse_other_kinds(path)
    _sync_directory(path.parent)  # the process that made it may have been killed before this
    return False


def _refuse_other_kinds(path: Path) -> None:
    try:
        kind = kind_of(os.stat(path).st_mode)
    except FileNotFoundError:
        if not os.path.islink(path):  # removed since
            return
        kind = "a link to nothing"
    if kind != "a file":
        raise FileExistsError(errno.EEXIST, f"{kind} stands there")


def kind_of(mode: int) -> str:
    """The kind of file with this mode of `os.stat`, in words."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def open_without_waiting(name: str, flags: int) -> int:
    """An `opener` of `open` for reading. Raises `OSError`, also for a FIFO or a device, which a reader might wait for forever."""
    descriptor = os.open(name, flags | os.O_NONBLOCK)
    kind = kind_of(os.fstat(descriptor).st_mode)
    if kind not in ("a file", "a directory"):  # `open` has its own error for a directory
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {kind}, not a file")
    return descriptor


def replace(path: Path, write: Writer) -> None:
    """Replace `path`, if it exists, by the output of `write`. Raises `OSError`."""
    _put(path, write, os.replace)


def sweep(directory: Path) -> int:
    """Remove temporary files in `directory` that have no writer; return their number. Files that cannot be checked remain."""
    removed = 0
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                removed += _remove_unlocked(entry.path)
    return removed


def _remove_unlocked(path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:  # missing, or another user's
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(
            path
        )  # under the lock: a writer that has just created the file waits, and then sees that it is missing
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _put(path: Path, write: Writer, move: Callable[[Path, Path], None]) -> None:
    for attempt in itertools.count(1):
        with _temporary(path, write) as temporary:
            try:
                move(temporary, path)
            except FileNotFoundError:  # removed by a machine that does not see the locks of this one
                if attempt == _ATTEMPTS or temporary.exists():
                    raise
                continue
            _sync_directory(path.parent)
        return


def _link(temporary: Path, path: Path) -> None:
    """Give a temporary file the name `path`, without replacing another file. Raises `FileExistsError`."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with _directory_locked(path.parent):  # without hard links (some network and FUSE mounts): one creator at a time
            if os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            os.rename(temporary, path)


@contextmanager
def _directory_locked(directory: Path) -> Iterator[None]:
    """Exclude other creators in `directory`, if the file system has locks; otherwise two creators at once both win."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _temporary(path: Path, write: Writer) -> Iterator[Path]:
    """A temporary file beside `path`, written and synced. It is locked while the body runs, and then removed."""
    temporary, descriptor = _open_locked(path)
    try:
        with open(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(descriptor)
            yield temporary
    finally:
        with suppress(OSError):  # the next run removes it
            temporary.unlink()


def _open_locked(path: Path) -> tuple[Path, int]:
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # without locks, no sweep can remove the file either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return temporary, descriptor
        os.close(descriptor)  # removed by a sweep before it was locked


def _make_directory(directory: Path) -> None:
    """Create a directory and those above it, and sync each: a synced file is lost if its directory is not synced."""
    missing = itertools.takewhile(lambda place: not place.exists(), (directory, *directory.parents))
    for place in reversed(list(missing)):
        place.mkdir(exist_ok=True)
        _sync_directory(place.parent)
    if not directory.is_dir():  # something else exists there, or another run has removed the directory
        code = errno.ENOTDIR if os.path.lexists(directory) else errno.ENOENT
        raise OSError(code, os.strerror(code), str(directory))


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:  # some network and FUSE mounts sync only files
            raise
    finally:
        os.close(descriptor)
