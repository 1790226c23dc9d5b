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
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_URL = re.compile(r"([a-z0-9+.-]+)://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)
_USERINFO = re.compile(r"://[^/\s@]*(?::[^\s@]*)?@")


class Exit(enum.IntEnum):
    """The exit status of a command."""

    DONE = 0
    CONFIG = 2
    INPUT = 3
    REJECTED = 4
    STORAGE = 5
    CONFLICT = 6
    MODEL = 7
    INTERRUPTED = 130
    TERMINATED = 143


_TOKEN = re.compile(r"\[bestkept-error:([A-Za-z0-9+/=]+)\]")


class BestkeptError(Exception):
    """An error with a cause a user can act on: one line that names the value, what was expected, and the remedy.

    The message never holds row text or credentials.
    """

    exit_code: Exit = Exit.STORAGE

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def pack(self) -> str:
        """This error as a token that survives inside any other text."""
        fields = json.dumps({"code": int(self.exit_code), "message": self.message})
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


class ConflictError(BestkeptError):
    exit_code = Exit.CONFLICT


class ModelLoadError(BestkeptError):
    exit_code = Exit.MODEL


_BY_CODE: dict[int, type[BestkeptError]] = {
    int(kind.exit_code): kind
    for kind in (ConfigError, InputError, RejectedError, StorageError, ConflictError, ModelLoadError)
}


def from_text(text: str) -> BestkeptError | None:
    """The `BestkeptError` packed in `text` (the first one), or None where there is none."""
    match = _TOKEN.search(text)
    if match is None:
        return None
    fields = json.loads(base64.b64decode(match.group(1)))
    return _BY_CODE[fields["code"]](fields["message"])


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
    report = "the same command again resumes from there; if it fails again at this place, please report it"
    return StorageError(f"{what} failed: {whereabouts(error)}; what is scored stays; {remedy(error) or report}")


@contextmanager
def carrying_errors() -> Iterator[None]:
    """Inside a DoFn: pack a `BestkeptError` into text that reaches the launcher through any runner."""
    try:
        yield
    except BestkeptError as error:
        raise RuntimeError(f"{error.message} {error.pack()}") from error


def holds_userinfo(path: str) -> bool:
    """Return whether a URL is of the form `scheme://user:password@host/...`; a password may hold slashes, as those of AWS do."""
    match = _URL.search(path)
    if match is None:
        return False
    scheme, first, rest = match.groups()
    port = scheme.lower() not in ("s3", "s3a", "gs", "gcs") and re.fullmatch(r"[^:]*:\d+", first)
    return "@" in first or (":" in first and "@" in rest and not port and not first.startswith("arn:"))


def hide_userinfo(text: str) -> str:
    """`text` with the credentials in its URLs starred out."""
    return _USERINFO.sub("://***@", text)
