"""Exit codes, and the one-line error that a run ends with.

An error raised on a Beam worker reaches the launcher only as text inside another exception, so a `BestkeptError` carries
itself through that text as one base64 token (`pack`), from which `from_text` restores it.
"""

from __future__ import annotations

import base64
import difflib
import enum
import errno
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote


class Exit(enum.IntEnum):
    """The exit status of a command."""

    DONE = 0
    CONFIG = 2
    INPUT = 3
    REJECTED = 4
    STORAGE = 5
    CONFLICT = 6
    MODEL = 7
    COST = 8
    INTERRUPTED = 130
    TERMINATED = 143


_TOKEN = re.compile(r"\[bestkept-error:([A-Za-z0-9+/=]+)\]")


class BestkeptError(Exception):
    """An error with a cause a user can act on: one line that names the value, what was expected, and the remedy.

    The message never contains row text. Credentials in its URLs are starred out, whatever the origin of a path, and line breaks
    and other control characters in names are escaped.
    """

    exit_code: Exit = Exit.STORAGE

    def __init__(self, message: str, *, counts: Mapping[str, Any] | None = None) -> None:
        self.message = _shorten(escape_controls(hide_credentials(message)))
        self.counts = dict(counts or {})  # of what was read, if they are the reason for the end
        super().__init__(self.message)

    def pack(self) -> str:
        """This error as a token that survives inside any other text."""
        fields = json.dumps({"code": int(self.exit_code), "message": self.message, "counts": self.counts})
        return f"[bestkept-error:{base64.b64encode(fields.encode()).decode()}]"


class ConfigError(BestkeptError):
    exit_code = Exit.CONFIG


class UnknownOptionError(ConfigError):
    """An option of the command line that is not known, with the nearest of `known` or, without one, the remedy `otherwise`.

    `detail` follows the option in the message. The running command adds its own options by `among`.
    """

    def __init__(self, option: str, *, detail: str = "", known: Sequence[str] = (), otherwise: str) -> None:
        nearest = difflib.get_close_matches(option, known, n=1)
        super().__init__(f"unknown option {option}{detail}; {f'did you mean {nearest[0]}?' if nearest else otherwise}")
        self._option, self._detail, self._known, self._otherwise = option, detail, known, otherwise

    def among(self, options: Sequence[str]) -> UnknownOptionError:
        """The same error, with `options` before the known ones."""
        known = [*options, *self._known]
        return UnknownOptionError(self._option, detail=self._detail, known=known, otherwise=self._otherwise)


class InputError(BestkeptError):
    exit_code = Exit.INPUT


class RejectedError(BestkeptError):
    exit_code = Exit.REJECTED


class StorageError(BestkeptError):
    exit_code = Exit.STORAGE


