"""Batches on their way through a model: when they are launched and read, how often a GPU is waited for, and what fails late."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.scorers import load, some_groups
from support.stub_gpu import GPU, StubGpu

from rm.engine import packed_attention
from rm.engine.attention_kernels import Kernel, attend_densely
from rm.engine.device import DeviceError


@pytest.fixture
def ahead(causal):
    """A scorer that takes its CPU for a GPU, with batches of some rows, and the rewards that it is to give."""
    expected = load(causal, tokens_per_batch=60).score(some_groups())
    scorer = load(causal, tokens_per_batch=60)
    scorer.device = "cuda"
    return scorer, expected


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.reasons == other.reasons
        np.testing.assert_allclose(one.rewards, other.rewards, rtol=0, atol=1e-5)


def watch(scorer, *, launching=None, reading=None):
    """Record launches and reads; `launching` and `reading` may raise for the rows of a batch."""
    events, forward = [], scorer._forward

    def watched(rows, batch):
        number = sum(kind == "launch" for kind, *_ in events)
        members = [rows[row] for run in batch for row in run]
        events.append(("launch", number, len(members)))
        if launching is not None:
            launching(members)
        launched = forward(rows, batch)

        def read():
            events.append(("read", number, len(members)))
            if reading is not None:
                reading(members)
            return launched.read()

        return launched._replace(read=read)

    scorer._forward = watched
    return events


def test_the_next_batch_is_launched_before_the_rewards_of_the_last_are_read(ahead, monkeypatch):
    monkeypatch.setattr("rm.scorer._WINDOW_BATCHES", 2)  # and from one window to the next
    scorer, expected = ahead
    events = watch(scorer)
    assert_same(scorer.score(some_groups()), expected)
    count = sum(kind == "launch" for kind, *_ in events)
    assert count > 5
    order = [("launch", 0)]
    for number in range(count - 1):
        order += [("launch", number + 1), ("read", number)]
    assert [event[:2] for event in events] == [*order, ("read", count - 1)]


def cut(scorer, groups):
    """Two halves, the second of them prepared."""
    return groups[:4], scorer.prepare(groups[4:])


def test_batches_of_the_next_call_are_launched_before_a_call_returns(ahead):
    scorer, expected = ahead
    events = watch(scorer)
    first, second = cut(scorer, some_groups())
    got = scorer.score(first, lambda: second)
    launched, read = ([number for kind, number, _ in events if kind == wanted] for wanted in ("launch", "read"))
    own = len(read)
    assert own > 1
    assert len(launched) == own + 2  # while the caller keeps these results, the device has two batches to compute
    assert [event[:2] for event in events[-4:]] == [
        ("read", own - 2),
        ("launch", own),
        ("read", own - 1),
        ("launch", own + 1),
    ]
    assert_same([*got, *scorer.score(second)], expected)
    launched, read = ([number for kind, number, _ in events if kind == wanted] for wanted in ("launch", "read"))
    assert launched == read == list(range(len(launched)))  # each once, in order


def test_a_next_call_that_is_not_prepared_or_not_wanted_changes_nothing(ahead):
    scorer, expected = ahead
    events = watch(scorer)
    groups = some_groups()
    asked = []
    first, second = cut(scorer, groups)
    assert_same(scorer.score(first, lambda: asked.append(1)), expected[:4])
    assert asked  # and nothing was there yet
    assert sum(kind == "launch" for kind, *_ in events) == sum(kind == "read" for kind, *_ in events)
    scorer.score(groups[:1], lambda: second)  # two batches of which nobody takes the rewards
    assert_same(scorer.score(groups), expected)


@pytest.mark.parametrize("problem", ["out_of_memory", "bad_row"])
@pytest.mark.parametrize("moment", ["launching", "reading"])
def test_what_fails_of_the_next_call_is_no_fault_of_this_one(ahead, causal, problem, moment):
    scorer, _ = ahead
    alone = load(causal, tokens_per_batch=60)
    alone.device, raises = "cuda", {"out_of_memory": out_of_memory, "bad_row": bad_row}[problem]
    watch(alone, **{moment: raises})
    expected = alone.score(some_groups())
    watch(scorer, **{moment: raises})
    first, second = cut(scorer, some_groups())
    assert_same([*scorer.score(first, lambda: second), *scorer.score(second)], expected)


def test_a_cpu_s_rewards_are_read_at_once(ahead):
    scorer, _ = ahead
    scorer.device = "cpu"
    events = watch(scorer)
    scorer.score(some_groups())
    assert {kind for kind, *_ in events[::2]} == {"launch"}
    assert {kind for kind, *_ in events[1::2]} == {"read"}


def test_times_of_batches_do_not_overlap(ahead, monkeypatch):
    """A batch counts from the end of the one before it."""
    clock = iter(range(10**6))
    monkeypatch.setattr("rm.forwards.time.perf_counter", lambda: float(next(clock)))
    scorer, _ = ahead
    done = []
    scorer.on_batch = done.append
    scorer.score(some_groups())
    last = next(clock)
    assert len(done) > 5
    assert all(work.secs > 0 for work in done)
    assert sum(work.secs for work in done) <= last


def out_of_memory(members):
    if sum(len(row.ids) for row in members) > 40:
        raise torch.OutOfMemoryError("none left")


def bad_row(members):
    if any(len(row.ids) == 8 for row in members):
        raise IndexError("row text")


@pytest.mark.parametrize("problem", [out_of_memory, bad_row])
def test_what_fails_when_it_is_read_is_divided_as_what_fails_when_it_is_launched(ahead, causal, problem):
    scorer, _ = ahead
    at_once, late = load(causal, tokens_per_batch=60), scorer
    at_once.device = "cuda"
    launches = [watch(at_once, launching=problem), watch(late, reading=problem)]
    expected, got = at_once.score(some_groups()), late.score(some_groups())
    assert_same(got, expected)
    if problem is out_of_memory:  # two batches may fail for the same budget
        assert all(13 < scorer.tokens_per_batch < 40 for scorer in (at_once, late))
    sizes = [sorted(size for kind, _, size in events if kind == "launch") for events in launches]
    if problem is bad_row:
        assert sizes[0] == sizes[1]  # the very same parts, and the row that was known to work, to tell who is to blame
        assert "model_error" in {reason for result in got for reason in result.reasons}
    assert max(sizes[1]) > 1


def test_rows_launched_before_one_that_fails_are_known_to_work(ahead, monkeypatch):
    """So that a device that breaks at the second batch is told from a row that breaks the model, whenever rewards are read."""
    scorer, _ = ahead
    calls = []

    def second(members):
        calls.append(members)
        if len(calls) > 1:
            raise RuntimeError("the model has broken")

    watch(scorer, launching=second)
    with pytest.raises(DeviceError, match="a row that was scored before fails as well"):
        scorer.score(some_groups())


def test_a_device_that_breaks_while_it_computes_is_no_row_s_fault(ahead):
    scorer, _ = ahead

    def breaking(members):
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    events = watch(scorer, reading=breaking)
    with pytest.raises(DeviceError, match="unspecified launch failure"):
        scorer.score(some_groups())
    assert sum(kind == "read" for kind, *_ in events) == 1


@pytest.mark.parametrize("kind", ["causal", "encoder"])
def test_a_gpu_is_waited_for_once_a_batch(kind, request, monkeypatch):
    """Whatever reads a value back makes the GPU wait for the next launch: only rewards do, and they by an event."""
    scorer, groups = load(request.getfixturevalue(kind), tokens_per_batch=60), some_groups()
    expected = scorer.score(groups)
    stub = StubGpu()
    stub.patch(monkeypatch)

    def by_definition(query, key, value, spans, *, causal, scaling, window=None):
        with stub.uncounted():
            runs = list(zip(*(ends.value.diff().tolist() for ends in spans[:2]), strict=True))
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            return attend_densely(query, key, value, runs, causal=causal, scaling=scaling, window=window), None

    kernel = Kernel("by definition", by_definition, takes_windows=True, gives_sums=False)
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_, **__: kernel)
    scorer.device, done = "meta", []
    scorer.on_batch = done.append
    with stub:
        stub.take(scorer.model)
        assert scorer.model.model.device == GPU
        assert_same(scorer.score(groups), expected)
        assert len(done) > 5
        assert stub.waits == ["event"] * len(done)
        built = scorer.prepare(groups).begin()
        run = built.live[0]
        plan = run.waiting[0].inputs.plan
        assert plan.asked  # what layers asked for in the forwards before is made ahead, by the thread that tokenises
        made = dict(plan._joined)
        assert bool(made) == plan.shares
        assert len(list(scorer._run(type(built)(iter([run]))))) == 1
        assert plan._joined == made


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), IndexError("row text")])
def test_a_call_is_whole_where_the_first_batch_of_the_next_one_cannot_be_launched(ahead, error):
    scorer, expected = ahead
    first, second = cut(scorer, some_groups())
    asked, raised = [], []

    def once(members):
        if asked and not raised:
            raised.append(error)
            raise error

    watch(scorer, launching=once)
    got = scorer.score(first, lambda: asked.append(1) or second)
    assert raised
    assert_same(got, expected[:4])
