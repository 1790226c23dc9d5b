"""The program of the Flex template's launcher: turns the template's parameters into one `bestkept` command.

A parameter is a setting with `_` instead of points (`input_path` is `input.path`), and its value is YAML; `command` is run, score
or select, and `config` a YAML file, in the image or on gs://, which the other parameters override. All other arguments (project,
region, paths of the template) are passed to Beam.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

COMMANDS = ("run", "score", "select")
OWN = ("command", "config")
FROM_LAUNCHER = {"runner", "dry_run"}  # the runner is fixed, and a template is never a dry run


def fields() -> dict[str, tuple[str, Any]]:
    """Parameter → (key of the configuration, pydantic's field), in the order of the models."""
    from pipelines.config import RunConfig

    return {key.replace(".", "_"): (key, field) for key, field in _leaves(RunConfig, "")}


def _leaves(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            yield from _leaves(inner, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "runner.name":
            yield f"{prefix}{name}", field


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a field whose type is a model or a union with one; a list of models is a leaf."""
    if get_origin(annotation) is list:
        return None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for kind in get_args(annotation) if (found := _section(kind)) is not None), None)


def command_of(arguments: list[str], directory: Path) -> list[str]:
    """The arguments of `bestkept`; a configuration from gs:// is copied to `directory`.

    Raises `SystemExit` with one line for an unknown command and for a value without a flag.
    """
    values, passed = _parsed(arguments)
    command = values.pop("command", "run")
    if command not in COMMANDS:
        raise SystemExit(f"bestkept: command is {command!r}; expected one of {', '.join(COMMANDS)}")
    config = _local(values.pop("config", None), directory)
    known = fields()
    overrides = [f"{known[name][0]}={value}" for name, value in values.items()]
    return [command, config, *overrides, "runner.name=DataflowRunner", *passed]


def _parsed(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """(our parameters, flags of Beam); both `--name=value` and `--name value` are read."""
    values: dict[str, str] = {}
    passed: list[str] = []
    known, waiting = {*OWN, *fields()}, list(arguments)
    while waiting:
        name, sign, value = waiting.pop(0).partition("=")
        if not name.startswith("--"):
            raise SystemExit(f"bestkept: {name!r} stands where a --parameter=value was expected")
        if not sign and waiting and not waiting[0].startswith("--"):
            sign, value = "=", waiting.pop(0)
        if name[2:] in known:
            values[name[2:]] = value
        elif name[2:] not in FROM_LAUNCHER:
            passed.append(f"{name}{sign}{value}")
    return values, passed


def _local(config: str | None, directory: Path) -> str:
    if config is None:
        path = directory / "empty.yaml"
        path.write_text("{}\n", encoding="utf-8")
        return str(path)
    if "://" not in config:
        return config
    from pipelines.storage.files import read_bytes

    data = read_bytes(config)
    if data is None:
        raise SystemExit(f"bestkept: config {config!r} is not there; expected a YAML file in the image or on gs://")
    path = directory / "config.yaml"
    path.write_bytes(data)
    return str(path)


def main() -> None:
    from pipelines.cli import main as bestkept

    with tempfile.TemporaryDirectory(prefix="bestkept-launch-") as directory:
        sys.argv = ["bestkept", *command_of(sys.argv[1:], Path(directory))]
        bestkept()


if __name__ == "__main__":
    main()
