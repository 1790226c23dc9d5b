"""A loopback proxy in front of an emulated store, with planned faults; it enforces `ifGenerationMatch` for GCS emulators."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, quote, urlsplit


@dataclass
class Fault:
    """What happens to the next `times` requests whose `METHOD /path?query` the pattern is found in.

    refuse: answer `status` and `body`, and forward nothing
    stall: answer nothing until the client gives up, and forward nothing
    reset: reset the connection, and forward nothing
    cut: forward, announce the whole body, send half of it and close
    shorten: forward, announce and send half of the body
    lose: forward, so that the store does it, and close without an answer
    call: forward as if nothing were
    distort: forward, and answer what `change` makes of headers and body

    Whatever the kind, `hook` is run first.
    """

    kind: str
    pattern: str
    times: int = 1
    status: int = 503
    body: bytes = b""
    hook: Callable[[], object] = lambda: None
    change: Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]] = lambda headers, body: (headers, body)
    skip: int = 0  # requests to let pass first
    met: int = 0

    def meets(self, request: str) -> bool:
        if self.times == 0 or not re.search(self.pattern, request):
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        self.met += 1
        return True


class Request(NamedTuple):
    line: str  # METHOD /path?query
    status: int  # 0: unanswered
    headers: dict[str, str]
    length: int  # of the body that came


@dataclass
class FaultProxy:
    """Forwards to `upstream`; a context manager."""

    upstream: tuple[str, int]
    plan: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    conditions: dict[str, str] = field(default_factory=dict)  # of resumable uploads, by id
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __enter__(self) -> FaultProxy:
        self._given_up = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, kind: str, pattern: str, **fields: object) -> Fault:
        fault = Fault(kind, pattern, **fields)
        self.plan.append(fault)
        return fault

    def lines(self, pattern: str = "") -> list[str]:
        """The requests so far that the pattern is found in, with their status."""
        return [f"{request.status} {request.line}" for request in self.requests if re.search(pattern, request.line)]

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            return next((fault for fault in self.plan if fault.meets(line)), None)

    def wait_for_end(self) -> None:
        self._given_up.wait(30)

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        with self.lock:  # looking at a condition and acting on it is one step
            refusal = self._condition_fails(method, path, headers)
            if refusal is not None:
                return refusal
            answer = self._ask(method, path, headers, body)
            begun = parse_qs(urlsplit(answer[1].get("Location", "")).query)
            if "upload_id" in begun:
                self.conditions[begun["upload_id"][0]] = path
            return answer

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.upstream, timeout=30)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _condition_fails(
        self, method: str, path: str, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes] | None:
        """412 where GCS would give it: on any insertion, and on the last part of a resumable one."""
        query = parse_qs(urlsplit(path).query)
        if "upload_id" in query:
            last = re.fullmatch(r"bytes \d+-(\d+)/(\d+)", headers.get("Content-Range", ""))
            if method == "DELETE" or last is None or int(last[1]) + 1 != int(last[2]):
                return None
            path = self.conditions[query["upload_id"][0]]
            query = parse_qs(urlsplit(path).query)
        if "ifGenerationMatch" not in query or not path.startswith("/upload/storage/v1/b/"):
            return None
        bucket = path.split("/")[5]
        status, _, found = self._ask("GET", f"/storage/v1/b/{bucket}/o/{quote(query['name'][0], safe='')}", {}, b"")
        generation = json.loads(found)["generation"] if status == 200 else "0"
        if query["ifGenerationMatch"][0] == generation:
            return None
        return 412, {"Content-Type": "application/json"}, b'{"error": {"code": 412, "message": "conditionNotMet"}}'


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        try:
            self._serve()
        except ConnectionError:  # the client has given up
            self.close_connection = True

    def _serve(self) -> None:
        line = f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.fault_for(line)
        kind = None if fault is None else fault.kind
        if fault is not None:
            fault.hook()
        if kind in ("stall", "reset"):
            self._note(line, 0, body)
            if kind == "stall":
                self.proxy.wait_for_end()
            self._drop(reset=kind == "reset")
            return
        if kind == "refuse":
            self._answer(line, body, fault.status, {"Content-Type": "application/xml"}, fault.body)
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
        status, answered, data = self.proxy.forward(self.command, self.path, headers, body)
        if kind == "distort":
            answered, data = fault.change(answered, data)
        if kind == "shorten":
            data = data[: len(data) // 2]
        if kind == "lose":
            self._note(line, 0, body)
            self._drop()
            return
        self._answer(line, body, status, answered, data, cut=kind == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _handle

    def _answer(
        self, line: str, body: bytes, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False
    ) -> None:
        self._note(line, status, body)
        self.send_response_only(status)
        length = headers.get("Content-Length") if self.command == "HEAD" else None
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self._drop()

    def _note(self, line: str, status: int, body: bytes) -> None:
        self.proxy.requests.append(Request(line, status, dict(self.headers.items()), len(body)))

    def _drop(self, *, reset: bool = False) -> None:
        self.wfile.flush()
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return
