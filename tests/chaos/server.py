"""Runs of the real command, forked off one process that has everything imported: `python -m chaos.server`.

Reads one JSON line per request from standard input, a list of runs that go at the same time (see `Run`), and answers
with one line, a list of what came of each. A fork costs milliseconds, where a start of the command costs seconds of
imports. This process has one thread and runs nothing itself, so that a fork inherits no lock.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.gate import Call, Gate, watch_me

_PRELOADED = (
    "apache_beam.runners.portability.fn_api_runner",
    "apache_beam.typehints.intrinsic_one_ops",
    "chaos.scorer",
    "pipelines.cli",
    "pipelines.commands.run",
    "pipelines.commands.summary",
    "pyarrow.dataset",
    "rm.closing_token",
    "rm.preview",
    "rm.scorer",
    "transformers.models.auto.modeling_auto",
)
_SOON_DEAD_SECS = 60.0
_SLOW_SECS = 1.0


@dataclass
class Run:
    """One run of the command, and what is to happen to it."""

    words: list[str]  # of the command line
    folder: str  # for its standard output and error
    log: str | None = None  # of the stub scorer; None: the model that the configuration names
    signal_in_score: str | None = None  # TERM or INT, sent to itself while the stub is in C code for minutes
    watch: list[str] | None = None  # directories whose durable calls are counted and stopped
    at: int | None = None  # the call, from 0, at which `fault` happens
    fault: str = ""  # KILL, TERM, INT; the name of an errno; SLOW: a second; WAIT: until all other runs have ended
    stuck: bool = False  # TERM or INT: neither that call nor any after it returns, as on a disk that hangs
    late: bool = False  # starts when all before it stand at a WAIT, or have ended
    forever: bool = False  # an errno: for every call of that name from there on
    kill_after_secs: float | None = None
    timeout_secs: float = 120.0
    umask: int = 0o022
    limits: dict[str, int] = field(default_factory=dict)  # of `resource`, such as {"NOFILE": 64}


class Child:
    """A forked run with its gate."""

    def __init__(self, run: Run, number: int) -> None:
        self.run, self._number = run, number
        self.calls: list[Call] = []
        self.status: int | None = None
        self.hung = False
        self._killed = False
        self._held: int | None = None
        self._stuck = False
        self._failing: str | None = None
        for name in ("out", "err"):
            Path(run.folder, f"{name}-{number}").write_text("")
        mine, its = socket.socketpair()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            mine.close()
            _become(run, number, its)
        its.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.gate = Gate(mine, self.pid, run.watch) if run.watch is not None else None
        mine.close()

    def secs_left(self) -> float:
        """Until it is killed, by plan or because it hangs."""
        if self._killed:
            return _SOON_DEAD_SECS
        after = self.run.kill_after_secs
        limit = self.run.timeout_secs if after is None else after
        return self.started + limit - time.monotonic()

    def on_deadline(self) -> None:
        self.hung = self.run.kill_after_secs is None
        self._killed = True
        os.kill(self.pid, signal.SIGKILL)

    def on_call(self) -> None:
        assert self.gate is not None
        received = self.gate.receive()
        if received is None:
            return
        number, call = received
        if call is None:
            self.gate.go_on(number)
            return
        if self._stuck:
            return
        here = len(self.calls) == self.run.at
        self.calls.append(call)
        fault = self.run.fault
        if here and fault == "KILL":
            self.gate.kill()
        elif here and fault == "WAIT":
            self._held = number
        elif here and fault == "SLOW":
            time.sleep(_SLOW_SECS)
            self.gate.go_on(number)
        elif here and fault in ("TERM", "INT"):
            self._stuck = self.run.stuck
            os.kill(self.pid, getattr(signal, f"SIG{fault}"))
            if not self._stuck:
                self.gate.go_on(number)
        elif here or call.name == self._failing:
            self._failing = call.name if self.run.forever else None
            self.gate.fail(number, getattr(errno, fault))
        else:
            self.gate.go_on(number)

    def release(self) -> None:
        if self.gate is not None and self._held is not None:
            self.gate.go_on(self._held)
            self._held = None

    @property
    def holding(self) -> bool:
        return self._held is not None

    def ended(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.status = os.waitstatus_to_exitcode(status)
        os.close(self.pidfd)
        if self.gate is not None:
            self.gate.close()

    def result(self) -> dict[str, Any]:
        out, err = (Path(self.run.folder, f"{name}-{self._number}").read_text() for name in ("out", "err"))
        calls = [(call.name, call.path, call.size) for call in self.calls]
        secs = time.monotonic() - self.started
        return {"code": self.status, "hung": self.hung, "out": out, "err": err, "calls": calls, "secs": secs}


def _become(run: Run, number: int, channel: socket.socket) -> None:
    """In the child: the command, as its console script runs it."""
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        for descriptor, name in ((1, "out"), (2, "err")):
            file = os.open(Path(run.folder, f"{name}-{number}"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
            os.dup2(file, descriptor)
        os.closerange(3, channel.fileno())
        os.umask(run.umask)
        for name, value in run.limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        if run.watch is not None:
            watch_me(channel)
        channel.close()
        sys.argv = ["bestkept", *run.words]
        from pipelines import cli
        from pipelines.commands import run as run_command

        if run.log is not None:
            from chaos.scorer import LoggingFactory

            factory = LoggingFactory(run.log, run.signal_in_score)
            run_command.default_scorer = lambda config: factory
        cli.main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


class Supervisor:
    """Answers the stopped calls of some runs until all have ended."""

    def __init__(self, runs: list[Run]) -> None:
        self._waiting = list(enumerate(runs))
        self._poll = select.poll()
        self._owners: dict[int, tuple[Child, bool]] = {}
        self._alive: list[Child] = []
        self._children: list[Child] = []

    def results(self) -> list[dict[str, Any]]:
        while self._alive or self._waiting:
            self._start()
            self._answer()
            for child in self._alive:
                if child.secs_left() <= 0:
                    child.on_deadline()
            if self._alive and not self._waiting and all(child.holding for child in self._alive):
                for child in self._alive:
                    child.release()
        return [child.result() for child in self._children]

    def _start(self) -> None:
        """Start the runs that need not wait any more; a late one waits until all before it hold or have ended."""
        while self._waiting and (not self._waiting[0][1].late or all(child.holding for child in self._alive)):
            number, run = self._waiting.pop(0)
            child = Child(run, number)
            self._alive.append(child)
            self._children.append(child)
            self._register(child.pidfd, child, is_end=True)
            if child.gate is not None:
                self._register(child.gate.fileno(), child, is_end=False)

    def _register(self, descriptor: int, child: Child, *, is_end: bool) -> None:
        self._owners[descriptor] = (child, is_end)
        self._poll.register(descriptor, select.POLLIN)

    def _answer(self) -> None:
        secs = min(child.secs_left() for child in self._alive)
        ready = dict(self._poll.poll(max(0.0, secs) * 1000))
        for descriptor, event in ready.items():
            child, is_end = self._owners[descriptor]
            if is_end:
                self._poll.unregister(descriptor)
                if child.gate is not None:
                    self._poll.unregister(child.gate.fileno())
                child.ended()
                self._alive.remove(child)
            elif event & select.POLLIN and child.pidfd not in ready:
                child.on_call()


def main() -> None:
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.freeze()  # collections in a fork need not copy what is here
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        request = json.loads(line)
        answer = Supervisor([Run(**fields) for fields in request]).results()
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
