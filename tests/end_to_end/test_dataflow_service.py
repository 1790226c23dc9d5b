"""Whole submissions to a stand-in of the Dataflow service, with staging, corpus and output in an emulator of gs://.

Nothing of Beam's client is replaced but its pauses between two looks at a job, of 5 s each.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from services.dataflow_service import TESTS, DataflowService, Job, run_job
from services.engines import engines
from services.prism import serving_prism
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import StubFactory, scored_rows

from pipelines.commands import run
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig, load
from pipelines.errors import Exit, InputError, ModelLoadError, RejectedError, StorageError
from pipelines.finish.versions import latest_path
from pipelines.runtime import execute, progress

JOB_TYPE_BATCH = 1  # enumerations travel as numbers
CONFIGS = TESTS.parent / "configs"
GPU = b"type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver:latest"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("google.cloud.dataflow_v1beta3") is None, reason="apache-beam[gcp] is not installed"
)


@pytest.fixture
def bucket(make_store, tmp_path):
    """A bucket with a corpus of 48 responses to 12 prompts."""
    store = make_store("gs")
    for number in range(3):
        path = write_jsonl(tmp_path / "in" / f"{number}.jsonl", corpus_rows()[number::3])
        store.put(f"in/{number}.jsonl", path.read_bytes())
    return store


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    from apache_beam.runners.dataflow import dataflow_runner

    clock = SimpleNamespace(time=time.time, sleep=lambda secs: time.sleep(min(secs, 0.02)))
    monkeypatch.setattr(dataflow_runner, "time", clock)


@pytest.fixture
def service():
    """Holds each job in the state that the test gives it; at first it runs."""
    with DataflowService().serving() as service:
        yield service


@pytest.fixture
def running_service():
    """Runs each job."""
    with DataflowService(run=True).serving() as service:
        yield service


@pytest.fixture
def prism(bucket, tmp_path):
    """An engine whose workers reach the bucket."""
    with serving_prism(tmp_path) as prism:
        yield prism


@pytest.fixture(params=["beam", pytest.param("prism", marks=engines("prism", "beam-boot"))])
def either_service(request):
    """Runs each job, by Beam's Python runner or by Prism."""
    engine = request.getfixturevalue("prism").options if request.param == "prism" else None
    with DataflowService(run=True, engine=engine).serving() as service:
        yield service


def overrides(store, stub_model) -> list[str]:
    places = {"input.path": "in/*.jsonl", "output.path": "out", "scores.path": "scores"}
    places |= {"runner.options.temp_location": "tmp"}
    return [*(f"{key}={store.url}/{value}" for key, value in places.items()), f"model.path={stub_model}"]


def config_of(store, stub_model, name: str = "cpu", *more: str) -> RunConfig:
    path = CONFIGS / f"dataflow_{name}.yaml"
    return load(RunConfig, str(path), [*overrides(store, stub_model), "input.rows_per_fragment=4", *more])


def when_submitted(service, act) -> None:
    """Do something to the job once it is there."""

    def later() -> None:
        assert service.submitted.wait(60)
        act(service.jobs[-1])

    threading.Thread(target=later, daemon=True).start()


def submit(store, stub_model, service, name: str = "cpu", *more: str, command=run_curation):
    return command(config_of(store, stub_model, name, *more), service.flags, scorer=StubFactory())


def staged(job):
    from services.dataflow_worker import staged

    return staged(job.pipeline_url)


def hinted(proto) -> set[str]:
    """Steps whose environment asks for the GPU."""
    environments = proto.components.environments
    return {
        step.unique_name
        for step in proto.components.transforms.values()
        if step.environment_id and GPU in environments[step.environment_id].resource_hints.values()
    }


