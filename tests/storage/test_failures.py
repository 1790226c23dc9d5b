"""What drivers raise, as kinds; and how long it is tried."""

from __future__ import annotations

import aiohttp
import botocore.exceptions as boto
import google.auth.exceptions as google
import pytest
import requests
from aiohttp.http_exceptions import ContentLengthError
from gcsfs.retry import HttpError
from s3fs.errors import translate_boto_error

from pipelines.errors import StorageError
from pipelines.storage import retrying
from pipelines.storage.failures import Kind, ShortRead, diagnose

SECRET = "canary0secret"


def s3_error(code: str, status: int) -> BaseException:
    response = {"Error": {"Code": code, "Message": SECRET}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return translate_boto_error(boto.ClientError(response, "PutObject"))


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "cause"),
    [
        (s3_error("SlowDown", 503), Kind.TRANSIENT, "503 SlowDown"),
        (s3_error("InternalError", 200), Kind.FATAL, "200 InternalError"),
        (s3_error("InternalError", 500), Kind.TRANSIENT, "500 InternalError"),
        (s3_error("RequestTimeout", 400), Kind.TRANSIENT, "400 RequestTimeout"),
        (s3_error("ConditionalRequestConflict", 409), Kind.TRANSIENT, "409 ConditionalRequestConflict"),
        (s3_error("PreconditionFailed", 412), Kind.EXISTS, "412 PreconditionFailed"),
        (s3_error("NoSuchKey", 404), Kind.MISSING, "404 NoSuchKey"),
        (s3_error("404", 404), Kind.MISSING, "404"),
        (s3_error("NoSuchBucket", 404), Kind.FATAL, "404 NoSuchBucket"),
        (s3_error("AccessDenied", 403), Kind.FATAL, "403 AccessDenied"),
        (s3_error(f"<{SECRET}>", 400), Kind.FATAL, "400"),
        (s3_error("NotImplemented", 501), Kind.FATAL, "501 NotImplemented"),
        (HttpError({"code": 503, "message": SECRET}), Kind.TRANSIENT, "503"),
        (HttpError({"code": "429", "message": SECRET}), Kind.TRANSIENT, "429"),
        (HttpError({"code": 410, "message": SECRET}), Kind.MISSING, "410"),
        (HttpError({"code": 401, "message": SECRET}), Kind.FATAL, "401"),
        (ValueError(f"Bad Request: o\n{SECRET}"), Kind.FATAL, "400"),
        (OSError(f"Forbidden: o\n{SECRET}"), Kind.FATAL, "access denied"),
        (FileExistsError(SECRET), Kind.EXISTS, "exists"),
        (PermissionError(13, SECRET), Kind.FATAL, "access denied"),
        (OSError(28, "No space left on device"), Kind.FATAL, "No space left on device"),
        (boto.NoCredentialsError(), Kind.FATAL, "no usable credentials (NoCredentialsError)"),
        (google.RefreshError(SECRET), Kind.FATAL, "no usable credentials (RefreshError)"),
        (google.RefreshError(SECRET, retryable=True), Kind.TRANSIENT, "no usable credentials (RefreshError)"),
        (google.TransportError(SECRET), Kind.TRANSIENT, "the connection failed (TransportError)"),
        (
            boto.EndpointConnectionError(endpoint_url=SECRET),
            Kind.TRANSIENT,
            "the connection failed (EndpointConnectionError)",
        ),
        (boto.ReadTimeoutError(endpoint_url=SECRET), Kind.TRANSIENT, "the connection failed (ReadTimeoutError)"),
        (requests.exceptions.ProxyError(SECRET), Kind.TRANSIENT, "the connection failed (ProxyError)"),
        (aiohttp.ServerDisconnectedError(SECRET), Kind.TRANSIENT, "the connection failed (ServerDisconnectedError)"),
        (
            chained(aiohttp.ClientPayloadError(SECRET), ContentLengthError(SECRET)),
            Kind.TRANSIENT,
            "the connection failed (ClientPayloadError)",
        ),
        (TimeoutError(), Kind.TRANSIENT, "no answer (TimeoutError)"),
        (ConnectionResetError(104, SECRET), Kind.TRANSIENT, "the connection failed (ConnectionResetError)"),
        (ShortRead(got=5, expected=10), Kind.TRANSIENT, "the body was cut, 5 of 10 bytes came"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_kinds(error, kind, cause):
    failure = diagnose(error)
    assert (failure.kind, failure.cause) == (kind, cause)
    assert SECRET not in failure.cause + failure.remedy
    assert bool(failure.remedy) == (kind is Kind.FATAL)


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x"), AttributeError("code")])
def test_mistakes_of_the_program_are_no_failures_of_a_store(error):
    assert diagnose(error) is None

    def request(_):
        raise error

    with pytest.raises(type(error)):
        retrying.patiently(request, doing="read", place="s3://b/x")


def test_pauses_double_are_bounded_and_differ(monkeypatch):
    monkeypatch.setattr(retrying, "PATIENCE", retrying.Patience(first_pause_secs=1, longest_pause_secs=10))
    for attempts, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10), (5000, 10)]:
        drawn = [retrying.pause_after(attempts) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in drawn)
        assert len(set(drawn)) > 10


def test_a_request_is_told_how_long_it_may_take_and_the_deadline_holds(clock):
    left, began = [], clock.now

    def request(secs):
        left.append(secs)
        clock.sleep(min(5, secs))
        raise TimeoutError if len(left) > 1 else ConnectionResetError

    causes = r"the connection failed \(ConnectionResetError\) and no answer \(TimeoutError\)"
    with pytest.raises(StorageError, match=rf"cannot read s3://b/x: {causes}, \d attempts in"):
        retrying.patiently(request, doing="read", place="s3://b/x")
    assert left[0] == 60
    assert left == sorted(left, reverse=True)
    assert 45 < clock.now - began <= 60
    assert 5 <= len(left) <= 9
