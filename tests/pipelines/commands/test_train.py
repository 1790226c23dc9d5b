"""What `bestkept train` says while it runs, and where it is interrupted."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support.corpora import write_jsonl

from pipelines.commands import progress_bar, signals
from pipelines.commands.progress_bar import describe_training, showing_training
from pipelines.commands.train import settings_of, words_of_interruption
from pipelines.config import TrainConfig, validate
from pipelines.errors import ConfigError
from rm.train import TrainProgress

ROOT = Path(__file__).parents[3]
NOW = TrainProgress(
    "step",
    250,
    1000,
    loss=0.52,
    learning_rate=1e-4,
    accuracy=0.613,
    heldout_loss=0.66,
    judgements_per_sec=51.6,
    secs_left=95,
)


def training(tmp_path, **train):
    values = {"data": {"path": "a.jsonl"}, "model": {"path": "m"}, "output": {"path": str(tmp_path / "out")}}
    return validate(TrainConfig, {**values, "train": train}, [], where="train")


@pytest.mark.parametrize(
    ("given", "steps", "secs"), [({}, None, 600.0), ("0.5m", None, 30.0), (50, 50, None), (None, None, None)]
)
def test_checkpoints_are_paced_by_minutes_or_by_steps(tmp_path, given, steps, secs):
    settings = settings_of(training(tmp_path, **({} if given == {} else {"checkpoint_every": given})))
    assert (settings.checkpoint_every, settings.checkpoint_secs) == (steps, secs)


@pytest.mark.parametrize("given", ["10", "0m", "ten", 0, "1h"])
def test_another_pace_is_refused(tmp_path, given):
    with pytest.raises(
        ConfigError, match=r"train\.checkpoint_every.*(such as 10m, or a number of steps|at least 1 step)"
    ):
        training(tmp_path, checkpoint_every=given)


def test_early_stopping_has_checkpoints_by_the_clock_beside_its_own(tmp_path):
    assert settings_of(training(tmp_path, early_stopping=2)).checkpoint_secs == 600
    with pytest.raises(ConfigError, match="or give minutes"):
        training(tmp_path, early_stopping=2, checkpoint_every=50)


def test_an_interruption_says_what_is_true_of_this_run(tmp_path):
    settings = settings_of(training(tmp_path))
    out = settings.output_path
    assert words_of_interruption(settings, None) == (
        " before the first step; nothing is saved, and the same command starts again"
    )
    assert words_of_interruption(settings, NOW) == (
        " at step 250 of 1,000, before the first checkpoint; nothing is saved, and the same command starts again "
        "(train.checkpoint_every sets how often one is made)"
    )
    for step in (100, 200, 240):  # the last is being written: its state is not there yet
        (Path(out) / f"checkpoints/checkpoint-{step}").mkdir(parents=True)
        if step < 240:
            (Path(out) / f"checkpoints/checkpoint-{step}/trainer_state.json").write_text("{}")
    words = f"; the same command resumes from step 200, the last checkpoint in {out}/checkpoints"
    assert words_of_interruption(settings, NOW) == f" at step 250 of 1,000{words}"
    assert words_of_interruption(settings, None) == f" before the first step{words}"
    saved = TrainProgress("saved", 1000, 1000)
    assert words_of_interruption(settings, saved).startswith(
        f" after the last step: the model is saved in {out}, but not evaluated"
    )


@pytest.mark.parametrize(("say", "words"), [(lambda: " at step 3", " at step 3"), (lambda: 1 / 0, "; finished work")])
def test_a_signal_says_what_the_command_has_to_say(monkeypatch, say, words):
    written = []
    monkeypatch.setattr(signals, "_ENDING", signals.threading.Lock())
    monkeypatch.setattr(signals.os, "write", lambda _, data: written.append(data.decode()))
    monkeypatch.setattr(signals.os, "_exit", lambda code: written.append(code))
    with signals.ending_with(say):
        signals._end_now(signal.SIGINT)
    assert written[0].startswith(f"bestkept: interrupted{words}")
    assert written[1] == 130
    assert signals._say is None


def test_a_bar_shows_loss_accuracy_rate_and_time_left(monkeypatch, caplog):
    stream = io.StringIO()
    monkeypatch.setattr(progress_bar, "shows_bar", lambda: True)
    monkeypatch.setattr(
        progress_bar, "Console", lambda **_: Console(file=stream, width=160, force_terminal=True, color_system=None)
    )
    with caplog.at_level("INFO", logger="pipelines"), showing_training() as report:
        report(NOW)
    words = "step 250 of 1,000, loss 0.5200, held-out accuracy 61.3%, 52 judgements/s, 1:35 left"
    assert describe_training(NOW) == words
    assert "held-out accuracy 61.3%, 0.032 judgements/s" in describe_training(replace(NOW, judgements_per_sec=0.0321))
    assert words in stream.getvalue()
    assert caplog.messages == []


def test_lines_elsewhere_are_those_of_a_twentieth_of_evaluations_and_of_a_minute(monkeypatch, caplog):
    monkeypatch.setattr(progress_bar, "shows_bar", lambda: False)
    with caplog.at_level("INFO", logger="pipelines"), showing_training() as report:
        for event in ("step", "log", "evaluation", "saved"):
            report(TrainProgress(**{**NOW.__dict__, "event": event}))
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: 1e9)
        report(NOW)
        report(NOW)
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: 1e9 + 50)
        report(replace(NOW, event="log"))
        monkeypatch.setattr(progress_bar.time, "monotonic", lambda: 1e9 + 70)
        report(NOW)  # a minute after the line before the last one
    line = "step 250 of 1,000, loss 0.5200, 52 judgements/s, 1:35 left"
    told = "step 250 of 1,000, held-out judgements: 61.3% ordered as judged, loss 0.6600"
    assert caplog.messages == [line, told, line, line]
    assert caplog.records[1].fields == {"step": 250, "steps": 1000, "heldout_accuracy": 0.613, "heldout_loss": 0.66}
    fields = {"step": 250, "steps": 1000, "loss": 0.52, "learning_rate": 1e-4}
    assert caplog.records[0].fields == {**fields, "judgements_per_sec": 51.6, "secs_left": 95}


@pytest.mark.slow
def test_ctrl_c_and_the_same_command_again(tmp_path, encoder):
    """Interrupted after some steps, the run says from which one it goes on, and goes on from there."""
    words = [f"{word} {number}" for word in ("hot", "word", "time", "day") for number in range(40)]
    pairs = [{"prompt": f"what is {w}", "chosen": f"good {w} answer", "rejected": f"bad {w} reply"} for w in words]
    values = {
        "data": {"path": str(write_jsonl(tmp_path / "pairs.jsonl", pairs))},
        "model": {"path": str(encoder), "max_length": 32, "device": "cpu"},
        "train": {"epochs": 5, "groups_per_batch": 2, "checkpoint_every": 10},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "pipelines.cli", "train", str(tmp_path / "train.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step ") and "loss" in line:
            process.send_signal(signal.SIGINT)
            break
    last = (process.stderr.read() or lines[-1]).splitlines()[-1]
    assert process.wait() == 130
    told = re.match(
        r"bestkept: interrupted at step ([\d,]+) of ([\d,]+); the same command resumes from step ([\d,]+), ", last
    )
    assert told, last
    at, steps, goes_on = (int(number.replace(",", "")) for number in told.groups())
    assert 0 <= at - goes_on <= 20
    process = subprocess.Popen(
        [*command, "--json-logs"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
    )
    logged = [json.loads(line) for line in process.stderr]
    assert process.wait() == 0
    assert any(f"resuming from step {goes_on:,}" in line["message"] for line in logged)
    assert min(line["step"] for line in logged if "loss" in line and "step" in line) > goes_on
    assert max(line["step"] for line in logged if "step" in line) == steps
