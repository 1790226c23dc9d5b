"""GPUs of Dataflow: what is written for the service, machine types, capabilities, and types of numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.config import RunConfig, RunnerConfig, load
from pipelines.errors import ConfigError
from pipelines.runtime import accelerators, dataflow
from pipelines.runtime.accelerators import Accelerator, dtype_mistake, machine_mistakes, why_too_old
from pipelines.runtime.beam_options import pipeline_options

GPU = str(Path(__file__).parents[3] / "configs" / "dataflow_gpu.yaml")


@pytest.mark.parametrize(
    "value",
    [
        "type:nvidia-l4;count:1;install-nvidia-driver",
        "type:nvidia-l4;count:1;install-nvidia-driver:latest",
        "type:nvidia-l4;count:1;install-nvidia-driver:5xx",
        "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest",
        "type:nvidia-l4;count:2;install-nvidia-driver:latest;machine_type:g2-standard-24",
        "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest;provisioning_model:FLEX_START",
        "type:nvidia-l4;count:1;provisioning_model:STANDARD;install-nvidia-driver",
    ],
)
def test_an_accelerator_is_taken_as_the_service_takes_it(value):
    assert RunnerConfig(name="DataflowRunner", accelerator=value).accelerator == value
    parts = Accelerator.of(value)
    assert (parts.type, parts.gpus) == ("nvidia-l4", 2 if "count:2" in value else 1)
    machine = None if "machine_type" not in value else value.split("machine_type:")[1].split(";")[0]
    assert parts.machine_type == machine


@pytest.mark.parametrize(
    "value",
    [
        "type:nvidia-l4;count:1",
        "type:nvidia-l4;count:1;machine_type:g2-standard-8",
        "type:nvidia-l4;count:1;install-nvidia-driver;install-nvidia-driver:latest",
        "type:nvidia-l4;count:1;machine_type:a;install-nvidia-driver;machine_type:b",
        "type:nvidia-l4;count:1;install-nvidia-driver;provisioning_model:SPOT",
        "type:nvidia-l4;count:1;install-nvidia-driver;use_nvidia_mps",  # several processes, each with the model
        "type:nvidia-l4;count:1;install-nvidia-driver:latest;",
    ],
)
def test_what_the_service_or_the_worker_would_not_take_is_refused(value):
    with pytest.raises(ValueError, match=r"expected type:GPU;count:N;install-nvidia-driver:latest.*FLEX_START"):
        RunnerConfig(name="DataflowRunner", accelerator=value)


def mistakes(gpu: str, count: int, machine: str | None, of_all: str | None = None) -> list[str]:
    return list(machine_mistakes(Accelerator(gpu, count, machine), of_all, option="machine_type"))


@pytest.mark.parametrize(
    ("gpu", "count", "machine"),
    [
        ("nvidia-l4", 1, "g2-standard-32"),
        ("nvidia-l4", 2, "g2-standard-24"),
        ("nvidia-l4", 8, "g2-standard-96"),
        ("nvidia-l4", 1, "g2-custom-8-40960"),  # no known shape
        ("nvidia-tesla-t4", 4, "n1-standard-32"),
        ("nvidia-tesla-t4", 1, "n1-highmem-16"),
        ("nvidia-tesla-a100", 16, "a2-megagpu-16g"),
        ("nvidia-a100-80gb", 1, "a2-ultragpu-1g"),
        ("nvidia-h100-80gb", 8, "a3-edgegpu-8g"),
        ("nvidia-h200-141gb", 8, "a3-ultragpu-8g"),
        ("nvidia-b9", 3, "z9"),
    ],
)
def test_shapes_that_there_are(gpu, count, machine):
    assert not mistakes(gpu, count, machine)
    assert not mistakes(gpu, count, None, machine)


@pytest.mark.parametrize(
    ("gpu", "count", "machine", "message"),
    [
        ("nvidia-l4", 2, "g2-standard-8", "machine_type:g2-standard-8, which has 1 .* count:2; .*count:1, or g2-standard-24$"),
        ("nvidia-l4", 1, "g2-standard-24", "which has 2 nvidia-l4, .* expected count:2, or g2-standard-8$"),
        ("nvidia-l4", 3, "g2-standard-48", "which has 4 nvidia-l4, .* expected count:4$"),
        ("nvidia-h200-141gb", 1, "a3-ultragpu-8g", "which has 8 .* expected count:8$"),
        ("nvidia-tesla-t4", 3, "n1-standard-8", "count:3; expected 1, 2, 4: so many nvidia-tesla-t4 a machine takes"),
        ("nvidia-tesla-a100", 1, "a2-ultragpu-1g", "has no nvidia-tesla-a100; expected a2-highgpu-... or a2-megagpu-..."),
        ("nvidia-tesla-a100", 4, None, "machine_type is missing, .*=a2-highgpu-4g, or machine_type:a2-highgpu-4g in"),
        ("nvidia-l4", 3, None, r"machine_type=g2-\.\.\., or"),
        ("nvidia-b9", 1, None, r"machine_type=MACHINE-\.\.\., or"),
    ],
)  # fmt: skip
def test_shapes_that_there_are_not(gpu, count, machine, message):
    [mistake] = mistakes(gpu, count, machine)
    assert re.search(message, mistake), mistake


@pytest.mark.parametrize(("gpu", "capability"), [("p4", "6.1"), ("p100", "6.0"), ("v100", "7.0")])
def test_gpus_for_which_torch_has_no_kernels_are_refused(gpu, capability):
    value = (
        f"runner.accelerator=type:nvidia-tesla-{gpu};count:1;machine_type:n1-standard-8;install-nvidia-driver:latest"
    )
    config = load(RunConfig, GPU, [value, "model.dtype=bfloat16"])
    with pytest.raises(ConfigError) as raised:
        dataflow.check(config, pipeline_options(config.runner, []).get_all_options(), scores=True)
    expected = f"CUDA 13.0, which needs compute capability 7.5 or more, and nvidia-tesla-{gpu} has {capability}"
    assert expected in raised.value.message
    assert raised.value.message.count("; expected") == 1
    assert why_too_old("nvidia-tesla-t4") is None


def test_the_wheels_are_those_that_are_pinned():
    """Another torch may be built for another CUDA: then the tables are looked at again."""
    pins = (Path(__file__).parents[3] / "constraints.txt").read_text().splitlines()
    assert "torch==2.13.0" in pins
    assert (accelerators._TORCH_CUDA, accelerators._LEAST_CAPABILITY) == ("13.0", "7.5")


@pytest.mark.parametrize(
    ("dtype", "gpu", "advice"),
    [
        ("auto", "nvidia-tesla-t4", "expected float16, or float32 for"),
        ("bfloat16", "nvidia-tesla-t4", "only emulates bfloat16; expected float16"),
        ("int8", "nvidia-tesla-t4", "only emulates bfloat16; expected float16"),
        ("auto", "nvidia-l4", "expected bfloat16"),
        ("auto", "nvidia-b9", "expected bfloat16"),
        ("float16", "nvidia-tesla-t4", None),
        ("float32", "nvidia-tesla-t4", None),
        ("bfloat16", "nvidia-l4", None),
        ("int8", "nvidia-l4", None),
    ],
)
def test_the_advice_on_types_is_that_of_the_gpu(dtype, gpu, advice):
    mistake = dtype_mistake(dtype, gpu)
    assert (mistake is None) == (advice is None)
    assert advice is None or advice in mistake