def test_what_the_service_gets_of_a_gpu_run(bucket, stub_model, service):
    assert submit(bucket, stub_model, service, "gpu", "runner.options.no_wait_until_finish=true").handed_over
    (job,) = service.jobs
    assert (job.project, job.location, job.request["type"]) == ("my-project", "us-central1", JOB_TYPE_BATCH)
    assert job.environment["serviceAccountEmail"] == "bestkept-worker@my-project.iam.gserviceaccount.com"
    (pool,) = job.environment["workerPools"]
    assert (pool["machineType"], pool["diskSizeGb"], pool["numThreadsPerWorker"]) == ("n2-standard-4", 100, 2)
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 8
    image = "us-central1-docker.pkg.dev/my-project/bestkept/bestkept-gpu:0.1.0"
    assert {one["containerImage"] for one in pool["sdkHarnessContainerImages"]} == {image}
    assert "no_use_multiple_sdk_containers" in job.environment["experiments"]
    assert "use_multiple_sdk_containers" not in job.environment["experiments"]
    assert pool.get("packages", []) == [], "the image has everything"
    assert job.pipeline_url.startswith(f"{bucket.url}/tmp/")
    data = bucket.contents()[job.pipeline_url.removeprefix(f"{bucket.url}/")]
    assert hashlib.sha256(data).hexdigest() == job.options["pipelineProtoHash"]
    assert hinted(staged(job)) == {"Score/ScoreUnits/ParDo(ScoreUnits)"}
    assert job.asked == [], "who does not wait, asks nothing"
    assert "out/manifest.json" not in bucket.contents()
    assert "out/run.json" not in bucket.contents()


def test_what_the_service_gets_of_a_cpu_run_and_of_two_jobs(bucket, stub_model, service):
    alone = "runner.options.no_wait_until_finish=true"
    submit(bucket, stub_model, service, "cpu", alone)
    submit(bucket, stub_model, service, "gpu", alone, command=run_scoring)
    run_curation(config_of(bucket, stub_model, "gpu", alone), service.flags, scorer=None)
    cpu, score, select = service.jobs
    assert len({job.request["name"] for job in service.jobs}) == 3, "one name would be refused while the other runs"
    assert [hinted(staged(job)) for job in service.jobs] == [set(), {"Score/ScoreUnits/ParDo(ScoreUnits)"}, set()]
    steps = [
        {step.unique_name.split("/")[0] for step in staged(job).components.transforms.values()}
        for job in (score, select)
    ]
    assert "Select" not in steps[0]
    assert {"Score", "Select", "Export", "Finish"} <= steps[1]
    (pool,) = cpu.environment["workerPools"]
    assert (pool["machineType"], pool["diskSizeGb"]) == ("n2-standard-4", 50)
    assert "numThreadsPerWorker" not in pool


