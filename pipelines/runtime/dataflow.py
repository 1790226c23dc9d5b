"""Checks of a run on Dataflow, made before any file is touched; they report all mistakes at once. Pure; no Beam.

Workers are machines of the service: they can read objects in gs:// and the files of their container image, but no files of the
launcher. Weights must be in one of these. Sources: Beam's options, and the service's pages on GPUs, right fitting and custom
containers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.config import RunConfig, RunnerConfig
from pipelines.errors import ConfigError
from pipelines.runtime.accelerators import DRIVER, Accelerator, dtype_mistake, machine_mistakes

DATAFLOW = "DataflowRunner"
ONE_PROCESS = "no_use_multiple_sdk_containers"
GPU_THREADS = 2  # one bundle uses the GPU while another reads and publishes; each holds a fragment in memory

_LEAST_DISK_GB = 25  # the service's default for a batch worker
_LEAST_GPU_DISK_GB = 50  # the image with CUDA takes 10 GB, and its layers another 10 GB during the download
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def refuse_hub_ids(config: RunConfig) -> None:
    """Raise `ConfigError` if a model is named by a hub id and the workers are other machines, to which no model is downloaded."""
    if config.runner.name == "local":
        return
    for setting, path in _model_paths(config):
        if _is_hub_id(path):
            raise ConfigError(
                f"{setting} {path!r} is a hub id, and workers of {config.runner.name} do not see what the launcher fetches; "
                f"expected a bucket, to which `bestkept model fetch {path} gs://BUCKET/models/NAME` copies it, or a directory "
                "of the worker image"
            )


def check(config: RunConfig, options: Mapping[str, Any], *, scores: bool) -> None:
    """Raise `ConfigError` with all mistakes that prevent a run on Dataflow.

    `options` are Beam's by name, None if not set; `scores` is True if a model is loaded.
    """
    mistakes = [*_project(options), *_paths(config), *_models(config), *_workers(options)]
    if config.runner.accelerator is not None and scores:
        mistakes += _gpu(config, Accelerator.of(config.runner.accelerator), options)
    mistakes += _service(options)
    if mistakes:
        raise ConfigError(f"not ready for Dataflow: {'; '.join(mistakes)}")


def default_flags(runner: RunnerConfig, options: Mapping[str, Any], *, scores: bool) -> list[str]:
    """Return Beam's flags for the settings that the user has not chosen.

    With a GPU, a worker has one process and few threads, since each process would load the model and create a CUDA context.
    """
    flags: list[str] = []
    if (
        options.get("sdk_location") == "default"
    ):  # the image contains Beam; otherwise every worker would install it again
        flags.append("--sdk_location=container")
    if runner.accelerator is None or not scores:
        return flags
    if not options.get("number_of_worker_harness_threads"):
        flags.append(f"--number_of_worker_harness_threads={GPU_THREADS}")
    if ONE_PROCESS not in (options.get("experiments") or []):
        flags.append(f"--experiments={ONE_PROCESS}")
    return flags


def _project(options: Mapping[str, Any]) -> Iterator[str]:
    for name, example in (("project", "my-project"), ("region", "us-central1")):
        if not options.get(name):
            yield f"{_option(name)} is missing; expected the one that the job runs in: {_option(name)}={example}"
    for name in ("temp_location", "staging_location"):
        value = options.get(name)
        if not value and name == "temp_location":
            yield (
                f"{_option(name)} is missing; expected a folder of a bucket for the job's own files: "
                f"{_option(name)}=gs://my-bucket/tmp"
            )
        elif value and not _BUCKET.match(value):
            yield f"{_option(name)} is {value!r}; expected gs://BUCKET/FOLDER"


def _paths(config: RunConfig) -> Iterator[str]:
    settings = [("input.path", path) for path in config.input.paths]
    settings.append(("output.path", config.output.path))
    settings += [("scores.path", config.scores.path)] if config.scores.path is not None else []
    settings += [("scores.also", path) for path in config.scores.also]
    for setting, path in settings:
        if not _BUCKET.match(path):
            remedy = "" if setting == "output.path" else "; copy it there with `gcloud storage cp -r`"
            yield f"{setting} is {path!r}, which workers do not see; expected gs://BUCKET/...{remedy}"


def _models(config: RunConfig) -> Iterator[str]:
    for setting, path in _model_paths(config):
        if path.startswith("/") or _BUCKET.match(path):
            continue
        kind = "a hub id" if _is_hub_id(path) else "another store" if "://" in path else "a relative path"
        source = "ID_OR_DIR" if "://" in path else path
        yield (
            f"{setting} is {path!r}, {kind}, and workers do not see it; expected gs://BUCKET/..., where `bestkept model fetch "
            f"{source} gs://BUCKET/models/NAME` puts it, or the absolute path of a directory in sdk_container_image, such as "
            "/models/reward, with the launcher started from that image"
        )


def _workers(options: Mapping[str, Any]) -> Iterator[str]:
    image = options.get("sdk_container_image")
    if not image:
        yield (
            f"{_option('sdk_container_image')} is missing; Beam's own image has neither bestkept nor torch nor the weights, and "
            "Python's minor version must be the launcher's: build one with deploy/build.sh"
        )
    if options.get("streaming"):
        yield f"{_option('streaming')} is set, and bestkept runs in batches only; remove it"
    disk_gb = options.get("disk_size_gb")
    if disk_gb is not None and 0 != disk_gb < _LEAST_DISK_GB:
        yield f"{_option('disk_size_gb')} is {disk_gb}; expected {_LEAST_DISK_GB} or more, to hold the image"
    workers, most = options.get("num_workers"), options.get("max_num_workers")
    for name, value in (("num_workers", workers), ("max_num_workers", most)):
        if value is not None and value < 1:
            yield f"{_option(name)} is {value}; expected 1 or more"
    if workers is not None and most is not None and workers > most:
        yield f"{_option('num_workers')} is {workers}, more than {_option('max_num_workers')}, {most}; expected {most} or fewer"
    if _is_fixed(options) and workers is None:
        yield (
            f"{_option('autoscaling_algorithm')} is NONE, and {_option('num_workers')} is missing; expected the number of "
            "workers that the job has from its start to its end"
        )


def _is_fixed(options: Mapping[str, Any]) -> bool:
    """Return whether the job keeps the number of workers that it starts with."""
    return bool(options.get("autoscaling_algorithm") == "NONE")


def _gpu(config: RunConfig, accelerator: Accelerator, options: Mapping[str, Any]) -> Iterator[str]:
    devices = [model.devices for model in config.named_models.values()]
    expected = max((number for number in devices if isinstance(number, int)), default=1)
    if "auto" not in devices and accelerator.gpus != expected:
        uses = "on one GPU" if expected == 1 else f"on {expected} GPUs (model.devices)"
        yield (
            f"runner.accelerator has count:{accelerator.gpus}; a worker is one process {uses}, and others would be idle: "
            f"expected count:{expected}, and more workers by {_option('max_num_workers')}"
        )
    if options.get("max_num_workers") is None and not (_is_fixed(options) and options.get("num_workers")):
        yield (
            f"{_option('max_num_workers')} is missing, and every worker has a GPU that is paid for; expected a number within "
            f"your quota: {_option('max_num_workers')}=8"
        )
    yield from machine_mistakes(accelerator, options.get("machine_type"), option=_option("machine_type"))
    disk_gb = options.get("disk_size_gb")
    if not disk_gb or _LEAST_DISK_GB <= disk_gb < _LEAST_GPU_DISK_GB:
        problem = f"is {disk_gb}" if disk_gb else "is missing"
        yield (
            f"{_option('disk_size_gb')} {problem}; an image with CUDA and weights needs {_LEAST_GPU_DISK_GB} or more: "
            f"{_option('disk_size_gb')}=100"
        )
    if "use_multiple_sdk_containers" in (options.get("experiments") or []):
        yield (
            f"{_option('experiments')} names use_multiple_sdk_containers: each process would load the model; remove it, or "
            f"write {ONE_PROCESS}"
        )
    if options.get("flexrs_goal") is not None:
        yield f"{_option('flexrs_goal')} is given, and FlexRS has no GPUs; remove it, or score without runner.accelerator"
    for setting, model in config.named_models.items():
        mistake = dtype_mistake(model.dtype, accelerator.type)
        if mistake is not None:
            yield f"{setting}.dtype {mistake}"


def _service(options: Mapping[str, Any]) -> Iterator[str]:
    for option in options.get("dataflow_service_options") or []:
        if option.startswith("worker_accelerator"):
            yield (
                f"{_option('dataflow_service_options')} names worker_accelerator, a GPU on every worker, also where nothing "
                f"is scored; write it as runner.accelerator=type:...;count:1;{DRIVER}"
            )


def _model_paths(config: RunConfig) -> list[tuple[str, str]]:
    return [(f"{setting}.path", model.path) for setting, model in config.named_models.items()]


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith(".") and not Path(path).is_dir()


def _option(name: str) -> str:
    return f"runner.options.{name}"
