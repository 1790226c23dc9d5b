"""What a machine remembers of the hashes of a model's files, and when it must not believe it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rm import hash_cache
from rm.identity import file_hashes


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The file of remembered hashes; all files count as old enough."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hash_cache, "_CLOCK_TICK_NS", 0)
    return tmp_path / "cache" / "bestkept" / "sha256.json"


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old weights")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def hashed(path: Path) -> str:
    return file_hashes({"w": path})["w"]


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    """Grows with each file that is read to be hashed."""
    read, digest = [], hashlib.file_digest

    def count(stream, name):
        read.append(stream.name)
        return digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", count)
    return read


def test_a_file_is_read_once(cache, weights, readings):
    assert [hashed(weights) for _ in range(3)] == [sha256(b"old weights")] * 3
    assert len(readings) == 1


@pytest.mark.parametrize("how", ["in place", "another file"])
def test_other_weights_of_the_same_path_size_and_time_are_seen(cache, weights, how):
    assert hashed(weights) == sha256(b"old weights")
    status = weights.stat()
    if how == "in place":
        weights.write_bytes(b"new weights")
    else:
        (weights.parent / "other").write_bytes(b"new weights")
        os.replace(weights.parent / "other", weights)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert hashed(weights) == sha256(b"new weights")


def fix_times(monkeypatch, *, changed_ns: int) -> None:
    """Let all files look like those of an image: same device, inode and times, whatever they hold."""
    original = Path.stat

    def stat(path, **options):
        real = original(path, **options)
        same = {"st_dev": 1, "st_ino": 2, "st_mtime_ns": changed_ns, "st_ctime_ns": changed_ns}
        return SimpleNamespace(st_mode=real.st_mode, st_size=real.st_size, **same)

    monkeypatch.setattr(Path, "stat", stat)


def test_files_of_an_image_with_fixed_time_stamps_are_read_each_time(cache, weights, monkeypatch, readings):
    fix_times(monkeypatch, changed_ns=0)
    assert hashed(weights) == sha256(b"old weights")
    weights.write_bytes(b"new weights")
    assert hashed(weights) == sha256(b"new weights")
    assert hashed(weights) == sha256(b"new weights")
    assert len(readings) == 3


def test_a_machine_does_not_believe_the_cache_of_another(cache, weights, monkeypatch, readings):
    """A home that machines share, and on each a directory of the same name."""
    fix_times(monkeypatch, changed_ns=1_000_000_007)
    name = SimpleNamespace(nodename="launcher")
    monkeypatch.setattr(os, "uname", lambda: name)
    assert hashed(weights) == hashed(weights) == sha256(b"old weights")
    assert len(readings) == 1
    weights.write_bytes(b"new weights")
    name.nodename = "worker"
    assert hashed(weights) == sha256(b"new weights")


def test_a_file_that_has_just_changed_is_read_again(cache, weights, monkeypatch, readings):
    monkeypatch.setattr(hash_cache, "_CLOCK_TICK_NS", 3600 * 10**9)
    assert hashed(weights) == hashed(weights)
    assert len(readings) == 2


def test_a_file_that_changes_while_it_is_read_is_read_again(cache, weights, monkeypatch):
    digest = hashlib.file_digest

    def change(stream, name):
        found = digest(stream, name)
        weights.write_bytes(b"new weights")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", change)
        hashed(weights)
    assert hashed(weights) == sha256(b"new weights")


def check_rebuilt(cache: Path, weights: Path) -> None:
    assert hashed(weights) == sha256(b"old weights")
    assert sha256(b"old weights") in json.loads(cache.read_text()).values()


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 100_000, b'{"a": 1e999}'],
)
def test_a_cache_of_any_content_is_rebuilt(cache, weights, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    check_rebuilt(cache, weights)


@pytest.mark.parametrize("value", [None, 7, "", "zz", ["x"], {"a": {}}, "g" * 64, sha256(b"x") + "\n"])
def test_a_cache_with_wrong_values_is_rebuilt(cache, weights, value):
    hashed(weights)
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), value)))
    check_rebuilt(cache, weights)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(content=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_content_of_the_cache_is_an_error(cache, weights, content):
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_bytes(content)
    check_rebuilt(cache, weights)


@pytest.mark.parametrize("kind", ["directory", "pipe", "link to itself"])
def test_a_cache_that_is_no_file_is_no_cache(cache, weights, kind):
    cache.parent.mkdir(parents=True)
    {"directory": cache.mkdir, "pipe": lambda: os.mkfifo(cache), "link to itself": lambda: cache.symlink_to(cache)}[
        kind
    ]()
    assert hashed(weights) == sha256(b"old weights")


def test_without_a_home_there_is_no_cache(weights, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert hashed(weights) == sha256(b"old weights")
