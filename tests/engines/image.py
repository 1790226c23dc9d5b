"""The image of deploy/Dockerfile, built and run by buildah: `make image`.

No registry is asked: its three bases are made here and bear their names. Debian with Python stands for `python:3.11-slim`, Beam's
boot program for its SDK image, and a file for the launcher of Flex templates, which Google does not publish as a program. torch
comes from an index that has nothing but what torch needs, as that of its CPU builds. The rest comes from where pip looks here.

Without Debian's packages, or the rights that buildah needs, the tests are skipped with what debootstrap or buildah said.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from services.engines import FOLDER, TESTS, await_port, free_port, started, why_missing
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.torch_index import make_torch_index

ROOT = TESTS.parent
KEPT = ROOT / ".cache" / "image"  # buildah's storage, and the Debian that took a minute to make
POOL_PORT = 50000  # of `boot --worker_pool`, which takes no other
BEAM = re.search(r"^apache-beam==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
BASES = (
    "docker.io/library/python:3.11-slim",
    f"docker.io/apache/beam_python3.11_sdk:{BEAM}",
    "gcr.io/dataflow-templates-base/python311-template-launcher-base:latest",
)
IMAGE = "localhost/bestkept:test"
_missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
_reason = f"no {_missing[0]}; apt-get install {' '.join(_missing)}" if _missing else why_missing("prism", "beam-boot")
_reason = _reason or ("needs root" if os.geteuid() else None)
_reason = _reason or (None if platform.machine() == "x86_64" else "builds for linux/amd64, on x86-64 only")
pytestmark = pytest.mark.skipif(_reason is not None, reason=str(_reason))


STORAGE = ("--root", str(KEPT / "storage"), "--runroot", str(KEPT / "run"))
CHROOT = ("--isolation", "chroot", "--network", "host")


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT)


def buildah(*words: object) -> str:
    """The output of a command of buildah; its end is asserted."""
    done = run("buildah", *STORAGE, *words)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.strip()


def prepare(*command: object) -> str:
    """The output of a command that prepares the build; where this machine does not allow it, the tests are skipped."""
    done = run(*command)
    if done.returncode != 0:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip() and "See /" not in line]
        pytest.skip(f"{command[0]} does not work here: {[f'exit code {done.returncode}', *said][-1]}")
    return done.stdout.strip()


def pip_settings() -> tuple[dict[str, str], dict[str, str]]:
    """(settings, variables) of this machine's pip, which the build has, too."""
    shown = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(re.findall(r"^global\.([\w-]+)='(.*)'$", shown, flags=re.MULTILINE))
    return settings, {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def mounts() -> list[str]:
    """Folders and files of this machine that pip's settings name, at their own places."""
    settings, variables = pip_settings()
    named = re.findall(r"(?:file://)?(/\S+)", " ".join([*settings.values(), *variables.values()]))
    paths = {Path(path) for path in named if Path(path).exists()}
    tops = [path for path in paths if not paths & set(path.parents)]
    above = [path.parent if path.name == "simple" else path for path in tops]  # its links lead to files beside it
    return [word for path in sorted(set(above)) for word in ("--volume", f"{path}:{path}:ro")]


def make_bases() -> None:
    known = prepare("buildah", *STORAGE, "images", "--format", "{{.Name}}:{{.Tag}}").split()
    if not set(BASES) <= set(known):
        debian = KEPT / "debian"
        if not (debian / "made").exists():
            shutil.rmtree(debian, ignore_errors=True)
            packages = "--include=python3.11,python3-pip,python3.11-venv,ca-certificates"
            prepare("debootstrap", "--variant=minbase", packages, "bookworm", debian)
            (debian / "usr/bin/python").symlink_to("python3.11")
            (debian / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
            settings, _ = pip_settings()
            text = "".join(f"{name} = {value.replace(chr(92) + 'n', ' ')}\n" for name, value in settings.items())
            (debian / "etc/pip.conf").write_text(f"[global]\n{text}")
            (debian / "made").touch()
        launcher = KEPT / "python_template_launcher"
        launcher.write_text("#!/bin/sh\n")
        contents = (
            (debian, "/"),
            (FOLDER / "beam-boot", "/opt/apache/beam/boot"),
            (launcher, "/opt/google/dataflow/python_template_launcher"),
        )
        for name, (source, target) in zip(BASES, contents, strict=True):
            container = prepare("buildah", *STORAGE, "from", "scratch")
            rights = ("--chmod", "755") if source.is_file() else ()
            prepare("buildah", *STORAGE, "add", *rights, container, source, target)
            prepare("buildah", *STORAGE, "commit", "--rm", container, name)
    container = prepare("buildah", *STORAGE, "from", "--pull-never", BASES[0])
    try:
        prepare("buildah", *STORAGE, "run", *CHROOT, container, "--", "true")
    finally:
        buildah("rm", container)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    KEPT.mkdir(parents=True, exist_ok=True)
    make_bases()
    index = make_torch_index(tmp_path_factory.mktemp("torch"))
    _, variables = pip_settings()
    words = [*CHROOT, "--pull-never", "--platform", "linux/amd64", "--layers"]
    words += [word for name in variables for word in ("--env", f"{name}={variables[name]}")]
    words += [*mounts(), "--volume", f"{index}:/torch-index:ro", "--build-arg", "TORCH_INDEX=file:///torch-index"]
    buildah("bud", *words, "--file", "deploy/Dockerfile", "--tag", IMAGE, ".")
    return IMAGE


class Container:
    """A container of the image, with a folder of this machine at /data."""

    def __init__(self, image: str, data: Path) -> None:
        self.name, self.data = buildah("from", "--pull-never", image), data

    def command(self, *words: str, user: str = "root") -> list[str]:
        how = [*CHROOT, "--user", user, "--volume", f"{self.data}:/data"]
        return ["buildah", *STORAGE, "run", *how, self.name, "--", *words]

    def run(self, *words: str, user: str = "root") -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*words, user=user), capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope="module")
