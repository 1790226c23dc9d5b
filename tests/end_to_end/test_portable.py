"""The same bytes through a portable job service, with one external worker and with two."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from shutil import rmtree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import DecodingFactory, StubFactory, scored_rows

from pipelines import curate
from pipelines.commands.run import run_curation, run_scoring
from pipelines.corpus import split_units
from pipelines.errors import StorageError
from pipelines.plan import make_plans
from pipelines.score.work import bytes_in, stripes_of

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parents[1]
STEPS = [{"top": {"fraction": 0.8}}, {"best_of_n": {"keep": 2}}, {"top": {"rows": 15}}]


@contextlib.contextmanager
def service(workers: int, log: Path):
    """(job endpoint, worker endpoint) of a service with so many workers; all its processes are gone afterwards."""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    environment = {**os.environ, "PYTHONPATH": paths}
    environment["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), environment["PATH"]]
    )  # the pool calls `python`
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "services" / "portable_service.py"), str(workers)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
            start_new_session=True,
        )
    try:
        assert process.stdout is not None
        jobs, pool = process.stdout.readline().split()
        yield f"localhost:{jobs}", f"localhost:{pool}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in TIMED
    }


def config_of(tmp_path, make_config, name, steps=STEPS, **changes):
    return make_config(
        tmp_path / "in",
        input={"rows_per_fragment": 3},
        select=steps,
        scores={"path": str(tmp_path / f"{name}-scores")},
        output={"path": str(tmp_path / name), "rows_per_shard": 4},
        **changes,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_external_workers_give_the_same_bytes(tmp_path, make_config, workers):
    rows = corpus_rows()
    rows += [{**row, "response": "tied"} for row in rows[:12]] * 2
    for number in range(8):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::8])
    run_curation(config_of(tmp_path, make_config, "here"), scorer=StubFactory())
    (tmp_path / "pids").mkdir()
    with service(workers, tmp_path / "service.log") as (jobs, pool):
        options = {"job_endpoint": jobs, "environment_type": "EXTERNAL", "environment_config": pool}
        runner = {"name": "PortableRunner", "options": options}
        config = config_of(tmp_path, make_config, "there", runner=runner)
        outcome = run_curation(config, scorer=StubFactory(pids=str(tmp_path / "pids")))
    pids = {int(path.name) for path in (tmp_path / "pids").iterdir()}
    assert len(pids) == workers, "every worker has scored"
    assert os.getpid() not in pids
    assert outcome.manifest["counts"]["kept"] == 15
    assert len(outcome.manifest["shards"]) == 4
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert tree(tmp_path / "there-scores") == tree(tmp_path / "here-scores")


def test_external_workers_find_the_same_texts_alike(tmp_path, make_config):
    steps = [
        {"near_duplicates": {"of": "response", "words": 1}},
        {"diverse": {"rows": 9, "similarity": 0.6, "words": 1}},
    ]
    rows = []  # twelve texts of sixty words, each in five forms, of which up to sixteen words are others
    for number in range(60):
        words = [f"{number if at < 4 * (number // 12) else number % 12 - 99}w{at}" for at in range(60)]
        rows.append({"prompt": f"p{number % 9}", "response": " ".join(words)})
    for number in range(6):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::6])
    here = run_curation(config_of(tmp_path, make_config, "here", steps), scorer=StubFactory()).manifest
    assert [found["groups"] > 5 for found in here["alike"]] == [True, True]
    with service(2, tmp_path / "service.log") as (jobs, pool):
        options = {"job_endpoint": jobs, "environment_type": "EXTERNAL", "environment_config": pool}
        runner = {"name": "PortableRunner", "options": options}
        run_curation(config_of(tmp_path, make_config, "there", steps, runner=runner), scorer=StubFactory())
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert tree(tmp_path / "there-scores") == tree(tmp_path / "here-scores")


def test_stripes_of_a_row_group_give_the_same_bytes(tmp_path, make_config, monkeypatch):
    """Each worker decodes it once. Run again, nothing is decoded."""
    rows = 120 * 100
    texts = {name: [f"{name} {number % 5000}" for number in range(rows)] for name in ("prompt", "response")}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(texts), tmp_path / "in" / "a.parquet", row_group_size=rows)
    settings = {"input": {"rows_per_fragment": 100}, "select": [{"top": {"rows": 500}}]}
    run_curation(
        make_config(tmp_path / "in", **settings, output={"path": str(tmp_path / "here")}), scorer=StubFactory()
    )
    (tmp_path / "pids").mkdir()
    log, decoded = tmp_path / "log", tmp_path / "decoded"
    with service(2, tmp_path / "service.log") as (jobs, pool):
        options = {"job_endpoint": jobs, "environment_type": "EXTERNAL", "environment_config": pool}
        output = {"path": str(tmp_path / "there")}
        config = make_config(
            tmp_path / "in", **settings, output=output, runner={"name": "PortableRunner", "options": options}
        )
        plan = make_plans(config).whole
        [unit] = split_units(plan.files[0])
        secs = 3 * unit.input_bytes / bytes_in(1.0, plan) / 39.5
        assert len(stripes_of(0, unit, plan, bytes_in(secs, plan))) == 40, "three fragments each"
        monkeypatch.setattr(curate, "ELEMENT_SECS", secs)
        factory = DecodingFactory(log=str(log), pids=str(tmp_path / "pids"), meet=2, decoded=str(decoded))
        outcome = run_curation(config, scorer=factory)
        workers = sorted(path.name for path in (tmp_path / "pids").iterdir())
        assert sorted(decoded.read_text().split("\n")) == ["", *(f"{worker} 0" for worker in workers)]
        assert len(workers) == 2
        assert scored_rows(log) == rows
        assert outcome.manifest["counts"]["read"] == rows
        decoded.unlink()
        rmtree(tmp_path / "there" / "data")
        (tmp_path / "there" / "manifest.json").unlink()
        run_curation(config, scorer=factory)
    assert not decoded.exists()
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_a_million_rows_in_one_row_group_are_the_work_of_all(tmp_path, make_config, monkeypatch):
    """With the default fragments: four workers score it, none has more than ten at a time, and each decodes it once."""
    rows, fragments = 1_000_000, 489
    (tmp_path / "in").mkdir()
    prompts = [f"p {number % 5000}" if number % 20 == 0 else None for number in range(rows)]  # others are rejected soon
    texts = {"prompt": prompts, "response": [f"r {number}" for number in range(rows)]}
    pq.write_table(pa.table(texts), tmp_path / "in" / "a.parquet", row_group_size=rows)
    (tmp_path / "pids").mkdir()
    log, decoded = tmp_path / "log", tmp_path / "decoded"
    with service(4, tmp_path / "service.log") as (jobs, pool):
        options = {"job_endpoint": jobs, "environment_type": "EXTERNAL", "environment_config": pool}
        runner = {"name": "PortableRunner", "options": options}
        config = make_config(tmp_path / "in", limits={"max_rejected_fraction": 0.96}, runner=runner)
        plan = make_plans(config).whole
        [unit] = split_units(plan.files[0])
        secs = 10.5 / fragments * 3 * unit.input_bytes / bytes_in(1.0, plan)
        monkeypatch.setattr(curate, "ELEMENT_SECS", secs)
        parts = stripes_of(0, unit, plan, bytes_in(secs, plan))
        assert [len(range(stripe, fragments, stripes)) for _, _, (stripe, stripes) in parts] == [10] * 48 + [9]
        factory = DecodingFactory(log=str(log), pids=str(tmp_path / "pids"), meet=4, decoded=str(decoded))
        outcome = run_scoring(config, scorer=factory)
    workers = sorted(path.name for path in (tmp_path / "pids").iterdir())
    assert len(workers) == 4
    assert sorted(decoded.read_text().splitlines()) == [f"{worker} 0" for worker in workers]
    assert scored_rows(log) == rows // 20
    totals = outcome.totals
    assert (totals["rows"], totals["read"], totals["scored"]) == (rows, rows, rows // 20)
    assert totals["rejected"] == {"null_prompt": rows - rows // 20}


def test_workers_that_the_launcher_starts_itself_give_the_same_bytes(tmp_path, make_config):
    """LOOPBACK: the job service calls back, and the work is done in the launcher's own process."""
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", corpus_rows()[number::4])
    run_curation(config_of(tmp_path, make_config, "here"), scorer=StubFactory())
    (tmp_path / "pids").mkdir()
    with service(2, tmp_path / "service.log") as (jobs, _):
        runner = {"name": "PortableRunner", "options": {"job_endpoint": jobs, "environment_type": "LOOPBACK"}}
        config = config_of(tmp_path, make_config, "there", runner=runner)
        run_curation(config, scorer=StubFactory(pids=str(tmp_path / "pids")))
    assert os.listdir(tmp_path / "pids") == [str(os.getpid())]
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert tree(tmp_path / "there-scores") == tree(tmp_path / "here-scores")


