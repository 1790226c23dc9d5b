"""Third-party programs for tests on real engines: finds and starts them, and ends all of their processes.

They are not part of the repository; CONTRIBUTING.md describes how each is built. The variable ENGINES names their folder, by
default `../shared/engines`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
_NAMED = os.environ.get("ENGINES")
FOLDER = Path(_NAMED or TESTS.parents[1] / "shared" / "engines").resolve()


def pytest_configure() -> None:
    """Refuse a folder that is named and missing; the default may be missing."""
    if _NAMED and not FOLDER.is_dir():
        raise pytest.UsageError(
            f"ENGINES={_NAMED} is not a folder; name that of the programs, or leave the variable out"
        )


@cache
def why_missing(*programs: str) -> str | None:
    """Return the reason why tests that need these programs are skipped, None where all can be started."""
    for name in programs:
        if not (FOLDER / name).exists():
            return f"no {name} in {FOLDER}"
        try:
            subprocess.run([str(FOLDER / name), "--help"], capture_output=True, timeout=60, check=False)
        except OSError as error:  # built for another system
            return f"{FOLDER / name} cannot be started here: {error.strerror}"
    return None


def engines(*programs: str) -> list[Any]:
    """The marks of tests that need these programs: `pytestmark = engines("prism")`."""
    reason = why_missing(*programs)
    return [pytest.mark.slow, pytest.mark.engines, pytest.mark.skipif(reason is not None, reason=str(reason))]


@contextlib.contextmanager
def started(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program in a session of its own, in the folder of `log`, to which its output goes; at the end all processes of the
    session are gone."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,  # the boot program leaves a file where it is started
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    try:
        yield process
    finally:
        while pids := session(process.pid):  # a child that is being started is met in the next turn
            for pid in pids:
                kill(pid)
            process.wait()
            time.sleep(0.02)


def session(leader: int, words: str = "") -> list[int]:
    """Return the living processes of a session whose command line has these words, in the order of their numbers."""
    pids = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            state, _, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if int(number) == leader and state not in "ZX" and words in command:
                pids.append(int(entry.name))
    return sorted(pids)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def await_port(port: int) -> None:
    def answers() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return True
        return False

    until(answers, f"an answer at port {port}")


def until(holds: Callable[[], bool], what: str, *, secs: float = 60) -> None:
    """Wait until something holds; a hang is a failure."""
    deadline = time.monotonic() + secs
    while not holds():
        assert time.monotonic() < deadline, f"waited {secs:.0f} s for {what}"
        time.sleep(0.05)
