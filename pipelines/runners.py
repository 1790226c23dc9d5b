"""Beam options and runners: flags checked before anything runs, and the unsafe ways to run refused."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any

from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from pipelines.config import RunnerConfig
from pipelines.errors import ConfigError

_REFUSED_FLAGS = {
    "runner": "choose the runner in the configuration: runner.name=DataflowRunner",
    "direct_running_mode": "its multi_threading and multi_processing modes lose data; local runs are in memory",
    "direct_num_workers": "local runs are in memory, with one worker",
}


def pipeline_options(config: RunnerConfig, flags: Sequence[str]) -> PipelineOptions:
    """Beam's options from `runner.options` and command-line flags.

    Raises `ConfigError` for a flag that Beam does not know (Beam itself would only warn), with a did-you-mean.
    """
    given = [*_as_flags(config.options), *flags]
    parser = _BeamArgumentParser(add_help=False, allow_abbrev=False)
    for options in _all_option_classes(PipelineOptions):
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)
    known = sorted({flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")})
    for flag in given:
        name = flag.partition("=")[0]
        if not name.startswith("--"):
            continue
        if name[2:] in _REFUSED_FLAGS:
            raise ConfigError(f"flag {name} cannot be used here: {_REFUSED_FLAGS[name[2:]]}")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "our own settings have the form key.sub=value"
            raise ConfigError(f"unknown flag {name}: Beam has no such option; {hint}")
    try:
        _, stray = parser.parse_known_args(given)
    except (argparse.ArgumentError, SystemExit, ValueError) as error:
        raise ConfigError(f"Beam cannot use the flags {' '.join(given)}: {error}") from error
    if stray:
        raise ConfigError(f"argument {stray[0]!r} is neither key.sub=value nor a --flag of Beam with its value")
    return PipelineOptions(given)


def runner_of(config: RunnerConfig) -> Any:
    """The runner; local means `FnApiRunner`, in memory."""
    return FnApiRunner() if config.name == "local" else create_runner(config.name)


def _all_option_classes(root: Any) -> list[Any]:
    found: dict[Any, None] = {}
    waiting = list(root.__subclasses__())
    while waiting:
        cls = waiting.pop()
        if cls not in found and cls.__module__.startswith("apache_beam."):
            found[cls] = None
            waiting += cls.__subclasses__()
    return list(found)


def _as_flags(options: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        for item in values:
            if item is True:
                flags.append(f"--{name}")
            elif item is not False and item is not None:
                flags.append(f"--{name}={item}")
    return flags
