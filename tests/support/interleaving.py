"""Every interleaving of a few actors over a store in memory: a search of all states that their calls to it can lead to.

An actor is a function; each call that it makes to the store is a step, and between two steps any other actor may go on, or none
for ever, as after a crash. A state is what the store holds and what each actor has seen so far, from which follows what it does
next. States that were seen before are not searched again, so that the search ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

SCHEME = "steps"
_current = threading.local()


class _Abandoned(BaseException):
    """Ends the thread of an actor whose state was seen before."""


@dataclass
class Actor:
    """One run of a function, stopped before each of its calls to the store."""

    name: str
    work: Callable[[], Any]
    history: list[Any] = field(default_factory=list)
    ended: bool = False
    result: Any = None  # what it returned, or the exception that it raised
    _go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _stopped: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _abandoned: bool = False

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()
        self._stopped.acquire()

    def step(self) -> None:
        """Let it do the call before which it stands, and go on to the next one or to its end."""
        self._go.release()
        self._stopped.acquire()

    def abandon(self) -> None:
        if not self.ended:
            self._abandoned = True
            self.step()

    def stop_before_call(self) -> None:
        self._stopped.release()
        self._go.acquire()
        if self._abandoned:
            raise _Abandoned

    def _run(self) -> None:
        _current.actor = self
        try:
            self.result = self.work()
        except _Abandoned:
            pass
        except Exception as error:
            self.result = error
        self.ended = True
        self._stopped.release()


class StepStore(MemoryFileSystem):  # type: ignore[misc]
    """`steps://`: a flat store, each call of which is one atomic step of the calling actor; without actors, an ordinary one."""

    protocol = SCHEME
    cachable = True
    objects: ClassVar[dict[str, bytes]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{SCHEME}://").rstrip("/")

    def _do(self, call: Callable[[], Any]) -> Any:
        actor: Actor | None = getattr(_current, "actor", None)
        if actor is not None:
            actor.stop_before_call()
        try:
            result = call()
        except (FileNotFoundError, FileExistsError) as error:
            if actor is not None:
                actor.history.append(type(error).__name__)
            raise
        if actor is not None:
            actor.history.append(repr(result))
        return result

    def _get(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._do(lambda: {"name": path, "size": len(self._get(path)), "type": "file"})

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._do(lambda: self._get(path)[start:end])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        def put() -> None:
            if mode == "create" and path in self.objects:
                raise FileExistsError(path)
            self.objects[path] = value

        self._do(put)

    def find(self, path: str, maxdepth: int | None = None, detail: bool = False, **_: Any) -> Any:
        def listed() -> Any:
            below = [name for name in sorted(self.objects) if name == path or name.startswith(f"{path}/")]
            if maxdepth is not None:
                below = [name for name in below if name.removeprefix(path).count("/") <= maxdepth]
            infos = {name: {"name": name, "size": len(self.objects[name]), "type": "file"} for name in below}
            return infos if detail else below

        return self._do(listed)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        def listed() -> list[dict[str, Any]]:
            below = {name.removeprefix(f"{path}/") for name in self.objects if name.startswith(f"{path}/")}
            folders = sorted({name.split("/")[0] for name in below if "/" in name})
            return [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in folders]

        return self._do(listed)

    def rm_file(self, path: str) -> None:
        def removed() -> None:
            self._get(path)
            del self.objects[path]

        self._do(removed)


fsspec.register_implementation(SCHEME, StepStore, clobber=True)


@dataclass
class Search:
    """The search, and what it found."""

    start: Mapping[str, bytes]  # what the store holds at first
    actors: Mapping[str, Callable[[], Any]]
    check: Callable[
        [Mapping[str, bytes], Mapping[str, Any]], str | None
    ]  # store, results of those ended → what is wrong
    states: int = 0
    ends: list[dict[str, Any]] = field(default_factory=list)  # results in all final states
    faults: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # what is wrong, and the way there

    def explore(self, *, most_faults: int = 1) -> Search:
        """Search all states, or until so many faults are known."""
        seen: set[Any] = set()
        ways: list[tuple[str, ...]] = [()]
        while ways and len(self.faults) < most_faults:
            self._follow(ways.pop(), ways, seen)
        return self

    def _follow(self, way: tuple[str, ...], ways: list[tuple[str, ...]], seen: set[Any]) -> None:
        """Go a way from the start, then on with the first actor that is not at its end, until a state that is known; put the
        other ways from each new state onto `ways`."""
        StepStore.objects.clear()
        StepStore.objects.update(self.start)
        actors = {name: Actor(name, work) for name, work in self.actors.items()}
        for actor in actors.values():
            actor.start()
        try:
            for name in way[:-1]:
                actors[name].step()
            if way:
                actors[way[-1]].step()
            while self._is_new(actors, seen, way):
                going = [name for name, actor in actors.items() if not actor.ended]
                if not going:
                    self.ends.append({name: actor.result for name, actor in actors.items()})
                    return
                ways.extend((*way, name) for name in going[1:])
                way = (*way, going[0])
                actors[going[0]].step()
        finally:
            for actor in actors.values():
                actor.abandon()

    def _is_new(self, actors: Mapping[str, Actor], seen: set[Any], way: Sequence[str]) -> bool:
        histories = tuple((tuple(actor.history), actor.ended) for actor in actors.values())
        state = hash((frozenset(StepStore.objects.items()), histories))
        if state in seen:
            return False
        seen.add(state)
        self.states += 1
        wrong = self.check(StepStore.objects, {name: actor.result for name, actor in actors.items() if actor.ended})
        if wrong is not None:
            self.faults.append((wrong, tuple(way)))
        return wrong is None
