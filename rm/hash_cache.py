"""A cache of the hashes of this machine's large files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CLOCK_TICK_NS = 50_000_000  # more than the resolution of a file system's clock


class HashCache:
    """sha256 of files, kept in the user's cache directory by machine, path, device, inode, size, and times of modification and
    of change.

    Machines that share a home may have different files at the same paths, so each uses only its own entries. The time of
    change cannot be set by hand, but container images may give all files one fixed time, in whole seconds: such files
    are hashed each time, and so are files that have just changed.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        with suppress(RuntimeError):  # the user of a container may have no home
            root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
            self._path = Path(root) / "bestkept" / "sha256.json"
        self._known: dict[str, str] = {}
        self._changed = False

    def __enter__(self) -> HashCache:
        with suppress(OSError, ValueError, RecursionError, AttributeError):  # a cache: unreadable means empty
            if self._path is not None and self._path.is_file():
                entries = json.loads(self._path.read_text(encoding="utf-8")).items()
                self._known = {key: value for key, value in entries if _SHA256.fullmatch(str(value))}
        return self

    def sha256(self, file: Path) -> str:
        real = file.resolve()
        before = real.stat()
        key, telling = _cache_key(real, before), _is_telling(before.st_ctime_ns)  # from before the first byte is read
        if key not in self._known or not telling:
            with real.open("rb") as stream:
                self._known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            if not telling or _cache_key(real, real.stat()) != key:
                return self._known.pop(key)
            self._changed = True
        return self._known[key]

    def __exit__(self, *_: object) -> None:
        if self._path is None or not self._changed:
            return
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex[:12]}.tmp")
        with suppress(OSError):  # a read-only or full home only costs a rehash next time
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")
                os.replace(temporary, self._path)
            finally:
                temporary.unlink(missing_ok=True)


def _cache_key(path: Path, status: os.stat_result) -> str:
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return "|".join([os.uname().nodename, str(path), *map(str, parts)])


def _is_telling(changed_ns: int) -> bool:
    """Return whether a change of a file's content would also change this time of change.

    A time in whole seconds, as in a container image, would not change; a recent one may not if the clock has not ticked since.
    """
    return changed_ns % 1_000_000_000 != 0 and time.time_ns() - changed_ns > _CLOCK_TICK_NS
