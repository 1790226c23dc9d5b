"""Every durable system call of a process, stopped before the kernel does it: let it through, fail it, or kill the process there.

By seccomp's user notification (Linux 5.5 and later, `man 2 seccomp_unotify`): the process puts a filter on itself, and
a supervisor answers for every watched call of any of its threads, Python's, Arrow's or another library's alike. Why not
`strace -e inject`: it counts per thread and per kind of call, and its path filter wants names that are known
beforehand, which those of temporaries are not. Here one counter runs over all calls under the watched directories in
the order in which they come, so that "the Nth" is one place, and nothing has to be installed.

A process killed before call N has done the calls 0 to N-1 and nothing else: with N over all calls these are all the
states of the disk that a kill can leave, torn writes apart. A loss of power is not simulated: it may also undo what was
never synced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import socket
import struct
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

# Names as the kernel's tables have them → numbers per machine.
_NUMBERS = {
    "x86_64": {
        "open": 2, "openat": 257, "creat": 85, "write": 1, "pwrite64": 18, "writev": 20, "ftruncate": 77, "fsync": 74,
        "fdatasync": 75, "link": 86, "linkat": 265, "symlink": 88, "rename": 82, "renameat": 264, "renameat2": 316,
        "unlink": 87, "unlinkat": 263, "rmdir": 84, "mkdir": 83, "mkdirat": 258,
    },
    "aarch64": {
        "openat": 56, "write": 64, "pwrite64": 68, "writev": 66, "ftruncate": 46, "fsync": 82, "fdatasync": 83, "linkat": 37,
        "symlinkat": 36, "renameat": 38, "renameat2": 276, "unlinkat": 35, "mkdirat": 34,
    },
}  # fmt: skip
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_PATH_AT = {  # position of the path that counts (of two, the new one), and of its directory's descriptor
    "open": (0, None), "creat": (0, None), "link": (1, None), "symlink": (1, None), "rename": (1, None), "unlink": (0, None),
    "rmdir": (0, None), "mkdir": (0, None), "openat": (1, 0), "linkat": (3, 2), "symlinkat": (2, 1), "renameat": (3, 2),
    "renameat2": (3, 2), "unlinkat": (1, 0), "mkdirat": (1, 0),
}  # fmt: skip
_OPEN_FLAGS_AT = {"open": 1, "openat": 2}
_FLAGS = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC  # an open without them changes nothing

_AT_FDCWD = -100
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1


@dataclass(frozen=True)
class Call:
    """One durable system call: its name, its path, and for a write its bytes as asked for."""

    name: str
    path: str
    size: int = 0


def missing() -> str | None:
    """Why processes cannot be watched here; None where they can."""
    if platform.system() != "Linux" or platform.machine() not in _NUMBERS:
        return f"needs Linux on {' or '.join(_NUMBERS)}"
    actions = Path("/proc/sys/kernel/seccomp/actions_avail")
    known = actions.read_text().split() if actions.exists() else []
    return None if "user_notif" in known else "this kernel has no seccomp user notification"


def watch_me(channel: socket.socket) -> None:
    """Put the filter on the calling process (it must have one thread) and hand the listener to the supervisor."""
    libc = ctypes.CDLL(None, use_errno=True)
    program = _filter()
    code = ctypes.create_string_buffer(program, len(program))
    fields = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(38, 1, 0, 0, 0) != 0:  # PR_SET_NO_NEW_PRIVS
        raise OSError(ctypes.get_errno(), "prctl")
    number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    listener = libc.syscall(number, 1, 1 << 3, fields)  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    socket.send_fds(channel, [b"listener"], [listener])
    os.close(listener)


def _filter() -> bytes:
    """Classic BPF: notify for the watched numbers (opens only with a flag that changes something), allow the rest."""
    numbers = _NUMBERS[platform.machine()]

    def op(code: int, k: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, k)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    allow, notify = op(give, 0x7FFF0000), op(give, 0x7FC00000)
    lines = [op(load, 4), op(equal, _AUDIT_ARCH[platform.machine()], 1, 0), allow, op(load, 0)]
    for name, number in numbers.items():
        at = _OPEN_FLAGS_AT.get(name)
        if at is None:
            lines += [op(equal, number, 0, 1), notify]
        else:  # args[at], low word, at byte 16 + 8 * at of struct seccomp_data
            lines += [op(equal, number, 0, 3), op(load, 16 + 8 * at), op(any_bit, _FLAGS, 0, 1), notify]
            lines += [op(load, 0)]
    return b"".join([*lines, allow])


class Gate:
    """The supervisor's side, for the calls under `directories` of the process `pid`."""

    def __init__(self, channel: socket.socket, pid: int, directories: list[str]) -> None:
        _, (self._listener,), _, _ = socket.recv_fds(channel, 16, 1)
        self._pid = pid
        self._under = tuple(os.path.realpath(directory).rstrip("/") + "/" for directory in directories)
        self._names = {number: name for name, number in _NUMBERS[platform.machine()].items()}

    def fileno(self) -> int:
        return self._listener

    def close(self) -> None:
        os.close(self._listener)

    def receive(self) -> tuple[int, Call | None] | None:
        """The next stopped call as (id to answer with, the call or None where it is not of ours); None where it is gone."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            ioctl(self._listener, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):  # the process has died meanwhile
                return None
            raise
        number, thread, _, syscall, _, _, *arguments = _NOTIFICATION.unpack(buffer)
        try:
            call = self._describe(self._names[syscall], thread, arguments)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESRCH, errno.EIO):
                call = None
            else:
                raise
        return number, call

    def go_on(self, number: int) -> None:
        self._answer(_RESPONSE.pack(number, 0, 0, _CONTINUE))

    def fail(self, number: int, error: int) -> None:
        """Make the call return this errno, undone."""
        self._answer(_RESPONSE.pack(number, 0, -error, 0))

    def kill(self) -> None:
        """Kill the process where it stands, its call undone."""
        os.kill(self._pid, signal.SIGKILL)

    def _answer(self, response: bytes) -> None:
        try:
            ioctl(self._listener, _SEND, bytearray(response))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _describe(self, name: str, thread: int, arguments: list[int]) -> Call | None:
        if name in _PATH_AT:
            at, directory_at = _PATH_AT[name]
            descriptor = _AT_FDCWD if directory_at is None else ctypes.c_int(arguments[directory_at]).value
            path = _absolute(thread, _text(thread, arguments[at]), descriptor)
            size = 0
        else:
            path = os.readlink(f"/proc/{thread}/fd/{arguments[0]}").removesuffix(" (deleted)")
            size = arguments[2] if name in ("write", "pwrite64") else 0
        return Call(name, path, size) if (path + "/").startswith(self._under) else None


def _text(thread: int, address: int) -> str:
    memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY)
    try:
        data = b""
        while b"\0" not in data and len(data) < 4096:
            start = address + len(data)
            data += os.pread(
                memory, 4096 - start % 4096, start
            )  # not over the end of a page: the next may not be there
        return os.fsdecode(data.partition(b"\0")[0])
    finally:
        os.close(memory)


def _absolute(thread: int, path: str, descriptor: int) -> str:
    """The path with its directory's links resolved, the name itself not: a call on a link is a call on the link."""
    base = f"/proc/{thread}/cwd" if descriptor == _AT_FDCWD else f"/proc/{thread}/fd/{descriptor}"
    whole = path if path.startswith("/") else os.path.join(os.readlink(base), path)
    directory, name = os.path.split(whole.rstrip("/"))
    return os.path.join(os.path.realpath(directory), name)
