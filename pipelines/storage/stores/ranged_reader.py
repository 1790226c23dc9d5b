"""A file object over ranged reads of a remote object, with a few windows of read-ahead.

Parquet reads several columns in turn, each forward. Every such stream has its own window, which grows with further reads, so
that a footer costs little and a scan needs few requests.
"""

from __future__ import annotations

import io
from typing import BinaryIO, cast

from pipelines.storage.stores.remote_object import ObjectStat, RemoteObject

_FIRST_BYTES = 128 * 2**10
_MOST_BYTES = 4 * 2**20
_WINDOWS = 8


def open_remote(remote: RemoteObject, seen: ObjectStat) -> BinaryIO:
    """Open `remote` for reading, in the version `seen`. Reads raise `StorageError`, also if the object has changed."""
    return cast("BinaryIO", io.BufferedReader(RemoteFile(remote, seen), buffer_size=64 * 2**10))


class RemoteFile(io.RawIOBase):
    """An unbuffered file whose reads return all requested bytes, except at the end of the file."""

    def __init__(self, remote: RemoteObject, seen: ObjectStat) -> None:
        self._remote = remote
        self._seen = seen
        self._size = seen.size or 0
        self._position = 0
        self._windows: list[tuple[int, bytes]] = []  # start and data; the most recently used one is last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(22, "negative seek position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview | bytearray) -> int:  # type: ignore[override]
        end = min(self._size, self._position + len(buffer))
        count = max(0, end - self._position)
        if count:
            buffer[:count] = self._bytes(self._position, end)
            self._position = end
        return count

    def _bytes(self, start: int, end: int) -> bytes:
        for number, (first, data) in enumerate(self._windows):
            if first <= start <= first + len(data):  # inside the window, or at its end
                del self._windows[number]
                if end > first + len(data):
                    rest = data[start - first :]
                    ahead = max(end - start - len(rest), min(_MOST_BYTES, 2 * len(data)))
                    first, data = start, rest + self._fetch(start + len(rest), ahead)
                break
        else:
            first, data = start, self._fetch(start, max(end - start, _FIRST_BYTES))
        self._windows = [*self._windows[-_WINDOWS + 1 :], (first, data)]
        return data[start - first : end - first]

    def _fetch(self, start: int, count: int) -> bytes:
        return self._remote.read_range(start, min(self._size, start + count), self._seen)
