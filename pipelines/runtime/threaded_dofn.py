"""DoFns that process several elements at once, and reading ahead. No files.

NumPy, Arrow and zstd release the interpreter's lock while they work, so threads inside one DoFn use the cores of a worker to
which the runner gives one bundle at a time. Results keep the order of the elements.
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

_MOST_THREADS = 4  # of one process; memory grows with their number
_STORE_THREADS = (
    32  # that mostly wait: a small object of a bucket takes some 50 ms, and a store serves many requests at once
)


@lru_cache(maxsize=2)
def _pool(threads: int) -> ThreadPoolExecutor:
    """The pool of all DoFns of a process, whatever the number of its concurrent bundles."""
    return ThreadPoolExecutor(threads, thread_name_prefix="bestkept")


@lru_cache(maxsize=1)
def _leaves() -> ThreadPoolExecutor:
    """A separate pool, since calls in the other pool may wait for calls in this one."""
    return ThreadPoolExecutor(_STORE_THREADS, thread_name_prefix="bestkept-look")


def _threads() -> int:
    return min(_MOST_THREADS, machine.count_cores())


class ThreadedCalls:
    """Calls made in the pool, with results in the order of the calls; at most one more call than threads is pending.

    Calls that mostly wait for an object store use a pool with more threads.
    """

    def __init__(self, *, on_object_store: bool = False) -> None:
        self._on_object_store = on_object_store
        self._waiting: deque[Future[Any]] = deque()

    def put(self, call: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        """Start a call, and yield the results that are due. An error of a call is raised here, in its turn."""
        threads = _STORE_THREADS if self._on_object_store else _threads()
        self._waiting.append(_pool(threads).submit(call, *arguments))
        while len(self._waiting) > threads:
            yield self._waiting.popleft().result()

    def drain(self) -> Iterator[Any]:
        """All other results."""
        while self._waiting:
            yield self._waiting.popleft().result()


def map_ahead(call: Callable[[Any], T], arguments: Iterable[Any]) -> Iterator[T]:
    """`map`, for calls that mostly wait: each time the results are consumed, the number of concurrent calls doubles.
    The calls must not use `map_ahead` themselves."""
    waiting, at_once = iter(arguments), 1
    while some := list(itertools.islice(waiting, at_once)):
        yield from _leaves().map(call, some)
        at_once = min(2 * at_once, _STORE_THREADS)


_END = object()


class OneAhead(Iterator[T]):
    """The items of an iterator, each made in a thread while the previous one is used; the thread starts the first one at once."""

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
        """The next item, if it has been made."""
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
        """Stop making items, without waiting for the one that is being made."""
        self._pool.shutdown(wait=False)


class _Done(NamedTuple):
    error: BaseException | None


def read_ahead(sources: Sequence[Callable[[], Iterable[T]]], *, most: int) -> Iterator[T]:
    """The items of all sources, in order. The next source is read while this one is used, each in its own thread, at most `most`
    items ahead. An error of a source is raised here, in its turn."""
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
    """Put an item into the queue when it has room; return False if the reader has stopped."""
    while not stopped.is_set():
        try:
            items.put(item, timeout=1.0)
            return True
        except queue.Full:
            continue
    return False


class TimedDoFn(beam.DoFn):  # type: ignore[misc]
    """A DoFn that calls `work` for one element after another, and times the steps in it."""

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
    """A DoFn that calls `work` in threads, and `collect` in the order of the elements; `close` ends a bundle."""

    def waits_for_store(self) -> bool:  # not a property: Beam reads all attributes of a DoFn when it builds a graph
        """Return True if `work` mostly waits for an object store."""
        return False

    def work(self, element: Any, *sides: Any) -> Any:
        """The result of one element; runs concurrently with others, and does not change the DoFn."""
        raise NotImplementedError

    def hold(self, element: Any) -> Any:
        """The element for `work`, including data that a runner may provide only while it processes the element."""
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
