"""Checks of a run on Dataflow, made before anything is touched; they report all mistakes at once. Pure; no Beam.

Workers are machines of the service: they see objects in gs:// and the files of their container image, and nothing of the
launcher. Weights come from either. Sources: Beam's options, and the service's pages on GPUs, right fitting and custom containers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.config import RunConfig, RunnerConfig
from pipelines.errors import ConfigError

DATAFLOW = "DataflowRunner"
ONE_PROCESS = "no_use_multiple_sdk_containers"
GPU_THREADS = 2  # one bundle is on the GPU while another reads and publishes; each holds a fragment

_LEAST_DISK_GB = 25  # the service's default for a batch worker
_LEAST_GPU_DISK_GB = 50  # the image with CUDA takes 10 GB, its layers as much again while it is fetched
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_MACHINES = {  # only these machine types have that GPU
    "nvidia-l4": "g2-",
    "nvidia-tesla-t4": "n1-",
    "nvidia-tesla-v100": "n1-",
    "nvidia-tesla-p100": "n1-",
    "nvidia-tesla-p4": "n1-",
    "nvidia-tesla-a100": "a2-highgpu-",
    "nvidia-a100-80gb": "a2-ultragpu-",
    "nvidia-h100-80gb": "a3-highgpu-",
    "nvidia-h100-mega-80gb": "a3-megagpu-",
}


class Accelerator(NamedTuple):
    """The parts of `runner.accelerator` that the checks read."""

    type: str
    gpus: int
    machine_type: str | None

    @classmethod
    def of(cls, text: str) -> Accelerator:
        """Parse a validated `runner.accelerator`."""
        parts = dict(part.partition(":")[::2] for part in text.split(";"))
        return cls(parts["type"], int(parts["count"]), parts.get("machine_type"))


def refuse_hub_ids(config: RunConfig) -> None:
    """Raise `ConfigError` if a model is named by a hub id and the workers are other machines, for which nothing is fetched."""
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
    """Raise `ConfigError` with all mistakes that keep a run from Dataflow.

    `options` are Beam's by name, None where not set; `scores` says whether a model is loaded.
    """
    mistakes = [*_project(options), *_paths(config), *_models(config), *_workers(options)]
    if config.runner.accelerator is not None and scores:
        mistakes += _gpu(config, Accelerator.of(config.runner.accelerator), options)
    mistakes += _service(options)
    if mistakes:
        raise ConfigError(f"not ready for Dataflow: {'; '.join(mistakes)}")


def default_flags(runner: RunnerConfig, options: Mapping[str, Any], *, scores: bool) -> list[str]:
    """Return flags of Beam for the settings that the user has left open.

    With a GPU, a worker has one process and few threads, since each process would load the model and make a CUDA context.
    """
    flags: list[str] = []
    if options.get("sdk_location") == "default":  # the image has Beam; else every worker would install it once more
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
    workers = options.get("max_num_workers")
    if workers is not None and workers < 1:
        yield f"{_option('max_num_workers')} is {workers}; expected 1 or more"


def _gpu(config: RunConfig, accelerator: Accelerator, options: Mapping[str, Any]) -> Iterator[str]:
    devices = [model.devices for model in config.named_models.values()]
    expected = max((number for number in devices if isinstance(number, int)), default=1)
    if "auto" not in devices and accelerator.gpus != expected:
        uses = "on one GPU" if expected == 1 else f"on {expected} GPUs (model.devices)"
        yield (
            f"runner.accelerator has count:{accelerator.gpus}; a worker is one process {uses}, and others would stand idle: "
            f"expected count:{expected}, and more workers by {_option('max_num_workers')}"
        )
    if options.get("max_num_workers") is None:
        yield (
            f"{_option('max_num_workers')} is missing, and every worker has a GPU that is paid for; expected a number within "
            f"your quota: {_option('max_num_workers')}=8"
        )
    yield from _machine(accelerator, options.get("machine_type"))
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
        if model.dtype == "auto":
            yield (
                f"{setting}.dtype is 'auto', which is resolved by the launcher, and that has no {accelerator.type}; expected the "
                "type to compute in: bfloat16, or float32 or float16 on GPUs before Ampere"
            )


def _machine(accelerator: Accelerator, machine_type: str | None) -> Iterator[str]:
    needed, machine = _MACHINES.get(accelerator.type), accelerator.machine_type or machine_type
    if machine is None:
        example = f"{needed}standard-8" if needed in ("g2-", "n1-") else f"{needed or 'MACHINE-'}1g"
        yield (
            f"{_option('machine_type')} is missing, and {accelerator.type} needs one that has it: {_option('machine_type')}="
            f"{example}, or machine_type:{example} in runner.accelerator for the scoring workers alone"
        )
    elif needed is not None and not machine.startswith(needed):
        setting = (
            "runner.accelerator has machine_type:" if accelerator.machine_type else f"{_option('machine_type')} is "
        )
        yield f"{setting}{machine}, which has no {accelerator.type}; expected {needed}..."


def _service(options: Mapping[str, Any]) -> Iterator[str]:
    for option in options.get("dataflow_service_options") or []:
        if option.startswith("worker_accelerator"):
            yield (
                f"{_option('dataflow_service_options')} names worker_accelerator, a GPU on every worker, also where nothing "
                "is scored; write it as runner.accelerator=type:...;count:1;install-nvidia-driver"
            )


def _model_paths(config: RunConfig) -> list[tuple[str, str]]:
    return [(f"{setting}.path", model.path) for setting, model in config.named_models.items()]


def _is_hub_id(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith(".") and not Path(path).is_dir()


def _option(name: str) -> str:
    return f"runner.options.{name}"
