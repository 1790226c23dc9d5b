"""Where log lines go: ours to standard error, plain or as JSON lines; the libraries' to a file of their own.

The file lies in the system's temporary directory: runs may share an output, object stores cannot append, and what lies in an
output is compared, claimed and swept. It is removed when the command ends well. It never holds row text or credentials, which
the libraries' messages may do (Beam quotes the elements that a step failed on): of a library's record it has the level, the
place, the type of an exception, and its text only where that is a constant of the library's source, its gaps not filled in.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

QUIET, JSON_LOGS = "--quiet", "--json-logs"
_OURS = ("pipelines", "rm")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ([\w<>]+)')


def set_up(ours: logging.Handler | None = None) -> None:
    """Give log lines their places, for the command that starts; `ours` is where our own go instead of to standard error."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore")
    _FILE.leave()
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Terminal | LibraryLog) or type(handler) is logging.StreamHandler:  # of `basicConfig`
            root.removeHandler(handler)
    root.addHandler(ours or _Terminal())
    root.addHandler(_FILE)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def keep(error: BaseException) -> str | None:
    """Note where `error` was raised, without its message; the path of the log file, None where it cannot be written."""
    _FILE.note("ERROR", f"ended by {type(error).__name__}", places=places_of(error))
    return None if _FILE.path is None else str(_FILE.path)


def discard() -> None:
    """Remove the log file: nobody needs it."""
    _FILE.leave(remove=True)


def places_of(error: BaseException) -> list[str]:
    """The calls that led to an error and to its causes, those of a worker in its text too, outermost first."""
    text = "".join(traceback.format_exception(error))
    found = [f"  {file}:{line} in {function}" for file, line, function in _FRAME.findall(text)]
    return list(dict.fromkeys(found))


def is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in _OURS


class _Terminal(logging.Handler):
    """Our lines on whatever is standard error at the time: a progress bar puts itself in its place, to stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        now = output_mode()
        if not is_ours(record) or (now.quiet and record.levelno < logging.ERROR):
            return
        try:
            message = record.getMessage()
            fields = getattr(record, "fields", {})
            line = json_line(record.levelname, message, **fields) if now.json_logs else f"{message}\n"
            stream: TextIO = sys.stderr
            stream.write(line)
            stream.flush()
        except Exception:
            self.handleError(record)


class LibraryLog(logging.Handler):
    """A file that is made when there is something to write."""

    def __init__(self) -> None:
        super().__init__()
        self.path: Path | None = None
        self._file: TextIO | None = None
        self._writing = threading.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            places = [f"  {type(record.exc_info[1]).__name__}", *places_of(record.exc_info[1])]
        else:
            places = []
        where = f"{record.name} ({record.filename}:{record.lineno})"
        self.note(record.levelname, f"{where}: {_safe_text(record)}", places=places)

    def note(self, level: str, text: str, *, places: list[str]) -> None:
        with self._writing, suppress(OSError):  # a full disk is no reason to end a run
            if self._file is None:
                descriptor, path = tempfile.mkstemp(prefix="bestkept-", suffix=".log")
                self.path, self._file = Path(path), os.fdopen(descriptor, "w", encoding="utf-8")
            time = datetime.now(UTC).isoformat(timespec="seconds")
            self._file.write("\n".join([f"{time} {level} {text}", *places]) + "\n")
            self._file.flush()

    def leave(self, *, remove: bool = False) -> None:
        """Write no more to the file; the next line makes another."""
        with self._writing, suppress(OSError):
            file, path, self._file, self.path = self._file, self.path, None, None
            if file is not None and path is not None:
                file.close()
                if remove:
                    path.unlink(missing_ok=True)


_FILE = LibraryLog()


def _safe_text(record: logging.LogRecord) -> str:
    """Our own messages whole; of a library's what its authors wrote, with `%s` where data would stand, or a mark."""
    if is_ours(record):
        return record.getMessage()
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (
        frame.f_code.co_filename == record.pathname and frame.f_code.co_name == record.funcName
    ):
        frame = frame.f_back
    constants = () if frame is None else frame.f_code.co_consts
    if isinstance(record.msg, str) and any(record.msg == one for one in constants if isinstance(one, str)):
        return record.msg
    return "(text left out: it may hold data)"


@dataclass(frozen=True)
class OutputMode:
    quiet: bool = False
    json_logs: bool = False


_now = OutputMode()
_offered: tuple[str, ...] = (QUIET, JSON_LOGS)


def set_output_mode(words: Sequence[str]) -> None:
    """Take the manners that a command line asks for, before its command or after; what follows `--` are no options."""
    global _now
    options = words[: words.index("--")] if "--" in words else words
    _now = OutputMode(quiet=QUIET in options, json_logs=JSON_LOGS in options)


def output_mode() -> OutputMode:
    return _now


def offer(options: Sequence[str]) -> None:
    """Note the options of the command that runs, so that a misspelt one is not taken for a flag of Beam's."""
    global _offered
    _offered = tuple(options)


def offered() -> tuple[str, ...]:
    return _offered


def json_line(level: str, message: str, /, **fields: Any) -> str:
    """One line of `--json-logs`, with its line end: level, time (UTC), message and fields; a field never hides one of these."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = {"time": time, "level": level, "message": message}
    return json.dumps({**content, **fields, **content}, default=str) + "\n"


def error_line(message: str, exit_code: int, /, **fields: Any) -> str:
    """The last line of a command that fails, with its line end."""
    if _now.json_logs:
        return json_line("ERROR", message, exit_code=exit_code, **fields)
    return f"bestkept: {message}\n"
