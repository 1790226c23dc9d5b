"""Credentials of storage stay where they are: in no message, no log, no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from services.emulators import CANARY, environment
from services.stores import SERVER
from support.corpora import corpus_rows, write_jsonl

from pipelines.config import RunConfig, validate
from pipelines.errors import ConfigError

ROOT = Path(__file__).parents[3]
FIELDS = ["input.path", "output.path", "scores.path", "model.path"]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{CANARY}@bucket/in",
        f"s3://AKIA:{CANARY}/{CANARY}@bucket/in",
        f"s3://AKIA:1/{CANARY}@bucket/in",
        f"S3://{CANARY}@bucket/in",
        f"simplecache::gs://AKIA:{CANARY}@bucket",
        f"https://somebody:{CANARY}@host:80/in",
    ],
)
def test_credentials_in_urls_are_refused_and_not_repeated(field, url):
    values = {"input": {"path": "in"}, "model": {"path": "m"}, "output": {"path": "out"}}
    for override in (f"{field}={url}", f'{field}="{url}"'):
        with pytest.raises(
            ConfigError, match=rf"{field}.* is '[\w:]*://\*\*\*@.*URL contains credentials; give them through"
        ) as caught:
            validate(RunConfig, values, [override], where="c.yaml")
        assert CANARY not in caught.value.message
    for override in (url, f"{field}='{url}", f"=={url}"):
        with pytest.raises(ConfigError, match=r"override .*\*\*\*@") as caught:
            validate(RunConfig, values, [override], where="c.yaml")
        assert CANARY not in caught.value.message


@pytest.mark.parametrize(
    "path",
    [
        "s3://bucket/run:1/a",
        "s3://bucket/me@home/a",
        "https://host.example:8080/a@b",
        "s3://arn:aws:s3:eu:1:accesspoint/x/a@b",
        "/data/a:b@c",
    ],
)
def test_other_signs_of_that_kind_are_not_taken_for_credentials(path):
    values = {"input": {"path": path}, "model": {"path": "m"}, "output": {"path": "out"}}
    assert validate(RunConfig, values, [], where="c.yaml").input.path == path


def bestkept(tmp_path: Path, settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    home = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    return subprocess.run(
        command, env={**os.environ, **settings, **home}, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.skipif(SERVER == "versitygw-versioned", reason="run on this server without versions")
def test_credentials_are_in_nothing_that_is_said_or_written(make_store, tmp_path):
    """Runs of the command that fail in several ways, and one that succeeds: what they say and write holds no secret."""
    store = make_store("s3")
    settings = {**environment("s3", store.proxy), "AWS_SESSION_TOKEN": CANARY + "token"}
    knows_tokens = SERVER is not None  # moto takes any
    rows = [{**row, "reward": number / 7} for number, row in enumerate(corpus_rows())]
    store.put("in/a.jsonl", write_jsonl(tmp_path / "a.jsonl", rows).read_bytes())
    config = tmp_path / "run.yaml"
    config.write_text(
        json.dumps(
            {
                "input": {"path": store.url + "/in"},
                "scores": {"column": "reward"},
                "output": {"path": store.url + "/out"},
            }
        )
    )
    echo = f"<Error><Code>AccessDenied</Code><Message>{CANARY} may not</Message></Error>".encode()
    said = []

    def run(expected: int, words: str, *overrides: str) -> None:
        done = bestkept(tmp_path, settings, "run", str(config), *overrides)
        assert done.returncode == expected, done.stderr
        assert words in (done.stderr.splitlines() or done.stdout.splitlines())[-1] + done.stdout
        said.append(done.stdout + done.stderr)

    if knows_tokens:
        run(5, "400 InvalidToken; check the credentials")
        del settings["AWS_SESSION_TOKEN"]
    for pattern in (
        "list-type",
        r"^GET /bucket-\d+/in/a",
        r"PUT .*claim",
        r"PUT .*scores.*[0-9a-f]{32}\.parquet",
        "PUT .*data",
    ):
        denied = store.proxy.add("refuse", pattern, times=-1, status=403, body=echo)
        run(5, "403 AccessDenied; grant these credentials")
        denied.times = 0
    expired = store.proxy.add(
        "refuse", "^GET", times=-1, status=400, body=echo.replace(b"AccessDenied", b"ExpiredToken")
    )
    run(5, "400 ExpiredToken; sign in again")
    expired.times = 0
    run(2, "URL contains credentials", f"output.path=s3://AKIA:{CANARY}@bucket/out")
    run(0, "kept")
    run(6, "belongs to a run with other select", "select=[]")
    written = store.contents()
    assert len([name for name in written if name.startswith("out/")]) > 5
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for text in [*(text.encode() for text in said), *written.values(), *kept]:
        assert CANARY.encode() not in text
    assert any(CANARY in request.headers.get("X-Amz-Security-Token", "") for request in store.proxy.requests), (
        "it was in use"
    )
