"""Workers of one machine and shards of many: the same score files as one process makes, and no hang when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import pytest
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import StubFactory, scored_rows

from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig, RunnerConfig
from pipelines.errors import ConfigError, InputError, ModelLoadError, StorageError
from pipelines.runtime import counters, machine, progress
from pipelines.runtime.progress import Progress
from pipelines.score.work import CorpusShard
from pipelines.score.workers import launcher

ROWS = [
    {**row, "response": row["response"] + " and more" * (number % 5)} for number, row in enumerate(corpus_rows(40, 4))
]
STEPS = [{"top": {"fraction": 0.8}}, {"best_of_n": {"keep": 2}}]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch):
    monkeypatch.setattr(machine, "count_cores", lambda: 4)
    progress.reset()


@pytest.fixture
def make(tmp_path, make_config):
    """(name, workers) → a configuration whose scores and output have that name; the corpus is four files."""
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", ROWS[number::4])

    def config(name, workers=1, **changes):
        return make_config(
            tmp_path / "in",
            input={"rows_per_fragment": changes.pop("rows_per_fragment", 3)},
            select=STEPS,
            scores={"path": str(tmp_path / f"{name}-scores")},
            output={"path": str(tmp_path / name), "rows_per_shard": 30},
            runner={"workers": workers},
            **changes,
        )

    return config


def files(root: Path) -> dict[str, bytes]:
    timed = (*TIMED, *(path.name for path in root.glob("run-*.json")), *(path.name for path in root.rglob("totals-*")))
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in timed}


def same(tmp_path, one, other):
    assert files(tmp_path / f"{one}-scores") == files(tmp_path / f"{other}-scores")
    assert files(tmp_path / one) == files(tmp_path / other)


@pytest.mark.slow
def test_two_workers_make_what_one_process_makes(tmp_path, make):
    run_curation(make("here"), scorer=StubFactory())
    (tmp_path / "pids").mkdir()
    progress.reset()
    factory = StubFactory(log=str(tmp_path / "log"), pids=str(tmp_path / "pids"), meet=2)
    outcome = run_curation(make("there", 2), scorer=factory)
    pids = {int(path.name) for path in (tmp_path / "pids").iterdir()}
    assert len(pids) == 2, "both have loaded a model"
    assert os.getpid() not in pids
    assert scored_rows(tmp_path / "log") == len(ROWS)
    assert progress.current().published == outcome.manifest["counts"]["scored"] == len(ROWS)
    assert progress.current().found == 0
    same(tmp_path, "here", "there")
    run_curation(make("there", 2, limits={"verify": True}), scorer=StubFactory(log=str(tmp_path / "log")))
    assert scored_rows(tmp_path / "log") == len(ROWS), "nothing is scored again"


@pytest.mark.slow
def test_packages_in_the_working_directory_are_not_taken_for_ours(tmp_path, make, monkeypatch):
    for name in ("pipelines", "rm"):
        (tmp_path / "work" / name).mkdir(parents=True)
        (tmp_path / "work" / name / "__init__.py").write_text("raise SystemExit('of the user')")
    monkeypatch.chdir(tmp_path / "work")
    run_scoring(make("there", 2), scorer=StubFactory(log=str(tmp_path / "log")))
    assert scored_rows(tmp_path / "log") == len(ROWS)


def test_shards_in_any_order_are_the_whole(tmp_path, make):
    run_curation(make("here"), scorer=StubFactory())
    log = tmp_path / "log"
    totals = []
    for index in (2, 0, 1):
        outcome = run_scoring(make("there"), scorer=StubFactory(log=str(log)), shard=CorpusShard(index, 3))
        totals.append(outcome.totals["read"])
    assert sum(totals) == scored_rows(log) == len(ROWS)
    assert min(totals) > 0
    run_curation(make("there"), scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == len(ROWS)
    same(tmp_path, "here", "there")


@pytest.mark.slow
def test_shards_have_workers_too(tmp_path, make):
    run_curation(make("here"), scorer=StubFactory())
    for index in (1, 0):
        run_scoring(make("there", 2), scorer=StubFactory(log=str(tmp_path / "log")), shard=CorpusShard(index, 2))
    assert scored_rows(tmp_path / "log") == len(ROWS)
    run_curation(make("there"), scorer=None)
    same(tmp_path, "here", "there")


@pytest.mark.slow
def test_one_large_unit_is_shared_by_its_fragments(tmp_path, make_config):
    write_jsonl(tmp_path / "in" / "all.jsonl", ROWS)
    (tmp_path / "pids").mkdir()
    for name, workers in (("here", 1), ("there", 2)):
        scores, output = {"path": str(tmp_path / f"{name}-scores")}, {"path": str(tmp_path / name)}
        settings = {
            "input": {"rows_per_fragment": 3},
            "scores": scores,
            "output": output,
            "runner": {"workers": workers},
        }
        config = make_config(tmp_path / "in", **settings)
        pids = {"pids": str(tmp_path / "pids"), "meet": 2} if workers > 1 else {}
        factory = StubFactory(log=f"{tmp_path / name}.log", **pids)
        run_curation(config, scorer=factory)
    assert len(list((tmp_path / "pids").iterdir())) == 2
    assert scored_rows(tmp_path / "there.log") == len(ROWS)
    same(tmp_path, "here", "there")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stalls_is_replaced(tmp_path, make, monkeypatch, caplog, number):
    monkeypatch.setattr(launcher, "SILENT_SECS", 10.0)
    run_curation(make("here"), scorer=StubFactory())
    progress.reset()
    log, once = tmp_path / "log", tmp_path / "once"
    (tmp_path / "pids").mkdir()
    factory = StubFactory(log=str(log), die_after=2, signal=int(number), once=str(once), pids=str(tmp_path / "pids"))
    run_curation(make("there", 2), scorer=factory)
    assert str(os.getpid()) not in os.listdir(tmp_path / "pids"), "workers have done what the dead one held, too"
    assert once.exists(), "one has died"
    assert "another takes its place" in caplog.text
    assert ("was killed by SIGKILL" if number == signal.SIGKILL else "no sign of life for 10 s") in caplog.text
    assert scored_rows(log) == len(ROWS), "it died before it scored, and what it had published was found"
    assert progress.current().published == len(ROWS)
    same(tmp_path, "here", "there")


def test_a_worker_gives_signs_of_life_while_it_imports(tmp_path):
    imported = tmp_path / "imported"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, sys, time\n"
        "class Slow:\n"
        "    def find_spec(name, path, target=None):\n"
        "        while name == 'apache_beam' and not pathlib.Path("
        f"{str(imported)!r}).exists():\n"
        "            time.sleep(0.05)\n"
        "sys.meta_path.insert(0, Slow)\n"
    )
    connection, worker_end = Pipe()
    command = [sys.executable, "-P", "-m", "pipelines.score.workers.worker", str(worker_end.fileno())]
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, pass_fds=[worker_end.fileno()], stdin=subprocess.DEVNULL
    )
    try:
        connection.send(
            counters.local_counters
        )  # in place of a job; it imports Beam, and the worker's counters before that
        for _ in range(4):
            assert connection.poll(60), "it waits for its imports"
            assert connection.recv()[0] == "lives"
        imported.touch()
        while (kind := connection.recv()[0]) == "lives":
            assert connection.poll(60)
        assert kind == "failed", "after the imports, it looked at the job"
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_where_that_does_not_help_the_run_ends_and_the_next_goes_on(tmp_path, make):
    run_curation(make("here"), scorer=StubFactory())
    log = tmp_path / "log"
    with pytest.raises(
        StorageError, match=r"was killed by SIGKILL.*as the one before it did.*same command again.*runner\.workers"
    ):
        run_curation(make("there", 2), scorer=StubFactory(log=str(log), die_after=2))
    assert not (tmp_path / "there" / "manifest.json").exists()
    assert 0 < scored_rows(log) < len(ROWS)
    run_curation(make("there", 2), scorer=StubFactory(log=str(log)))
    again = scored_rows(log) - len(ROWS)
    assert 0 <= again <= 3, "no more than the fragment that the other worker was at when the run ended"
    same(tmp_path, "here", "there")


@pytest.mark.slow
def test_what_a_worker_fails_of_is_what_the_run_fails_of(tmp_path, make):
    write_jsonl(tmp_path / "in" / "0.jsonl", [{"prompt": str(n), "response": "UNSCORABLE"} for n in range(40)])
    with pytest.raises(ModelLoadError, match="gives NaN for every response"):
        run_curation(make("out", 2, rows_per_fragment=20), scorer=StubFactory())


@pytest.mark.slow
def test_a_file_that_cannot_be_read_ends_the_run_or_is_skipped(tmp_path, make):
    (tmp_path / "in" / "9.jsonl").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"9\.jsonl"):
        run_curation(make("out", 2), scorer=StubFactory())
    for name, workers in (("here", 1), ("there", 2)):
        outcome = run_curation(make(name, workers, limits={"skip_bad_files": True}), scorer=StubFactory())
        assert [file["key"] for file in outcome.skipped] == ["9.jsonl"]
    same(tmp_path, "here", "there")


@pytest.mark.slow
def test_workers_end_with_their_launcher(tmp_path, make):
    """However it ends: here by -9. They are in sessions of their own, so nobody else would end them."""
    (tmp_path / "pids").mkdir()
    config, pids = tmp_path / "config.json", tmp_path / "pids"
    config.write_text(make("out", 2).model_dump_json(exclude_unset=True))
    program = (
        "from support.stubs import StubFactory\nfrom pipelines.config import RunConfig\n"
        "from pipelines.commands.run import run_curation\nfrom pipelines.runtime import machine\n"
        "machine.cores = lambda: 2\n"
        f"factory = StubFactory(pids={str(pids)!r}, meet=3)\n"
        f"run_curation(RunConfig.model_validate_json(open({str(config)!r}).read()), scorer=factory)\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": paths})
    try:
        _until(lambda: len(list(pids.iterdir())) == 2)
    finally:
        process.kill()
        process.wait()
    found = [int(path.name) for path in pids.iterdir()]
    _until(lambda: not any(_is_worker(pid) for pid in found))


def test_what_a_dead_worker_did_is_counted_once():
    """It has published two fragments of the piece that it held, and had a third in work; its successor finds the two."""
    before = Progress(
        input_bytes=100, fragments=4, found=1, found_bytes=25, found_responses=10, published=30, scored=30
    )
    last = replace(before, input_bytes=150, fragments=6, published=50, scored=57, tokens=570, since=3.0)
    after = Progress(
        input_bytes=75, fragments=3, found=2, found_bytes=50, found_responses=20, published=10, scored=10, since=9.0
    )
    progress.set_from_workers([progress.count_dead_worker(last, before), after])
    now = progress.current()
    assert (now.fragments, now.found, now.input_bytes, now.found_bytes) == (7, 1, 175, 75)
    assert (now.published, now.scored, now.tokens, now.since) == (60, 67, 570, 3.0)
    assert now.found_responses == 10, "what was found before either of them"


def _until(happens):
    deadline = time.monotonic() + 120
    while not happens():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _is_worker(pid: int) -> bool:
    try:
        return b"score.workers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_more_workers_than_cores_or_gpus_are_refused(monkeypatch, make):
    monkeypatch.setattr(machine, "count_cores", lambda: 2)
    monkeypatch.setattr(machine, "list_gpus", list)
    with pytest.raises(
        ConfigError, match=r"runner\.workers is 3, and this machine gives 2 cores and no GPU; expected 2 or fewer"
    ):
        run_curation(make("out", 3), scorer=StubFactory())
    monkeypatch.setattr(machine, "list_gpus", lambda: ["0"])
    with pytest.raises(ConfigError, match=r"runner\.workers is 2, .*a GPU of its own, .*shows 1; expected 1 or fewer"):
        run_scoring(make("out", 2), scorer=StubFactory())


@pytest.mark.parametrize(
    ("cores", "parts", "expected"),
    [
        ([0, 1, 2, 3], 2, [[0, 1], [2, 3]]),
        ([4, 7, 9], 2, [[4], [7]]),
        ([5], 1, [[5]]),
        ([1], 2, [[], []]),
        ([], 2, [[], []]),
    ],
)
def test_each_worker_has_cores_of_its_own(monkeypatch, cores, parts, expected):
    monkeypatch.setattr(machine, "list_cores", lambda: cores)
    assert machine.split_cores(parts) == expected


@pytest.mark.parametrize(
    ("chosen", "devices", "names"),
    [
        (None, ["nvidia1", "nvidia0", "nvidia10", "nvidiactl", "nvidia-uvm"], ["0", "1", "10"]),
        (None, [], []),
        ("", ["nvidia0"], []),
        ("-1", ["nvidia0"], []),
        ("2,0", ["nvidia0"], ["2", "0"]),
        ("GPU-ab, MIG-cd", [], ["GPU-ab", "MIG-cd"]),
        ("1,-1,2", [], ["1"]),
    ],
)
def test_gpus_that_can_be_seen(tmp_path, monkeypatch, chosen, devices, names):
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "_DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert machine.list_gpus() == names


def test_a_shard_of_a_remote_run_is_refused(make_config, tmp_path):
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    runner = {"name": "FlinkRunner", "options": {"flink_master": "localhost:1"}}
    with pytest.raises(ConfigError, match=r"--shard .*FlinkRunner, which distributes the work; remove one"):
        run_scoring(make_config(tmp_path / "in.jsonl", runner=runner), scorer=StubFactory(), shard=CorpusShard(0, 2))


def test_shards_are_for_score_alone(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"--shard is an option of `bestkept score`"):
        run_curation(make_config(tmp_path / "in.jsonl"), ["--shard=0/2"], scorer=StubFactory())


@pytest.mark.parametrize("name", ["DaskRunner", "DirectRunner"])
def test_runners_that_lose_data_are_refused_with_the_reason(name):
    with pytest.raises(ValueError, match=r"loses? data.*; use local with runner\.workers"):
        RunnerConfig(name=name)


def test_workers_are_for_scoring_with_a_model(make, caplog):
    carried = {"input": {"path": "in"}, "output": {"path": "out"}, "scores": {"column": "judge"}}
    with pytest.raises(ValueError, match=r"runner\.workers is 2, and workers score with a model.*remove it"):
        RunConfig.model_validate({**carried, "runner": {"workers": 2}})
    assert RunConfig.model_validate({**carried, "runner": {"workers": 1}}).runner.workers == 1
    run_scoring(make("out"), scorer=StubFactory())
    caplog.set_level("INFO", "pipelines")
    run_curation(make("out", 2), scorer=None)
    assert "nothing is scored, so runner.workers has no effect" in caplog.text


def test_workers_are_of_a_local_run():
    with pytest.raises(ValueError, match="no effect without name: local"):
        RunnerConfig(name="FlinkRunner", workers=2)
    assert RunnerConfig(name="FlinkRunner", workers=1).workers == 1


def test_too_many_rejected_rows_of_a_shard_are_a_warning(tmp_path, make, caplog):
    write_jsonl(tmp_path / "in" / "0.jsonl", [{"prompt": "p", "response": ""}] * 20)
    shards = [run_scoring(make("out"), scorer=StubFactory(), shard=CorpusShard(index, 2)) for index in range(2)]
    assert sum(outcome.totals["rejected"].get("empty_response", 0) for outcome in shards) == 20
    assert "in shard" in caplog.text
