"""Runners as bestkept sets them up."""

from __future__ import annotations

from apache_beam.runners.worker import statesampler
from apache_beam.utils.counters import CounterFactory

from pipelines.config import RunnerConfig
from pipelines.runtime import beam_options


def sampling_period_ms():
    return statesampler.StateSampler("stage", CounterFactory()).sampling_period_ms


def test_a_stage_of_a_local_run_does_not_wait_200_ms_for_its_sampling_thread(monkeypatch):
    """The installed version of Beam has the argument that this shortens."""
    monkeypatch.setattr(statesampler.StateSampler.__init__, "__defaults__", (statesampler.DEFAULT_SAMPLING_PERIOD_MS,))
    beam_options.make_runner(RunnerConfig())
    assert sampling_period_ms() == 10 < statesampler.DEFAULT_SAMPLING_PERIOD_MS


def test_a_sampler_with_other_arguments_keeps_its_period(monkeypatch):
    monkeypatch.setattr(statesampler.StateSampler.__init__, "__defaults__", (500,))
    beam_options.make_runner(RunnerConfig())
    assert sampling_period_ms() == 500
