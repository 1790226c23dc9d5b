"""Uploads with the real client, against a stand-in for the Hub on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from services.hub_server import Fault, Repo, running_hub
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.config.loading import validate
from pipelines.errors import ConfigError, ConflictError, StorageError
from pipelines.finish import hub

REPO = "someone/curated"
OUTPUT = {"rows_per_shard": 5, "test_fraction": 0.3}


@pytest.fixture
def served(monkeypatch, tmp_path):
    """The stand-in, which the client takes for the Hub; uploads are those of a client without `hf_xet`."""
    with running_hub() as served:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", served.token)
        monkeypatch.setattr("time.sleep", lambda _secs: None)
        yield served


@pytest.fixture(scope="module")
def once(tmp_path_factory, configure):
    root = tmp_path_factory.mktemp("to-upload")
    config = configure(
        root, write_jsonl(root / "a.jsonl", [*corpus_rows(), {"prompt": "p", "response": ""}]), **SETTINGS
    )
    return root / "out", run_curation(config, scorer=StubFactory()).manifest


SETTINGS = {"output": OUTPUT, "limits": {"max_rejected_fraction": 0.5}}


@pytest.fixture
def finished(once, tmp_path):
    """A finished output and its manifest."""
    shutil.copytree(once[0], tmp_path / "out")
    return tmp_path / "out", once[1]


def push(finished, **more):
    out, manifest = finished
    settings = RunConfig.model_validate(minimal(push_to_hub={"repo": REPO, **more})).output.push_to_hub
    return hub.push(str(out), settings, manifest)


def minimal(**output):
    return {"input": {"path": "in"}, "model": {"path": "m"}, "output": {"path": "out", **output}}


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def belonging(out: Path) -> dict[str, bytes]:
    own = ("data/", "README.md", "manifest.json", "report.html")
    return {name: data for name, data in contents(out).items() if name.startswith(own)}


def test_the_data_set_and_nothing_else_is_uploaded_in_one_commit(served, finished):
    out, manifest = finished
    (out / "report.html").write_text("<html>")
    before = contents(out)
    assert {"claim.json", "run.json", "rejected/00000.parquet"} <= before.keys()
    assert any(name.startswith("scores/") for name in before)
    pushed = push(finished)
    assert pushed == hub.PushResult(f"{served.url}/datasets/{REPO}", fresh=True)
    assert served.files(REPO) == belonging(out)
    assert len(served.files(REPO)) == len(manifest["shards"]) + 3
    assert len(served.repos[REPO].commits) == 1
    assert served.repos[REPO].private
    assert contents(out) == before


def test_what_is_there_already_is_not_uploaded_again(served, finished):
    push(finished)
    served.requests.clear()
    assert not push(finished).fresh
    assert not served.count("preupload|commit|batch|PUT")
    lost = served.files(REPO).pop(next(name for name in served.files(REPO) if name.startswith("data/train")))
    assert push(finished).fresh
    assert lost in served.files(REPO).values()
    cut = next(name for name in served.files(REPO) if name.startswith("data/test"))
    served.files(REPO)[cut] = b"cut"
    assert push(finished).fresh
    assert served.files(REPO) == belonging(finished[0])


@pytest.mark.parametrize("name", ["manifest.json", "README.md"])
def test_a_file_of_other_content_and_the_same_size_is_uploaded_again(served, finished, name):
    push(finished)
    right = served.files(REPO)[name]
    served.files(REPO)[name] = b"x" * len(right)
    assert push(finished).fresh
    assert served.files(REPO)[name] == right


def test_a_manifest_that_the_hub_keeps_as_a_large_file_is_known_again(served, finished):
    served.lfs = (".parquet", ".json")
    push(finished)
    assert "manifest.json" in served.repos[REPO].lfs
    assert not push(finished).fresh


def test_shards_of_an_earlier_upload_are_removed_and_other_files_stay(served, finished):
    push(finished)
    served.files(REPO).update(
        {"data/train-00004-of-00005.parquet": b"old", "notes.md": b"mine", "data/more.csv": b"mine"}
    )
    assert push(finished).fresh
    assert served.files(REPO) == {**belonging(finished[0]), "notes.md": b"mine", "data/more.csv": b"mine"}


@pytest.mark.parametrize("same_name", [False, True])
def test_a_repository_with_data_of_others_is_a_conflict(served, finished, same_name):
    shard = finished[1]["shards"][0]
    theirs = {shard["name"]: b"x" * shard["bytes"]} if same_name else {"data/train-00000-of-00099.parquet": b"theirs"}
    served.repos[REPO] = Repo(private=True, branches={"main": dict(theirs)})
    with pytest.raises(ConflictError, match=r"someone/curated, which contains data not written by bestkept \(data/t"):
        push(finished)
    assert served.files(REPO) == theirs


@pytest.mark.parametrize("is_lfs", [False, True])
def test_an_upload_that_broke_off_goes_on(served, finished, is_lfs):
    shard = finished[1]["shards"][0]["name"]
    files = {shard: (finished[0] / shard).read_bytes()}
    served.repos[REPO] = Repo(private=True, branches={"main": files}, lfs={shard} if is_lfs else set())
    assert push(finished).fresh
    assert served.files(REPO) == belonging(finished[0])


def test_private_and_revision_are_as_configured(served, finished):
    served.repos["someone/other"] = Repo(private=True)
    assert push(finished, private=False, revision="v2").url.endswith("/tree/v2")
    assert not served.repos[REPO].private
    assert served.files(REPO, "v2") == belonging(finished[0])
    assert served.files(REPO) == {}
    assert not push(finished, revision="v2").fresh


def test_the_streamed_upload_of_a_client_with_xet_gives_the_same(served, finished, monkeypatch):
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    served.lfs = (".none",)  # every file goes into the commit: there is no stand-in for xet's own storage
    assert push(finished).fresh
    assert served.files(REPO) == belonging(finished[0])
    assert not push(finished).fresh


@pytest.mark.parametrize("status", [503, 429, 0])
@pytest.mark.parametrize("step", ["repos/create", "tree", "preupload", "batch", "PUT", "commit"])
def test_what_passes_is_tried_again(served, finished, step, status):
    served.faults.append(Fault(step, status))
    assert push(finished).fresh
    assert served.faults[0].times == 0
    assert served.files(REPO) == belonging(finished[0])


def test_what_does_not_pass_ends_with_the_remedy_and_the_next_run_goes_on(served, finished):
    served.faults.append(Fault("commit", 503, times=-1))
    with pytest.raises(StorageError) as caught:
        push(finished)
    assert caught.value.message.startswith(f"cannot upload to {REPO} on the Hub: 503 (HfHubHTTPError), 4 attempts; ")
    assert caught.value.message.endswith("run the same command again to upload the missing files")
    served.faults.clear()
    served.requests.clear()
    assert push(finished).fresh
    assert not served.count("PUT")  # the large files are there
    assert served.files(REPO) == belonging(finished[0])


@pytest.mark.parametrize(
    ("status", "step", "remedy"),
    [
        (401, "create|/api/datasets", "give a token that is still valid in HF_TOKEN, or sign in"),
        (403, "create|/api/datasets", "give a token in HF_TOKEN with write access to this repository"),
        (403, "commit", "give a token in HF_TOKEN with write access to this repository"),
        (404, "preupload", "check the name"),
    ],
)
def test_what_the_hub_refuses_names_the_remedy_and_no_token(served, finished, status, step, remedy):
    served.faults.append(Fault(step, status, times=-1))
    with pytest.raises(StorageError) as caught:
        push(finished)
    assert f"on the Hub: {status} (" in caught.value.message
    assert remedy in caught.value.message
    assert served.token not in caught.value.message


def test_a_token_that_is_not_valid(served, finished, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(StorageError, match="401") as caught:
        push(finished)
    assert "hf_other" not in caught.value.message


def test_nobody_listens(served, finished, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(StorageError, match=r"ConnectError, 4 attempts; check the network and HF_ENDPOINT"):
            push(finished)


def test_a_mistake_of_ours_is_not_taken_for_the_network():
    def wrong():
        raise KeyError("name")

    with pytest.raises(KeyError):
        hub._retry(wrong, "list", RunConfig.model_validate(minimal(push_to_hub=REPO)).output.push_to_hub)


def test_what_cannot_begin_is_said_before_the_work(served, tmp_path, make_config, monkeypatch):
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()), output={"push_to_hub": REPO})
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="no token for it; set HF_TOKEN"):
        run_curation(config, scorer=StubFactory())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        run_curation(config, scorer=StubFactory())
    assert not (tmp_path / "out").exists()
    assert not served.requests


def test_a_finished_run_uploads_and_again_only_finds_it(served, tmp_path, make_config):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows())
    plain = run_curation(make_config(path), scorer=StubFactory())
    assert plain.pushed is None
    config = make_config(path, output={"push_to_hub": REPO})
    later = run_curation(config, scorer=StubFactory())
    assert (later.already_complete, later.pushed.fresh) == (True, True)
    assert later.manifest == plain.manifest
    again = run_curation(config, scorer=StubFactory())
    assert (again.already_complete, again.pushed.fresh) == (True, False)


@pytest.mark.parametrize(
    "name", ["name", "a/b/c", "a/b c", "-a/b", "a/b.", "a/b--c", "a/b.git", "a/" + "b" * 95, "ä/b", "", "/b"]
)
def test_bad_names_are_errors_of_the_configuration(name):
    with pytest.raises(ConfigError, match=r"output\.push_to_hub\.repo is .*: expected organisation/name"):
        validate(RunConfig, minimal(push_to_hub=name), (), where="x")


@pytest.mark.parametrize("name", ["a/b", "some-one/my.data_set-2", "_a/" + "b" * 93])
def test_good_names(name):
    assert RunConfig.model_validate(minimal(push_to_hub=name)).output.push_to_hub.repo == name


def test_an_output_elsewhere_and_a_token_in_the_file_are_refused():
    with pytest.raises(
        ConfigError, match="push_to_hub uploads from a directory of this machine, and path is s3://b/out"
    ):
        validate(RunConfig, minimal(push_to_hub=REPO, path="s3://b/out"), (), where="x")
    with pytest.raises(ConfigError, match=r"unknown key 'output\.push_to_hub\.token'") as caught:
        validate(RunConfig, minimal(push_to_hub={"repo": REPO, "token": "hf_secret"}), (), where="x")
    assert "hf_secret" not in caught.value.message


@pytest.mark.slow
def test_the_command(served, tmp_path):
    """Rewards from a column, so that no model is needed; 503 for good is exit code 5, and then the same command finishes."""
    rows = [{**row, "reward": float(len(row["response"]))} for row in corpus_rows()]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    settings = {
        "input": {"path": str(path)},
        "scores": {"column": "reward"},
        "output": {"path": str(tmp_path / "out"), "push_to_hub": REPO},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    environment = {
        **os.environ,
        "HF_ENDPOINT": served.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_other",
    }

    def command():
        words = [sys.executable, "-m", "pipelines.cli", "run", str(tmp_path / "c.yaml")]
        return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)

    refused = command()
    assert (refused.returncode, "401" in refused.stderr, "hf_other" in refused.stderr) == (5, True, False)
    assert (tmp_path / "out" / "manifest.json").exists()
    environment["HF_TOKEN"] = served.token
    done = command()
    assert done.returncode == 0, done.stderr
    assert f"{served.url}/datasets/{REPO}" in done.stdout.replace("\n", "")
    assert served.files(REPO) == belonging(tmp_path / "out")
