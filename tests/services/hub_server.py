"""A stand-in for the Hugging Face Hub on loopback: the part of its HTTP API needed to upload a data set and to download a (gated)
model.

Repositories are in memory. Files with a suffix in `lfs` go through the LFS batch API, others into the commit. The checks of the
real API are included: the token, that a repository exists, that an LFS object is uploaded before it is committed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    lfs: set[str] = field(default_factory=set)  # names whose content is an LFS object
    commits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Fault:
    """The next `times` requests whose `METHOD /path` matches are answered with `status`; 0: the connection is closed."""

    pattern: str
    status: int
    times: int = 1
    skip: int = 0


@dataclass
class Model:
    """What `main` and the tag `v1` of a model hold; the commit is the same number's digits."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34


@dataclass
class Hub:
    token: str = "hf_secret"
    lfs: tuple[str, ...] = (".parquet",)
    repos: dict[str, Repo] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    url: str = ""

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        return self.repos[repo].branches[branch]

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, line) is not None for line in self.requests)

    def fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, line):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        fault = self.hub.fault(line)
        if fault is not None and fault.status == 0:
            self.close_connection = True
            return
        if fault is not None:
            self._answer(fault.status, {"error": "by plan"})
        elif not path.startswith("/lfs/") and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._answer(401, {"error": "Invalid credentials"})
        else:
            self._route(path, body)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _route(self, path: str, body: bytes) -> None:
        if path.startswith("/lfs/"):
            digest = hashlib.sha256(body).hexdigest()
            self.hub.objects[digest] = body
            self._answer(200 if path == f"/lfs/{digest}" else 400)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(tree|revision)/([^/]+))?", path):
            self._model(match[1], tree=match[2] == "tree", revision=match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(*match.groups())
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._batch(match[1], json.loads(body))
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/(\w+)(?:/(.+))?)?", path):
            self._repo(*match.groups(), body=body)
        else:
            self._answer(404, {"error": "no such route"})

    def _model(self, name: str, *, tree: bool, revision: str | None) -> None:
        model = self.hub.models.get(name)
        if model is None or revision not in (None, "main", "v1", model.commit):
            self._answer(404, {"error": "Not found"})
        elif tree:
            self._answer(200, [*self._tree(Repo(False), model.files)][1:])
        else:
            siblings = [{"rfilename": file} for file in model.files]
            self._answer(200, {"id": name, "sha": model.commit, "private": False, "siblings": siblings})

    def _resolve(self, name: str, _revision: str, file: str) -> None:
        model = self.hub.models[name]
        data = model.files[file]
        self.send_response(200)
        for header, value in {
            "Content-Length": str(len(data)),
            "ETag": f'"{_blob(data)}"',
            "X-Repo-Commit": model.commit,
        }.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        assert asked["type"] == "dataset"
        url = f"{self.hub.url}/datasets/{name}"
        if name in self.hub.repos:
            self._answer(409, {"error": "You already created this dataset repo", "url": url})
            return
        private = asked.get("private", asked.get("visibility") == "private")
        self.hub.repos[name] = Repo(private)
        self._answer(200, {"url": url, "name": name})

    def _repo(self, name: str, action: str | None, rest: str | None, *, body: bytes) -> None:
        repo = self.hub.repos.get(name)
        if repo is None:
            self._answer(404, {"error": "Repository not found"})
        elif action == "branch":
            there = rest in repo.branches
            repo.branches.setdefault(str(rest), dict(repo.branches["main"]))
            self._answer(409 if there else 200, {"error": "exists"} if there else {})
        elif action == "tree":
            self._answer(200, [*self._tree(repo, repo.branches[str(rest)])])
        elif action == "preupload":
            self._answer(200, {"files": [self._mode(repo, str(rest), file) for file in json.loads(body)["files"]]})
        elif action == "commit":
            self._commit(repo, name, str(rest), [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(200, {"id": name, "sha": "0" * 40, "private": repo.private, "siblings": []})

    def _tree(self, repo: Repo, files: dict[str, bytes]) -> Iterator[dict[str, Any]]:
        yield {"type": "directory", "path": "data", "oid": "0" * 40, "size": 0}
        for path, data in files.items():
            lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            more = {"lfs": lfs} if path in repo.lfs else {}
            yield {"type": "file", "path": path, "size": len(data), "oid": _blob(data), **more}

    def _mode(self, repo: Repo, branch: str, file: dict[str, Any]) -> dict[str, Any]:
        is_lfs = file["path"].endswith(self.hub.lfs)
        data = repo.branches[branch].get(file["path"])
        oid = None if data is None else hashlib.sha256(data).hexdigest() if is_lfs else _blob(data)
        return {"path": file["path"], "uploadMode": "lfs" if is_lfs else "regular", "shouldIgnore": False, "oid": oid}

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        assert name in self.hub.repos
        objects = []
        for entry in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{entry['oid']}"}}
            objects.append(entry if entry["oid"] in self.hub.objects else {**entry, "actions": upload})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        files = dict(repo.branches[branch])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
                repo.lfs.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        repo.branches[branch] = files
        repo.commits.append({line["key"]: line["value"] for line in lines})
        oid = f"{len(repo.commits):040x}"
        self._answer(200, {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{oid}", "commitOid": oid})


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def running_hub(**settings: Any) -> Iterator[Hub]:
    hub = Hub(**settings)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
