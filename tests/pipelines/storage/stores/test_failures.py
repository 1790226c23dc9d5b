"""What drivers raise, as kinds; and how long it is tried."""

from __future__ import annotations

import itertools

import aiohttp
import botocore.exceptions as boto
import google.auth.exceptions as google
import pytest
import requests
from aiohttp.http_exceptions import ContentLengthError
from gcsfs.retry import HttpError
from huggingface_hub.errors import OfflineModeIsEnabled
from s3fs.errors import translate_boto_error

from pipelines.errors import ConflictError, StorageError
from pipelines.storage.stores import failures, retry
from pipelines.storage.stores.failures import Kind, ShortRead, diagnose

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
        retry.with_retries(request, doing="read", place="s3://b/x")


def test_pauses_double_are_bounded_and_differ(monkeypatch):
    monkeypatch.setattr(retry, "PATIENCE", retry.Patience(first_pause_secs=1, longest_pause_secs=10))
    for attempts, longest in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 10), (6, 10), (5000, 10)]:
        drawn = [retry.pause_after(attempts) for _ in range(50)]
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
        retry.with_retries(request, doing="read", place="s3://b/x")
    assert left[0] == 60
    assert left == sorted(left, reverse=True)
    assert 45 < clock.now - began <= 60
    assert 5 <= len(left) <= 9


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ("ExpiredToken ExpiredTokenException TokenRefreshRequired", "sign in again, and run the same command again"),
        (
            "InvalidAccessKeyId SignatureDoesNotMatch InvalidToken InvalidSecurity",
            "check the credentials in the environment",
        ),
        (
            "AccessDenied AllAccessDisabled AccountProblem NotSignedUp",
            "grant these credentials reading, writing and listing",
        ),
        ("NoSuchBucket InvalidBucketName", "create the bucket, or fix its name"),
        ("PermanentRedirect IllegalLocationConstraintException AuthorizationHeaderMalformed", "set AWS_DEFAULT_REGION"),
        ("RequestTimeTooSkewed", "set this machine's clock"),
        ("NotImplemented", "the store cannot write create-only"),
        ("Other", "check the place and run the same command again"),
    ],
)
def test_a_refusal_by_code_has_its_remedy(codes, words):
    for code in codes.split():
        failure = diagnose(s3_error(code, 400))
        assert (failure.kind, failure.cause, failure.remedy[: len(words)]) == (Kind.FATAL, f"400 {code}", words)


@pytest.mark.parametrize(
    ("kind", "codes"),
    [
        (Kind.TRANSIENT, "RequestTimeout SlowDown Throttling ThrottlingException XAmzContentSHA256Mismatch"),
        (Kind.MISSING, "NoSuchKey NoSuchUpload NoSuchVersion"),
        (Kind.EXISTS, "PreconditionFailed"),
    ],
)
def test_other_codes_count_whatever_the_status(kind, codes):
    assert {diagnose(s3_error(code, 400)).kind for code in codes.split()} == {kind}


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (301, Kind.FATAL, "set AWS_DEFAULT_REGION"),
        (400, Kind.FATAL, "check the place"),
        (401, Kind.FATAL, "check the credentials"),
        (403, Kind.FATAL, "grant these"),
        (404, Kind.MISSING, ""),
        (408, Kind.TRANSIENT, ""),
        (409, Kind.TRANSIENT, ""),
        (410, Kind.MISSING, ""),
        (412, Kind.EXISTS, ""),
        (425, Kind.TRANSIENT, ""),
        (429, Kind.TRANSIENT, ""),
        (499, Kind.FATAL, "check the place"),
        (500, Kind.TRANSIENT, ""),
        (501, Kind.FATAL, "the store cannot write create-only"),
        (502, Kind.TRANSIENT, ""),
        (599, Kind.TRANSIENT, ""),
    ],
)
def test_a_status_alone(status, kind, words):
    for number in (status, str(status)):
        failure = diagnose(HttpError({"code": number, "message": SECRET}))
        assert (failure.kind, failure.cause, failure.remedy[: len(words)]) == (kind, str(status), words)


@pytest.mark.parametrize("status", [99, 600, "5xx", None, 1500])
def test_what_is_no_status_is_none(status):
    failure = diagnose(HttpError({"code": status, "message": SECRET}))
    assert failure is None or SECRET not in failure.cause
    assert failure is None or not failure.cause[:1].isdigit()