@pytest.mark.slow
def test_the_service_runs_what_it_got_and_the_bytes_are_those_of_a_local_run(
    bucket, stub_model, either_service, make_config, tmp_path
):
    log = tmp_path / "log"
    config = config_of(bucket, stub_model, "gpu" if either_service.engine else "cpu", "model.dtype=float32")
    progress.reset()
    outcome = run_curation(config, either_service.flags, scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == outcome.manifest["counts"]["scored"] == 48
    now = progress.current()
    if not either_service.engine:  # Prism 2.77 mixes up the counters of workers in two environments
        assert (now.published, now.fragments, now.found) == (48, 12, 0), "counted by the job, told by the service"
        assert now.input_bytes == now.total_bytes
    local = make_config(tmp_path / "in" / "*.jsonl", input={"rows_per_fragment": 4}, model={"dtype": "float32"})
    run_curation(local, scorer=StubFactory())
    root = tmp_path / "out"
    here = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    ours = lambda name: not name.startswith("scores/") and name not in (*TIMED, "claim.json")  # noqa: E731
    there = {name: data for name, data in bucket.contents("out").items() if ours(name)}
    assert there == {name: data for name, data in here.items() if ours(name)}
    assert "run.json" in bucket.contents("out")
    again = run_curation(config, either_service.flags, scorer=StubFactory(log=str(log)))
    assert again.already_complete
    assert len(either_service.jobs) == 1, "what is complete is not submitted"
    if either_service.engine:
        workers = re.findall(r"--id=\S+_environment_(\w+)", (tmp_path / "pool.log").read_text())
        assert sorted(workers) == ["1", "with_resource_hints_2"], "the step with the hint gets a process of its own"


@pytest.mark.slow
def test_a_job_sets_the_pointer_though_no_launcher_waits(bucket, stub_model, running_service):
    more = ("output.versions=true", "runner.options.no_wait_until_finish=true")
    outcome = submit(bucket, stub_model, running_service, "cpu", *more)
    assert outcome.handed_over
    (job,) = running_service.jobs
    until(lambda: job.state != "JOB_STATE_RUNNING")
    assert job.state == "JOB_STATE_DONE", job.error
    assert latest_path(f"{bucket.url}/out") == outcome.version_run.path
    assert "run.json" not in bucket.contents(f"out/versions/{outcome.version_run.version}")


@pytest.mark.slow
def test_a_template_of_a_complete_output_has_a_job_too(bucket, stub_model, service):
    """A Flex launch that stages no job has failed; that job sets the pointer, as that of the first launch does."""
    template, latest = f"{bucket.url}/templates/job.json", f"{bucket.url}/out/latest.json"
    config = config_of(bucket, stub_model, "gpu", "output.versions=true")
    steps = []
    for complete in (False, True):
        outcome = run_curation(config, [*service.flags, f"--template_location={template}"], scorer=StubFactory())
        assert (outcome.already_complete, outcome.handed_over) == (complete, not complete)
        job = Job("job", json.loads(bucket.contents()["templates/job.json"]), "my-project", "us-central1")
        bucket.fs.rm(template)
        steps.append(len(staged(job).components.transforms))
        if complete:
            bucket.fs.rm(latest)
            assert hinted(staged(job)) == set(), "no GPU for nothing"
        run_job(job)
        assert job.state == "JOB_STATE_DONE", job.error
        assert latest_path(f"{bucket.url}/out") == outcome.version_run.path
    assert steps[1] < 8 < steps[0]
    assert service.jobs == [], "nothing is submitted"


@pytest.mark.slow
def test_an_error_of_a_worker_is_ours_in_the_end(bucket, stub_model, either_service):
    bucket.put("in/9.jsonl", b'{"prompt": "p", "response": "SECRET"}\n' + b"\xff\xfe broken\n" * 6)
    with pytest.raises(RejectedError) as raised:
        submit(bucket, stub_model, either_service)
    assert either_service.jobs[0].state == "JOB_STATE_FAILED"
    assert "9.jsonl" in raised.value.message
    assert "SECRET" not in raised.value.message


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_worker_without_the_gpu_that_it_was_promised_ends_the_launcher(bucket, stub_model, running_service):
    config = config_of(bucket, stub_model, "gpu")
    with pytest.raises(
        ModelLoadError, match=r"a GPU was requested .*torch finds none: torch .* is built for"
    ) as raised:
        run_curation(config, running_service.flags, scorer=run.default_scorer(config))
    assert raised.value.exit_code is Exit.MODEL
    assert not [name for name in bucket.contents("scores") if name.endswith(".parquet")]


def test_a_job_that_ends_well_without_a_manifest_is_not_called_done(bucket, stub_model, service):
    when_submitted(service, lambda job: job.end("JOB_STATE_DONE"))
    with pytest.raises(StorageError, match=r"/out has no manifest\.json; run the same command again") as raised:
        submit(bucket, stub_model, service)
    assert raised.value.exit_code is Exit.STORAGE
    assert "out/run.json" not in bucket.contents()


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ("FAILED", "Workflow failed. ROWTEXT", "job job-0 failed; finished scores are kept; its page says why"),
        (
            "FAILED",
            "OSError: [Errno 28] No space left on device",
            r"failed: OSError \(No space left on device\); .*; free some space",
        ),
        (
            "CANCELLED",
            None,
            "job job-0 was cancelled; finished scores are kept; run the same command again to resume",
        ),
        ("DRAINED", None, "job job-0 was drained; finished scores are kept"),
        ("UPDATED", None, "job job-0 was replaced by another; finished scores are kept"),
    ],
)
def test_a_job_that_does_not_end_well_ends_the_launcher_with_the_remedy(
    bucket, stub_model, service, monkeypatch, bestkept, state, error, message
):
    monkeypatch.setattr(run, "default_scorer", lambda config: StubFactory())
    when_submitted(service, lambda job: job.end(f"JOB_STATE_{state}", error))
    words = [*overrides(bucket, stub_model), *service.flags]
    code, _, err = bestkept("run", CONFIGS / "dataflow_cpu.yaml", *words)
    assert code == 5
    assert re.search(message, err.splitlines()[-1]), err
    assert "ROWTEXT" not in err


