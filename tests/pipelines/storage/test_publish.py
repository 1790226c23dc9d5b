"""Publishing on a local disk and on a store in memory: equal bytes, other bytes, and what a refusal says."""

from __future__ import annotations

import errno
import io
import os
import uuid
from pathlib import Path

import pytest
import xxhash

from pipelines.errors import ConfigError, ConflictError, StorageError
from pipelines.storage import files, publish
from pipelines.storage.stores import local, remote_object
from pipelines.storage.stores.remote_object import ObjectChanged, ObjectStat


@pytest.fixture(params=["local", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "a") if request.param == "local" else f"memory://{uuid.uuid4().hex}/a"


def test_equal_bytes_join_and_others_are_a_conflict(path):
    digest = xxhash.xxh3_128_hexdigest(b"bytes")
    assert publish.create_or_equal(path, b"bytes") == digest
    assert publish.create_or_equal(path, lambda file: file.write(b"bytes")) == digest
    for other in (b"bytez", b"bytes+", b""):
        with pytest.raises(
            ConflictError, match=r"a exists with other content than this run gives; choose another output"
        ):
            publish.create_or_equal(path, other)
    assert files.read_bytes(path) == b"bytes"


def test_a_body_of_many_chunks_is_compared_to_its_end(path, monkeypatch):
    monkeypatch.setattr(publish, "_CHUNK", 4)
    assert publish.create_or_equal(path, b"0123456789") == xxhash.xxh3_128_hexdigest(b"0123456789")
    assert files.read_bytes(path) == b"0123456789"
    with pytest.raises(ConflictError):
        publish.create_or_equal(path, b"012345678x")
    publish.create_or_equal(path, b"0123456789")


def test_a_created_object_stands_and_a_replaced_one_does_not(path):
    assert files.read_with_version(path) is files.read_bytes(path) is None
    assert files.size_of(path) is None
    assert publish.create(path, b"first") is True
    assert publish.create(path, b"second") is False
    assert files.read_with_version(path) == (b"first", "")
    assert publish.replace(path, b"third+") is True
    assert (files.read_bytes(path), files.size_of(path)) == (b"third+", 6)
    with files.open_for_reading(path) as file:
        assert file.read() == b"third+"
    assert files.anything_below(path)
    assert files.anything_below(path.rsplit("/", 1)[0])
    assert not files.anything_below(path + "b")


def test_an_unanswered_write_of_our_own_bytes_is_ours():
    """An object store may lose the acknowledgement of a write that it has made."""
    path = f"memory://{uuid.uuid4().hex}/a"
    assert publish.create(path, b"ours") is True
    assert publish.create(path, b"ours") is True
    assert publish.create(path, b"their") is publish.create(path, b"othr") is False


def test_a_directory_that_is_removed_as_it_is_made_is_worth_another_try(tmp_path, monkeypatch):
    """Nothing stands there, unlike where a file is in its place."""
    sync = local._sync_directory

    def removed(directory: Path) -> None:
        sync(directory)
        if (tmp_path / "new").exists():
            (tmp_path / "new").rmdir()

    monkeypatch.setattr(local, "_sync_directory", removed)
    with pytest.raises(StorageError, match=r"No such file or directory; .*run the same command again"):
        publish.create(str(tmp_path / "new" / "name"), b"bytes")
    (tmp_path / "new").write_text("a file")
    with pytest.raises(ConfigError, match="a file is in the place of a directory"):
        publish.create(str(tmp_path / "new" / "name"), b"bytes")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "choose a writable output.path"),
        (errno.EACCES, "grant write access, or choose another output.path"),
        (errno.EPERM, "grant write access, or choose another output.path"),
        (errno.ENOTDIR, "a file is in the place of a directory; choose another output.path"),
        (errno.ENOSPC, "free some space there and run the same command again"),
        (errno.EIO, "check the place and run the same command again"),
    ],
)
def test_a_refusal_says_place_cause_and_remedy(tmp_path, number, words):
    def write(_file):
        raise OSError(number, os.strerror(number))

    for act in (publish.create, publish.create_or_equal):
        with pytest.raises(ConfigError if number == errno.ENOTDIR else StorageError) as raised:
            act(str(tmp_path / "a"), write)
        assert str(raised.value).startswith("cannot write /")
        assert str(raised.value).endswith(f": {os.strerror(number)}; {words}")


