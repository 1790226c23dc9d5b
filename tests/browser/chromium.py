"""Chromium without a window, driven over a pipe with the DevTools protocol; nothing but the standard library.

https://chromedevtools.github.io/devtools-protocol/ says what methods and events there are. The browser resolves no host name.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_SECS = 60.0
_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--no-default-browser-check",
    "--no-first-run",
    "about:blank",
)


class BrowserError(Exception):
    """Chromium does not start, does not answer, or refuses a command."""


def find() -> str | None:
    """The path of Chromium: `BESTKEPT_CHROMIUM`, or the first of `NAMES` on PATH."""
    return os.environ.get("BESTKEPT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def started() -> Iterator[Browser]:
    """A browser with a profile of its own, ended and removed afterwards."""
    program = find()
    if program is None:
        raise BrowserError(f"no Chromium; install one of {', '.join(NAMES)}, or set BESTKEPT_CHROMIUM to its path")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            yield browser
        finally:
            browser.close()


class Browser:
    """A running Chromium: it reads commands from its descriptor 3 and writes answers and events to its descriptor 4."""

    def __init__(self, program: str, profile: str) -> None:
        self.events: list[dict[str, Any]] = []
        self._asked, self._answers, self._received = 0, {}, b""
        (from_us, self._write), (self._read, to_us) = os.pipe(), os.pipe()
        theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (from_us, to_us)]  # out of the way of 3 and 4
        places = [(os.POSIX_SPAWN_DUP2, theirs[0], 3), (os.POSIX_SPAWN_DUP2, theirs[1], 4)]
        places += [(os.POSIX_SPAWN_OPEN, out, os.devnull, os.O_WRONLY, 0) for out in (1, 2)]
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        words = [program, f"--user-data-dir={profile}", *root, *_OPTIONS]
        around = {**os.environ, "HOME": profile}
        try:
            self._process = os.posix_spawn(program, words, around, file_actions=places, setpgroup=0)
        except OSError as error:
            raise BrowserError(
                f"cannot start {program}: {error.strerror}; set BESTKEPT_CHROMIUM to a program"
            ) from error
        finally:
            for end in (from_us, to_us, *theirs):
                os.close(end)

    def send(self, method: str, session: str | None = None, **values: Any) -> dict[str, Any]:
        """The result of a command. Raises `BrowserError`."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": values, **({"sessionId": session} if session else {})}
        with suppress(BrokenPipeError):  # then there is no answer either
            os.write(self._write, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + _PATIENCE_SECS
        while self._asked not in self._answers:
            self._receive(until, method)
        answer = self._answers.pop(self._asked)
        if "error" in answer:
            raise BrowserError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def await_event(self, method: str, session: str) -> None:
        """Wait until an event of this name has come from this session."""
        until = time.monotonic() + _PATIENCE_SECS
        while not any(event["method"] == method for event in self.events_of(session)):
            self._receive(until, method)

    def events_of(self, session: str) -> list[dict[str, Any]]:
        """What has come from one tab; others may still be talking."""
        return [event for event in self.events if event.get("sessionId") == session]

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def _receive(self, until: float, awaited: str) -> None:
        ready, _, _ = select.select([self._read], [], [], max(0.0, until - time.monotonic()))
        received = os.read(self._read, 2**16) if ready else b""
        if not received:
            raise BrowserError(f"Chromium {'ended' if ready else 'does not answer'}; awaited {awaited}")
        *messages, self._received = (self._received + received).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self.events.append(message)


class Page:
    """One file in a tab of its own, and all that it said and asked for while it was open."""

    def __init__(self, browser: Browser, path: Path) -> None:
        self._browser = browser
        browser.events.clear()
        self._target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.send("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.url = path.resolve().as_uri()
        if refused := self.send("Page.navigate", url=self.url).get("errorText"):
            raise BrowserError(f"{path}: {refused}")
        browser.await_event("Page.loadEventFired", self._session)

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        return self._browser.send(method, self._session, **values)

    def close(self) -> None:
        self._browser.send("Target.closeTarget", targetId=self._target)

    def emulate(self, width: int, *, height: int = 900, scheme: str = "light", media: str = "screen") -> None:
        """A window `width` pixels wide, of a reader who prefers `scheme`, on `media`."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        preferred = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=media, features=preferred)

    def evaluate(self, expression: str) -> Any:
        """What a JavaScript expression comes to, as JSON. Raises `BrowserError` where it throws."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if thrown := answer.get("exceptionDetails"):
            raise BrowserError(thrown.get("exception", {}).get("description", thrown["text"]))
        return answer["result"].get("value")

    def picture(self, *, whole: bool = True) -> bytes:
        """The whole page as PNG, or what the window shows of it."""
        return base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        return base64.b64decode(self.send("Page.printToPDF")["data"])

    def requests(self) -> list[str]:
        """Every URL asked for, the page's own first; `data:` and failed ones are among them."""
        sent = [
            event["params"]
            for event in self._browser.events_of(self._session)
            if event["method"] == "Network.requestWillBeSent"
        ]
        return [one["request"]["url"] for one in sent]

    def complaints(self) -> list[str]:
        """Console messages, exceptions, and what the browser logged itself."""
        found = []
        for event in self._browser.events_of(self._session):
            said = event.get("params", {})
            if event["method"] == "Runtime.consoleAPICalled":
                found.append(f"console.{said['type']}")
            elif event["method"] == "Runtime.exceptionThrown":
                found.append(f"exception: {said['exceptionDetails']['text']}")
            elif event["method"] == "Log.entryAdded":
                found.append(f"{said['entry']['level']}: {said['entry']['text']}")
        return found
