"""Copies of models on this machine: each is fetched once, whole or not at all, and checked at every use.

The name of a copy's directory is a hash of the checksums of its files, so different models, or different weights of one model,
have different directories. No copy is ever removed, since another run may use it. Files are fetched into a temporary
dot-directory, which is renamed when all of them are complete and correct. One process of a machine fetches, and the others wait
for a lock (`flock`, which the kernel releases when a process ends for any reason); the next holder of the lock removes what a
killed process has left.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.errors import ModelLoadError, StorageError, remedy
from pipelines.storage import files
from pipelines.storage.files import describe, join
from pipelines.storage.models.checksums import (
    CHECKSUMS_FILE,
    Files,
    FileSum,
    Listing,
    checksum_error,
    digest_of,
    list_model,
)
from pipelines.storage.stores.remote_object import PART_BYTES, ObjectStat, RemoteObject
from rm.conversations import load_json

log = logging.getLogger(__name__)

MODELS = "BESTKEPT_MODELS"
_PARTS_AHEAD = 8  # requests at once
_CHUNK = 1 << 20
_NO_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}


def models_root() -> Path:
    """The directory of the copies: $BESTKEPT_MODELS; else one below the user's cache directory; if that is not writable, a
    directory of this user below the temporary directory. Raises `StorageError`."""
    named = os.environ.get(MODELS)
    if named:
        return _make_root(Path(named).expanduser(), owned=False)
    with suppress(StorageError, RuntimeError):  # the latter: a container's user without a home
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return _make_root(Path(base) / "bestkept" / "models", owned=False)
    place = Path(tempfile.gettempdir()) / f"bestkept-models-{os.getuid()}"
    log.info("the cache directory is not writable; models are kept in %s", place)
    return _make_root(place, owned=True)


def _make_root(root: Path, *, owned: bool) -> Path:
    """Return `root`, and create it if missing. It need not be writable if it has content; if `owned`, it must be this user's."""
    why = "it belongs to another user"
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700 if owned else 0o777)
        if not owned or root.lstat().st_uid == os.getuid():
            if os.access(root, os.W_OK) or any(root.iterdir()):
                return root
            why = "it is not writable"
    except OSError as error:
        why = describe(error)
    raise StorageError(
        f"models cannot be kept in {root}: {why}; set {MODELS} to a directory on a disk with room for them"
    )


def copy_of(url: str, sums: Files, *, contents: Mapping[str, bytes] | None = None) -> Path:
    """The local directory with exactly these files of a model at `url`; missing or damaged ones are taken from `contents` or
    fetched. Raises `StorageError` if that fails or there is no room, and `ModelLoadError` if the store now has other files.
    """
    root = models_root()
    target = root / digest_of(sums)
    if not _damaged_files(target, sums):
        return target
    with _hold_lock(root, target.name):
        missing = _damaged_files(target, sums)
        if not missing:
            return target
        if target.is_dir():
            log.warning("%s in %s is damaged or missing, and is fetched again", missing[0], target)
        needed_bytes = sum(sums[name].bytes for name in missing)
        _refuse_full(root, url, needed_bytes)
        log.info("fetching %s, %d files of %s bytes, to %s", url, len(missing), f"{needed_bytes:,}", target)
        with _temporary_directory(root, target.name) as fresh:
            for name in missing:
                _fetch_checked(url, name, sums[name], fresh / name, (contents or {}).get(name))
            if target.is_dir():  # file by file: a process that has an old file open can still read it
                for name in missing:
                    os.replace(fresh / name, target / name)
            else:
                _rename(fresh, target)
    return target


def copy_unknown(listing: Listing, expected: Files | None) -> dict[str, FileSum]:
    """The checksums of the files of a listing, by fetching all of them; stored for as long as the store shows the same versions.

    Raises `StorageError` if that fails, there is no room, or a checksum differs from that in `expected`.
    """
    root = models_root()
    memo = root / f"{listing.key}.json"
    sums = _read_memo(memo) if listing.key else None
    if sums is None:
        with _hold_lock(root, listing.key or hashlib.sha256(listing.url.encode()).hexdigest()[:32]) as name:
            sums = _read_memo(memo) if listing.key else None
            if sums is None:
                sums = _fetch_all(root, name, listing)
                if listing.key:
                    _write_memo(memo, sums)
    for name, expected_sum in (expected or {}).items():
        if sums[name] != expected_sum:
            raise checksum_error(listing.url, name, "has another sha256 than that")
    return sums


def _fetch_all(root: Path, lock: str, listing: Listing) -> dict[str, FileSum]:
    _refuse_full(root, listing.url, sum(file.bytes or 0 for file in listing.model.values()))
    log.info("%s has no valid %s, so all files are fetched to compute their checksums", listing.url, CHECKSUMS_FILE)
    with _temporary_directory(root, lock) as fresh:
        sums = {name: _fetch(join(listing.url, name), fresh / name) for name in listing.model}
        if list_model(listing.url).model != listing.model:
            raise StorageError(f"{listing.url} changed while it was fetched; run the same command again")
        target = root / digest_of(sums)
        if not target.exists():
            _rename(fresh, target)
    return sums


