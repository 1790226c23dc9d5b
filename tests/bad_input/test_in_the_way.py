"""What is no file, in the place of a file that is published or read: exit 5 and the path, never an endless wait."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.errors import BestkeptError, StorageError
from pipelines.storage import files, publish

SECS = 60  # after which a call is taken to wait for ever


def ends(call: Callable[[], object]) -> BaseException | None:
    """What a call raises, in a thread of its own that a test need not wait for."""
    raised: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECS)
    assert raised, "it goes on without end"
    return raised[0]


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def circle(path: Path) -> None:
    path.symlink_to(path)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(path.with_name("pipe"))


def listener(path: Path) -> None:
    os.chdir(path.parent)  # a socket's name is short
    socket.socket(socket.AF_UNIX).bind(path.name)


def directory(path: Path) -> None:
    path.mkdir()


KINDS = {
    dangling: "a link to nothing stands there",
    circle: "Too many levels of symbolic links",
    fifo: "a FIFO stands there",
    link_to_fifo: "a FIFO stands there",
    listener: "a socket stands there",
    directory: "a directory stands there",
}
PUBLISHERS: dict[str, Callable[[str], object]] = {
    "create": lambda path: publish.create(path, b"x"),
    "create_or_equal": lambda path: publish.create_or_equal(path, b"x"),
    "create_or_read": lambda path: publish.create_or_read(path, b"x"),
    "settle": lambda path: publish.settle(path, b"x", accepts=lambda _: None, ours=None),
}


@pytest.fixture(autouse=True)
def _stay_here(monkeypatch):
    monkeypatch.chdir(os.getcwd())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PUBLISHERS)
def test_nothing_is_published_over_what_is_no_file(tmp_path, kind, name):
    path = tmp_path / "claim.json"
    kind(path)
    before = os.lstat(path)
    error = ends(lambda: PUBLISHERS[name](str(path)))
    assert isinstance(error, StorageError)
    assert str(error).startswith(f"cannot write {path}: {KINDS[kind]}; ")
    assert (error.exit_code, os.lstat(path).st_ino) == (5, before.st_ino)


def test_what_is_never_there_when_it_is_read_ends_too(tmp_path, monkeypatch):
    """As on a store whose answers do not fit together."""
    monkeypatch.setattr(publish, "create", lambda path, data: False)
    error = ends(lambda: publish.settle(str(tmp_path / "a"), b"x", accepts=lambda _: 1, ours=2))
    assert isinstance(error, StorageError)
    assert "exists each time it is written, and is missing each time it is read (20 times)" in str(error)


@pytest.mark.parametrize("kind", [fifo, link_to_fifo])
def test_reading_does_not_wait_for_a_writer(tmp_path, kind):
    path = tmp_path / "latest.json"
    kind(path)
    error = ends(lambda: files.read_bytes(str(path)))
    assert str(error) == f"cannot read {path}: it is a FIFO, not a file"
    assert isinstance(ends(lambda: files.open_for_reading(str(path)).close()), OSError)


def test_a_device_is_no_file():
    with pytest.raises(StorageError, match="cannot read /dev/zero: it is a device, not a file"):
        files.read_bytes("/dev/zero")


def test_links_to_files_are_files(tmp_path):
    (tmp_path / "there").write_bytes(b"theirs")
    (tmp_path / "a").symlink_to(tmp_path / "there")
    assert files.read_bytes(str(tmp_path / "a")) == b"theirs"
    assert publish.create_or_read(str(tmp_path / "a"), b"ours") == (b"theirs", "")
    assert publish.create(str(tmp_path / "a"), b"ours") is False


@pytest.fixture(scope="module")
def written(tmp_path_factory, configure) -> list[str]:
    """The names of all files of a run with versions."""
    root = tmp_path_factory.mktemp("written")
    run_curation(config_of(configure, root), scorer=StubFactory())
    paths = [path for path in (root / "out").rglob("*") if path.is_file() and path.parent.name != "plans"]
    names = [str(path.relative_to(root / "out")) for path in paths]  # those of plans are others elsewhere
    assert len(names) > 8
    return sorted(names)


def config_of(configure, root: Path):
    path = write_jsonl(root / "a.jsonl", [*corpus_rows(6), {"prompt": "p", "response": " "}])
    os.utime(path, (5, 5))
    return configure(root, path, output={"versions": True}, limits={"max_rejected_fraction": 0.5})


@pytest.mark.parametrize("kind", [dangling, fifo])
def test_a_run_ends_whatever_stands_where_it_writes(tmp_path, configure, written, kind):
    """With 5 and the path, or well where it is not in the way."""
    for number, name in enumerate(written):
        root = tmp_path / str(number)
        root.mkdir()
        config = config_of(configure, root)
        path = root / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind(path)
        error = ends(lambda config=config: run_curation(config, scorer=StubFactory()))
        if error is not None:
            assert isinstance(error, BestkeptError), name
            assert (error.exit_code, str(path) in str(error)) == (5, True), (name, error)
