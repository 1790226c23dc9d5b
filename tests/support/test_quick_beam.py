"""Cached look-ups are equal to those of Beam, and no option of one pipeline reaches another."""

from __future__ import annotations

import pickle

import apache_beam as beam
import pytest
from apache_beam.options import pipeline_options
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.worker import statecache
from apache_beam.transforms import core, userstate
from apache_beam.typehints import decorators
from support import quick_beam
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines import curate
from pipelines.config import RunnerConfig
from pipelines.plan import make_plans
from pipelines.runtime import beam_options


@pytest.fixture
def plain():
    with quick_beam.plain_beam():
        yield


FLAGS = [[], ["--experiments=a", "--experiments=b", "--streaming", "--job_name=n"]]
STEPS = [{"length_correction": {}}, {"threshold": {"min_z": 0.0}}, {"top": {"rows": 9}}, {"pairs": {}}]


def test_a_graph_is_the_same(plain, tmp_path, make_config):
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()), select=STEPS, output={"shape": "preference"})
    plans = make_plans(config)
    paths = plans.save(str(tmp_path / "scores"))

    def graph():
        pipeline = beam.Pipeline(runner=FnApiRunner())
        curate.build(pipeline, config, paths, plans.whole, StubFactory())
        return str(pipeline.to_runner_api()).splitlines()

    first, second = graph(), graph()
    random = [at for at, lines in enumerate(zip(first, second, strict=True)) if len(set(lines)) > 1]  # names in pickles
    assert {first[at].split(":")[0].strip() for at in random} <= {"payload"}
    with quick_beam.quick_beam():
        for _ in range(2):
            quick = graph()
            assert [at for at, lines in enumerate(zip(first, quick, strict=True)) if len(set(lines)) > 1] == random
    assert len(random) < 30 < 2000 < len(first)


@pytest.mark.parametrize("flags", FLAGS)
def test_views_are_the_same_and_apart(plain, flags):
    kinds = [kind for kind in PipelineOptions.__subclasses__() if kind.__module__ == pipeline_options.__name__]
    assert len(kinds) > 15
    for kind in kinds:
        plain = PipelineOptions(flags).view_as(kind).get_all_options(current_only=True)
        with quick_beam.quick_beam():
            views = [PipelineOptions(flags).view_as(kind) for _ in range(2)]
            assert [type(view) for view in views] == [kind, kind]
            assert [view.get_all_options(current_only=True) for view in views] == [plain, plain]


def test_what_is_added_to_the_options_of_one_pipeline_is_not_in_those_of_another():
    with quick_beam.quick_beam():
        one, other = PipelineOptions(FLAGS[1]), PipelineOptions(FLAGS[1])
        one.view_as(DebugOptions).experiments.append("c")
        one.view_as(DebugOptions).dataflow_job_file = "f"
        assert one.view_as(DebugOptions).experiments == ["a", "b", "c"]
        assert one.view_as(DebugOptions).dataflow_job_file == "f"
        assert other.view_as(DebugOptions).experiments == ["a", "b"]
        assert PipelineOptions(FLAGS[1]).view_as(DebugOptions).dataflow_job_file is None


class One(beam.DoFn):
    def process(self, element, extra=1):
        yield element


class Two(One):
    def process(self, element, other=beam.DoFn.TimestampParam):
        yield element


@pytest.mark.parametrize("func", [One.process, One().process, Two.process, Two().process, One, str.upper, lambda x: x])
def test_signatures_are_those_of_their_own_function(plain, func):
    expected = decorators.get_signature(func)
    assert [quick_beam.get_signature(func) for _ in range(2)] == [expected] * 2
    arguments = core.get_function_args_defaults(func)
    for _ in range(2):
        found = quick_beam.get_function_args_defaults(func)
        assert found == arguments
        found[0].append("changed by the caller")
    arguments = core.get_function_args_defaults(func)
    for _ in range(2):
        found = quick_beam.get_function_args_defaults(func)
        assert found == arguments
        found[0].append("changed by the caller")


TIMER = userstate.TimerSpec("end", beam.TimeDomain.WATERMARK)
COUNT_PARAM = beam.DoFn.StateParam(userstate.CombiningValueStateSpec("count", sum))
TIMER_PARAM = beam.DoFn.TimerParam(TIMER)


class Counter(beam.DoFn):
    def process(self, element, count=COUNT_PARAM, timer=TIMER_PARAM):
        yield element

    @userstate.on_timer(TIMER)
    def end(self):
        yield None


def replaced(dofn, process):
    dofn.process = process
    return dofn


@pytest.mark.parametrize(
    "dofns",
    [
        [One(), Two()],
        [Counter(), One()],
        [Counter(), replaced(Counter(), lambda element: [element])],
        [One(), replaced(One(), Counter().process)],
        [core.CallableWrapperDoFn(str.upper), core.CallableWrapperDoFn(Counter().process)],
    ],
)
def test_state_and_timers_are_those_of_their_own_class(plain, dofns):
    for dofn in [*dofns, *reversed(dofns)]:
        expected = userstate.get_dofn_specs(dofn)
        for _ in range(2):
            specs = quick_beam.get_dofn_specs(dofn)
            assert specs == expected
            specs[0].add("changed by the caller")


@pytest.mark.parametrize("values", [[b"x" * 1000], [[1, 2], {"a": [3.5]}], [beam.DoFn, len], []])
def test_sizes_are_those_of_beam(plain, values):
    assert quick_beam.get_deep_size(*values) == statecache.get_deep_size(*values)


def functions():
    return (
        decorators.get_signature,
        core.get_function_args_defaults,
        userstate.get_dofn_specs,
        statecache.get_deep_size,
        PipelineOptions.view_as,
    )


def test_fast_tests_run_quick_beam_and_nothing_stays_behind():
    assert functions() == quick_beam._QUICK
    with quick_beam.plain_beam():
        before = functions()
        with quick_beam.quick_beam():
            assert not {*functions()} & {*before}
        assert functions() == before


@pytest.mark.slow
def test_slow_tests_run_beam_as_it_is():
    now = functions()
    with quick_beam.plain_beam():
        assert functions() == now


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS)
def test_views_that_are_made_once_are_those_of_beam(flags):
    """What `pipeline_options` gives, against Beam's own."""
    own, other, beams = (make(flags) for make in (options_of, options_of, PipelineOptions))
    kinds = [kind for kind in PipelineOptions.__subclasses__() if kind.__module__ == pipeline_options.__name__]
    for kind in kinds:
        assert own.view_as(kind) is own.view_as(kind)
        assert own.view_as(kind).get_all_options(current_only=True) == beams.view_as(kind).get_all_options(
            current_only=True
        )
    assert own.get_all_options() == beams.get_all_options()
    own.view_as(DebugOptions).experiments = ["d"]
    own.view_as(DebugOptions).view_as(StandardOptions).streaming = True
    assert own.view_as(DebugOptions).experiments == ["d"]
    assert own.view_as(StandardOptions).streaming
    assert other.view_as(DebugOptions).experiments == beams.view_as(DebugOptions).experiments
    assert pickle.loads(pickle.dumps(own)).get_all_options() == own.get_all_options()


def options_of(flags):
    return beam_options.pipeline_options(RunnerConfig(), flags)
