"""Publishing on a local disk: whole or not at all, durable, and no temporary of a living writer is taken for a leftover."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.errors import ConfigError, StorageError, remedy, whereabouts
from pipelines.storage import publish
from pipelines.storage.stores import local

LEFT = ".a.parquet.0123456789ab.tmp"


def put(data: bytes):
    return lambda file: file.write(data)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_the_first_one_stands(tmp_path):
    path = tmp_path / "deep" / "er" / "a"
    assert local.create(path, put(b"first")) is True
    assert local.create(path, put(b"second")) is False
    assert (path.read_bytes(), names(path.parent)) == (b"first", ["a"])
    local.replace(path, put(b"third"))
    assert (path.read_bytes(), names(path.parent)) == (b"third", ["a"])


def test_one_that_comes_while_it_is_written_stands(tmp_path):
    path = tmp_path / "a"

    def write(file):
        file.write(b"late")
        path.write_bytes(b"early")

    assert local.create(path, write) is False
    assert (path.read_bytes(), names(tmp_path)) == (b"early", ["a"])


def test_a_failed_write_leaves_nothing(tmp_path):
    def write(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    for method in (local.create, local.replace):
        with pytest.raises(OSError, match="No space"):
            method(tmp_path / "a", write)
    assert names(tmp_path) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("method", [local.create, local.replace])
def test_umask_is_respected(tmp_path, mask, method):
    before = os.umask(mask)
    try:
        method(tmp_path / "a", put(b""))
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_leftover_is_swept_and_nothing_else(tmp_path):
    kept = [
        ".a.parquet.0123456789AB.tmp",
        ".a.parquet.0123456789a.tmp",
        "a.0123456789ab.tmp",
        ".tmp",
        ".gitignore",
        "a",
    ]
    for name in (LEFT, *kept):
        (tmp_path / name).write_text("x")
    (tmp_path / ".dir.0123456789ab.tmp").mkdir()
    (tmp_path / ".link.0123456789ab.tmp").symlink_to(tmp_path / "a")
    assert local.sweep(tmp_path) == 1
    assert names(tmp_path) == sorted([*kept, ".dir.0123456789ab.tmp", ".link.0123456789ab.tmp"])
    assert local.sweep(tmp_path / "none") == 0
    assert local.sweep(tmp_path / "a") == 0


@pytest.mark.parametrize("method", [local.create, local.replace])
def test_a_temporary_in_work_is_not_swept(tmp_path, method):
    def write(file):
        file.write(b"whole")
        assert len(names(tmp_path)) == 1
        assert local.sweep(tmp_path) == 0

    method(tmp_path / "a", write)
    assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"whole", ["a"])


def test_a_locked_temporary_stays_until_its_writer_is_gone(tmp_path):
    with open(tmp_path / LEFT, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert publish.sweep([str(tmp_path)]) == 0
    assert publish.sweep([str(tmp_path)]) == 1


def test_without_locks_nothing_is_swept(tmp_path, monkeypatch):
    """Where nothing can be told, objects are published all the same, and temporaries stay."""

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / LEFT).write_text("x")
    assert local.sweep(tmp_path) == 0
    assert local.create(tmp_path / "a", put(b"x"))
    assert names(tmp_path) == [LEFT, "a"]


@pytest.mark.parametrize("method", [local.create, local.replace])
def test_a_temporary_that_another_machine_took_is_written_again(tmp_path, method):
    """It may see no locks of this one."""
    taken = []

    def write(file):
        file.write(b"whole")
        if len(taken) < 3:
            (name,) = names(tmp_path)
            os.unlink(tmp_path / name)
            taken.append(name)

    method(tmp_path / "a", write)
    assert (len(set(taken)), (tmp_path / "a").read_bytes(), names(tmp_path)) == (3, b"whole", ["a"])


def test_a_temporary_that_is_always_taken_is_an_error_in_the_end(tmp_path):
    def write(file):
        for name in names(tmp_path):
            os.unlink(tmp_path / name)

    with pytest.raises(StorageError, match=r"cannot write .*/a: No such file or directory"):
        publish.create(str(tmp_path / "a"), write)


def test_a_temporary_that_was_taken_before_its_lock_is_made_again(tmp_path, monkeypatch):
    real, swept = fcntl.flock, []

    def late(file, operation):
        if operation == fcntl.LOCK_EX and not swept:
            monkeypatch.setattr(fcntl, "flock", real)
            swept.append(local.sweep(tmp_path))
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    assert local.create(tmp_path / "a", put(b"whole"))
    assert (swept, (tmp_path / "a").read_bytes(), names(tmp_path)) == ([1], b"whole", ["a"])


def test_without_hard_links(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert local.create(tmp_path / "a", put(b"first"))
    late = tmp_path / "b"

    def write(file):
        late.write_bytes(b"early")

    assert local.create(late, write) is False
    assert (late.read_bytes(), names(tmp_path)) == (b"early", ["a", "b"])


def test_without_hard_links_one_of_two_creates(tmp_path, monkeypatch):
    """Both have looked before either has renamed, unless they take turns."""
    both = threading.Barrier(2)
    real = os.rename

    def rename(source, target):
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)
        real(source, target)

    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "rename", rename)
    with ThreadPoolExecutor(2) as threads:
        created = list(threads.map(lambda data: local.create(tmp_path / "a", put(data)), [b"one", b"two"]))
    assert sorted(created) == [False, True]
    assert (tmp_path / "a").read_bytes() == (b"one" if created[0] else b"two")


def test_what_is_found_is_made_durable_too(tmp_path, monkeypatch):
    """Its writer may have been killed before its directory was synced."""
    local.create(tmp_path / "a", put(b""))
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), real(file)))
    assert local.create(tmp_path / "a", put(b"")) is False
    assert synced == [str(tmp_path)]


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_directories_that_cannot_be_synced(tmp_path, monkeypatch, number, fails):
    real = os.fsync

    def fsync(file):
        if os.path.isdir(f"/proc/self/fd/{file}"):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    if fails:
        with pytest.raises(StorageError, match="Input/output error"):
            publish.create(str(tmp_path / "a"), b"x")
    else:
        assert publish.create(str(tmp_path / "a"), b"x")


def test_a_file_where_a_directory_is_needed(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in ("file/a", "file/deep/a"):
        with pytest.raises(ConfigError, match="a file is in the place of a directory; choose another"):
            publish.create(str(tmp_path / path), b"")


def test_links_are_replaced_not_followed(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "a"
    victim.write_text("precious")
    link.symlink_to(victim)
    assert local.create(link, put(b"x")) is False
    local.replace(link, put(b"x"))
    assert (victim.read_text(), link.is_symlink(), link.read_bytes()) == ("precious", False, b"x")


def test_what_has_run_out_is_named_with_its_remedy():
    full = OSError(errno.EMFILE, "Too many open files")
    in_text = RuntimeError("...\nOSError: [Errno 28] No space left on device: 'secret' [while running 'ScoreUnits']")
    assert (whereabouts(full), remedy(full)) == (
        "OSError (Too many open files)",
        "raise the limit on open files (ulimit -n) and run the same command again",
    )
    assert (whereabouts(in_text), remedy(in_text)) == (
        "OSError (No space left on device)",
        "free some space there and run the same command again",
    )
    assert (whereabouts(KeyError("secret")), remedy(KeyError("secret"))) == ("KeyError", None)


def test_content_is_durable_before_the_name_and_every_new_directory_in_its_own(tmp_path, monkeypatch):
    done = []

    def record(name, describe):
        real = getattr(os, name)

        def call(*arguments, **how):
            done.append(describe(*arguments))
            return real(*arguments, **how)

        monkeypatch.setattr(os, name, call)

    def place_of(descriptor):
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        return "content" if place.name.startswith(".a.") and place.read_bytes() == b"whole" else str(place)

    record("fsync", place_of)
    record("link", lambda source, target: f"link {Path(target).name}")
    record("replace", lambda source, target: f"replace {Path(target).name}")
    directory = tmp_path / "deep" / "er"
    assert local.create(directory / "a", put(b"whole"))
    assert done == [str(tmp_path), str(tmp_path / "deep"), "content", "link a", str(directory)]
    done.clear()
    local.replace(directory / "a", put(b"whole"))
    assert done == ["content", "replace a", str(directory)]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_every_way_of_saying_that_there_are_no_hard_links(tmp_path, monkeypatch, number):
    def no_links(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    assert local.create(tmp_path / "a", put(b"first"))
    assert ((tmp_path / "a").read_bytes(), names(tmp_path)) == (b"first", ["a"])


def test_a_link_that_is_refused_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_space)
    with pytest.raises(OSError, match="No space"):
        local.create(tmp_path / "a", put(b"first"))
    assert names(tmp_path) == []


def test_a_name_that_a_temporary_has_no_place_for_is_tried_once(tmp_path, monkeypatch):
    """Only where the temporary is gone, another attempt may help."""
    written = []

    def nowhere(source, target):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(os, "link", nowhere)
    with pytest.raises(FileNotFoundError):
        local.create(tmp_path / "a", written.append)
    assert (len(written), names(tmp_path)) == (1, [])


def test_a_temporary_that_is_always_taken_is_written_five_times(tmp_path):
    taken = []

    def write(_file):
        (name,) = names(tmp_path)
        os.unlink(tmp_path / name)
        taken.append(name)

    with pytest.raises(FileNotFoundError):
        local.create(tmp_path / "a", write)
    assert len(set(taken)) == local._ATTEMPTS == 5
