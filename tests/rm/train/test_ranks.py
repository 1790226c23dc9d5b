"""Two processes that train one model: the weights of one alone, one saver, an end of one, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.corpora import write_jsonl
from support.slow_helpers import minilm
from support.tiny_models import WORDS, save_language_model
from support.training_groups import encoded_group, row, run_settings
from transformers import AutoModelForSequenceClassification

from rm.train import SettingsError, train
from rm.train.ranks import Ranks, _buckets

ROOT = Path(__file__).parents[3]

PROGRAM = """
import json, sys, torch
from support.training_groups import run_settings
from rm.embedder import Embedder
from rm.train import train
from rm.train.trainer import GroupTrainer

embedders, load = [], Embedder.load
Embedder.load = lambda *arguments, **rest: embedders.append(1) or load(*arguments, **rest)
values = json.loads(sys.argv[1])
pause = values.pop("stop_at", None)
if pause is not None:
    original = GroupTrainer.training_step
    def step(self, *arguments, **rest):
        if self.state.global_step == pause[1] and self.ranks.rank == pause[0]:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **rest)
    GroupTrainer.training_step = step
result = train(run_settings(values.pop("data"), values.pop("model"), values.pop("output"), **values))
figures = result.heldout.to_json()
overall, gated = figures["accuracy"]["overall"]["model"]["value"], figures["gated"]
common = [result.steps, result.train_loss, result.judgements_per_sec > 0, overall, gated]
print("RESULT " + json.dumps([*common, len(embedders)]))
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_ranks(count, values):
    """Start processes as torchrun does, each with one thread."""
    port = str(free_port())
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    plain = {**os.environ, **world, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(values)],
            env={**plain, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def results_of(processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs[0][1][-2000:]
    return [json.loads(out.partition("RESULT ")[2]) for out, _ in outputs]


@pytest.fixture
def mixed(tmp_path):
    """Rankings of two to five and labels of single responses, of many lengths."""
    rows = []
    for number, noun in enumerate(WORDS[:22]):
        texts = [f"{grade} {noun} " + "answer " * (number % 4 + place) for place, grade in enumerate("abcde")]
        count = 2 + number % 4
        rows.append({"prompt": f"what is {noun}", "responses": texts[:count], "ranking": list(range(1, count + 1))})
    return write_jsonl(tmp_path / "rankings.jsonl", rows)


@pytest.mark.slow
def test_two_ranks_train_to_the_weights_of_one(tmp_path, mixed, causal):
    """Steps of three groups, whose parts are of uneven size, the last one of an epoch smaller than the others."""
    values = {"epochs": 3, "groups_per_batch": 3, "learning_rate": 1e-3, "tokens_per_batch": 60, "checkpoint_every": 4}
    alone = train(run_settings(mixed, causal, tmp_path / "alone", **values))
    common = {"data": str(mixed), "model": str(causal)}
    first, second = results_of(start_ranks(2, {**common, "output": str(tmp_path / "two"), **values}))
    assert first == second
    assert first[0] == alone.steps
    assert first[1] == pytest.approx(alone.train_loss, rel=1e-5)
    assert first[3] == alone.heldout.to_json()["accuracy"]["overall"]["model"]["value"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "two"))
    assert one.keys() == two.keys()
    assert max(float((value - two[name]).abs().max()) for name, value in one.items()) < 1e-6
    assert not (tmp_path / "two/checkpoints").exists()
    moved = load_file(causal / "model.safetensors")
    assert max(float((value - one[name]).abs().max()) for name, value in moved.items()) > 1e-3

    # a killed rank: the other one ends, and the same command, with as many ranks or with one, goes on
    cut = {**common, "output": str(tmp_path / "cut"), **values}
    processes = start_ranks(2, {**cut, "stop_at": [1, 6]})
    _out, err = processes[0].communicate(timeout=240)
    assert processes[1].wait() == -signal.SIGKILL
    assert processes[0].returncode != 0
    assert "another rank of this training ended" in err
    assert (tmp_path / "cut/checkpoints/checkpoint-4").is_dir()
    for process in processes:
        process.communicate()
    assert results_of(start_ranks(2, cut))[0][0] == alone.steps
    resumed = load_file(tmp_path / "cut/model.safetensors")
    assert max(float((value - resumed[name]).abs().max()) for name, value in one.items()) < 1e-6


@pytest.mark.slow
def test_two_ranks_share_the_correlations_and_the_texts_of_a_step(tmp_path, mixed):
    backbone = save_language_model(tmp_path / "m")
    values = {"epochs": 2, "groups_per_batch": 3, "learning_rate": 1e-3, "tokens_per_batch": 60}
    values |= {"length_head": {"correlation": 1.0, "orthogonality": 1.0}, "language_loss": {"weight": 0.5}}
    reading = {"revision": None, "max_length": None, "device": "cpu", "tokens_per_batch": None}
    values |= {"relevance": {"path": str(backbone), "gap": 0.01, "max_touched": 0.01, **reading}, "stress_prompts": 4}
    alone = train(run_settings(mixed, backbone, tmp_path / "alone", **values))
    common = {"data": str(mixed), "model": str(backbone)}
    first, second = results_of(start_ranks(2, {**common, "output": str(tmp_path / "two"), **values}))
    assert first[:-1] == second[:-1]
    assert (first[-1], second[-1]) == (1, 0), "only the first rank embeds"
    gated = alone.heldout.to_json()["gated"]
    assert (first[-2]["decided"], first[-2]["gap"]) == (gated["decided"], 0.01)
    assert first[1] == pytest.approx(alone.train_loss, rel=1e-5)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "two"))
    assert max(float((value - two[name]).abs().max()) for name, value in one.items()) < 1e-6


