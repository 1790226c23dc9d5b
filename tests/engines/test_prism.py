"""Scoring on Prism, an engine of Beam that shares no code with its Python runner."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pyarrow.parquet as pq
import pytest
from services.prism import needs_prism, serving_prism
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory, scored_rows

from pipelines.commands.run import run_scoring
from pipelines.errors import StorageError
from pipelines.runtime import execute, progress

pytestmark = [pytest.mark.slow, needs_prism]
ROWS = 24
FRAGMENTS = 8


@pytest.fixture
def configured(tmp_path, make_config):
    """A corpus of 8 fragments; (runner's options) → its configuration."""
    for number in range(2):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", corpus_rows()[:ROWS][number::2])
    return lambda options: make_config(
        tmp_path / "in",
        input={"rows_per_fragment": 3},
        scores={"path": str(tmp_path / "scores")},
        runner={"name": "PortableRunner", "options": options},
    )


def test_progress_moves_and_run_json_counts_what_was_scored(tmp_path, configured, monkeypatch):
    monkeypatch.setattr(execute, "EVERY_SECS", 0.1)
    seen, stop = set(), threading.Event()

    def look() -> None:
        while not stop.wait(0.05):
            seen.add(progress.current().published)

    progress.reset()
    threading.Thread(target=look, daemon=True).start()
    with serving_prism(tmp_path) as prism:
        run_scoring(configured(prism.options), scorer=StubFactory(log=str(tmp_path / "log"), secs=0.7))
    stop.set()
    throughput = json.loads((tmp_path / "scores" / "run.json").read_text())["throughput"]
    held = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "scores").rglob("*.parquet"))
    assert throughput["rows"] == progress.current().scored == held == scored_rows(tmp_path / "log") == ROWS
    assert progress.current().fragments == FRAGMENTS
    assert seen & set(range(1, ROWS)), "it moved while the job ran"


@pytest.mark.parametrize(
    ("lost", "words"),
    [("worker", ("lost a worker; the engine at ", "disconnected")), ("engine", ("does not answer any more",))],
)
def test_a_lost_part_is_named_and_the_same_command_goes_on(tmp_path, configured, lost, words, capfd):
    log = tmp_path / "log"

    def kill(engine: int) -> None:
        while not scored_rows(log):
            time.sleep(0.05)
        os.kill(engine, signal.SIGKILL)

    with serving_prism(tmp_path) as prism:
        if lost == "engine":
            threading.Thread(target=kill, args=(prism.engine.pid,), daemon=True).start()
        scorer = StubFactory(log=str(log), secs=0.3, die_after=2 if lost == "worker" else None)
        with pytest.raises(StorageError) as raised:
            run_scoring(configured(prism.options), scorer=scorer)
    for word in (*words, "what is scored stays", "the same command"):
        assert word in raised.value.message
    for dump in ("report it", "Rendezvous", "StatusCode", "RuntimeError"):
        assert dump not in raised.value.message
    assert "Traceback" not in capfd.readouterr().err
    before = scored_rows(log)
    assert 0 < before < ROWS
    config = configured({}).model_copy(update={"runner": configured({}).runner.model_copy(update={"name": "local"})})
    run_scoring(config, scorer=StubFactory(log=str(log)))
    assert ROWS <= scored_rows(log) <= ROWS + 2 * 3, "only what was in work is scored again"
