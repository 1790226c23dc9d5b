"""DoFns that work on several elements at once, and reading ahead. No files.

NumPy, Arrow and zstd leave the interpreter free while they work, so threads inside one DoFn use the cores of a worker that
the runner itself gives one bundle at a time. Results keep the order of the elements.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import apache_beam as beam
from apache_beam.typehints.decorators import no_annotations

from pipelines.errors import carrying_errors
from pipelines.runtime import machine
from pipelines.runtime.counters import count_steps
from pipelines.runtime.step_times import timed
from pipelines.runtime.transforms import in_global_window

T = TypeVar("T")

_MOST_THREADS = 4  # of one process; what they hold grows with them
_STORE_THREADS = (
    32  # that mostly wait: a small object of a bucket takes some 50 ms, and as many can be asked for at once
)


@lru_cache(maxsize=2)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Shared by all DoFns of a process, whatever number of bundles it has at a time."""
    return ThreadPoolExecutor(threads, thread_name_prefix="bestkept")


@lru_cache(maxsize=1)
def _leaves() -> ThreadPoolExecutor:
    """A pool of its own, since calls in the other may wait for these."""
    return ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="bestkept-look")


def _threads() -> int:
    return min(_MOST_THREADS, machine.count_cores())


class ThreadedCalls:
    """Calls made in the pool; results in the order of the calls, with at most one call more than threads under way.

    Calls that mostly wait for an object store have a pool of more threads.
    """

    def __init__(self, *, on_object_store: bool = False) -> None:
        self._on_object_store = on_object_store
        self._waiting: deque[Future[Any]] = deque()

    def put(self, call: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        """Start a call; gives what is due by now. What a call raises is raised here, in its turn."""
        threads = _STORE_THREADS if self._on_object_store else _threads()
        self._waiting.append(_pool(threads).submit(call, *arguments))
        while len(self._waiting) > threads:
            yield self._waiting.popleft().result()

    def drain(self) -> Iterator[Any]:
        """All other results."""
        while self._waiting:
            yield self._waiting.popleft().result()


def map_ahead(call: Callable[[Any], T], arguments: Iterable[Any]) -> Iterator[T]:
    """`map`, for calls that mostly wait: as their results are taken, more of them are made at a time, twice as many as before.
    They must not use this themselves."""
    waiting, at_once = iter(arguments), 1
    while some := list(itertools.islice(waiting, at_once)):
        yield from _leaves().map(call, some)
        at_once = min(2 * at_once, _STORE_THREADS)


_END = object()


class OneAhead(Iterator[T]):
    """The items of an iterator, each made in a thread while the one before is used, and the first one from now on."""

    def __init__(self, items: Iterator[T]) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="bestkept-next")
        self._coming: Future[Any] = self._pool.submit(next, items, _END)

    def __next__(self) -> T:
        try:
            item: T = self._coming.result()
        except BaseException:
            self.close()
            raise
        if item is _END:
            self.close()
            raise StopIteration
        self._coming = self._pool.submit(next, self._items, _END)
        return item

    def ready(self) -> T | None:
        """The item that comes next, if it is made by now."""
        coming = self._coming
        if not coming.done() or coming.cancelled() or coming.exception() is not None or coming.result() is _END:
            return None
        item: T = coming.result()
        return item

    @property
    def at_end(self) -> bool:
        """True if there are no more items."""
        return self._coming.done() and self._coming.exception() is None and self._coming.result() is _END

    def close(self) -> None:
        """Make no more items, and do not wait for the one that is being made."""
        self._pool.shutdown(wait=False)


class _Done(NamedTuple):
    error: BaseException | None


def read_ahead(sources: Sequence[Callable[[], Iterable[T]]], *, most: int) -> Iterator[T]:
    """The items of all sources, in order; the next source is read while this one is used, in threads of their own, each at most
    `most` items ahead. What a source raises is raised here, in its turn."""
    stopped = threading.Event()

    def read(source: Callable[[], Iterable[T]], items: queue.Queue[T | _Done]) -> None:
        error: BaseException | None = None
        try:
            for item in source():
                if not _put(items, item, stopped):
                    return
        except BaseException as raised:
            error = raised
        _put(items, _Done(error), stopped)

    waiting: deque[queue.Queue[T | _Done]] = deque()
    to_start = iter(sources)
    try:
        while True:
            for source in itertools.islice(to_start, _threads() - len(waiting)):
                waiting.append(queue.Queue(most))
                threading.Thread(target=read, args=(source, waiting[-1]), daemon=True).start()
            if not waiting:
                return
            while not isinstance(item := waiting[0].get(), _Done):
                yield item
            if item.error is not None:
                raise item.error
            waiting.popleft()
    finally:
        stopped.set()


def _put(items: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    """Put an item where there is room; False once the reader has stopped."""
    while not stopped.is_set():
        try:
            items.put(item, timeout=1.0)
            return True
        except queue.Full:
            continue
    return False


class TimedDoFn(beam.DoFn):  # type: ignore[misc]
    """A DoFn of `work`, done for one element after the other, in which steps are timed."""

    def work(self, element: Any, *sides: Any) -> Iterable[Any]:
        """The outputs of one element."""
        raise NotImplementedError

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: Any, *sides: Any) -> Iterator[Any]:
        with carrying_errors():
            outputs, secs = timed(self.work, element, *sides)
            count_steps(secs)
            yield from outputs


class ThreadedDoFn(beam.DoFn):  # type: ignore[misc]
    """A DoFn of `work`, done in threads, and `collect`, done in the order of the elements; `close` ends a bundle."""

    def waits_for_store(self) -> bool:  # no property: Beam reads all attributes of a DoFn wherever a graph is built
        """Return True if `work` mostly waits for an object store."""
        return False

    def work(self, element: Any, *sides: Any) -> Any:
        """The result of one element; runs beside others, and changes nothing of the DoFn."""
        raise NotImplementedError

    def hold(self, element: Any) -> Any:
        """The element for `work`, with all that a runner may only show while it processes it."""
        return element

    def collect(self, result: Any) -> Iterator[Any]:
        """A result of `work` → outputs."""
        yield from result

    def close(self) -> Iterator[Any]:
        """The outputs at the end of a bundle."""
        return iter(())

    def setup(self) -> None:
        machine.reuse_freed_memory()

    def start_bundle(self) -> None:
        with carrying_errors():
            self._overlap = ThreadedCalls(on_object_store=self.waits_for_store())

    @no_annotations  # type: ignore[untyped-decorator]  # Beam cannot read those of *args
    def process(self, element: Any, *sides: Any) -> Iterator[Any]:
        with carrying_errors():
            for result, secs in self._overlap.put(timed, self.work, self.hold(element), *sides):
                count_steps(secs)
                yield from self.collect(result)

    def finish_bundle(self) -> Iterator[Any]:
        with carrying_errors():
            for result, secs in self._overlap.drain():
                count_steps(secs)
                yield from map(in_global_window, self.collect(result))
            yield from map(in_global_window, self.close())