def test_the_first_that_says_something_counts_and_circles_end():
    inner = chained(RuntimeError(SECRET), chained(ConnectionResetError(SECRET), FileNotFoundError(SECRET)))
    assert diagnose(inner) == diagnose(ConnectionResetError())
    assert diagnose(chained(RuntimeError(SECRET), s3_error("SlowDown", 503))).cause == "503 SlowDown"
    with_context = RuntimeError(SECRET)
    with_context.__context__ = TimeoutError()
    assert diagnose(with_context).kind is Kind.TRANSIENT
    one, two = KeyError("x"), KeyError("y")
    one.__context__, two.__context__ = two, one
    assert diagnose(one) is None


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, Kind.FATAL) for n in sorted(failures._NO_CREDENTIALS)]
    + [(n, Kind.TRANSIENT) for n in sorted(failures._BROKEN)]
    + [("OtherTimeout", Kind.TRANSIENT)],
)
def test_drivers_exceptions_are_told_by_name(name, kind):
    failure = diagnose(type(name, (Exception,), {})(SECRET))
    assert (failure.kind, name in failure.cause) == (kind, True)


def test_what_passes_is_tried_again_until_it_does(clock, caplog):
    came = []

    def request(_):
        came.append(clock.now)
        if len(came) < 4:
            raise TimeoutError
        return "result"

    with caplog.at_level("INFO"):
        assert retry.with_retries(request, doing="read", place="s3://b/x") == "result"
    assert [record.getMessage() for record in caplog.records] == [
        "trying to read s3://b/x again: no answer (TimeoutError)"
    ]
    pauses = [after - before for before, after in itertools.pairwise(came)]
    assert [longest / 2 <= pause <= longest for pause, longest in zip(pauses, (1, 2, 4), strict=True)] == [True] * 3


def test_the_same_cause_is_named_once_with_attempts_and_seconds(clock, monkeypatch):
    monkeypatch.setattr(retry, "pause_after", lambda attempts: 20.0 * attempts)

    def request(secs):
        assert secs == 1060 - clock.now
        raise TimeoutError

    with pytest.raises(StorageError) as raised:
        retry.with_retries(request, doing="list", place="s3://b/x")
    assert str(raised.value) == (
        "cannot list s3://b/x: no answer (TimeoutError), 2 attempts in 20 s; check the store, and run the same command again"
    )
    assert clock.now == 1020


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (s3_error("NoSuchKey", 404), FileNotFoundError, "s3://b/x"),
        (s3_error("PreconditionFailed", 412), FileExistsError, "s3://b/x"),
        (PermissionError(SECRET), StorageError, "cannot read s3://b/x: access denied; grant these credentials"),
        (ConflictError("ours"), ConflictError, "ours"),
    ],
)
def test_what_does_not_pass_is_raised_at_once_and_drags_nothing_along(clock, error, kind, message):
    def request(_):
        raise error

    with pytest.raises(kind) as raised:
        retry.with_retries(request, doing="read", place="s3://b/x")
    assert type(raised.value) is kind
    assert str(raised.value).startswith(message)
    assert (raised.value.__cause__, raised.value.__context__, clock.now) == (None, None, 1000)


def test_a_request_that_took_all_the_time_has_none_left(clock):
    left = []

    def request(secs):
        left.append(secs)
        clock.sleep(50 if len(left) == 1 else 8)
        raise TimeoutError

    with pytest.raises(StorageError, match="attempts in"):
        retry.with_retries(request, doing="read", place="s3://b/x")
    assert min(left) > 0


def test_an_error_of_the_system_says_its_words_and_a_remedy():
    remedy = "check the place and run the same command again"
    assert diagnose(OSError(5, "Input/output error")) == (Kind.FATAL, "Input/output error", remedy)
    assert diagnose(OSError()) == (Kind.FATAL, "OSError", remedy)


def test_a_hub_that_is_set_offline_is_not_asked_again():
    failure = diagnose(OfflineModeIsEnabled("Cannot reach it: offline mode is enabled."))
    assert (failure.kind, failure.cause) == (Kind.FATAL, "the hub is set offline")
