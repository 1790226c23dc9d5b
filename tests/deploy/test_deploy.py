"""What lies in deploy/: syntax, and that files, fields and versions named there exist. None of it can be run here."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from support.torch_index import make_torch_index

from pipelines.config import RunConfig, load
from pipelines.errors import Exit

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.gpu"]
INSTRUCTIONS = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT"}


def module(name: str) -> Any:
    sys.path.insert(0, str(DEPLOY / "flex"))
    try:
        spec = importlib.util.spec_from_file_location(f"deploy_{name}", DEPLOY / "flex" / f"{name}.py")
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return loaded
    finally:
        sys.path.remove(str(DEPLOY / "flex"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments) with continued lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in joined]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_parse_and_copy_what_there_is(path):
    found = instructions(path)
    assert {name for name, _ in found} <= INSTRUCTIONS
    assert found[-1] == ("ENTRYPOINT", '["/opt/apache/beam/boot"]'), (
        "a worker is started by it; a launcher overrides it"
    )
    defaults = dict(text.split("=", 1) for name, text in found if name == "ARG")
    stages = {text.split()[-1] for name, text in found if name == "FROM" and " AS " in text}
    for name, text in found:
        if name == "COPY" and text.startswith("--from="):
            assert text.split()[0].removeprefix("--from=") in stages
        elif name == "COPY":
            for source in text.split()[:-1]:
                source = re.sub(r"\$\{(\w+)\}", lambda match: defaults[match[1]], source)
                assert (ROOT / source).exists(), source
                tracked = subprocess.run(
                    ["git", "ls-files", source], cwd=ROOT, capture_output=True, text=True, check=False
                )
                assert tracked.returncode or tracked.stdout, f"{source} is not in the repository"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_launcher_and_workers_have_one_python_and_the_beam_that_was_tested(path):
    text = path.read_text()
    pinned = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    assert f"ARG BEAM={pinned}\n" in text
    minors = {minor.replace(".", "") for minor in re.findall(r"(?:beam_python|python:|/python)(3\.?\d+)[_-]", text)}
    assert len(re.findall(r"^FROM", text, flags=re.MULTILINE)) == 3
    assert minors == {"311"}
    assert 'requires-python = ">=3.11' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_all_that_the_wheel_is_made_of_is_copied_before_it_is_installed(path):
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel, project = made["tool"]["hatch"]["build"]["targets"]["wheel"], made["project"]
    needed = {"pyproject.toml", project["readme"], *project["license-files"], *wheel["packages"]}
    needed |= {*wheel.get("force-include", {})}
    steps = instructions(path)
    install = next(
        at for at, (name, text) in enumerate(steps) if name == "RUN" and re.search(r"pip install .*\.(\[|'|$)", text)
    )
    copied = {source for name, text in steps[:install] if name == "COPY" for source in text.split()[:-1]}
    assert needed <= copied, needed - copied


def test_the_two_images_differ_in_cuda_alone():
    cpu, gpu = ([line for line in path.read_text().splitlines() if line[:1] not in ("#", "")] for path in DOCKERFILES)
    only_cpu = [line for line in cpu if line not in gpu]
    assert only_cpu == [
        "ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu",
        'RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "$(grep \'^torch==\' constraints.txt)"',
        "ENV HF_HUB_OFFLINE=1 \\",
    ]


@pytest.mark.slow
def test_the_steps_of_the_image_give_a_worker_that_has_all_it_needs(tmp_path):
    """Those that copy and install, in order, in a new environment. torch's index has torch and what torch needs, and none of the
    others in constraints.txt: what it lacks must not be asked of it."""
    work, venv = tmp_path / "opt", tmp_path / "venv"
    work.mkdir()
    (tmp_path / "index").mkdir()
    index = make_torch_index(tmp_path / "index")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "TORCH_INDEX": f"file://{index}"}
    nowhere_else = {name: value for name, value in environment.items() if not name.startswith("PIP_")}
    nowhere_else["PIP_CONFIG_FILE"] = os.devnull
    for name, text in instructions(DEPLOY / "Dockerfile"):
        words = shlex.split(text)
        if name == "COPY" and not text.startswith("--from=") and "$" not in text:
            for source in words[:-1]:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, work / (source if words[-1] == "./" else words[-1]))
        elif name == "RUN":
            assert text.startswith("pip install ")
            asked = nowhere_else if "--index-url" in text else environment
            subprocess.run(
                ["bash", "-c", text.replace("install", "install --quiet --no-compile", 1)],
                cwd=work,
                check=True,
                env=asked,
            )
    program = (
        "import importlib.util as found, pipelines.cli, pipelines.curate, pipelines.score.workers.worker, rm.scorer\n"
        "assert pipelines.cli.__file__.startswith(sys.prefix), 'the installed one'\n"
        "assert found.find_spec('google.cloud.dataflow_v1beta3') and found.find_spec('gcsfs')\n"
        "assert not found.find_spec('pytest'), 'nothing of the tests'\n"
    )
    python = [venv / "bin" / "python", "-c", f"import sys\n{program}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(python, cwd=tmp_path, check=True, env=environment)
    shown = subprocess.run(
        [venv / "bin" / "bestkept", "config"], cwd=tmp_path, capture_output=True, text=True, env=environment
    )
    assert shown.returncode == 0, shown.stderr
    assert "colocate" in shown.stdout
    assert (work / "deploy/flex/launch.py").exists()


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_scripts_parse(path):
    assert path.stat().st_mode & 0o111
    assert subprocess.run([shutil.which("bash"), "-n", str(path)], check=False).returncode == 0


def test_build_refuses_what_is_no_model(tmp_path):
    command = [str(DEPLOY / "build.sh"), "--repository", "r", "--model", str(tmp_path)]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "holds no config.json and *.safetensors" in refused.stderr
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").touch()
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "lies outside the repository" in refused.stderr
    assert subprocess.run([str(DEPLOY / "build.sh")], capture_output=True, check=False).returncode == 2


def test_an_image_without_weights_is_built_of_an_empty_folder(tmp_path):
    """With a `docker` that notes what it is asked."""
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    noting = 'for word; do case "$word" in MODEL=*) ls -A "${word#MODEL=}" | wc -l >> "$NOTED"; esac; done'
    docker.write_text(f'#!/bin/sh\necho "$@" >> "$NOTED"\n{noting}\n')
    docker.chmod(0o755)
    env = {**os.environ, "PATH": f"{docker.parent}:{os.environ['PATH']}", "NOTED": str(tmp_path / "noted")}
    command = [str(DEPLOY / "build.sh"), "--repository", "r", "--gpu", "--tag", "t"]
    built = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stdout) == (0, "runner.options.sdk_container_image=r/bestkept-gpu:t\n"), (
        built.stderr
    )
    build, files, run, push = (tmp_path / "noted").read_text().splitlines()
    assert "--platform linux/amd64" in build
    assert re.search(r"--build-arg MODEL=deploy/models/none\.\w+ --tag r/bestkept-gpu:t", build)
    assert files.strip() == "0"
    assert run.endswith("r/bestkept-gpu:t -"), "there is no model to load"
    assert push == "push r/bestkept-gpu:t"
    assert not list((DEPLOY / "models").glob("none.*"))


def test_the_check_of_a_model_in_the_image_reads_headers_alone(causal, tmp_path):
    """Weights of 64 GB, most of them a hole in a file, are checked at once; a file that ends too early is refused."""
    shutil.copytree(causal, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    header["large"] = {"dtype": "F16", "shape": [32 * 2**30], "data_offsets": [end, end + 64 * 2**30]}
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    os.truncate(weights, 8 + len(text) + end + 64 * 2**30)
    program = re.search(r"<< 'PYTHON'\n(.*?)\nPYTHON\n", (DEPLOY / "build.sh").read_text(), flags=re.DOTALL)[1]

    def check() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-", str(tmp_path / "model")]
        return subprocess.run(command, input=program, cwd=ROOT, capture_output=True, text=True, check=False)

    assert check().returncode == 0
    os.truncate(weights, 2**20)
    cut = check()
    assert cut.returncode == 1
    assert "model.safetensors is cut or not a safetensors file; fetch it again" in cut.stderr


def test_the_template_knows_every_field():
    metadata = module("metadata")
    assert metadata.PATH.read_text(encoding="utf-8") == metadata.text(), "run `make reference`"
    names = [parameter["name"] for parameter in json.loads(metadata.text())["parameters"]]
    assert len(names) == len(set(names))
    assert {"command", "config", "input_path", "model_path", "select", "output_path", "runner_accelerator"} <= set(
        names
    )
    assert all(parameter["helpText"].strip() for parameter in metadata.metadata()["parameters"])


def test_parameters_become_a_command(tmp_path):
    launch = module("launch")
    arguments = [
        "--command=score",
        "--input_path=gs://b/a*.jsonl",
        "--model_path",
        "/models/reward",
        "--select=[{random: {}}]",
    ]
    arguments += ["--output_path=gs://b/out", "--runner=DataflowRunner", "--project=p", "--region", "r", "--streaming"]
    command, path, *rest = launch.command_of(arguments, tmp_path)
    assert command == "score"
    assert rest == [
        "input.path=gs://b/a*.jsonl",
        "model.path=/models/reward",
        "select=[{random: {}}]",
        "output.path=gs://b/out",
        "runner.name=DataflowRunner",
        "--project=p",
        "--region=r",
        "--streaming",
    ]
    config = load(RunConfig, path, rest[:5])
    assert config.select[0].random is not None
    assert (config.model.path, config.runner.name) == ("/models/reward", "DataflowRunner")


def test_a_template_begins_with_a_configuration(tmp_path):
    launch = module("launch")
    path = tmp_path / "given.yaml"
    path.write_text("input: {path: gs://b/x.jsonl}\nmodel: {path: /m}\noutput: {path: gs://b/out}\n")
    assert launch.command_of([f"--config={path}", "--output_path=gs://b/new"], tmp_path)[:3] == [
        "run",
        str(path),
        "output.path=gs://b/new",
    ]
    (tmp_path / "to").mkdir()
    fetched = launch.command_of([f"--config=file://{path}"], tmp_path / "to")[1]
    assert load(RunConfig, fetched).output.path == "gs://b/out"
    with pytest.raises(SystemExit, match="is not there"):
        launch.command_of([f"--config=file://{path}.gone"], tmp_path)


@pytest.mark.parametrize(
    ("argument", "message"), [("--command=train", "expected one of run, score, select"), ("x", "'x'")]
)
def test_a_template_refuses(tmp_path, argument, message):
    with pytest.raises(SystemExit, match=message):
        module("launch").command_of([argument], tmp_path)


def test_examples_name_parameters_that_the_template_has():
    known = {parameter["name"] for parameter in module("metadata").metadata()["parameters"]}
    tree = ast.parse((DEPLOY / "airflow" / "bestkept_dag.py").read_text())
    dag = [
        {key.value for key in value.keys}
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "parameters"
    ]
    body = re.search(r"<< JSON\n(.*?)\nJSON\n", (DEPLOY / "scheduler" / "create.sh").read_text(), flags=re.DOTALL)[1]
    workflow = yaml.safe_load((DEPLOY / "github" / "bestkept.yaml").read_text())
    start = workflow["jobs"]["curate"]["steps"][-1]["run"]
    flags = yaml.safe_load(re.search(r"<< YAML\n(.*?)\nYAML\n", start, flags=re.DOTALL)[1])
    assert len(dag) == 1
    for parameters in (dag[0], set(json.loads(body)["launchParameter"]["parameters"]), set(flags["--parameters"])):
        assert {"command", "config", "output_path"} <= parameters <= known


class StandIn:
    """Anything of Airflow's: it takes all words, is a context, and is followed by others."""

    def __init__(self, **words: Any) -> None:
        self.words = words

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __rshift__(self, other: StandIn) -> StandIn:
        return other


