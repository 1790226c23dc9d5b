"""Every interleaving of a few actors over a store in memory: a search of all states that their calls to it can lead to.

An actor is a function. Each of its calls to the store is a step; between two steps any other actor may continue, or none at all,
as after a crash. With `crashes`, an actor may also stop before any of its steps and start again, as a repeated command does.
An actor's next step depends only on the answers that it has received: it is run once for each sequence of answers, which are
replayed from a record. A state is the content of the store and the position of each actor. No state is searched twice, so that
the search ends.

Without `switches` the search is exhaustive. If that has too many states, `switches` limits how often an actor is interrupted
before its end, by another one or by a crash (a bound on preemptions, as in CHESS, Musuvathi and Qadeer, PLDI 2007): each actor
still runs at every position of every other one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

SCHEME = "steps"
Objects = dict[str, bytes]
Call = Callable[[Objects], Any]
_current = threading.local()


class _Standing(BaseException):
    """Ends an actor at the first call whose answer is not known."""

    def __init__(self, call: Call) -> None:
        self.call = call


@dataclass
class _Moment:
    """An actor after some answers: it stands before a call, or has ended."""

    answers: tuple[Any, ...]
    call: Call | None = None  # None: it has ended
    result: Any = None  # what it returned, or the exception that it raised
    following: dict[str, _Moment] = field(default_factory=dict)  # by the answer to its call


class Actor:
    """A function over the store, and all moments at which it was seen."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.start = self._moment(())

    def _moment(self, answers: tuple[Any, ...]) -> _Moment:
        _current.answers = iter(answers)
        try:
            return _Moment(answers, result=self._work())
        except _Standing as standing:
            return _Moment(answers, standing.call)
        except Exception as error:
            return _Moment(answers, result=error)
        finally:
            del _current.answers

    def step(self, moment: _Moment, objects: Objects) -> _Moment:
        """The moment after the call before which the actor stands, which is done on `objects`."""
        assert moment.call is not None
        try:
            answer: Any = moment.call(objects)
        except (FileNotFoundError, FileExistsError) as error:
            answer = error
        key = repr(answer)
        if key not in moment.following:
            moment.following[key] = self._moment((*moment.answers, answer))
        return moment.following[key]


class StepStore(MemoryFileSystem):  # type: ignore[misc]
    """`steps://`: a flat store, each call of which is one atomic step of an actor; without actors, an ordinary one."""

    protocol = SCHEME
    cachable = True
    objects: ClassVar[Objects] = {}  # without actors

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix(f"{SCHEME}://").rstrip("/")

    def _do(self, call: Call) -> Any:
        answers: Iterator[Any] | None = getattr(_current, "answers", None)
        if answers is None:
            return call(self.objects)
        for answer in answers:
            if isinstance(answer, Exception):
                raise type(answer)(*answer.args)
            return copy.deepcopy(answer)
        raise _Standing(call)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return self._do(lambda objects: {"name": path, "size": len(_get(objects, path)), "type": "file"})

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._do(lambda objects: _get(objects, path)[start:end])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        def put(objects: Objects) -> None:
            if mode == "create" and path in objects:
                raise FileExistsError(path)
            objects[path] = value

        self._do(put)

    def find(self, path: str, maxdepth: int | None = None, detail: bool = False, **_: Any) -> Any:
        def listed(objects: Objects) -> Any:
            below = [name for name in sorted(objects) if name == path or name.startswith(f"{path}/")]
            if maxdepth is not None:
                below = [name for name in below if name.removeprefix(path).count("/") <= maxdepth]
            infos = {name: {"name": name, "size": len(objects[name]), "type": "file"} for name in below}
            return infos if detail else below

        return self._do(listed)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        def listed(objects: Objects) -> list[dict[str, Any]]:
            below = {name.removeprefix(f"{path}/") for name in objects if name.startswith(f"{path}/")}
            folders = sorted({name.split("/")[0] for name in below if "/" in name})
            return [{"name": f"{path}/{name}", "size": 0, "type": "directory"} for name in folders]

        return self._do(listed)

    def rm_file(self, path: str) -> None:
        def removed(objects: Objects) -> None:
            _get(objects, path)
            del objects[path]

        self._do(removed)


