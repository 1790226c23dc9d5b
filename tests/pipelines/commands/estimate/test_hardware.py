"""Tables of GPUs and prices: what is shipped holds together, and what a user gives is checked."""

from __future__ import annotations

from datetime import date

import pytest
import yaml

from pipelines.commands.estimate.hardware import PRICES, Gpu, hardware, load_prices, why_too_large
from pipelines.errors import ConfigError
from rm.engine.device import _PEAK_FLOPS


def test_the_shipped_tables_fit_together():
    prices, table = load_prices(None), hardware()
    assert {each.gpu for each in prices.machines.values() if each.gpu} <= table.gpus.keys()
    assert prices.source.startswith("https://")
    assert prices.date <= date.today()
    by_size = [(row.parameters, row.low, row.high) for row in table.utilisation]
    assert by_size == sorted(by_size), "larger models use more of a GPU"


def test_peaks_are_those_that_runs_are_measured_against():
    names = {"nvidia-tesla-t4": "T4", "nvidia-tesla-v100": "V100", "nvidia-a10": "A10", "nvidia-l4": "L4"}
    names |= {"nvidia-l40s": "L40S", "nvidia-tesla-a100": "A100", "nvidia-a100-80gb": "A100", "nvidia-b200": "B200"}
    names |= {"nvidia-h100-80gb": "H100", "nvidia-h200-141gb": "H200"}
    assert names.keys() == hardware().gpus.keys()
    for name, gpu in hardware().gpus.items():
        assert gpu.peak_flops("bfloat16") == _PEAK_FLOPS[names[name]], name
        assert gpu.peak_flops("float32") < gpu.peak_flops("float16")


@pytest.mark.parametrize(
    ("parameters", "row"), [(1, 0), (10**8, 0), (10**8 + 1, 1), (10**9, 1), (7 * 10**9, 2), (10**14, 3)]
)
def test_utilisation_by_size(parameters, row):
    table = hardware().utilisation[row]
    assert hardware().utilisation_of(parameters) == (table.low, table.high)


def test_age():
    assert load_prices(None).age_days(load_prices(None).date) == 0
    assert load_prices(None).age_days(date(2026, 3, 6)) == 365


def test_machines_by_name_and_by_gpu(tmp_path):
    values = yaml.safe_load(PRICES.read_text())
    values["machines"] = {
        "dear": {"hour": 9.0, "gpu": "nvidia-l4", "gpus": 1},
        "cheap": {"hour": 2.0, "gpu": "nvidia-l4", "gpus": 1},
        "plain": {"hour": 0.5},
        "plain+nvidia-tesla-t4": {"hour": 0.9, "gpu": "nvidia-tesla-t4", "gpus": 1},
    }
    prices = load_prices(write(tmp_path, values))
    found = {(name, gpu): prices.machine(name, gpu) for name in (None, "dear", "plain") for gpu in (None, "nvidia-l4")}
    names = {key: value[0] if value else None for key, value in found.items()}
    assert names == {
        (None, None): None,
        (None, "nvidia-l4"): "cheap",
        ("dear", None): "dear",
        ("dear", "nvidia-l4"): "dear",
        ("plain", None): "plain",
        ("plain", "nvidia-l4"): None,
    }
    attached = prices.machine("plain", "nvidia-tesla-t4")
    assert attached is not None
    assert attached[0] == "plain+nvidia-tesla-t4"


def write(tmp_path, values) -> str:
    path = tmp_path / "prices.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"machines": {"m": {"hour": -1}}}, "machines.m.hour"),
        ({"machines": {"m": {"hour": 1, "gpu": "nvidia-l4"}}}, "give both"),
        ({"machines": {"m": {"hour": 1, "gpu": "abacus", "gpus": 1}}}, "'abacus'"),
        ({"machines": {"m": {"hours": 1}}}, "machines.m.hour"),
        ({"machines": {}}, "machines"),
        ({"date": "yesterday"}, "date"),
        ({"curency": "EUR"}, "curency"),
    ],
)
def test_mistakes_in_a_price_file(tmp_path, change, words):
    values = yaml.safe_load(PRICES.read_text()) | change
    with pytest.raises(ConfigError, match=r"prices\.yaml") as error:
        load_prices(write(tmp_path, values))
    assert words in error.value.message


def test_a_price_file_that_is_not_there():
    with pytest.raises(ConfigError, match="no-such-file"):
        load_prices("no-such-file.yaml")


def test_what_does_not_fit():
    gpu = Gpu(peak_tflops=1, float32_tflops=1, memory_gib=16)
    assert why_too_large("g", gpu, (15 * 2**30, 2**30)) is None
    why = why_too_large("g", gpu, (15 * 2**30, 2**30 + 1))
    assert why is not None
    assert "15.0 GiB of weights and 1.0 GiB for activations do not fit into the 16 GiB of g" in why
