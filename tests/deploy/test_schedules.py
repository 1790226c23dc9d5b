"""The files for schedulers and clusters: their syntax, their exit codes, and that the parts of a corpus are the whole. No cluster
is at hand."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.corpora import write_jsonl

from pipelines.errors import Exit

ROOT = Path(__file__).parents[2]
KUBERNETES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
SLURM, SYSTEMD = ROOT / "deploy" / "slurm" / "score.sh", ROOT / "deploy" / "systemd"
FOR_A_PERSON = {Exit.CONFIG, Exit.INPUT, Exit.REJECTED, Exit.CONFLICT, Exit.MODEL}
"""Exit codes after which the same command fails again; see docs/operating.md."""


def job_of(path: Path) -> dict[str, Any]:
    spec = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
    return spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec


def container_of(path: Path) -> dict[str, Any]:
    (container,) = job_of(path)["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_manifests_are_what_the_published_schemas_say(path):
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    for version in ("1.31", schemas.latest_version()):
        schemas.validate(manifest, version, strict=True)
    with pytest.raises(schemas.ValidationError):
        schemas.validate({**manifest, "spec": {**manifest["spec"], "completion": 3}}, "1.31", strict=True)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_a_job_is_tried_again_where_that_helps(path):
    job, container = job_of(path), container_of(path)
    disrupted, failed = job["podFailurePolicy"]["rules"]
    assert disrupted["action"] == "Ignore"
    assert failed["onExitCodes"]["containerName"] == container["name"]
    assert (failed["action"], set(failed["onExitCodes"]["values"])) == ("FailJob", FOR_A_PERSON)
    assert job["template"]["spec"]["restartPolicy"] == "Never", "what a failure policy needs"
    assert job.get("backoffLimit", job.get("backoffLimitPerIndex")) == 3
    assert container["command"] == ["bestkept"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_an_indexed_job_has_as_many_parts_as_it_says():
    job, container = job_of(KUBERNETES[-1]), container_of(KUBERNETES[-1])
    assert (job["completionMode"], container["args"][2:4]) == ("Indexed", ["--shard", f"auto/{job['completions']}"])


@pytest.mark.slow
def test_the_pods_of_an_indexed_job_score_the_whole(tmp_path, encoder):
    """Three processes with the variable that Kubernetes sets, and the arguments of the manifest."""
    (tmp_path / "in").mkdir()
    for number in range(6):
        rows = [{"prompt": f"q{number} {at // 2}", "response": f"a{at}" * 9} for at in range(6)]
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows)

    def command(name: str, args: list[str]) -> list[str]:
        values = {"input": {"path": f"{tmp_path}/in/*.jsonl"}, "model": {"path": str(encoder)}, "select": []}
        values |= {"output": {"path": str(tmp_path / name)}}
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump(values))
        return [sys.executable, "-m", "pipelines.cli", *(arg.replace("/config/run.yaml", str(config)) for arg in args)]

    score, run = (container_of(path)["args"] for path in (KUBERNETES[-1], KUBERNETES[-2]))
    score = [arg.replace("auto/16", "auto/3") for arg in score]
    pods = []
    for index in range(3):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "JOB_COMPLETION_INDEX": str(index)}
        pods.append(subprocess.Popen(command("out", score), env=env, stderr=subprocess.PIPE, text=True))
    said = [pod.communicate()[1] for pod in pods]
    assert [pod.returncode for pod in pods] == [0, 0, 0], said
    scored = [int(re.search(r'"scored_by_run": (\d+)', text)[1]) for text in said]
    assert (sum(scored), min(scored) > 0) == (36, True)
    for name in ("out", "whole"):
        ended = subprocess.run(
            command(name, run), env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        if name == "out":
            assert '"scored_by_run": 0' in ended.stderr
    one, other = (pq.read_table(tmp_path / name / "data").to_pylist() for name in ("out", "whole"))
    assert one == other
    assert len(one) == 36


@pytest.mark.parametrize(("codes", "expected", "calls"), [("0", 0, 1), ("5 0", 0, 2), ("5 5", 5, 2), ("3", 3, 1)])
def test_the_slurm_array_tries_a_storage_failure_once_more(tmp_path, codes, expected, calls):
    """With a `bestkept` that notes its words, and ends with one code after another."""
    fake = tmp_path / "bestkept"
    fake.write_text(
        f'#!/bin/bash\necho "$@" >> {tmp_path}/calls\nset -- {codes}\n'
        f'shift $(($(wc -l < {tmp_path}/calls) - 1))\nexit "$1"\n'
    )
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ended = subprocess.run([str(SLURM), "a b.yaml", "runner.workers=4"], env=env, capture_output=True, check=False)
    assert ended.returncode == expected
    assert (tmp_path / "calls").read_text() == "score a b.yaml runner.workers=4 --shard auto --json-logs\n" * calls
    assert subprocess.run([str(SLURM)], env=env, capture_output=True, check=False).returncode not in (0, 5)


def test_systemd_tries_again_where_that_helps(tmp_path):
    service, timer = configparser.ConfigParser(interpolation=None), configparser.ConfigParser(interpolation=None)
    for parser, name in ((service, "bestkept.service"), (timer, "bestkept.timer")):
        parser.optionxform = str
        parser.read(SYSTEMD / name)
    assert {int(code) for code in service["Service"]["RestartPreventExitStatus"].split()} == FOR_A_PERSON
    assert service["Service"]["SuccessExitStatus"] == str(int(Exit.TERMINATED))
    assert "OnCalendar" in timer["Timer"]
    if not shutil.which("systemd-analyze"):
        return
    for name in ("bestkept.service", "bestkept.timer"):
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/bestkept/bin/bestkept", shutil.which("true")))
        checked = subprocess.run(
            ["systemd-analyze", "verify", str(tmp_path / name)], capture_output=True, text=True, check=False
        )
        assert name not in checked.stderr, checked.stderr
