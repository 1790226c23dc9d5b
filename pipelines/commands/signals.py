"""Signals that end a run: at once, with a line that says how to resume, even if the main thread is busy."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from pipelines.runtime import logs

_ENDS = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}
_STAYS = "; finished work is kept; run the same command again to resume"
_ENDING = threading.Lock()
# A global of the process, as signals are: each command supplies the words after "interrupted".
_say: Callable[[], str] | None = None


@contextmanager
def ending_with(say: Callable[[], str]) -> Iterator[None]:
    """Use the words of `say` after "interrupted" or "terminated" while the body runs; it must neither wait nor raise."""
    global _say
    _say = say
    try:
        yield
    finally:
        _say = None


def _end_now(number: int, _frame: object = None) -> None:
    """End the process on a signal at once, as a kill would; the next run cleans up unfinished work.

    No exception is used: Beam turns `KeyboardInterrupt` into a failure of its worker.
    """
    if not _ENDING.acquire(blocking=False):
        return  # another thread is ending the process
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    say, words = _say, _STAYS
    with suppress(Exception):
        words = _STAYS if say is None else say()
    with suppress(OSError):  # past the buffer of `sys.stderr`, which the interrupted thread may be writing to
        line = logs.error_line(f"{_ENDS[signal.Signals(number)]}{words}", 128 + number)
        os.write(2, f"{show_cursor}{line}".encode())
    os._exit(128 + number)


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the process while the body runs, even if its main thread is busy.

    Python runs handlers on the main thread, between two of its own instructions, and a forward pass of a large model on a CPU
    takes minutes without one. Therefore a thread follows the signal numbers that Python's C code writes to a pipe.
    """
    receive, send = os.pipe()
    os.set_blocking(send, False)
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
    threading.Thread(target=_follow_signals, args=(receive,), daemon=True).start()
    handlers = {number: signal.signal(number, _end_now) for number in _ENDS}
    previous = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(send)


def _follow_signals(receive: int) -> None:
    while number := os.read(receive, 1):
        if number[0] in _ENDS:
            _end_now(number[0])
    os.close(receive)