def container(image: str, causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    data = tmp_path_factory.mktemp("data")
    for folder in (data, *data.parents[:2]):
        folder.chmod(0o755)
    shutil.copytree(causal, data / "model")
    write_jsonl(data / "in" / "a.jsonl", corpus_rows())
    values = {"input": {"path": "/data/in"}, "model": {"path": "/data/model"}, "select": [{"best_of_n": {"keep": 2}}]}
    (data / "run.yaml").write_text(yaml.safe_dump(values))
    subprocess.run(["chmod", "--recursive", "a+rX", data], check=True)
    container = Container(image, data)
    yield container
    buildah("rm", container.name)


def tree(root: Path) -> dict[str, bytes]:
    ours = ("manifest.json", "README.md", "data/", "scores/")
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file() and path.name not in TIMED}
    return {name: path.read_bytes() for name, path in files.items() if name.startswith(ours) and "/plans/" not in name}


def test_runs_end_to_end_with_workers_from_the_image(container, tmp_path):
    here = container.run("bestkept", "run", "/data/run.yaml", "output.path=/data/here")
    assert here.returncode == 0, here.stderr
    jobs = free_port()
    prism = [str(FOLDER / "prism"), "--job_port", str(jobs), "--serve_http=false", "--log_kind", "text"]
    pool = container.command("/opt/apache/beam/boot", "--worker_pool")
    with started(prism, tmp_path / "prism.log"), started(pool, tmp_path / "pool.log"):
        await_port(jobs)
        await_port(POOL_PORT)
        flags = [f"--job_endpoint=localhost:{jobs}", "--environment_type=EXTERNAL"]
        flags += [f"--environment_config=localhost:{POOL_PORT}"]
        words = ["run", "/data/run.yaml", "output.path=/data/there", "runner.name=PortableRunner", *flags]
        there = container.run("bestkept", *words)
    assert there.returncode == 0, there.stderr + (tmp_path / "pool.log").read_text()[-3000:]
    assert tree(container.data / "there") == tree(container.data / "here")
    assert json.loads((container.data / "here" / "manifest.json").read_text())["counts"]["kept"] == 24


def test_runs_as_a_user_other_than_root(container):
    output = container.data / "nobody"
    output.mkdir()
    shutil.chown(output, 65534, 65534)
    done = container.run("bestkept", "run", "/data/run.yaml", "output.path=/data/nobody/out", user="65534:65534")
    assert done.returncode == 0, done.stderr


def test_what_its_entrypoint_does_with_help(container):
    """`docker run IMAGE --help` is for Beam's boot program; `--entrypoint bestkept` is for people."""
    shown = json.loads(buildah("inspect", "--type", "image", IMAGE))["OCIv1"]
    assert shown["config"]["Entrypoint"] == ["/opt/apache/beam/boot"]
    assert shown["architecture"] == "amd64"
    boot = container.run("/opt/apache/beam/boot", "--help")
    assert "-worker_pool" in boot.stdout + boot.stderr
    assert "score" in container.run("bestkept", "--help").stdout


def test_what_the_launcher_of_a_flex_template_starts(container):
    """The service starts `python_template_launcher`, which runs the file that this variable names with the parameters."""
    variables = json.loads(buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]["Env"]
    file = dict(text.split("=", 1) for text in variables)["FLEX_TEMPLATE_PYTHON_PY_FILE"]
    refused = container.run("python", file, "--command=train")
    assert (refused.returncode, "expected one of run, score, select" in refused.stderr) == (1, True), refused.stderr
    started = container.run("python", file, "--input_path=gs://b/in", "--output_path=gs://b/out", "--model_path=/m")
    assert "not ready for Dataflow: runner.options.project is missing" in started.stderr


def test_has_torch_without_cuda_and_asks_no_hub(container, capsys):
    program = "import os, torch; print(torch.__version__, torch.version.cuda, os.environ['HF_HUB_OFFLINE'])"
    version, cuda, offline = container.run("python", "-c", program).stdout.split()
    assert (cuda, offline) == ("None", "1")
    size = buildah("images", "--format", "{{.Size}}", IMAGE)
    with capsys.disabled():
        print(f" the image: {size}, torch {version} ", end="")