class BrokenDeviceError(StorageError):
    """A GPU, or another device, that has failed. This process cannot use it again, and must end; no row caused it."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"the device failed ({cause}); no row caused this, and finished work is kept; run the same command "
            "again to resume; if it fails again, check the device (nvidia-smi) or use another one"
        )


class ConflictError(BestkeptError):
    exit_code = Exit.CONFLICT


class ModelLoadError(BestkeptError):
    exit_code = Exit.MODEL


class CostError(BestkeptError):
    exit_code = Exit.COST


_KINDS = (ConfigError, InputError, RejectedError, StorageError, ConflictError, ModelLoadError, CostError)
_BY_CODE: dict[int, type[BestkeptError]] = {int(kind.exit_code): kind for kind in _KINDS}


def from_text(text: str) -> BestkeptError | None:
    """The `BestkeptError` packed in `text` (the first one), or None where there is none."""
    match = _TOKEN.search(text)
    if match is None:
        return None
    fields = json.loads(base64.b64decode(match.group(1)))
    return _BY_CODE[fields["code"]](fields["message"], counts=fields.get("counts"))


_FRAME = re.compile(r'File "[^"]*?((?:pipelines|rm)/[\w/]+\.py)", line (\d+)')
_TYPE = re.compile(r"^(?:[a-z_]\w*\.)*([A-Z]\w*)(?=:|$| \[)", re.MULTILINE)
_ERRNO = re.compile(r"\[Errno (\d+)\]")

_REMEDIES = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "raise the quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the machine's limit on open files (sysctl fs.file-max)",
    errno.ENOMEM: "give the run more memory",
}


def whereabouts(error: BaseException) -> str:
    """The type and place of an error, such as `KeyError at pipelines/score/work.py:120`; errors of the system with their meaning.

    The place is the innermost line of this project in the traceback that the error's text holds, else in its own traceback.
    """
    text = "".join(traceback.format_exception(error)) + str(error)
    frames, kinds = _FRAME.findall(str(error)) or _FRAME.findall(text), _TYPE.findall(str(error))
    kind = kinds[-1] if kinds else type(error).__name__
    number = _errno_of(error)
    kind += f" ({os.strerror(number)})" if number is not None else ""
    return f"{kind} at {frames[-1][0]}:{frames[-1][1]}" if frames else kind


def remedy(error: BaseException) -> str | None:
    """The remedy where a machine has run out of a resource, by the number of the error or of one in its text; else None."""
    known = _REMEDIES.get(_errno_of(error) or 0)
    return None if known is None else f"{known} and run the same command again"


def _errno_of(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    numbers = _ERRNO.findall(str(error))
    return int(numbers[-1]) if numbers else None


def error_to_report(error: Exception, what: str) -> BestkeptError:
    """The error to report for a failed pipeline or worker, named `what`.

    This is the `BestkeptError` itself, or the one packed in the error's text, else a `StorageError` with type and place, but
    without the message, which may hold row text.
    """
    known = error if isinstance(error, BestkeptError) else from_text(str(error))
    if known is not None:
        return known
    report = "run the same command again to resume; if it fails again at this place, please report it"
    return StorageError(f"{what} failed: {whereabouts(error)}; finished scores are kept; {remedy(error) or report}")


@contextmanager
def carrying_errors() -> Iterator[None]:
    """Inside a DoFn: pack a `BestkeptError` into text that reaches the launcher through any runner."""
    try:
        yield
    except BestkeptError as error:
        raise RuntimeError(f"{error.message} {error.pack()}") from error


@contextmanager
def reporting_broken_devices() -> Iterator[None]:
    """Around a model: raise `BrokenDeviceError` for what torch raises where the device has failed."""
    try:
        yield
    except Exception as error:
        if isinstance(error, BestkeptError) or "torch" not in sys.modules:
            raise
        from rm.engine.device import device_error

        broken = device_error(error)
        if broken is None:
            raise
        raise BrokenDeviceError(str(broken)) from error


# Control characters, line and paragraph separators, marks that turn the direction of writing, halves of a pair.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    """Return `text` with what could break a line or steer a terminal shown as in Python's source, such as `\\n` and `\\x1b`."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


_LONGEST = 4000  # characters of a message


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} [...] {text[-_LONGEST // 2 + 7 :]}"


_MOST_NAMES = 100


def join_names(names: Sequence[str]) -> str:
    """Return names for an error message: the first of them, where a file has thousands of columns."""
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,20}):/+", re.IGNORECASE)
_HIDDEN = "***"
CREDENTIALS = "URL contains credentials; give them through the environment, and write an at sign in a path as %40"
_CONTAINER = re.compile(r"[^:@/]*@")
_WITH_CONTAINER = ("abfs", "abfss", "az", "wasb", "wasbs")  # Azure: container@account, neither of which is a secret
_WITHOUT_PORT = ("s3", "s3a", "gs", "gcs")
# `user:12345/x@host` may be a name without dots and its port as well: then an `@` in the path has to be written as %40.
_PORT = re.compile(r"(localhost|[^:]*\.[^:]*):\d{1,5}", re.IGNORECASE)
# An IPv6 address, and an access point.
_NO_PASSWORD = re.compile(r"\[[0-9a-f:.]*\](:\d+)?|arn:aws[a-z-]*:s3.*", re.IGNORECASE)
_HOST = re.compile(r"[\w.-]*\w(:\d+)?|\[[0-9a-f:.]*\](:\d+)?", re.IGNORECASE)
_AFTER = re.compile(r"(/[^\s@]*)?[:.,;)\]}'\"]*(\s|$)")
_MOST_HOSTS = 1000
_known_hosts: set[tuple[str, str]] = set()
_PARAMETER = re.compile(r"[?&;#]([^=&;?#/\s]+)=(?!\*\*\*(?:$|[\s'\"]))")
_SECRET_PART = re.compile(r"token|secret|signature|passw|passphrase|credential|authorization|bearer|session|jwt")
_KEYS = "api|access|account|auth|encryption|private|shared|signing|storage|subscription"
_SECRET_NAME = re.compile(rf"sig|sign|pwd|pass|auth|code|(.*({_KEYS}))?key(id)?|googleaccessid")