def _read_memo(memo: Path) -> dict[str, FileSum] | None:
    try:
        content = load_json(memo.read_text(encoding="utf-8"))
        return {name: FileSum(int(size), str(sha256)) for name, (size, sha256) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # if it is unreadable, the files are fetched again


def _write_memo(memo: Path, sums: Files) -> None:
    temporary = memo.with_name(f".{memo.name}.{uuid.uuid4().hex[:12]}.tmp")
    with suppress(OSError):  # without the memo, the files are only fetched again
        try:
            temporary.write_text(json.dumps(sums), encoding="utf-8")
            os.replace(temporary, memo)
        finally:
            temporary.unlink(missing_ok=True)


def _damaged_files(target: Path, sums: Files) -> list[str]:
    """Names of missing or damaged files, sorted."""
    from rm.identity import ModelError, file_hashes

    wrong = []
    for name, expected in sums.items():
        try:
            whole = (target / name).stat().st_size == expected.bytes
            right = whole and file_hashes({name: target / name})[name] == expected.sha256
        except (OSError, ModelError):
            right = False
        if not right:
            wrong.append(name)
    return sorted(wrong)


def _fetch_checked(url: str, name: str, expected: FileSum, path: Path, data: bytes | None) -> None:
    """Fetch a file and check it; if it is not as expected, fetch it once more."""
    if data is not None:
        path.write_bytes(data)
        return
    place = join(url, name)
    first = _fetch(place, path)
    if first == expected:
        return
    log.warning("%s is not what was expected, and is fetched again", place)
    second = _fetch(place, path)
    if second == expected:
        return
    if first != second:
        raise StorageError(f"{place} arrives damaged, differently each time; check the network, and run again")
    raise ModelLoadError(
        f"{place} is not the file that the run was planned with: {_describe(second)}, not {_describe(expected)}; it was "
        "replaced or damaged since: run the same command again to use the new one, or put the planned file back; preferably, "
        "give each model its own path"
    )


def _describe(file: FileSum) -> str:
    return f"{file.bytes:,} bytes of sha256 {file.sha256[:12]}..."


def _fetch(place: str, path: Path) -> FileSum:
    """Copy the current version of an object to a new file; return the size and checksum of the copy."""
    remote = files.object_at(place)
    seen = remote.stat() if remote is not None else None
    if remote is None or seen is None:
        raise StorageError(f"{place} is gone; put it back, or plan again without it")
    digest, count = hashlib.sha256(), 0
    with path.open("wb") as file:
        for part in parts_of(remote, seen):
            file.write(part)
            digest.update(part)
            count += len(part)
        file.flush()
        os.fsync(file.fileno())
    return FileSum(count, digest.hexdigest())


def parts_of(remote: RemoteObject, seen: ObjectStat) -> Iterator[bytes]:
    """Yield the whole object in order, with several requests ahead: one at a time would leave most of the network idle."""
    if seen.size is None:  # some web servers do not report it
        yield remote.read() or b""
        return
    with ThreadPoolExecutor(_PARTS_AHEAD) as pool:
        waiting: deque[Future[bytes]] = deque()
        try:
            for start in range(0, seen.size, PART_BYTES):
                if len(waiting) == _PARTS_AHEAD:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(remote.read_range, start, min(seen.size, start + PART_BYTES), seen))
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _refuse_full(root: Path, url: str, needed_bytes: int) -> None:
    """Raise `StorageError` if there is no room for the files to be fetched."""
    free_bytes = shutil.disk_usage(root).free
    if needed_bytes > free_bytes:
        raise StorageError(
            f"{url} needs {needed_bytes:,} bytes, and {root} has {free_bytes:,} free; remove models there that no run uses, set "
            f"{MODELS} to a directory on a larger disk, or give workers a larger one (on Dataflow: runner.options.disk_size_gb)"
        )


@contextmanager
def _hold_lock(root: Path, name: str) -> Iterator[str]:
    """Hold the lock of this name, and remove what killed holders have left. Raises `StorageError`."""
    path = root / f".{name}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {describe(error)}; set {MODELS} to a writable directory") from error
    try:
        if _lock(descriptor, path):
            _sweep(root, name)
        yield name
    finally:
        os.close(descriptor)  # the file is not removed: otherwise two processes could hold locks of the same name


def _sweep(root: Path, held: str) -> None:
    """Remove the temporary files of killed processes: those of the lock `held`, and of locks that no process holds."""
    for left in root.glob(".*.tmp"):
        name = left.name.split(".")[1]
        if name == held:
            shutil.rmtree(left, ignore_errors=True)
            continue
        with suppress(OSError), (root / f".{name}.lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)


def _lock(descriptor: int, path: Path) -> bool:
    """Wait for the lock; False if the file system has no locks: then two processes may fetch, and the first to finish wins."""
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that fetches the same model (%s)", path)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise StorageError(f"cannot lock {path}: {describe(error)}; set {MODELS} to a local directory") from error
    return True


@contextmanager
def _temporary_directory(root: Path, name: str) -> Iterator[Path]:
    """A new dot-directory; it is removed when the body ends. An `OSError` in the body becomes a `StorageError`."""
    place = root / f".{name}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        place.mkdir()
        yield place
    except OSError as error:
        known = remedy(error) or "check the place and run the same command again"
        raise StorageError(f"cannot write a model to {root}: {describe(error)}; {known}, or set {MODELS}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _rename(fresh: Path, target: Path) -> None:
    try:
        os.rename(fresh, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # without locks: another process was faster
            raise
