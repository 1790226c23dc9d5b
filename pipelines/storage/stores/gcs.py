"""Google Cloud Storage through gcsfs, by its public `call`: create-only with `ifGenerationMatch=0`, replacing with the generation
that was read.

gcsfs's own `pipe_file(mode="create")` sends that parameter too, but wants the whole body in memory, and cannot replace one
generation. Its default class asks a gRPC service what kind of bucket it has, before every request: where that service cannot be
reached (emulators, proxies), each request waits a minute. Its base class asks nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, BinaryIO, cast

from pipelines.errors import StorageError
from pipelines.storage.stores import retry
from pipelines.storage.stores.remote_object import PART_BYTES, ObjectStat, RemoteObject, check_length

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
        session = self._begin(size)
        if session is None:
            return False
        try:
            self._send(session, file, size)
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

        return self._try_insert(request) is not None

    def _begin(self, size: int) -> str | None:
        """The URL of a new resumable upload; None where an object stands there."""
        _, key = self._names()
        headers = {"X-Upload-Content-Type": _BYTES["Content-Type"], "X-Upload-Content-Length": str(size)}

        def request(secs: float) -> Any:
            answer, _ = self._insert("resumable", secs, "0", headers=headers, json={"name": key})
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
                f"cannot write {self.place}: there is no bucket {bucket}; create it, or fix its name; bestkept creates none"
            ) from None

    def _insert(self, kind: str, secs: float, generation: str | None, **arguments: Any) -> Any:
        bucket, key = self._names()
        path = self.fs.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o"
        query = {"uploadType": kind, "name": key, "ifGenerationMatch": generation}  # gcsfs leaves out None
        return self.fs.call("POST", path, bucket, timeout=secs, **query, **arguments)

    def _send(self, session: str, file: BinaryIO, size: int) -> None:
        """Send all bytes of `file` in parts, each from the position that the store reports."""
        arrived = 0
        while arrived < size:
            file.seek(arrived)
            arrived = self._send_part(session, file.read(PART_BYTES), arrived, size)

    def _send_part(self, session: str, part: bytes, start: int, size: int) -> int:
        """Send a part; return how many bytes have arrived afterwards, `size` where the object is complete.

        Raises `FileExistsError` where an object stands there, whoever wrote it.
        """
        failed = False

        def request(secs: float) -> int:
            nonlocal failed
            if failed:  # all of it may have arrived, or some
                arrived = self._count_arrived(session, size, secs)
                if arrived != start:
                    return arrived
            failed = True
            last = start + len(part) - 1
            headers = {**_BYTES, "Content-Range": f"bytes {start}-{last}/{size}"}
            answer, _ = self.fs.call(_SEND, session, headers=headers, data=part, timeout=secs)
            return _next(answer, size)

        try:
            return self._retry("write", request)
        except FileNotFoundError:  # the upload is: completed by a try that went unanswered, or expired
            if failed and self.stat() is not None:
                raise FileExistsError(self.place) from None
            raise StorageError(
                f"cannot write {self.place}: its resumable upload is gone; run the same command again"
            ) from None

    def _count_arrived(self, session: str, size: int, secs: float) -> int:
        answer, body = self.fs.call(_SEND, session, headers={"Content-Range": f"bytes */{size}"}, timeout=secs)
        return _next(answer, size) if "Range" in answer or body else 0  # incomplete, with nothing of it: neither

    def _cancel(self, session: str) -> None:
        """Drop what has arrived, with a single request. Never touches an object; what is left expires within a week."""
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


def _next(answer: Any, size: int) -> int:
    """The first byte that has not arrived, by the answer to a part: a range as long as the upload is incomplete."""
    return int(answer["Range"].rsplit("-", 1)[1]) + 1 if "Range" in answer else size