def holds_credentials(path: str) -> bool:
    """Return whether a URL in `path` carries a user name, a password, or a parameter whose name says that it is a secret.

    A password may contain anything, such as slashes (AWS) and further `@`. Azure containers are not user names. The hosts and
    buckets of URLs without any are remembered: in a message, text after one of them is not a password.
    """
    if next(_secret_spans(path), None) is not None:
        return True
    for url in _urls(path):
        host = _HOST.match(url.rest, url.container)
        if host and len(_known_hosts) < _MOST_HOSTS and url.rest[host.end() :][:1] in ("", "/"):
            _known_hosts.add((url.scheme, host[0]))
    return False


def hide_credentials(text: str) -> str:
    """Return `text` with the credentials in its URLs starred out: of a URL in quotes up to the quote, and of any other,
    where a password has no clear end, rather too much than too little, unless its host or bucket is known to have none.

    Text that is already hidden is not changed.
    """
    parts, done = [], 0
    for start, end in _secret_spans(text):
        if end > done:
            parts += [text[done:start], _HIDDEN] if start >= done else []
            done = end
    return "".join([*parts, text[done:]])


def hide_credentials_in(value: Any) -> Any:
    """Return a JSON value with `hide_credentials` applied to all its texts."""
    if isinstance(value, str):
        return hide_credentials(value)
    if isinstance(value, dict):
        return {hide_credentials_in(key): hide_credentials_in(item) for key, item in value.items()}
    return [hide_credentials_in(item) for item in value] if isinstance(value, list | tuple) else value


class _Url(NamedTuple):
    """A URL in a text."""

    scheme: str
    start: int  # of the part after its scheme
    rest: str  # from there to its end, or to that of the text, where nothing tells its end
    container: (
        int  # characters of `rest` before what may be user name and password: a container of Azure, and what is hidden
    )


def _urls(text: str) -> Iterator[_Url]:
    for match in _SCHEME.finditer(text):
        scheme, start = match[1].lower(), match.end()
        if scheme in ("file", "local") and match[0].count("/") != 2:
            continue  # a path
        quote = text[match.start() - 1 : match.start()]
        rest = text[start:]
        if quote and quote in "'\"" and (closed := re.match(rf"(?:[^{quote}\\]|\\.)*(?={quote})", rest, re.DOTALL)):
            rest = closed[0]
        container = _CONTAINER.match(rest) if scheme in _WITH_CONTAINER else None
        known = container.end() if container else 0
        known += len(_HIDDEN) + 1 if rest[known:].startswith(_HIDDEN + "@") else 0
        yield _Url(scheme, start, rest, known)


def _secret_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of each secret in the URLs of a text: a user name with its password, or a parameter's value."""
    for scheme, start, rest, container in _urls(text):
        begin, end = start + container, start + len(rest)
        user, secret = _userinfo_length(scheme, rest[container:]), _secret_parameter(rest)
        if user:
            yield begin, begin + user if secret is None else end
        elif secret is not None:
            yield start + secret, end


def _userinfo_length(scheme: str, rest: str) -> int:
    """Return how many characters of a URL, from behind its scheme, are user name and password; 0 without any."""
    first, _, _ = rest.partition("/")
    port = _PORT.fullmatch(first) and scheme not in _WITHOUT_PORT
    held = "@" in first or (":" in first and "@" in rest and not port and not _NO_PASSWORD.fullmatch(first))
    return rest.rindex("@") if held and not _is_known(scheme, rest) else 0


def _is_known(scheme: str, rest: str) -> bool:
    """Return whether a URL has a known host, followed by the rest of a sentence or a path without `@`."""
    host = _HOST.match(rest)
    return host is not None and (scheme, host[0]) in _known_hosts and _AFTER.match(rest, host.end()) is not None


def _secret_parameter(rest: str) -> int | None:
    """Return where the first secret in a URL's parameters begins. It extends to the URL's end, since it may contain `&`."""
    marks = [rest.index(mark) for mark in "?#" if mark in rest]
    for match in _PARAMETER.finditer(rest, min(marks)) if marks else ():
        name = re.sub(r"[^a-z0-9]", "", unquote(match[1]).lower())
        if _SECRET_PART.search(name) or _SECRET_NAME.fullmatch(name):
            return match.end() if match.end() < len(rest) else None
    return None
