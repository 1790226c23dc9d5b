"""An object on an object store, with operations for publishing and reading that fsspec's general interface lacks.

Every method is one operation with its retries (see `retry`), and raises `StorageError` for a permanent failure. `S3Object` and
`GcsObject` can write without replacing; other stores can be read, but not written to.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

from fsspec.implementations.memory import MemoryFileSystem

from pipelines.errors import ConfigError, StorageError
from pipelines.storage.stores.failures import ShortRead
from pipelines.storage.stores.retry import with_retries

Result = TypeVar("Result")

# A larger body is held in memory, sent, and sent again after a failure, in parts of this size.
PART_BYTES = 16 * 2**20


@dataclass(frozen=True)
class ObjectStat:
    """The state of an object at one moment."""

    size: int | None  # bytes; None if the store does not report it
    version: str  # its ETag or generation; empty if there is none
    described: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)  # with the names of a listing


@dataclass(frozen=True)
class RemoteObject(ABC):
    """An object of a given name, which need not exist yet."""

    pins_reads: ClassVar[bool] = True  # whether ranged reads raise if the object has changed since it was seen

    fs: Any
    name: str  # bucket and key, in the driver's form
    place: str  # the URL, for people

    @abstractmethod
    def stat(self) -> ObjectStat | None:
        """The current size and version of the object, None if there is no object; never from a cached listing."""

    @abstractmethod
    def read(self) -> bytes | None:
        """Read the whole object; None if there is none."""

    @abstractmethod
    def _range(self, start: int, end: int, seen: ObjectStat, secs: float) -> bytes:
        """Request bytes of the object in the version `seen`, once; return as many as the store sends."""

    @abstractmethod
    def create(self, file: BinaryIO, size: int) -> bool:
        """Write all `size` bytes of `file`, or nothing; False if any object exists there."""

    @abstractmethod
    def replace(self, data: bytes, version: str | None) -> bool:
        """Overwrite the object of this version (None: any); False if there is another version now, possibly with this data."""

    def read_range(self, start: int, end: int, seen: ObjectStat) -> bytes:
        """Read bytes `start` to `end`, exclusive, of the version `seen`. Raises `StorageError` if the object has changed."""
        if start == end:
            return b""
        try:
            return self._retry("read", lambda secs: check_length(self._range(start, end, seen, secs), end - start))
        except (FileExistsError, FileNotFoundError):  # stores report a change as either
            raise self._changed() from None

    def read_with_stat(self) -> tuple[bytes, ObjectStat] | None:
        """Read the whole object, and return it with its stat, which is of the same version."""
        while (seen := self.stat()) is not None:
            try:
                return self.read_range(0, seen.size or 0, seen), seen
            except ObjectChanged:
                continue
        return None

    def _retry(self, doing: str, request: Callable[[float], Result]) -> Result:
        return with_retries(request, doing=doing, place=self.place)

    def _changed(self) -> ObjectChanged:
        return ObjectChanged(f"{self.place} changed while it was read; run the same command again")


class ObjectChanged(StorageError):
    """The error for an object that has changed since it was seen."""


class UploadDamaged(StorageError):
    """The error for an upload if the store reports other bytes than were sent."""

    def __init__(self, place: str, *, sent: str, stored: str) -> None:
        super().__init__(
            f"cannot write {place}: {sent} were sent, and the store reports {stored}; remove the object there, and run "
            "the same command again; if that recurs, something on the way changes uploads"
        )


def check_length(data: bytes, expected: int) -> bytes:
    """Return `data` if it has as many bytes as expected. Raises `ShortRead`, or `OSError` for too many."""
    if len(data) > expected:
        raise OSError(errno.EIO, "the store sent more bytes than asked for (does it decompress on the way?)")
    if len(data) < expected:
        raise ShortRead(got=len(data), expected=expected)
    return data


@dataclass(frozen=True)
class FsspecObject(RemoteObject):
    """An object on any other store, through fsspec's interface alone: read-only, except on fsspec's in-memory store."""

    pins_reads: ClassVar[bool] = False

    def stat(self) -> ObjectStat | None:
        try:
            info = self._retry("look at", lambda _: self.fs.info(self.name))
        except FileNotFoundError:
            return None
        return ObjectStat(info["size"], "", info) if info["type"] == "file" else None

    def read(self) -> bytes | None:
        try:
            return cast("bytes", self._retry("read", lambda _: self.fs.cat_file(self.name)))
        except FileNotFoundError:
            return None

    def _range(self, start: int, end: int, seen: ObjectStat, secs: float) -> bytes:
        data = cast("bytes", self.fs.cat_file(self.name, start=start, end=end))
        if len(data) != seen.size or end - start == seen.size:
            return data
        if len(data) > PART_BYTES:  # some web servers
            raise ConfigError(
                f"{self.place} cannot be read in parts: its server ignores ranges, and sends all {len(data):,} bytes each time; "
                "copy it to a disk or a bucket"
            )
        return data[start:end]

    def create(self, file: BinaryIO, size: int) -> bool:
        self._refuse_read_only()
        try:
            self.fs.pipe_file(self.name, file.read(), mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, data: bytes, version: str | None) -> bool:
        self._refuse_read_only()
        self.fs.pipe_file(self.name, data)
        return True

    def _refuse_read_only(self) -> None:
        if not isinstance(self.fs, MemoryFileSystem):
            scheme = self.place.split("://", maxsplit=1)[0]
            raise ConfigError(
                f"cannot write {self.place}: bestkept publishes create-only, and knows how on local disks, s3:// and gs://, not "
                f"on {scheme}://; give another output.path or scores.path"
            )
