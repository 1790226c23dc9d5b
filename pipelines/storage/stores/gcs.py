"""Google Cloud Storage through gcsfs, by its public `call`: create-only with `ifGenerationMatch=0`, replacing with the generation
that was read.

gcsfs's own `pipe_file(mode="create")` sends that parameter too, but wants the whole body in memory, and cannot replace one
generation. Its default class asks a gRPC service what kind of bucket it has, before every request: where that service cannot be
reached (emulators, proxies), each request waits a minute. Its base class asks nothing.

The answer to an upload has size and CRC32C of the object, which are compared with what was sent. The CRC32C of a large body is
announced first, so that the service refuses another one.
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

_SEND = "POST"  # as gcsfs does; a PUT that goes unanswered is sent again by aiohttp, unasked, before we can ask what arrived
_BYTES = {"Content-Type": "application/octet-stream"}


@cache
def driver() -> Any:
    """gcsfs's base class without its own retries: requests are tried again in `retry` alone."""
    from gcsfs.core import GCSFileSystem

    once = getattr(GCSFileSystem._request, "__wrapped__", GCSFileSystem._request)
    return type("GCSFileSystem", (GCSFileSystem,), {"_request": once})


def options() -> dict[str, Any]:
    """Arguments for gcsfs, beside the user's own fsspec configuration."""
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
        """The URL of a new resumable upload; None where an object stands there."""
        _, key = self._names()
        headers = {"X-Upload-Content-Type": _BYTES["Content-Type"], "X-Upload-Content-Length": str(content.size)}

        def request(secs: float) -> Any:
            entry = {"name": key, "crc32c": content.crc32c}
            answer, _ = self._insert("resumable", secs, "0", headers=headers, json=entry)
            return answer["Location"]

        return cast("str | None", self._try_insert(request))

    def _try_insert(self, request: Any) -> Any:
        """Return the answer to a request to insert; None where its condition fails. Raises `StorageError` without a bucket."""
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
        query = {"uploadType": kind, "name": key, "ifGenerationMatch": generation}  # gcsfs leaves out None
        return self.fs.call("POST", path, bucket, timeout=secs, **query, **arguments)

    def _send(self, session: str, file: BinaryIO, content: _Content) -> None:
        """Send all bytes of `file` in parts, each from the position that the store reports."""
        arrived = 0
        while arrived < content.size:
            file.seek(arrived)
            arrived = self._send_part(session, file.read(PART_BYTES), arrived, content)

    def _send_part(self, session: str, part: bytes, start: int, content: _Content) -> int:
        """Send a part; return how many bytes have arrived afterwards, the size where the object is complete.

        Raises `FileExistsError` where any object stands there, and `UploadDamaged` where it is complete and has
        other content.
        """
        failed = False

        def request(secs: float) -> int:
            nonlocal failed
            if failed:  # all of it may have arrived, or some
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
        except FileNotFoundError:  # the upload is: completed by a try that went unanswered, or expired
            if failed and self.stat() is not None:
                raise FileExistsError(self.place) from None
            raise StorageError(
                f"cannot write {self.place}: its resumable upload is gone; run the same command again"
            ) from None

    def _count_arrived(self, session: str, content: _Content, secs: float) -> int:
        asked = {"Content-Range": f"bytes */{content.size}"}
        answer, body = self.fs.call(_SEND, session, headers=asked, timeout=secs)
        return (
            self._next(answer, body, content) if "Range" in answer or body else 0
        )  # neither: nothing of it has arrived

    def _next(self, answer: Any, body: bytes, content: _Content) -> int:
        """The first byte that has not arrived, by the answer to a part: a range as long as the upload is incomplete."""
        if "Range" in answer:
            return int(answer["Range"].rsplit("-", 1)[1]) + 1
        self._compare(json.loads(body), content)
        return content.size

    def _compare(self, entry: Any, sent: _Content) -> None:
        """Raise `UploadDamaged` unless the object that the store describes has the content that was sent."""
        stored = _Content(int(entry["size"]), entry.get("crc32c", sent.crc32c))
        if stored != sent:
            raise UploadDamaged(self.place, sent=str(sent), stored=str(stored))

    def _cancel(self, session: str) -> None:
        """Drop what has arrived, with a single request. Never touches an object; other uploads expire within a week."""
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
    """Bytes that are sent, or that the store has."""

    size: int  # bytes
    crc32c: str  # as the service writes it: base64, the highest byte first

    def __str__(self) -> str:
        return f"{self.size:,} bytes of CRC32C {self.crc32c}"


def _crc32c(data: bytes, before: int = 0) -> str:
    return base64.b64encode(_extend(before, data).to_bytes(4, "big")).decode()


def _extend(before: int, data: bytes) -> int:
    from google_crc32c import extend  # of the extra, as the driver is

    return int(extend(before, data))


def _described(file: BinaryIO) -> _Content:
    """Size and checksum of all that follows in `file`."""
    size = crc = 0
    while part := file.read(PART_BYTES):
        size, crc = size + len(part), _extend(crc, part)
    return _Content(size, _crc32c(b"", crc))
