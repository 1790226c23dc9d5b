"""Log lines: ours go to standard error, plain or as JSON lines; those of libraries go to a separate file.

The file is in the system's temporary directory: runs may share an output, object stores cannot append, and files in an output
are compared, claimed and swept. It is removed if the command succeeds. It never contains row text or credentials, although
messages of libraries may (Beam quotes the elements on which a step failed). For each record of a library it has the level, the
place, the type of the exception, and the text only if that is a constant of the library's source, with placeholders unfilled.
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

from pipelines.errors import escape_controls, hide_credentials, hide_credentials_in

QUIET, JSON_LOGS, JSON = "--quiet", "--json-logs", "--json"
_OURS = ("pipelines", "rm")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in ([\w<>]+)')


def set_up(ours: logging.Handler | None = None) -> None:
    """Direct the log lines of a command that starts; our own go to `ours`, if given, instead of standard error."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    warnings.filterwarnings("ignore")
    _FILE.leave()
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _Terminal | LibraryLog) or type(handler) is logging.StreamHandler:  # from `basicConfig`
            root.removeHandler(handler)
    root.addHandler(ours or _Terminal())
    root.addHandler(_FILE)
    root.setLevel(logging.WARNING)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def only_warnings() -> None:
    """Drop our lines below the level of a warning, in a process beside one that logs the same lines."""
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.WARNING)


def keep(error: BaseException) -> str | None:
    """Log where `error` was raised, without its message, and return the path of the log file; None if it cannot be written."""
    _FILE.note("ERROR", f"ended by {type(error).__name__}", places=places_of(error))
    return None if _FILE.path is None else str(_FILE.path)


def discard() -> None:
    """Remove the log file after a successful command."""
    _FILE.leave(remove=True)


def places_of(error: BaseException) -> list[str]:
    """The calls that led to an error and its causes, including a worker's calls in the error's text, outermost first."""
    text = "".join(traceback.format_exception(error))
    places = [f"  {file}:{line} in {function}" for file, line, function in _FRAME.findall(text)]
    return list(dict.fromkeys(places))


def is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in _OURS


class _Terminal(logging.Handler):
    """A handler of our lines for the current `sys.stderr`, which a progress bar replaces in order to stay below them."""

    def emit(self, record: logging.LogRecord) -> None:
        mode = output_mode()
        if not is_ours(record) or (mode.quiet and record.levelno < logging.ERROR):
            return
        try:
            message = hide_credentials(record.getMessage())
            fields = getattr(record, "fields", {})
            line = json_line(record.levelname, message, **fields) if mode.json_logs else f"{escape_controls(message)}\n"
            stream: TextIO = sys.stderr
            stream.write(line)
            stream.flush()
        except Exception:
            self.handleError(record)


class LibraryLog(logging.Handler):
    """A log file, created when its first line is written."""

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
            self._file.write("\n".join([f"{time} {level} {hide_credentials(text)}", *places]) + "\n")
            self._file.flush()

    def leave(self, *, remove: bool = False) -> None:
        """Close the file; the next line creates another."""
        with self._writing, suppress(OSError):
            file, path, self._file, self.path = self._file, self.path, None, None
            if file is not None and path is not None:
                file.close()
                if remove:
                    path.unlink(missing_ok=True)


_FILE = LibraryLog()


def _safe_text(record: logging.LogRecord) -> str:
    """The whole text of our own messages; for a library's message, its source text with `%s` in place of data, or a placeholder.

    A message may be built before it is logged, for example by an f-string, and then contain data. It is safe only if it is a
    constant of the code object that logged it, which is found by walking up the stack to the frame of the call.
    """
    if is_ours(record):
        return record.getMessage()
    frame: FrameType | None = sys._getframe()
    while frame is not None and not (
        frame.f_code.co_filename == record.pathname and frame.f_code.co_name == record.funcName
    ):
        frame = frame.f_back
    constants = () if frame is None else frame.f_code.co_consts
    if isinstance(record.msg, str) and any(
        record.msg == constant for constant in constants if isinstance(constant, str)
    ):
        return record.msg
    return "(text left out: it may hold data)"


@dataclass(frozen=True)
class OutputMode:
    """The verbosity and format of a command's output."""

    quiet: bool = False
    json_logs: bool = False
    json: bool = False  # the result as one object on standard output


# A global of the process: log lines come from everywhere, and an error is printed in the requested format even if the command
# line cannot be parsed, when no object of the command exists that could store the mode.
_mode = OutputMode()


def set_output_mode(words: Sequence[str]) -> None:
    """Set the mode from the options of a command line, before or after its command; words after `--` are not options."""
    global _mode
    options = words[: words.index("--")] if "--" in words else words
    _mode = OutputMode(quiet=QUIET in options, json_logs=JSON_LOGS in options, json=JSON in options)


def output_mode() -> OutputMode:
    return _mode


def json_line(level: str, message: str, /, **fields: Any) -> str:
    """One line of `--json-logs`, with its line end: level, time (UTC), message and fields; no field replaces the first three."""
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = {"time": time, "level": level, "message": message}
    return json.dumps(hide_credentials_in({**content, **fields, **content}), default=str) + "\n"


def error_line(message: str, exit_code: int, /, **fields: Any) -> str:
    """The last line of a command that fails, with its line end."""
    if _mode.json_logs:
        return json_line("ERROR", message, exit_code=exit_code, **fields)
    return f"bestkept: {escape_controls(message)}\n"
