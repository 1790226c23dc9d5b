"""Google Cloud Storage through the public `call` of gcsfs: objects are created with `ifGenerationMatch=0`, and replaced with the
generation that was read.

gcsfs's own `pipe_file(mode="create")` also sends this parameter, but needs the whole body in memory, and cannot replace one
specific generation. Before every request, its default class queries the bucket's type from a gRPC service: if that service is
unreachable (emulators, proxies), each request waits a minute. Its base class sends no such query.

The response to an upload has the object's size and CRC32C, which are compared with those of the data. The CRC32C of a large body
is announced first, so that the service refuses other content.
"""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, NamedTuple, cast

from pipelines.errors import StorageError
from pipelines.storage.stores import retry
from pipelines.storage.stores.remote_object import PART_BYTES, ObjectStat, RemoteObject, UploadDamaged, check_length

log = logging.getLogger(__name__)

_SEND = "POST"  # as gcsfs does; aiohttp repeats an unanswered PUT before we can query how much has arrived
_BYTES = {"Content-Type": "application/octet-stream"}


@cache
def driver() -> Any:
    """gcsfs's base class without its own retries: only `retry` repeats requests."""
    from gcsfs.core import GCSFileSystem

    once = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)
    return type("GCSFileSystem", (GCSFileSystem,), {"_request": once})


