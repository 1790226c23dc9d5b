"""S3 through the public `call_s3` of s3fs: objects are created with `If-None-Match: *`, and replaced with `If-Match`.

s3fs's own `pipe_file(mode="create")` also sends this header, but needs the whole body in memory, repeats a broken upload from
its beginning, and aborts a multipart upload whose completion went unanswered, as if it had failed. A store that ignores these
headers (some substitutes for S3) overwrites silently, and cannot be distinguished from one that obeys them.

The client sends a CRC32 with each body. If the response has the CRC32 of the stored bytes, the two are compared.
"""

from __future__ import annotations

import base64
import logging
import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from fsspec.asyn import sync

from pipelines.errors import StorageError
from pipelines.storage.stores import retry
from pipelines.storage.stores.remote_object import PART_BYTES, ObjectStat, RemoteObject, UploadDamaged, check_length
from pipelines.storage.stores.retry import with_retries

log = logging.getLogger(__name__)

_MOST_PARTS = 10_000
_CONNECTIONS = 64  # the driver's own limit of 10 is less than the number of requests at once


def options(user_options: dict[str, Any]) -> dict[str, Any]:
    """Arguments for s3fs, which override the user's own fsspec configuration: only `retry` repeats requests."""
    config = {
        "max_pool_connections": _CONNECTIONS,
        **user_options.get("config_kwargs", {}),
        "connect_timeout": retry.PATIENCE.connect_secs,
        "read_timeout": retry.PATIENCE.silence_secs,
        "retries": {"total_max_attempts": 1, "mode": "standard"},
    }
    return {"use_listings_cache": False, "config_kwargs": config}


def prepare(fs: Any) -> None:
    """Apply the settings that s3fs reads from its attributes."""
    fs.retries = 1


def bucket_is_missing(fs: Any, name: str, place: str) -> bool:
    """Return whether the store reports that there is no such bucket; other errors are ignored here, and recur later."""
    bucket = name.split("/", maxsplit=1)[0]
    try:
        with_retries(lambda secs: fs.call_s3("head_bucket", Bucket=bucket, timeout=secs), doing="list", place=place)
    except FileNotFoundError:
        return True
    except StorageError:
        return False
    return False


@dataclass(frozen=True)
class S3Object(RemoteObject):
    """An object in a bucket of S3 or a compatible store."""

    def stat(self) -> ObjectStat | None:
        try:
            head = self._retry("look at", lambda secs: self._call("head_object", secs))
        except FileNotFoundError:
            return None
        return ObjectStat(int(head["ContentLength"]), head["ETag"], head)

    def read(self) -> bytes | None:
        existing = self.read_with_stat()
        return None if existing is None else existing[0]

    def read_with_stat(self) -> tuple[bytes, ObjectStat] | None:
        try:
            return self._retry("read", self._get)
        except FileNotFoundError:
            return None

    def _range(self, start: int, end: int, seen: ObjectStat, secs: float) -> bytes:
        return self._get(secs, Range=f"bytes={start}-{end - 1}", IfMatch=seen.version)[0]

    def create(self, file: BinaryIO, size: int) -> bool:
        if size <= PART_BYTES:
            return self._put(file.read(), IfNoneMatch="*")
        if self.stat() is not None:  # before the body is sent: S3 checks the condition last
            return False
        upload = cast("str", self._write("create_multipart_upload")["UploadId"])
        try:
            part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))
            parts: list[dict[str, Any]] = []
            sums: list[int] = []
            while part := file.read(part_bytes):
                number = len(parts) + 1
                answer = self._write("upload_part", UploadId=upload, PartNumber=number, Body=part)
                sums.append(zlib.crc32(part))
                self._compare(answer, [sums[-1]], f"part {number}")
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            return self._complete(upload, parts, sums)
        except BaseException:
            self._abort(upload)
            raise

    def replace(self, data: bytes, version: str | None) -> bool:
        try:
            return self._put(data, **({} if version is None else {"IfMatch": version}))
        except FileNotFoundError:  # the object to be replaced no longer exists
            return False

    def _complete(self, upload: str, parts: list[dict[str, Any]], sums: list[int]) -> bool:
        unanswered = False

        def request(secs: float) -> Any:
            nonlocal unanswered
            try:
                arguments = {"UploadId": upload, "MultipartUpload": {"Parts": parts}, "IfNoneMatch": "*"}
                return self._call("complete_multipart_upload", secs, **arguments)
            except FileNotFoundError:
                raise
            except Exception:
                unanswered = True
                raise

        try:
            answer = self._retry("write", request)
        except FileExistsError:
            self._abort(upload)
            return False
        except FileNotFoundError:  # of the upload: an unanswered attempt completed it, or another process aborted it
            if unanswered and self.stat() is not None:
                return False
            raise StorageError(
                f"cannot write {self.place}: its multipart upload is gone; run the same command again"
            ) from None
        self._compare(answer, sums, "all parts")
        return True

    def _compare(self, answer: Any, sums: list[int], sent: str) -> None:
        """Raise `UploadDamaged` if the response has another CRC32 than the parts that were sent.

        The CRC32 of several parts is that of their CRC32s, with their number. A store may respond with the CRC32 of the whole
        body instead, which is not known here and not compared.
        """
        stored = answer.get("ChecksumCRC32")
        composite = stored is not None and "-" in stored
        if stored is None or (len(sums) > 1 and not composite):
            return
        whole = zlib.crc32(b"".join(_big_endian(one) for one in sums)) if composite else sums[0]
        expected = base64.b64encode(_big_endian(whole)).decode() + (f"-{len(sums)}" if composite else "")
        if stored != expected:
            raise UploadDamaged(self.place, sent=f"{sent} of CRC32 {expected}", stored=f"CRC32 {stored}")

    def _abort(self, upload: str) -> None:
        """Discard the parts with a single request: the original error is more important. Never changes an object."""
        try:
            self._call("abort_multipart_upload", retry.PATIENCE.silence_secs, UploadId=upload)
        except FileNotFoundError:
            return
        except Exception:
            log.warning(
                "%s: parts of an unfinished upload may be left; a lifecycle rule of the bucket removes them", self.place
            )

    def _put(self, data: bytes, **condition: str) -> bool:
        try:
            answer = self._write("put_object", Body=data, **condition)
        except FileExistsError:
            return False
        self._compare(answer, [zlib.crc32(data)], f"{len(data):,} bytes")
        return True

    def _write(self, method: str, **arguments: Any) -> Any:
        """Send a request for which 404 means a missing bucket or upload, or with `IfMatch` a missing object."""
        try:
            return self._retry("write", lambda secs: self._call(method, secs, **arguments))
        except FileNotFoundError:
            if "IfMatch" in arguments:
                raise
            raise StorageError(
                f"cannot write {self.place}: the bucket or the upload is not there; check the bucket's name, and run the same "
                "command again"
            ) from None

    def _get(self, secs: float, **arguments: str) -> tuple[bytes, ObjectStat]:
        answer = self._call("get_object", secs, **arguments)
        body, length = answer["Body"], int(answer["ContentLength"])
        try:
            data = check_length(cast("bytes", sync(self.fs.loop, body.read, timeout=secs)), length)
        finally:
            body.close()  # a connection whose body is not read completely is not reused
        return data, ObjectStat(length, answer["ETag"])

    def _call(self, method: str, secs: float, **arguments: Any) -> Any:
        bucket, key, _ = self.fs.split_path(self.name)
        return self.fs.call_s3(method, Bucket=bucket, Key=key, timeout=secs, **arguments)


def _big_endian(crc: int) -> bytes:
    return crc.to_bytes(4, "big")