def test_an_error_that_the_service_tells_keeps_its_exit_code(bucket, stub_model, service):
    error = InputError("input file gs://b/x is cut; write it again")
    when_submitted(service, lambda job: job.end("JOB_STATE_FAILED", f"Traceback ...\nRuntimeError: {error.pack()}"))
    with pytest.raises(InputError, match=r"gs://b/x is cut; write it again"):
        submit(bucket, stub_model, service)


def test_a_job_that_is_done_by_others_work_is_done(bucket, stub_model, service):
    """What the launcher reports is what lies in the bucket, whoever has put it there."""
    run_curation(config_of(bucket, stub_model, "cpu", "runner={name: local}"), scorer=StubFactory())
    assert run_curation(config_of(bucket, stub_model), service.flags, scorer=StubFactory()).already_complete
    assert service.jobs == []


def test_counters_of_a_running_job_are_shown(bucket, stub_model, service, monkeypatch, tmp_path):
    monkeypatch.setattr(execute, "EVERY_SECS", 0.05)
    seen = []

    def act(job) -> None:
        for rows in (7, 20):
            job.counters = {
                "rows": rows,
                "tokens_read": 10 * rows,
                "published": rows,
                "fragments": 2,
                "input_bytes": 400,
            }
            until(lambda rows=rows: progress.current().scored == rows)
            seen.append(progress.current())
        job.end("JOB_STATE_CANCELLED")

    progress.reset()
    when_submitted(service, act)
    with pytest.raises(StorageError, match="was cancelled"):
        submit(bucket, stub_model, service)
    assert [(now.scored, now.tokens, now.published, now.fragments) for now in seen] == [(7, 70, 7, 2), (20, 200, 20, 2)]
    assert seen[1].since == seen[0].since is not None
    assert "metrics" in service.jobs[0].asked


def until(holds) -> None:
    while not holds():
        time.sleep(0.01)


LAUNCHER = """
import json, sys
from support.stubs import StubFactory
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig, load
path, overrides, flags = json.loads(sys.argv[1])
run_curation(load(RunConfig, path, overrides), flags, scorer=StubFactory())
"""


@pytest.mark.slow
def test_a_launcher_that_dies_while_it_waits_loses_nothing(bucket, stub_model, running_service):
    words = [str(CONFIGS / "dataflow_cpu.yaml"), overrides(bucket, stub_model), running_service.flags]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    command = [sys.executable, "-c", LAUNCHER, json.dumps(words)]
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    assert running_service.submitted.wait(120)
    launcher.kill()
    assert launcher.wait() == -9
    (job,) = running_service.jobs
    until(lambda: job.state != "JOB_STATE_RUNNING")
    assert job.state == "JOB_STATE_DONE", job.error
    assert "run.json" not in bucket.contents("out"), "no launcher was there to write it"
    config = load(RunConfig, words[0], words[1])
    assert run_curation(config, running_service.flags, scorer=StubFactory()).already_complete
    assert len(running_service.jobs) == 1