def options() -> dict[str, Any]:
    """Arguments for gcsfs, in addition to the user's own fsspec configuration."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(
        total=None, connect=retry.PATIENCE.connect_secs, sock_read=retry.PATIENCE.silence_secs
    )
    return {"use_listings_cache": False, "requests_timeout": timeout}


@dataclass(frozen=True)
class GcsObject(RemoteObject):
    """An object in a bucket of Google Cloud Storage."""

    def stat(self) -> ObjectStat | None:
        def request(secs: float) -> Any:
            return self.fs.call("GET", "b/{}/o/{}", *self._names(), json_out=True, timeout=secs)

        try:
            entry = self._retry("look at", request)
        except FileNotFoundError:
            return None
        return ObjectStat(int(entry["size"]), str(entry["generation"]), entry)

    def read(self) -> bytes | None:
        try:
            return self._retry("read", lambda secs: self._get(secs, None, {}))
        except FileNotFoundError:
            return None

    def _range(self, start: int, end: int, seen: ObjectStat, secs: float) -> bytes:
        return self._get(secs, seen.version, {"Range": f"bytes={start}-{end - 1}"})

    def create(self, file: BinaryIO, size: int) -> bool:
        if size <= PART_BYTES:
            return self._put(file.read(), "0")
        content = _described(file)
        session = self._begin(content)
        if session is None:
            return False
        try:
            self._send(session, file, content)
        except FileExistsError:
            return False
        except BaseException:
            self._cancel(session)
            raise
        return True

    def replace(self, data: bytes, version: str | None) -> bool:
        return self._put(data, version)

    def _put(self, data: bytes, generation: str | None) -> bool:
        def request(secs: float) -> Any:
            arguments = {"headers": _BYTES, "data": data, "json_out": True}
            return self._insert("media", secs, generation, **arguments)

        entry = self._try_insert(request)
        if entry is None:
            return False
        self._compare(entry, _Content(len(data), _crc32c(data)))
        return True

    def _begin(self, content: _Content) -> str | None:
        """Start a resumable upload and return its URL; None if an object exists there."""
        _, key = self._names()
        headers = {"X-Upload-Content-Type": _BYTES["Content-Type"], "X-Upload-Content-Length": str(content.size)}

        def request(secs: float) -> Any:
            entry = {"name": key, "crc32c": content.crc32c}
            answer, _ = self._insert("resumable", secs, "0", headers=headers, json=entry)
            return answer["Location"]

        return cast("str | None", self._try_insert(request))

    def _try_insert(self, request: Any) -> Any:
        """Return the response to an insert request; None if its condition fails. Raises `StorageError` for a missing bucket."""
        try:
            return self._retry("write", request)
        except FileExistsError:
            return None
        except FileNotFoundError:
            bucket, _ = self._names()
            raise StorageError(
                f"cannot write {self.place}: there is no bucket {bucket}; create it, or fix its name; bestkept creates no buckets"
            ) from None

    def _insert(self, kind: str, secs: float, generation: str | None, **arguments: Any) -> Any:
        bucket, key = self._names()
        path = self.fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
        query = {"uploadType": kind, "name": key, "ifGenerationMatch": generation}  # gcsfs omits None
        return self.fs.call("POST", path, bucket, timeout=secs, **query, **arguments)

    def _send(self, session: str, file: BinaryIO, content: _Content) -> None:
        """Send all bytes of `file` in parts, each from the position that the store reports."""
        arrived = 0
        while arrived < content.size:
            file.seek(arrived)
            arrived = self._send_part(session, file.read(PART_BYTES), arrived, content)

    def _send_part(self, session: str, part: bytes, start: int, content: _Content) -> int:
        """Send a part; return how many bytes have arrived so far, which is the size if the object is complete.

        Raises `FileExistsError` if an object exists there, and `UploadDamaged` if the complete object has other content.
        """
        failed = False

        def request(secs: float) -> int:
            nonlocal failed
            if failed:  # all of the part may have arrived, or some
                arrived = self._count_arrived(session, content, secs)
                if arrived != start:
                    return arrived
            failed = True
            last = start + len(part) - 1
            headers = {**_BYTES, "Content-Range": f"bytes {start}-{last}/{content.size}"}
            answer, body = self.fs.call(_SEND, session, headers=headers, data=part, timeout=secs)
            return self._next(answer, body, content)

        try:
            return self._retry("write", request)
        except FileNotFoundError:  # of the upload: an unanswered attempt completed it, or it expired
            if failed and self.stat() is not None:
                raise FileExistsError(self.place) from None
            raise StorageError(
                f"cannot write {self.place}: its resumable upload is gone; run the same command again"
            ) from None

    def _count_arrived(self, session: str, content: _Content, secs: float) -> int:
        asked = {"Content-Range": f"bytes */{content.size}"}
        answer, body = self.fs.call(_SEND, session, headers=asked, timeout=secs)
        return self._next(answer, body, content) if "Range" in answer or body else 0  # neither: nothing has arrived

    def _next(self, answer: Any, body: bytes, content: _Content) -> int:
        """The first byte that has not arrived, from the response to a part, which has a range if the upload is incomplete."""
        if "Range" in answer:
            return int(answer["Range"].rsplit("-", 1)[1]) + 1
        self._compare(json.loads(body), content)
        return content.size

    def _compare(self, entry: Any, sent: _Content) -> None:
        """Raise `UploadDamaged` if the store describes an object with other content than was sent."""
        stored = _Content(int(entry["size"]), entry.get("crc32c", sent.crc32c))
        if stored != sent:
            raise UploadDamaged(self.place, sent=str(sent), stored=str(stored))

    def _cancel(self, session: str) -> None:
        """Discard the upload with a single request. Never changes an object; uploads that remain expire within a week."""
        try:
            self.fs.call("DELETE", session, timeout=retry.PATIENCE.silence_secs)
        except Exception:
            log.info("%s: a resumable upload was left unfinished", self.place)

    def _get(self, secs: float, generation: str | None, headers: dict[str, str]) -> bytes:
        answer, data = self.fs.call("GET", self.fs.url(self.name, generation), headers=headers, timeout=secs)
        return check_length(data, int(answer.get("Content-Length", len(data))))

    def _names(self) -> tuple[str, str]:
        bucket, key, _ = self.fs.split_path(self.name)
        return bucket, key


class _Content(NamedTuple):
    """Size and checksum of bytes that were sent or stored."""

    size: int  # bytes
    crc32c: str  # as the service writes it: base64, the highest byte first

    def __str__(self) -> str:
        return f"{self.size:,} bytes of CRC32C {self.crc32c}"


def _crc32c(data: bytes, before: int = 0) -> str:
    return base64.b64encode(_extend(before, data).to_bytes(4, "big")).decode()


def _extend(before: int, data: bytes) -> int:
    from google_crc32c import extend  # installed with the driver, by the extra

    return int(extend(before, data))


def _described(file: BinaryIO) -> _Content:
    """Size and checksum of the rest of `file`."""
    size = crc = 0
    while part := file.read(PART_BYTES):
        size, crc = size + len(part), _extend(crc, part)
    return _Content(size, _crc32c(b"", crc))
