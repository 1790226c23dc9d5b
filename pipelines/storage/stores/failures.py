"""Failures of object stores: the exceptions of their drivers, sorted into a few kinds and described in our own words.

Drivers raise their own exceptions and those of botocore, aiohttp, requests and Google, not all of them subclasses of `OSError`.
Their texts are never passed on: a server or a credential helper may have put secrets into them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

Value = TypeVar("Value")


class Kind(enum.Enum):
    """The kinds of failures, by the possible reactions to them."""

    MISSING = "there is no such object"
    EXISTS = "a precondition does not hold: something is there already, or has changed"
    TRANSIENT = "may go away by itself"
    FATAL = "will not go away by itself"


class Failure(NamedTuple):
    kind: Kind
    cause: str  # for people: status, code, type; never the driver's text
    remedy: str = ""


class ShortRead(Exception):
    """A body that is shorter than the store had announced."""

    def __init__(self, *, got: int, expected: int) -> None:
        super().__init__(f"{got} of {expected} bytes came")


_SIGN_IN = (
    "check the credentials in the environment (AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret; for gs:// "
    "GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login`)"
)
_RENEW = "sign in again, and run the same command again"
_GRANT = "grant these credentials reading, writing and listing there, or choose another place"
_NO_BUCKET = "create the bucket, or fix its name; bestkept creates none"
_REGION = "set AWS_DEFAULT_REGION to the region of the bucket"
_CLOCK = "set this machine's clock"
_CREATE_ONLY = (
    "the store cannot write create-only (If-None-Match, ifGenerationMatch), which keeps runs apart; use one that can"
)

_BY_CODE = {
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"), _RENEW),
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity"), _SIGN_IN),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp"), _GRANT),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), _NO_BUCKET),
    **dict.fromkeys(
        ("PermanentRedirect", "IllegalLocationConstraintException", "AuthorizationHeaderMalformed"), _REGION
    ),
    "RequestTimeTooSkewed": _CLOCK,
    "NotImplemented": _CREATE_ONLY,
}
_BY_STATUS = {401: _SIGN_IN, 403: _GRANT, 301: _REGION, 501: _CREATE_ONLY}
_NO_CREDENTIALS = {
    "CredentialRetrievalError",
    "DefaultCredentialsError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "RefreshError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
    "UnauthorizedSSOTokenError",
}
_BROKEN = {  # of botocore, requests and google.auth; none is a subclass of ConnectionError
    "ChunkedEncodingError",
    "ConnectTimeoutError",
    "ConnectionClosedError",
    "ConnectionError",
    "ContentDecodingError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProxyConnectionError",
    "ProxyError",
    "ReadTimeout",
    "ReadTimeoutError",
    "ResponseParserError",
    "ResponseStreamingError",
    "SSLError",
    "TransportError",
}
_ANSWERS = {"HttpError", "ClientResponseError"}  # of gcsfs and aiohttp, for a response of the store
_AGAIN = {408, 409, 425, 429}  # 409: two conditional writes at once; the next attempt shows which one won
_AGAIN_CODES = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "XAmzContentSHA256Mismatch"}


def diagnose(error: BaseException) -> Failure | None:
    """The failure that caused a driver's exception; None for a programming error, which must not be hidden."""
    links = list(_chain(error))
    status, code = _first(map(_status, links)), _first(map(_code, links))
    if status is not None or code is not None:
        return _classify_answer(status, code)
    for link in links:
        name = type(link).__name__
        if name in _NO_CREDENTIALS:
            passing = getattr(link, "retryable", False) is True  # an attribute of Google's exceptions
            cause = f"no usable credentials ({name})"
            return Failure(Kind.TRANSIENT, cause) if passing else Failure(Kind.FATAL, cause, _SIGN_IN)
        if name == "OfflineModeIsEnabled":  # of huggingface_hub: a setting, so a retry does not help
            return Failure(Kind.FATAL, "the hub is set offline", "unset HF_HUB_OFFLINE, or give a local copy")
        if isinstance(link, ShortRead):
            return Failure(Kind.TRANSIENT, f"the body was cut, {link}")
        if isinstance(link, FileNotFoundError):
            return Failure(Kind.MISSING, "not found")
        if isinstance(link, FileExistsError):
            return Failure(Kind.EXISTS, "exists")
        if isinstance(link, PermissionError) or str(link).startswith("Forbidden: "):  # the latter is gcsfs's 403
            return Failure(Kind.FATAL, "access denied", _GRANT)
        if isinstance(link, TimeoutError) or name.endswith("Timeout"):
            return Failure(Kind.TRANSIENT, f"no answer ({name})")
        if isinstance(link, ConnectionError) or name in _BROKEN or type(link).__module__.startswith("aiohttp"):
            return Failure(Kind.TRANSIENT, f"the connection failed ({name})")
    if isinstance(error, OSError):
        return Failure(
            Kind.FATAL, error.strerror or type(error).__name__, "check the place and run the same command again"
        )
    if str(error).startswith("Bad Request: "):  # gcsfs's 400 with the word "invalid" in it
        return _classify_answer(400, None)
    return None


def _classify_answer(status: int | None, code: str | None) -> Failure:
    """A failure that the store itself has reported."""
    cause = " ".join(str(part) for part in (status, code) if part is not None)
    if code == "PreconditionFailed" or status == 412:
        return Failure(Kind.EXISTS, cause)
    if code in _AGAIN_CODES or status in _AGAIN or (status is not None and status >= 500 and status != 501):
        return Failure(Kind.TRANSIENT, cause)
    if code in _BY_CODE:
        return Failure(Kind.FATAL, cause, _BY_CODE[code])
    if status in (404, 410) or code in ("NoSuchKey", "NoSuchUpload", "NoSuchVersion"):
        return Failure(Kind.MISSING, cause)
    return Failure(Kind.FATAL, cause, _BY_STATUS.get(status or 0, "check the place and run the same command again"))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, outermost first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _first(values: Iterable[Value | None]) -> Value | None:
    return next((value for value in values if value is not None), None)


def _status(link: BaseException) -> int | None:
    """The HTTP status in an exception."""
    response = getattr(link, "response", None)
    if isinstance(response, dict):
        return _number(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    if type(link).__name__ not in _ANSWERS:  # aiohttp's error for a truncated body has the code 400
        return None
    return _number(getattr(link, "code", None)) or _number(getattr(link, "status", None))


def _number(value: object) -> int | None:
    if isinstance(value, int | str) and re.fullmatch(r"[1-5]\d\d", str(value)):
        return int(value)
    return None


def _code(link: BaseException) -> str | None:
    """S3's code for a failure (such as `SlowDown`), if there is one."""
    response = getattr(link, "response", None)
    if not isinstance(response, dict):
        return None
    code = str(response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch(r"[A-Za-z][A-Za-z0-9]{1,63}", code) else None