def _get(objects: Objects, path: str) -> bytes:
    if path not in objects:
        raise FileNotFoundError(path)
    return objects[path]


fsspec.register_implementation(SCHEME, StepStore, clobber=True)


class _State(NamedTuple):
    objects: Objects
    moments: tuple[_Moment, ...]  # of each actor
    last: int | None  # the actor that made the last step; None where any may go on without a switch
    switches: int  # left
    crashes: int  # left
    way: tuple[Any, ...]  # the way before the last step, and that step

    def key(self) -> Any:
        return hash((frozenset(self.objects.items()), tuple(map(id, self.moments)), self[2:5]))


@dataclass
class Search:
    """The search, and what it found."""

    start: Mapping[str, bytes]  # what the store holds at first
    actors: Mapping[str, Callable[[], Any]]
    check: Callable[
        [Mapping[str, bytes], Mapping[str, Any]], str | None
    ]  # store, results of those ended → what is wrong, in every state
    check_end: Callable[[Mapping[str, bytes], str, Any], str | None] = lambda *_: (
        None
    )  # at the moment of an end: store, name, result
    crashes: int = 0  # of all actors together
    switches: int | None = None  # None: any number
    states: int = 0
    ends: list[dict[str, Any]] = field(default_factory=list)  # results in all final states
    faults: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)  # what is wrong, and the way there

    def explore(self, *, most_faults: int = 1) -> Search:
        """Search all states, or until so many faults are known."""
        self._names = list(self.actors)
        self._actors = [Actor(work) for work in self.actors.values()]
        seen: set[Any] = set()
        starts = tuple(actor.start for actor in self._actors)
        states = [_State(dict(self.start), starts, None, self.switches or 0, self.crashes, ())]
        while states and len(self.faults) < most_faults:
            state = states.pop()
            if state.key() not in seen:
                seen.add(state.key())
                states.extend(self._after(state))
        self.states = len(seen)
        return self

    def _after(self, state: _State) -> Iterator[_State]:
        """Look at a state, and give those that follow it."""
        going = [number for number, moment in enumerate(state.moments) if moment.call is not None]
        results = {
            self._names[number]: moment.result for number, moment in enumerate(state.moments) if number not in going
        }
        if self._is_wrong(self.check(state.objects, results), state.way):
            return
        if not going:
            self.ends.append(results)
        for number in going:
            bounded = self.switches is not None
            leaves = bounded and state.last in going and number != state.last
            if not leaves or state.switches:
                yield from self._step(state, number, state.switches - leaves)
            actor = self._actors[number]
            if (
                state.crashes
                and state.moments[number] is not actor.start
                and not leaves
                and not (bounded and not state.switches)
            ):
                name = f"{self._names[number]} crashes"
                moments = _put(state.moments, number, actor.start)
                yield _State(
                    state.objects, moments, None, state.switches - bounded, state.crashes - 1, (state.way, name)
                )

    def _step(self, state: _State, number: int, switches: int) -> Iterator[_State]:
        objects, name = dict(state.objects), self._names[number]
        moment = self._actors[number].step(state.moments[number], objects)
        way = (state.way, name)
        if moment.call is None and self._is_wrong(self.check_end(objects, name, moment.result), way):
            return
        last = number if self.switches is not None else None
        yield _State(objects, _put(state.moments, number, moment), last, switches, state.crashes, way)

    def _is_wrong(self, wrong: str | None, way: tuple[Any, ...]) -> bool:
        if wrong is not None:
            self.faults.append((wrong, _unfold(way)))
        return wrong is not None


def _put(moments: tuple[_Moment, ...], number: int, moment: _Moment) -> tuple[_Moment, ...]:
    return (*moments[:number], moment, *moments[number + 1 :])


def _unfold(way: tuple[Any, ...]) -> tuple[str, ...]:
    steps: list[str] = []
    while way:
        way, step = way
        steps.append(step)
    return tuple(reversed(steps))