def test_external_workers_colocate_texts(tmp_path, make_config):
    """Text crosses between processes; what they write is what one process writes without that."""
    rows, log = corpus_rows(), tmp_path / "scored.log"
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[12 * number : 12 * number + 12])
    run_curation(config_of(tmp_path, make_config, "here"), scorer=StubFactory())
    with service(2, tmp_path / "service.log") as (jobs, pool):
        options = {"job_endpoint": jobs, "environment_type": "EXTERNAL", "environment_config": pool}
        runner = {"name": "PortableRunner", "options": options}
        config = config_of(tmp_path, make_config, "there", runner=runner, score={"colocate": "prompt"})
        run_curation(config, scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == len(rows)
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    scores = {name: digest for name, digest in tree(tmp_path / "there-scores").items() if "colocated" not in name}
    assert scores == tree(tmp_path / "here-scores")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_worker_ends_the_run_and_the_next_one_goes_on(tmp_path, make_config, workers):
    """As an out-of-memory killer does it. What is scored stays, and nothing hangs."""
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", corpus_rows()[number::4])
    run_curation(config_of(tmp_path, make_config, "here"), scorer=StubFactory())
    log, ended = tmp_path / "scored.log", queue.SimpleQueue()

    def run(die_after: int | None) -> None:
        with service(workers, tmp_path / "service.log") as (jobs, pool):
            options = {"job_endpoint": jobs, "environment_type": "EXTERNAL", "environment_config": pool}
            runner = {"name": "PortableRunner", "options": options}
            try:
                scorer = StubFactory(log=str(log), die_after=die_after)
                run_curation(config_of(tmp_path, make_config, "there", runner=runner), scorer=scorer)
                ended.put(None)
            except StorageError as error:
                ended.put(error.message)

    threading.Thread(target=run, args=(3,), daemon=True).start()
    message = ended.get(timeout=300)  # a hang is a failure
    assert message is not None
    assert "finished scores are kept" in message
    assert "same command again" in message
    assert not (tmp_path / "there" / "manifest.json").exists()
    scored = scored_rows(log)
    assert 0 < scored < len(corpus_rows())
    run(None)
    assert ended.get() is None
    assert scored_rows(log) == len(corpus_rows())
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    assert tree(tmp_path / "there-scores") == tree(tmp_path / "here-scores")