def test_an_error_without_a_number_is_named_by_its_type(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(publish.local, "replace", refuse)
    with pytest.raises(
        StorageError, match=r"^cannot write .*/a: OSError; check the place and run the same command again$"
    ):
        publish.replace(str(tmp_path / "a"), b"")


def test_sweeping_is_for_local_directories(tmp_path):
    for name in (".a.0123456789ab.tmp", ".b.0123456789ab.tmp"):
        (tmp_path / name).write_text("x")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / ".c.0123456789ab.tmp").write_text("x")
    assert publish.sweep(["memory://x", str(tmp_path), str(tmp_path / "deep")]) == 3
    assert os.listdir(tmp_path) == ["deep"]


def test_more_or_fewer_bytes_than_announced_are_no_object():
    assert remote_object.check_length(b"abc", 3) == b"abc"
    with pytest.raises(remote_object.ShortRead, match="2 of 3 bytes came"):
        remote_object.check_length(b"ab", 3)
    with pytest.raises(OSError, match="more bytes than asked for") as raised:
        remote_object.check_length(b"abcd", 3)
    assert raised.value.errno == errno.EIO


def test_an_object_that_changes_while_it_is_read_is_read_again(monkeypatch):
    path = f"memory://{uuid.uuid4().hex}/a"
    publish.create(path, b"whole")
    real, tries = remote_object.FsspecObject.read_range, []

    def read_range(self, start, end, seen):
        tries.append((start, end, seen))
        if len(tries) == 1:
            raise self._changed()
        return real(self, start, end, seen)

    monkeypatch.setattr(remote_object.FsspecObject, "read_range", read_range)
    assert files.read_with_version(path) == (b"whole", "")
    assert tries == [(0, 5, ObjectStat(5, ""))] * 2


def test_reading_a_range_of_what_is_gone_is_a_change():
    path = f"memory://{uuid.uuid4().hex}/a"
    publish.create(path, b"whole")
    there = files.object_at(path)
    assert isinstance(there, remote_object.FsspecObject)
    seen = there.stat()
    assert (seen, there.read_range(1, 4, seen), there.read_range(2, 2, seen)) == (ObjectStat(5, ""), b"hol", b"")
    assert (there.create(io.BytesIO(b"x"), 1), there.replace(b"other", None), there.read()) == (False, True, b"other")
    there.fs.rm(there.name)
    assert (there.create(io.BytesIO(b"whole"), 5), there.read()) == (True, b"whole")
    there.fs.rm(there.name)
    with pytest.raises(ObjectChanged, match=r"memory://.*/a changed while it was read; run the same command again"):
        there.read_range(1, 4, seen)
    assert (there.stat(), there.read()) == (None, None)


def test_a_directory_is_no_object():
    path = f"memory://{uuid.uuid4().hex}"
    publish.create(f"{path}/deep/a", b"x")
    assert files.size_of(f"{path}/deep") is None
    with pytest.raises(FileNotFoundError) as raised:
        files.open_for_reading(f"{path}/deep")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOENT, f"{path}/deep")


def test_an_object_that_is_removed_while_it_is_compared_is_no_conflict(tmp_path, monkeypatch):
    path = str(tmp_path / "a")
    monkeypatch.setattr(publish, "create", lambda *_: False)  # another was there, and is gone
    with pytest.raises(StorageError, match="removed while it was written; run the same command again"):
        publish.create_or_equal(path, b"bytes")
