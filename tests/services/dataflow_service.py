"""A stand-in for the service that Beam's Dataflow client talks to, over plain HTTP on loopback.

It implements the requests of the REST API that the client makes (projects.locations.jobs: create, get, messages, metrics),
records them, and leaves each job in the state that a test sets. With `run`, it fetches the pipeline staged in the bucket and runs
it in a new process, by FnApiRunner or on the portable engine with the options `engine`. The process has nothing else from the
launcher, and the job ends with it.

The client accepts `http://localhost:PORT`, and needs no credentials with `--no_auth`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

TESTS = Path(__file__).parents[1]
_JOBS = re.compile(r"/v1b3/projects/([^/]+)/locations/([^/]+)/jobs(?:/([^/]+))?(?:/(messages|metrics))?")


@dataclass
class Job:
    """What the service knows of one job."""

    id: str
    request: dict[str, Any]
    project: str
    location: str
    state: str = "JOB_STATE_RUNNING"
    error: str | None = None
    counters: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)  # job, messages, metrics
    worker: subprocess.Popen[str] | None = None

    @property
    def environment(self) -> dict[str, Any]:
        return self.request["environment"]

    @property
    def options(self) -> dict[str, Any]:
        """Beam's options, as workers get them."""
        return self.environment["sdkPipelineOptions"]["options"]

    @property
    def pipeline_url(self) -> str:
        """Where the pipeline was staged."""
        return self.options["pipelineUrl"]

    def end(self, state: str, error: str | None = None) -> None:
        self.error, self.state = error, state

    def shown(self) -> dict[str, Any]:
        return {**self.request, "id": self.id, "projectId": self.project, "currentState": self.state}

    def messages(self) -> list[dict[str, str]]:
        if self.error is None:
            return []
        importance = {"messageImportance": "JOB_MESSAGE_ERROR", "time": "2026-01-01T00:00:00Z", "id": "1"}
        return [{**importance, "messageText": self.error}]

    def metrics(self) -> list[dict[str, Any]]:
        """Each counter twice, as the service has it: what workers say, and what is committed."""
        found = []
        for name, value in self.counters.items():
            context = {"namespace": "bestkept", "step": "s1", "execution_step": "e1"}
            for more in ({}, {"tentative": "true"}):
                found.append(
                    {"name": {"origin": "user", "name": name, "context": {**context, **more}}, "scalar": value}
                )
        return found


class DataflowService:
    """The jobs that were submitted; each runs until a test ends it, or until it has `run`."""

    def __init__(self, *, run: bool = False, engine: dict[str, str] | None = None) -> None:
        self.run, self.engine = run, engine
        self.jobs: list[Job] = []
        self.submitted = threading.Event()
        self._server = ThreadingHTTPServer(("localhost", 0), type("Handler", (_Handler,), {"service": self}))

    @property
    def flags(self) -> list[str]:
        """What a launcher is given so that it comes here."""
        return [f"--dataflow_endpoint=http://localhost:{self._server.server_port}", "--no_auth"]

    def create(self, request: dict[str, Any], project: str, location: str) -> Job:
        job = Job(f"job-{len(self.jobs)}", request, project, location)
        self.jobs.append(job)
        if self.run:
            threading.Thread(target=run_job, args=(job, self.engine), daemon=True).start()
        self.submitted.set()
        return job

    @contextmanager
    def serving(self) -> Iterator[DataflowService]:
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            for job in self.jobs:
                if job.worker is not None:
                    job.worker.kill()
                    job.worker.wait()


def run_job(job: Job, engine: dict[str, str] | None = None) -> None:
    """Run the staged pipeline to its end, in another process, or on an engine by that process."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "result.json")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
        command = [sys.executable, str(TESTS / "services" / "dataflow_worker.py"), job.pipeline_url, str(result)]
        command += [] if engine is None else [json.dumps(job.options | engine)]
        job.worker = subprocess.Popen(
            command, env=environment, cwd=directory, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        _, errors = job.worker.communicate()
        if job.worker.returncode == 0:
            job.counters = json.loads(result.read_text())
            job.end("JOB_STATE_DONE")
        else:
            job.end("JOB_STATE_FAILED", errors[-20_000:])


class _Handler(BaseHTTPRequestHandler):
    service: DataflowService
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        job, what = self._job()
        job.asked.append(what)
        if what == "messages":
            self._answer({"jobMessages": job.messages()})
        elif what == "metrics":
            self._answer({"metrics": job.metrics()})
        else:
            self._answer(job.shown())

    def do_POST(self) -> None:
        project, location, name, _ = self._place()
        assert name is None, self.path
        self._answer(self.service.create(self._body(), project, location).shown())

    def _place(self) -> Any:
        found = _JOBS.fullmatch(urlsplit(self.path).path)
        assert found is not None, self.path
        return found.groups()

    def _job(self) -> tuple[Job, str]:
        _, _, name, what = self._place()
        return next(job for job in self.service.jobs if job.id == name), what or "job"

    def _body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """No lines on standard error."""
