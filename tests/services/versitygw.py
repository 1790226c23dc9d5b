"""A third-party S3 server over a local folder: signatures, conditional writes, multipart uploads, versions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from services.emulators import CANARY
from services.engines import FOLDER, await_port, free_port, started


@dataclass
class S3Server:
    """A server that can be killed and started again, with all that it holds."""

    folder: Path
    port: int = field(default_factory=free_port)
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def start(self) -> None:
        for name in ("data", "versions"):
            (self.folder / name).mkdir(exist_ok=True)
        command = [
            *(str(FOLDER / "versitygw"), "--quiet", "--port", f"127.0.0.1:{self.port}", "posix"),
            *("--versioning-dir", str(self.folder / "versions"), str(self.folder / "data")),
        ]
        keys = {"ROOT_ACCESS_KEY_ID": "tester", "ROOT_SECRET_ACCESS_KEY": CANARY}
        self._running.enter_context(started(command, self.folder / "log", **keys))
        await_port(self.port)

    def kill(self) -> None:
        self._running.close()


@contextlib.contextmanager
def serving_s3(folder: Path) -> Iterator[S3Server]:
    """Serve S3 from an empty folder."""
    server = S3Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()
