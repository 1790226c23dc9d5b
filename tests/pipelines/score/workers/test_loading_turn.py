"""Workers of a machine load their models one after the other, and each has its share of the memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.score.load_model import TURN, loading_turn
from rm.checkpoint import memory_check
from rm.checkpoint.memory_check import weights_bytes
from rm.engine.layout import Segment
from rm.engine.memory import BatchSize
from rm.identity import ModelError
from rm.scorer import Scorer
from rm.scorer_memory import measure_memory

WORKER = """
import sys, time
from pathlib import Path
from pipelines.score.load_model import loading_turn

with loading_turn(lambda: 1000 if sys.argv[1] == "first" else 10) as share:
    with open(sys.argv[2], "a") as log:
        print("in", share, file=log, flush=True)
        if sys.argv[1] == "first":
            time.sleep(1)
        print("out", share, file=log, flush=True)
"""


def test_one_loads_while_the_others_wait_and_all_have_a_share_of_what_the_first_one_had(tmp_path):
    log = tmp_path / "log"
    with tempfile.TemporaryFile() as turn:
        environment = {**os.environ, TURN: f"{turn.fileno()}:3", "PYTHONPATH": os.pathsep.join(sys.path)}

        def start(name):
            return subprocess.Popen(
                [sys.executable, "-c", WORKER, name, str(log)], env=environment, pass_fds=[turn.fileno()]
            )

        processes = [start("first")]
        while not log.exists():
            assert processes[0].poll() is None
        processes += [start("second"), start("third")]
        assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text().splitlines() == ["in 333", "out 333"] * 3


def test_a_process_alone_waits_for_nobody(monkeypatch):
    monkeypatch.delenv(TURN, raising=False)
    with loading_turn(lambda: 1000) as share:
        assert share is None


def test_a_system_that_does_not_tell_its_memory_gives_no_share(monkeypatch):
    with tempfile.TemporaryFile() as turn:
        monkeypatch.setenv(TURN, f"{turn.fileno()}:2")
        for _ in range(2):
            with loading_turn(lambda: None) as share:
                assert share is None


def test_weights_and_batches_fit_into_the_share(causal: Path, monkeypatch):
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 10**12)
    needed = weights_bytes(causal, "float32")
    settings = {"dtype": "float32", "max_length": 64, "too_long": "truncate", "device": "cpu"}
    with pytest.raises(
        ModelError, match=rf"{needed - 1:,} bytes of memory available to each of runner.workers; lower that"
    ):
        Scorer.load(causal, tokens_per_batch=None, memory=needed - 1, **settings)
    whole = Scorer.load(causal, tokens_per_batch=None, memory=10**12, **settings)
    room = measure_memory(whole).bytes(BatchSize.packed([Segment(0, (64,))]).times(300 / 64))
    part = Scorer.load(causal, tokens_per_batch=None, memory=needed + room, **settings)
    assert 200 < part.tokens_per_batch <= 301 < whole.tokens_per_batch
