"""Beam options and runners. Flags are checked before anything runs; unsafe ways to run are refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    StandardOptions,
    TestOptions,
    WorkerOptions,
    _BeamArgumentParser,
)
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner
from apache_beam.runners.worker.statesampler import DEFAULT_SAMPLING_PERIOD_MS, StateSampler

from pipelines.config import RunConfig, RunnerConfig
from pipelines.errors import ConfigError, UnknownOptionError
from pipelines.runtime import dataflow
from pipelines.runtime.accelerators import Accelerator
from pipelines.runtime.machine import check_workers

log = logging.getLogger(__name__)

_SAMPLING_PERIOD_MS = 10
_REFUSED_FLAGS = {
    "runner": "choose the runner in the configuration: runner.name=DataflowRunner",
    "direct_running_mode": "its multi_threading and multi_processing modes lose data; local runs are in memory",
    "direct_num_workers": "local runs are in memory, with one worker",
}


def prepare_options(config: RunConfig, flags: Sequence[str], *, scores: bool) -> PipelineOptions:
    """Return the `pipeline_options` of a run, with the flags that its runner needs; `scores` is True if a model is loaded.

    Raises `ConfigError` with all settings with which a job would fail after submission, or never end.
    """
    dataflow.refuse_hub_ids(config)
    if scores and config.runner.name == "local":
        models = config.named_models.values()
        on_cpu = all(model.device == "cpu" for model in models)
        devices = max((model.devices for model in models if isinstance(model.devices, int)), default=1)
        # one worker is checked when its model is loaded, which ends with 7
        check_workers(config.runner.workers, on_cpu=on_cpu, devices=devices if config.runner.workers > 1 else 1)
    elif config.runner.workers > 1:
        log.info("nothing is scored, so runner.workers has no effect")
    options = pipeline_options(config.runner, flags)
    if config.runner.name != dataflow.DATAFLOW:
        return options
    values = options.get_all_options()
    dataflow.check(config, values, scores=scores)
    if find_spec("google.cloud.dataflow_v1beta3") is None:  # Beam detects this only at the end, after planning
        raise ConfigError("runner.name DataflowRunner needs the service's client; pip install 'bestkept[gcp]'")
    defaults = dataflow.default_flags(config.runner, values, scores=scores)
    if defaults:
        log.info("for Dataflow: %s", " ".join(defaults))
    if config.runner.accelerator is not None and not scores:
        log.info("nothing is scored, so runner.accelerator is not requested")
    return pipeline_options(config.runner, [*flags, *defaults])


def hands_over(options: PipelineOptions) -> bool:
    """Return True if the launcher does not wait for the job: it makes a template or only a graph, or an option says so."""
    return makes_template(options) or bool(
        options.view_as(StandardOptions).no_wait_until_finish or options.view_as(TestOptions).dry_run
    )


def makes_template(options: PipelineOptions) -> bool:
    """Return True if the job is only staged, as a template that the Dataflow service starts later."""
    return bool(options.view_as(GoogleCloudOptions).template_location)


def pipeline_options(config: RunnerConfig, flags: Sequence[str]) -> PipelineOptions:
    """Return Beam's options from `runner.options` and command-line flags.

    Raises `ConfigError` for a flag that Beam does not have, and suggests a similar one; Beam itself would only warn.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in _all_option_classes(PipelineOptions):
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)
    known = sorted({flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")})
    arguments = [*_as_flags(config.options, known), *flags]
    for flag in arguments:
        name = flag.partition("=")[0]
        if not name.startswith("--"):
            continue
        if name[2:] in _REFUSED_FLAGS:
            raise ConfigError(f"flag {name} cannot be used here: {_REFUSED_FLAGS[name[2:]]}")
        if name == "--shard":
            raise ConfigError(
                "--shard is an option of `bestkept score`; `bestkept run` continues when all shards are scored"
            )
        if name not in known:
            remedy = "our own settings have the form key.sub=value"
            raise UnknownOptionError(name, detail=", neither ours nor Beam's", known=known, otherwise=remedy)
    _, stray = parser.parse_known_args(arguments)
    if stray:
        raise ConfigError(f"argument {stray[0]!r} is neither key.sub=value nor a --flag of Beam with its value")
    return _Options(arguments)


class RequestedMachine(NamedTuple):
    """The machines that a runner's options request; None for options that are not set."""

    machine: str | None
    gpu: str | None
    gpus: int  # on each machine; a worker process computes on one of them
    workers: int | None  # at most


def requested_machine(config: RunnerConfig, flags: Sequence[str]) -> RequestedMachine:
    """Return the machine type of the scoring workers, their accelerator, and their maximum number.

    Raises `ConfigError` as `pipeline_options` does.
    """
    options = pipeline_options(config, flags).view_as(WorkerOptions)
    workers = options.max_num_workers or options.num_workers
    most = config.workers if config.name == "local" else int(workers) if workers else None
    if config.accelerator is None:
        return RequestedMachine(options.machine_type, None, 0, most)
    gpu = Accelerator.of(config.accelerator)
    return RequestedMachine(gpu.machine_type or options.machine_type, gpu.type, gpu.gpus, most)


def make_runner(config: RunnerConfig) -> Any:
    """Return the runner of a configuration; local means `FnApiRunner`, in memory."""
    if config.name == "local":
        _sample_states_often()
        return FnApiRunner()
    try:
        return create_runner(config.name)
    except (ImportError, ValueError) as error:
        remedy = "pip install 'bestkept[gcp]'" if config.name == "DataflowRunner" else "install what Beam needs for it"
        raise ConfigError(
            f"runner.name {config.name} cannot be used here ({type(error).__name__}); {remedy}"
        ) from error


def _sample_states_often() -> None:
    """Shorten the period in which Beam samples what a stage of this process does, from 200 ms.

    Each stage ends only when the sampling thread wakes up: about a tenth of the time of a selection. A Beam version whose sampler
    has other arguments keeps its own period.
    """
    sampler: Any = StateSampler.__init__
    if sampler.__defaults__ == (DEFAULT_SAMPLING_PERIOD_MS,):
        sampler.__defaults__ = (_SAMPLING_PERIOD_MS,)


class _Options(PipelineOptions):  # type: ignore[misc]
    """Options that create each view once: Beam requests about nine for each step, each with a separate argument parser."""

    def view_as(self, cls: type[Any]) -> Any:
        views: dict[type[Any], Any] = self.__dict__.setdefault("_views", {})
        if cls not in views:
            views[cls] = super().view_as(cls)
        return views[cls]


class _Parser(_BeamArgumentParser):  # type: ignore[misc]
    """Beam's parser, with an error of our own that does not repeat the value, which may be a secret."""

    def error(self, message: str) -> NoReturn:
        flag = message.partition(":")[0].removeprefix("argument ")
        raise ConfigError(f"Beam cannot use the value of {flag}; see Beam's documentation of that option")


def _all_option_classes(root: Any) -> list[Any]:
    classes: dict[Any, None] = {}
    waiting = list(root.__subclasses__())
    while waiting:
        cls = waiting.pop()
        if cls not in classes and cls.__module__.startswith("apache_beam."):
            classes[cls] = None
            waiting += cls.__subclasses__()
    return list(classes)


def _as_flags(options: dict[str, Any], known: Sequence[str]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        if value is None:  # an override of null removes an option of a file
            continue
        if value is False:
            if f"--no_{name}" not in known:
                raise ConfigError(f"runner.options.{name} is false, and Beam has no --no_{name}; leave the option out")
            flags.append(f"--no_{name}")
            continue
        for item in value if isinstance(value, list) else [value]:
            flags.append(f"--{name}" if item is True else f"--{name}={item}")
    return flags
