"""How a command speaks: to a person or as JSON lines, in full or quietly. Decided once, from the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

QUIET, JSON_LOGS = "--quiet", "--json-logs"


@dataclass(frozen=True)
class Manners:
    quiet: bool = False
    json_logs: bool = False


_now = Manners()
_offered: tuple[str, ...] = (QUIET, JSON_LOGS)


def adopt(words: Sequence[str]) -> None:
    """Take the manners that a command line asks for, before its command or after; what follows `--` are no options."""
    global _now
    options = words[: words.index("--")] if "--" in words else words
    _now = Manners(quiet=QUIET in options, json_logs=JSON_LOGS in options)


def current() -> Manners:
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