LAUNCHERS = {
    "torchrun": "torch.distributed.run --nproc_per_node 2 --master_port PORT",
    # the option for several GPUs: that for CPUs starts processes by MPI
    "accelerate launch": "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
    "--dynamo_backend no --main_process_port PORT",
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_demo_trains_under_a_launcher(tmp_path, launcher):
    words = ["configs/demo/train.yaml", f"model.path={minilm()}", f"output.path={tmp_path}/model", "train.epochs=0.2"]
    words.append("model.device=cpu")
    command = [sys.executable, "-m", *LAUNCHERS[launcher].replace("PORT", str(free_port())).split()]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*command, "-m", "pipelines.cli", "train", *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("judged by") == result.stderr.count("step 8 of 8, loss") == 1  # of the first rank alone
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_labels == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert not (tmp_path / "model/checkpoints").exists()


def test_every_group_of_a_step_belongs_to_one_rank():
    groups = [encoded_group([row(*range(size)), row(1)]) for size in (40, 3, 5, 30, 8, 2, 7)]
    shares = [Ranks(rank, 3).share(groups) for rank in range(3)]
    numbers = [[next(n for n, group in enumerate(groups) if group is mine) for mine in share] for share in shares]
    assert sorted(number for share in numbers for number in share) == list(range(7))
    assert all(part == sorted(part) for part in numbers)
    sizes = [sum(len(encoded.ids) for group in share for encoded in group.responses) for share in shares]
    assert max(sizes) == 41  # the largest group by itself
    assert Ranks(0, 3).share(groups[:1]) == groups[:1]
    assert Ranks(2, 3).share(groups[:1]) == []


def test_gradients_travel_in_runs_of_one_type(monkeypatch):
    monkeypatch.setattr("rm.train.ranks._BUCKET_BYTES", 40)
    sizes = [(4, torch.float32), (4, torch.float32), (4, torch.float32), (2, torch.float16), (90, torch.float16)]
    gradients = [torch.zeros(size, dtype=dtype) for size, dtype in sizes]
    buckets = list(_buckets(gradients))
    assert [[gradient.numel() for gradient in bucket] for bucket in buckets] == [[4, 4], [4], [2], [90]]
    assert list(_buckets([])) == []


@pytest.mark.parametrize(
    ("variable", "name"), [("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")]
)
def test_a_launch_that_shards_the_model_is_refused(tmp_path, monkeypatch, variable, name):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(
        SettingsError, match=f"the launcher requests {name} .*train.lora or train.gradient_checkpointing"
    ):
        train(run_settings("nowhere.jsonl", tmp_path, tmp_path / "out"))


def test_one_gpu_of_several_is_used(tmp_path, monkeypatch, caplog):
    """Without torchrun the Trainer would copy the model to all of them at every step."""
    from transformers import TrainingArguments

    from rm.train.training_run import _training_arguments

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(lambda self: torch.device("cpu")))
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: setattr(self, "_n_gpu", 4))
    arguments = _training_arguments(
        run_settings("a.jsonl", tmp_path, tmp_path / "out"), 1e-3, steps_per_epoch=5, evaluates=False
    )
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 4
    assert "4 GPUs are visible and one is used; `torchrun --nproc_per_node 4 " in caplog.text


def test_one_process_of_a_cluster_job_trains_alone(tmp_path, mixed, causal, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert train(run_settings(mixed, causal, tmp_path / "out", epochs=0.2)).steps >= 1


def test_an_error_of_the_first_rank_is_that_of_all(monkeypatch):
    sent = []

    def broadcast(values, src):
        if sent:
            values[:] = sent
        else:
            sent.extend(values)

    monkeypatch.setattr("rm.train.ranks.dist.broadcast_object_list", broadcast)
    with pytest.raises(OSError, match="disk full"):
        Ranks(0, 2).first(lambda: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        Ranks(1, 2).first(lambda: pytest.fail("another rank called it"))
