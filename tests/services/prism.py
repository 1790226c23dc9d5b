"""Prism, Beam's own portable engine, with a pool of workers started by the boot program of Beam's SDK images."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from services.engines import FOLDER, TESTS, await_port, free_port, session, started


class Prism(NamedTuple):
    """A running engine and its pool of workers."""

    engine: subprocess.Popen[bytes]
    pool: subprocess.Popen[bytes]
    options: dict[str, str]  # of the runner
    log: Path  # what the engine says

    def boots(self) -> list[int]:
        """The boot programs, one a worker."""
        return session(self.pool.pid, "beam-boot --id=")

    def workers(self) -> list[int]:
        """The Python workers; each is started by its boot program."""
        return session(self.pool.pid, "sdk_worker_main")


@contextlib.contextmanager
def serving_prism(logs: Path, *, log_level: str = "info") -> Iterator[Prism]:
    """Start both, with their output in the folder `logs`; all their processes are gone afterwards."""
    jobs, workers = free_port(), free_port()
    engine = [str(FOLDER / "prism"), "--job_port", str(jobs), "--serve_http=false", "--log_kind", "text"]
    pool = [
        *(sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main"),
        *(f"--service_port={workers}", f"--container_executable={FOLDER / 'beam-boot'}"),
    ]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
        "RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    with (
        started([*engine, "--log_level", log_level], logs / "prism.log", **environment) as first,
        started(pool, logs / "pool.log", **environment) as second,
    ):
        for port in (jobs, workers):
            await_port(port)
        options = {"job_endpoint": f"localhost:{jobs}", "environment_type": "EXTERNAL"}
        yield Prism(first, second, options | {"environment_config": f"localhost:{workers}"}, logs / "prism.log")