def dag(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a file in deploy/airflow, with a stand-in for Airflow; `make airflow` has the real one."""
    errors = {kind: type(kind, (Exception,), {}) for kind in ("AirflowException", "AirflowFailException")}
    for node in ast.walk(ast.parse((DEPLOY / "airflow" / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("airflow"):
            made = SimpleNamespace(**{alias.name: errors.get(alias.name, StandIn) for alias in node.names})
            monkeypatch.setitem(sys.modules, node.module, made)
    return runpy.run_path(str(DEPLOY / "airflow" / name))


def test_the_dag_does_not_wait_on_a_slot_and_names_each_try_of_a_run(monkeypatch):
    names = dag("bestkept_dag.py", monkeypatch)
    words = names["run"].words
    assert words["deferrable"] is True
    assert words["body"]["launchParameter"]["jobName"] == "{{ job_name('run', run_id, ti.try_number) }}"
    job_name = names["job_name"]
    runs = [
        "scheduled__2026-11-30T00:00:00+00:00",
        "asset_triggered__2026-11-30T13:00:00.12+00:00_Ab3",
        "é" * 9,
        "x" * 999,
    ]
    made = [job_name("run", run, number) for run in runs for number in (1, 2)]
    assert len(set(made)) == 8
    assert all(re.fullmatch(r"[a-z]([-a-z0-9]{0,253}[a-z0-9])", name) for name in made)
    assert made[:2] == [f"bestkept-run-scheduled-2026-11-30t00-00-00-00-00-{number}" for number in (1, 2)]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 6, 7, 130, 143])
def test_a_local_task_is_tried_again_where_that_helps(tmp_path, monkeypatch, code):
    names = dag("bestkept_local_dag.py", monkeypatch)
    program = tmp_path / "bestkept"
    program.write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    program.chmod(0o755)
    bestkept = names["bestkept"]
    bestkept.__globals__["PROGRAM"] = str(program)
    if code == 0:
        assert bestkept("latest", "/srv/curated") == "latest /srv/curated"
        return
    with pytest.raises(Exception, match=f"bestkept ended with {code}") as raised:
        bestkept("run", "a.yaml")
    for_a_person = {Exit.CONFIG, Exit.INPUT, Exit.REJECTED, Exit.CONFLICT, Exit.MODEL}
    assert raised.typename == ("AirflowFailException" if code in for_a_person else "AirflowException")


def test_the_workflow_has_every_python_that_there_is_a_classifier_for():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yaml").read_text())
    matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert matrix == classifiers == ["3.11", "3.12", "3.13", "3.14"]


def test_commands_that_are_not_run_say_why():
    text = (ROOT / "docs" / "dataflow.md").read_text(encoding="utf-8")
    parts = text.split("```")  # prose and blocks by turns
    commands = [
        before for before, block in itertools.pairwise(parts) if re.match(r"(sh)?\n(bestkept|cp|gcloud) ", block)
    ]
    assert len(commands) == len(parts) // 2 - 1 == 4, "all but the drawing"
    assert all(re.search(r"<!-- not run: .+ -->\n$", before) for before in commands)
    for _, name in re.findall(r"\[(`[^`]+`)\]\(\.\./([^)]+)\)", text):
        assert (ROOT / name).exists(), name
