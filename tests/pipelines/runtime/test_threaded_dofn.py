"""Threads inside a DoFn: order, errors, bounds."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from pipelines.errors import InputError, from_text
from pipelines.runtime import machine, threaded_dofn
from pipelines.runtime.threaded_dofn import OneAhead, ThreadedCalls, ThreadedDoFn, map_ahead
from pipelines.runtime.transforms import Gather


@pytest.mark.parametrize(("most", "accepted"), [(1 << 30, 1 << 30), (1 << 25, 1 << 25), (0, None)])
def test_memory_is_reused_as_far_as_the_c_library_allows(monkeypatch, most, accepted):
    """Without a threshold of its own for new pages, glibc is left as it is: the rest alone would make it slower."""
    calls = []

    class Library:
        def mallopt(self, parameter, value):
            taken = parameter != -3 or value <= most
            calls.append((parameter, value) if taken else None)
            return int(taken)

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Library())
    machine.reuse_freed_memory.__wrapped__()
    done = [call for call in calls if call is not None]
    assert done == ([] if accepted is None else [(-3, accepted), (-1, 1 << 27), (-8, 1)])


def test_results_keep_the_order_of_the_calls(monkeypatch):
    monkeypatch.setattr(threaded_dofn, "_threads", lambda: 2)
    calls = ThreadedCalls()
    slow_first = [0.05, 0.0, 0.02, 0.0, 0.0]
    found = []
    for number, secs in enumerate(slow_first):
        found += calls.put(lambda n, s: time.sleep(s) or n, number, secs)
        assert len(found) == max(0, number + 1 - 2), "two calls may be under way"
    assert [*found, *calls.drain()] == [0, 1, 2, 3, 4]


def test_two_calls_run_at_once(monkeypatch):
    monkeypatch.setattr(threaded_dofn, "_threads", lambda: 2)
    pool = ThreadPoolExecutor(2)
    monkeypatch.setattr(threaded_dofn, "_pool", lambda _: pool)
    meet, calls = threading.Barrier(2, timeout=30), ThreadedCalls()
    assert [*calls.put(meet.wait), *calls.put(meet.wait)] == []
    assert sorted(calls.drain()) == [0, 1]


@pytest.mark.parametrize("on_object_store", [True, False])
def test_more_calls_run_at_once_where_they_wait_for_an_object_store(monkeypatch, on_object_store):
    monkeypatch.setattr(threaded_dofn, "_threads", lambda: 2)
    meet = threading.Barrier(8, timeout=30 if on_object_store else 0.1)
    calls = ThreadedCalls(on_object_store=on_object_store)
    found = [outcome for _ in range(8) for outcome in calls.put(_met, meet)] + list(calls.drain())
    assert found == [on_object_store] * 8


def _met(barrier):
    try:
        barrier.wait()
    except threading.BrokenBarrierError:
        return False
    return True


def test_looking_ahead_doubles_and_keeps_the_order():
    called = []
    taken = map_ahead(lambda n: called.append(n) or -n, range(100))
    assert called == []
    most = {1: 1, 2: 3, 3: 3, 4: 7, 7: 7, 8: 15, 16: 31, 32: 63, 64: 95, 96: 100}
    found = []
    while len(found) < 100:
        found.append(next(taken))
        if len(found) in most:
            assert len(called) <= most[len(found)]
            assert set(range(len(found))) <= set(called)
    assert found == [-n for n in range(100)]
    assert (list(taken), sorted(called)) == ([], [*range(100)])


def test_looking_ahead_calls_at_once_and_raises_in_turn():
    meet = threading.Barrier(4, timeout=30)

    def look(number):
        if 3 <= number < 7:
            meet.wait()
        if number == 5:
            raise InputError("5 is not there; restore it")
        return number

    looked = map_ahead(look, itertools.count())
    assert list(itertools.islice(looked, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="5 is not there"):
        next(looked)


def wait_for(condition) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def test_the_next_item_is_made_while_one_is_used_and_raises_in_turn():
    made = [threading.Event() for _ in range(3)]

    def items():
        for number in range(3):
            made[number].set()
            yield number
        raise InputError("3 is not there; restore it")

    used = OneAhead(items())
    assert made[0].wait(30)  # before it is asked for
    for number in range(3):
        assert next(used) == number
        assert number == 2 or made[number + 1].wait(30)
        assert number == 2 or wait_for(lambda number=number: used.ready() == number + 1)
        assert not any(event.is_set() for event in made[number + 2 :])
    with pytest.raises(InputError, match="3 is not there"):
        next(used)
    assert used.ready() is None
    assert not used.at_end  # it has failed
    nothing = OneAhead(iter(()))
    assert list(nothing) == []
    assert nothing.at_end
    assert nothing.ready() is None


class Doubled(ThreadedDoFn):
    def work(self, element, *sides):
        if element == 13:
            raise InputError("13 is not a number here; leave it out")
        return [2 * element, *sides]

    def close(self):
        yield "closed"


def joined(parts):
    return [value for part in parts for value in part]


def run(elements, check=None):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        doubled = pipeline | beam.Create(elements) | beam.ParDo(Doubled(), 7)
        found = doubled | beam.Map(lambda value: [value]) | "All" >> Gather(joined)
        if check is not None:
            assert_that(found, check)


def test_outputs_in_order_and_the_end_of_each_bundle():
    def check(found):
        (values,) = found
        doubled = [value for value in values if value not in (7, "closed")]
        assert doubled == [2 * n for n in range(20, 40)]
        assert values.count(7) == 20, "side inputs reach every call"
        assert values[-1] == "closed"

    run(range(20, 40), check)


def test_an_error_of_a_thread_reaches_the_launcher():
    with pytest.raises(Exception, match="13 is not a number") as caught:
        run([1, 13, 2])
    assert from_text(str(caught.value)).message == "13 is not a number here; leave it out"
