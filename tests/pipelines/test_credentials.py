"""Credentials in URLs: refused wherever they come in, and in nothing that is printed, logged or stored."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import string
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines import cli, errors
from pipelines.config import RunConfig, TrainConfig, validate
from pipelines.errors import ConfigError, InputError, hide_credentials, holds_credentials
from pipelines.runtime import logs
from pipelines.storage import listing

CANARY = "CANARY5f1d"
AZURE = ("abfs", "abfss", "az", "wasb", "wasbs")
SCHEMES = (
    *("s3", "S3", "s3a", "gs", "gcs", "https", "HTTP", "ftp", "sftp", "hf", "memory", *AZURE),
    *("simplecache::s3", "zip://*.jsonl::https", "filecache::abfs"),
)
SECRET_NAMES = (
    *("X-Amz-Signature", "X-Amz-Security-Token", "X-Amz-Credential", "X-Goog-Signature", "Signature", "sig", "token"),
    *(
        "access_token",
        "sas_token",
        "key",
        "api-key",
        "apikey",
        "AWSAccessKeyId",
        "accesskey",
        "account_key",
        "subscription-key",
        "GoogleAccessId",
        "password",
        "passwd",
    ),
    *("pwd", "secret", "client_secret", "auth", "Authorization", "code", "jwt", "sessionid", "private.key"),
)
anything = st.text(st.sampled_from(string.printable + "äß€🙂\u2028"), max_size=6)
no_slash = anything.map(lambda text: text.replace("/", ""))
names = st.text(st.sampled_from(string.ascii_letters), min_size=1, max_size=5)
paths = st.sampled_from(["bucket", "host/a.jsonl", "host:80/x/*.parquet", "host/me@home/a", "host/a?.jsonl"])


@st.composite
def urls(draw) -> str:
    """A URL with the canary in one of the positions where a secret stands."""
    scheme, path, name = draw(st.sampled_from(SCHEMES)), draw(paths), draw(names)
    azure = scheme.split("::")[-1].lower() in AZURE
    before, after = draw(anything), draw(anything)
    match draw(st.sampled_from(["password", "user", "user alone", "second @", "parameter"])):
        case "password":
            return f"{scheme}://{name}:{'x' + before if before[:1].isdigit() else before}{CANARY}{after}@{path}"
        case "user":
            return f"{scheme}://{name}{CANARY}{draw(names)}:x{after}@{path}"
        case "user alone" if not azure:
            return f"{scheme}://{draw(no_slash)}{CANARY}{draw(no_slash)}@{path}"
        case "second @" | "user alone":
            return f"{scheme}://{name}@{draw(no_slash)}{CANARY}{draw(no_slash)}@{path}"
    secret = draw(st.sampled_from(SECRET_NAMES))
    spelled = draw(st.sampled_from([secret, secret.upper(), quote(secret), "".join(f"%{ord(c):02x}" for c in secret)]))
    others = draw(st.sampled_from(["?", "?versionId=3&", "?a=b;", "?x&", "#", "?a#b&", f"?{secret}=&"]))
    return f"{scheme}://{path}{others}{spelled}={before}{CANARY}{after}"


@pytest.fixture(autouse=True)
def _no_known_hosts(monkeypatch):
    monkeypatch.setattr(errors, "_known_hosts", set())


@given(url=urls())
@example(url=f"s3://AKIA:sec {CANARY}@bucket")
@example(url=f"s3://AKIA:{CANARY}+x://y@bucket")
@example(url=f"s3://arn:{CANARY}/x@bucket")
@example(url=f"https://[u]:{CANARY}/x@host")
@example(url=f"https://user:12345/{CANARY}@host")
@example(url=f"https://user.name:123456/{CANARY}@host")
def test_a_secret_is_seen_and_starred_out_in_every_position(url):
    assert holds_credentials(url)
    hidden = hide_credentials(url)
    assert CANARY not in hidden
    assert hide_credentials(hidden) == hidden
    for text in (
        f"cannot read {url}: gone; write to me@home",
        f"input.path is {url!r}: no",
        f"a {'x'!r}, abfs://data@account/a and {url}",
        f"a {'s3://bucket/a'!r} and {url!r}; 'c'",
        f"file:///tmp/a, then\n{url}\nand more",
    ):
        assert CANARY not in InputError(text).message
        assert CANARY not in str(InputError(text))
        assert CANARY not in InputError(text).pack()


@pytest.mark.parametrize(
    "path",
    [
        "abfs://container@account.dfs.core.windows.net/a/*.parquet",
        "abfss://container@account.dfs.core.windows.net:443/a@b",
        "wasbs://container@account.blob.core.windows.net/a",
        "simplecache::abfs://container@account/a",
        "hf://datasets/owner/name@main/a.parquet",
        "s3://bucket/a?.jsonl",
        "s3://bucket/day=?/key=3/a.jsonl",
        "s3://bucket/a.jsonl?versionId=3",
        "https://host/a.jsonl?download=true#L3",
        "https://host/a.jsonl?partition_key=5&file_key=3",
        "https://[::1]:9000/a@b",
        "http://localhost:9000/a@b",
        "https://host.example:9000/a@b",
        "http://minio:9000/a%40b",
        "file:///data/me@home/a:b@c",
        "/data/a?token=b",
        "memory://a/b",
    ],
)
def test_what_is_no_secret_is_neither_refused_nor_hidden(path):
    values = {"input": {"path": path}, "model": {"path": "m"}, "output": {"path": "out"}}
    assert validate(RunConfig, values, [], where="c.yaml").input.path == path
    for text in (path, f"cannot read {path}: gone", f"input.path {path!r} matches no file; ask owner/name"):
        assert InputError(text).message == text


PROSE = [
    ("s3://bucket", "cannot list s3://bucket: there is no such bucket; ask me@home"),
    ("s3://bucket/in", "s3://bucket is not hf://datasets/owner/name@main/x, and s3://bucket, too"),
    ("gs://my-bucket", "(gs://my-bucket); ask me@home"),
    ("http://minio:9000/a", "cannot read http://minio:9000/a.jsonl: gone; ask me@home"),
    ("http://[::1]:9000", "http://[::1]:9000: gone; ask me@home"),
    ("abfs://data@account/a", "abfs://data@account: no: ask me@home"),
]


@pytest.mark.parametrize(("path", "text"), PROSE)
def test_what_follows_a_place_that_a_setting_names_is_no_password(path, text):
    assert "ask" not in text or InputError(text).message != text, "nobody has named the place yet"
    assert not holds_credentials(path)
    assert InputError(text).message == text


@given(url=urls())
@example(url=f"s3://bucket:{CANARY}@host")
@example(url=f"s3://bucket:sec {CANARY}@host")
@example(url=f"s3://bucket{CANARY}@host/a")
@example(url=f"http://minio:9000/{CANARY}@host")
@example(url=f"http://minio:9000{CANARY}@host")
def test_a_secret_is_starred_out_where_the_places_of_settings_are_known(url):
    for path, _ in PROSE:
        holds_credentials(path)
    holds_credentials(url)
    for text in (url, f"cannot read {url}: gone; write to me@home", f"s3://bucket: {url} and {url!r}"):
        assert CANARY not in InputError(text).message


def test_the_words_around_a_hidden_secret_stay():
    assert InputError("'s3://u:p@b/x' is not 'me@home'; fix it").message == "'s3://***@b/x' is not 'me@home'; fix it"
    text = "'https://h/x.jsonl?a=b&sig=abc&c=d' is gone; fix it"
    assert InputError(text).message == "'https://h/x.jsonl?a=b&sig=***' is gone; fix it"


RUN = {"input": {"path": "in"}, "model": {"path": "m"}, "output": {"path": "out"}}
TRAIN = {"data": {"path": "in"}, "model": {"path": "m"}, "output": {"path": "out"}}
PLACES = [
    (RunConfig, RUN, "input.path"),
    (RunConfig, RUN, "input.columns.prompt"),
    (RunConfig, RUN, "model.path"),
    (RunConfig, RUN, "model.revision"),
    (RunConfig, RUN, "output.path"),
    (RunConfig, RUN, "output.license"),
    (RunConfig, RUN, "scores.path"),
    (RunConfig, RUN, "runner.options.temp_location"),
    (TrainConfig, TRAIN, "data.path"),
    (TrainConfig, TRAIN, "model.path"),
    (TrainConfig, TRAIN, "output.path"),
]


@given(url=urls(), place=st.sampled_from(PLACES), several=st.booleans())
@settings(max_examples=200)
def test_every_setting_refuses_it(url, place, several):
    kind, values, setting = place
    given_values = json.loads(json.dumps(values))
    *parents, last = setting.split(".")
    target = given_values
    for parent in parents:
        target = target.setdefault(parent, {})
    target[last] = ["a", url] if several and setting in ("input.path", "runner.options.temp_location") else url
    with pytest.raises(ConfigError, match="URL contains credentials; give them through the environment") as raised:
        validate(kind, given_values, [], where="c.yaml")
    assert CANARY not in raised.value.message
    assert setting.split(".")[-1] in raised.value.message or "runner.options" in raised.value.message


COMMANDS = [
    ["run", "CONFIG"],
    ["run", "URL"],
    ["score", "CONFIG", "input.path=URL"],
    ["select", "CONFIG", "--explain", "URL"],
    ["plan", "CONFIG", "--prices", "URL"],
    ["run", "CONFIG", "--temp_location", "URL"],
    ["run", "CONFIG", "--temp_location=URL"],
    ["train", "CONFIG"],
    ["evaluate", "URL", "in"],
    ["evaluate", "m", "URL"],
    ["inspect", "URL"],
    ["inspect", "URL", "--json-logs"],
    ["report", "URL"],
    ["report", "a", "b", "--write", "URL"],
    ["latest", "URL"],
    ["latest", "URL", "--quiet"],
    ["clean", "URL", "--dry-run"],
    ["model", "fetch", "URL", "x"],
    ["model", "fetch", "m", "URL", "--json-logs"],
    ["URL"],
]


@given(url=urls(), words=st.sampled_from(COMMANDS))
@settings(max_examples=100, deadline=None)
def test_no_command_says_or_writes_it(url, words):
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        root, (out, err) = Path(directory), (io.StringIO(), io.StringIO())
        (root / "tmp").mkdir()
        values = {"train": TRAIN}.get(words[0], RUN)
        secret = {**values, "output": {"path": url}} if words == [words[0], "CONFIG"] else values
        config = root / "config.yaml"
        config.write_text(yaml.safe_dump(secret))
        patch.chdir(root)
        patch.setattr(tempfile, "tempdir", str(root / "tmp"))
        line = [word.replace("URL", url).replace("CONFIG", str(config)) for word in words]
        patch.setattr(sys, "argv", ["bestkept", *line])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
            cli.main()
        said = out.getvalue() + err.getvalue()
        assert (stop.value.code, "contains credentials" in said) == (2, True), said
        assert CANARY not in said
        config.unlink()
        assert not [path for path in root.rglob("*") if path.is_file()]


@given(url=urls())
@settings(max_examples=50)
def test_no_log_line_has_it(url):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(tempfile, "tempdir", directory)
        record = logging.LogRecord("pipelines.x", logging.WARNING, "x.py", 3, "reading %s", (url,), None)
        record.fields = {"path": url, "paths": [url], url: 1}
        for as_json in (False, True):
            patch.setattr(logs, "_mode", logs.OutputMode(json_logs=as_json))
            with contextlib.redirect_stderr(io.StringIO()) as err:
                logs._Terminal().emit(record)
            assert "reading" in err.getvalue()
            assert CANARY not in err.getvalue()
        log = logs.LibraryLog()
        log.emit(record)
        path = log.path
        log.leave()
        text = path.read_text()
        assert "reading" in text
        assert CANARY not in text


def test_signed_links_of_a_page_are_refused_when_they_are_listed(monkeypatch):
    """An http driver lists the links of a page, with whatever is in them."""
    link = f"https://host/a.jsonl?X-Amz-Signature={CANARY}"
    found = {link: {"name": link, "type": "file", "size": 3}}
    monkeypatch.setattr(listing, "_find_remotely", lambda *_: found)
    monkeypatch.setattr(listing, "exists_on", lambda *_: False)
    with pytest.raises(
        InputError, match=r"'https://host/\*' matches .*X-Amz-Signature=\*\*\*': URL contains"
    ) as raised:
        listing.expand("https://host/*")
    assert CANARY not in raised.value.message
