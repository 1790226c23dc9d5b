"""Prism, Beam's own portable engine, with a pool of workers that its SDK images' boot program starts.

The programs are others' and lie outside the repository: in the folder that ENGINES names, or in `../shared/engines`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("ENGINES", TESTS.parents[1] / "shared" / "engines"))
needs_prism = pytest.mark.skipif(
    not (FOLDER / "prism").exists() or not (FOLDER / "beam-boot").exists(), reason=f"no prism and beam-boot in {FOLDER}"
)


class Prism(NamedTuple):
    """A running engine and its pool of workers."""

    engine: subprocess.Popen[bytes]
    pool: subprocess.Popen[bytes]
    options: dict[str, str]  # of the runner


@contextlib.contextmanager
def serving_prism(logs: Path) -> Iterator[Prism]:
    """Start both, with their output in the folder `logs`; all their processes are gone afterwards."""
    jobs, workers = _free_port(), _free_port()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    environment["RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT"] = "1"
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    commands = {
        "prism": [str(FOLDER / "prism"), "--job_port", str(jobs), "--serve_http=false", "--log_kind", "text"],
        "pool": [
            *(sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"),
            *(f"--service_port={workers}", f"--container_executable={FOLDER / 'beam-boot'}"),
        ],
    }
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name, command in commands.items():
            with (logs / f"{name}.log").open("w") as log:
                started.append(
                    subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
                )
        for port in (jobs, workers):
            _await_port(port)
        options = {"job_endpoint": f"localhost:{jobs}", "environment_type": "EXTERNAL"}
        yield Prism(started[0], started[1], options | {"environment_config": f"localhost:{workers}"})
    finally:
        for process in started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return int(one.getsockname()[1])


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        assert time.monotonic() < deadline, f"nothing answers at port {port}"
        time.sleep(0.05)
