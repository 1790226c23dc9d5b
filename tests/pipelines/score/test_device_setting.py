"""`model.device`: what was asked for is used or refused, and no score depends on its name."""

from __future__ import annotations

import pytest
import torch
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import default_scorer, run_scoring
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, ModelLoadError
from pipelines.plan import make_plans
from pipelines.runtime import machine
from pipelines.score.load_model import LoadScorer

ACCELERATOR = "type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest"


@pytest.fixture
def make(tmp_path, make_config, causal):
    write_jsonl(tmp_path / "in.jsonl", corpus_rows(4, 2))
    return lambda model=None, **changes: make_config(
        tmp_path / "in.jsonl", model={"path": str(causal), **(model or {})}, **changes
    )


def test_the_device_is_in_no_fingerprint(make):
    plans = [
        make_plans(make({"device": device, "dtype": "float32"})).whole for device in ("auto", "cuda", "cpu", "mps")
    ]
    assert len({plan.fingerprint for plan in plans}) == 1
    assert len({plan.hash for plan in plans}) == 1
    assert [plan.model["device"] for plan in plans] == ["auto", "cuda", "cpu", "mps"]


def test_the_type_follows_the_device(make, monkeypatch):
    monkeypatch.setattr("rm.identity._cuda_compute_capability", lambda: 9)
    types = [make_plans(make({"device": device})).whole.model["dtype"] for device in ("auto", "cuda", "cpu", "mps")]
    assert types == ["bfloat16", "bfloat16", "float32", "float32"]


def test_a_gpu_that_was_promised_and_is_not_there_ends_the_run(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = make({"device": "cuda"})
    with pytest.raises(ModelLoadError, match=r"a GPU was requested .*torch finds none: torch .* is built for .*driver"):
        run_scoring(config, scorer=default_scorer(config))
    service = make({"dtype": "float32"}, runner={"name": "DataflowRunner", "accelerator": ACCELERATOR})
    with pytest.raises(ModelLoadError, match="a GPU was requested"):
        LoadScorer()(make_plans(service).whole)
    on_cpu = make({"device": "cpu"})
    assert run_scoring(on_cpu, scorer=default_scorer(on_cpu)).totals["scored"] == 8


def test_a_gpu_for_the_workers_and_none_for_the_model_contradict_each_other():
    runner = {"name": "DataflowRunner", "accelerator": ACCELERATOR}
    with pytest.raises(ValueError, match=r"runner\.accelerator asks for a GPU, and model\.device is 'cpu'; remove one"):
        RunConfig.model_validate(
            {
                "input": {"path": "in"},
                "output": {"path": "out"},
                "model": {"path": "m", "device": "cpu"},
                "runner": runner,
            }
        )
    signals = {"s": {"model": {"path": "m", "device": "cpu"}}}
    with pytest.raises(ValueError, match=r"asks for a GPU, and signals\.s\.model\.device is 'cpu'"):
        RunConfig.model_validate(
            {
                "input": {"path": "in"},
                "output": {"path": "out"},
                "model": {"path": "m"},
                "signals": signals,
                "runner": runner,
            }
        )


def test_workers_on_the_cpu_need_no_gpus(make, monkeypatch):
    monkeypatch.setattr(machine, "list_gpus", lambda: ["0"])
    monkeypatch.setattr(machine, "count_cores", lambda: 2)
    machine.check_workers(2, on_cpu=True)
    with pytest.raises(ConfigError, match=r"2 cores and model\.device: cpu; expected 2 or fewer"):
        run_scoring(make({"device": "cpu"}, runner={"workers": 3}), scorer=StubFactory())
    with pytest.raises(ConfigError, match="a GPU of its own"):
        run_scoring(make(runner={"workers": 2}), scorer=StubFactory())


def test_the_number_of_gpus_of_a_model_is_in_no_fingerprint(make):
    plans = [make_plans(make({"devices": devices, "dtype": "float32"})).whole for devices in (1, 2, "auto")]
    assert len({(plan.fingerprint, plan.hash) for plan in plans}) == 1
    assert [plan.model["devices"] for plan in plans] == [1, 2, "auto"]


def test_more_gpus_than_there_are_end_the_run(make):
    config = make({"devices": 2, "device": "cpu"})
    with pytest.raises(ModelLoadError, match=r"model\.devices is 2, and the model runs on cpu"):
        run_scoring(config, scorer=default_scorer(config))
    for wrong in (0, 65, "all"):
        with pytest.raises(ValueError, match="model"):
            make({"devices": wrong})


def test_each_worker_has_the_gpus_that_its_model_is_spread_over(make, monkeypatch):
    monkeypatch.setattr(machine, "list_gpus", lambda: ["0", "1", "2", "3", "4"])
    assert machine.share_gpus(2, [2]) == ["0,1", "2,3"]
    assert machine.share_gpus(2, ["auto", 1]) == ["0,1", "2,3"]
    assert machine.share_gpus(5, [1, 1]) == ["0", "1", "2", "3", "4"]
    assert machine.share_gpus(1, [5]) == ["0,1,2,3,4"]
    machine.check_workers(2, devices=2)
    with pytest.raises(
        ConfigError, match=r"each worker has 2 GPUs of its own \(model\.devices\), .* shows 5; expected 2"
    ):
        run_scoring(make({"devices": 2}, runner={"workers": 3}), scorer=StubFactory())
    monkeypatch.setattr(machine, "list_gpus", list)
    assert machine.share_gpus(2, [1]) == []


def test_one_model_on_two_devices_is_one_model_named_twice():
    models = [{"path": "m", "device": "cpu"}, {"path": "m", "devices": 2}]
    with pytest.raises(ValueError, match="are the same"):
        RunConfig.model_validate({"input": {"path": "in"}, "output": {"path": "out"}, "model": models})
