"""Faults of a machine by name: exit code, message with cause and place, what is on disk, what the next run does."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest
from chaos.harness import Ended, Place
from support.corpora import TIMED

from pipelines.errors import StorageError
from pipelines.score import score_files
from pipelines.storage import publish

pytestmark = pytest.mark.slow


class Mount:
    """A tmpfs of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def options(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    path = tmp_path / "mount"
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("file systems cannot be mounted here (not root)")
    try:
        yield Mount(path)
    finally:
        subprocess.run(["umount", str(path)], check=True)


def ends(ended: Ended, code: int, *words: str) -> None:
    assert (ended.code, ended.hung, "Traceback" in ended.err) == (code, False, False), ended.err
    assert ended.last.startswith("bestkept: ")
    for word in words:
        assert word in ended.last, ended.last


def whole(output: Path, *, temporaries: int = 0) -> int:
    """Score files that are there; each is whole, and nothing else is half done."""
    assert not (output / "manifest.json").exists()
    assert len(list(output.rglob(".*"))) == temporaries
    files = list((output / "scores").rglob("*.parquet"))
    assert all(score_files.read(str(file)) for file in files)
    return len(files)


def finishes(place: Place, golden: dict[str, bytes]) -> None:
    again = place.run()
    assert (again.code, place.tree() == golden, place.temporaries()) == (0, True, []), again.err
    assert place.scored_again() <= 1


def without_totals(place: Place) -> dict[str, bytes]:
    """What `run` would have left, without what `score` leaves beside it."""
    extra = (*TIMED, "totals-")
    return {name: data for name, data in place.tree().items() if not name.rsplit("/", 1)[-1].startswith(extra)}


@pytest.mark.parametrize(("kib", "scored"), [(4, 0), (24, 2), (32, 3), (48, 4)])
def test_disk_full(place: Place, mount: Mount, golden: dict[str, bytes], kib: int, scored: int):
    """Before, during and after scoring: finished scores are kept, and the run resumes when there is space."""
    place.move_output(mount.path / "out")
    mount.options(f"size={kib}k")
    ends(
        place.run(),
        5,
        "No space left on device",
        str(place.output),
        "free some space there and run the same command again",
    )
    assert whole(place.output) == scored
    mount.options("size=1m")
    finishes(place, golden)


def test_temporary_folder_full(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Large objects are made there first."""
    monkeypatch.setattr(tempfile, "tempdir", str(mount.path))

    def write(file: BinaryIO) -> None:
        for _ in range(66):
            file.write(bytes(2**20))

    with pytest.raises(StorageError, match=f"cannot write {mount.path}: No space left on device; free some space"):
        publish.create_or_equal(str(tmp_path / "out" / "a"), write)
    assert not (tmp_path / "out").exists()


def test_read_only_file_system(place: Place, mount: Mount, golden: dict[str, bytes]):
    place.move_output(mount.path / "out")
    mount.options("ro")
    ends(place.run(), 5, "Read-only file system", str(place.output), "choose a writable output.path")
    assert not place.log.exists(), "the model was loaded for nothing"
    mount.options("rw")
    finishes(place, golden)
    mount.options("ro")
    again = place.run()
    assert (again.code, "already complete" in again.out) == (0, True)


def test_no_write_access(place: Place, golden: dict[str, bytes]):
    ended = place.run(watched=True, at=0, fault="EACCES")
    ends(ended, 5, "Permission denied", str(place.output), "grant write access, or choose another output.path")
    assert not place.log.exists()
    finishes(place, golden)


def test_file_too_large(place: Place, golden: dict[str, bytes]):
    ended = place.run(limits={"FSIZE": 3000})
    ends(ended, 5, "File too large", str(place.output), "ulimit -f")
    assert whole(place.output) == 0
    finishes(place, golden)


@pytest.mark.parametrize("most", [5, 8, 10, 12, 14, 16])
def test_too_many_open_files(place: Place, golden: dict[str, bytes], most: int):
    ended = place.run(limits={"NOFILE": most})
    if ended.code == 0:
        assert place.tree() == golden
    else:
        ends(ended, 5, "Too many open files", "ulimit -n")
    finishes(place, golden)


@pytest.mark.parametrize(("signal", "code", "word"), [("TERM", 143, "terminated"), ("INT", 130, "interrupted")])
def test_a_signal_while_the_model_is_at_work(place: Place, golden: dict[str, bytes], signal: str, code: int, word: str):
    """The main thread is in C code for minutes; the run ends all the same."""
    ends(place.run(signal_in_score=signal), code, word, "same command again")
    assert len(place.log.read_text().split()) == 2
    finishes(place, golden)


@pytest.mark.parametrize(("signal", "code"), [("TERM", 143), ("INT", 130)])
@pytest.mark.parametrize("command", ["run", "select"])
def test_a_signal_while_exporting(place: Place, golden: dict[str, bytes], signal: str, code: int, command: str):
    """At the moment when a shard is written and not published, on a disk that answers no more: so it is known what is there."""
    assert place.run("score").code == 0
    calm = place.subject.place()
    assert calm.run("score").code == 0
    points = [(name, path) for name, path, _ in calm.run(command, watched=True).calls]
    at = next(number for number, (name, path) in enumerate(points) if name == "fsync" and "/data/" in path)
    ends(place.run(command, watched=True, at=at, fault=signal, stuck=True), code, "same command again")
    assert whole(place.output, temporaries=1) == 4
    again = place.run(command)
    assert (again.code, place.temporaries()) == (0, []), again.err
    assert without_totals(place) == golden
    assert place.scored_again() == 0


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_umask_is_respected(place: Place, umask: int):
    assert place.run(umask=umask).code == 0
    for path in [place.output, *place.output.rglob("*")]:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert path.stat().st_mode & 0o777 == expected, path


def test_planted_links_are_not_followed(place: Place, golden: dict[str, bytes]):
    """Nothing is written through a link that stands where a file belongs."""
    victim = place.folder / "victim"
    victim.write_text("precious")
    place.output.mkdir()
    for name in ("claim.json", "run.json"):
        (place.output / name).symlink_to(victim)
    assert place.run().code == 0
    assert victim.read_text() == "precious"
    assert not any(path.is_symlink() for path in place.output.rglob("*"))
    assert place.tree() == golden


def test_a_finished_run_again_and_scores_again_load_nothing(place: Place, golden: dict[str, bytes]):
    assert place.run().code == 0
    log = place.log.read_text()
    for command in ("run", "score", "score", "select"):
        ended = place.run(command)
        assert ended.code == 0, ended.err
    other = place.run(overrides=["select=[]", f"output.path={place.folder}/all", f"scores.path={place.output}/scores"])
    assert other.code == 0
    assert place.log.read_text() == log
    assert without_totals(place) == golden


def test_a_temporary_of_a_living_run_stays(place: Place):
    """A run stands with a half-written temporary; another one on the same output, to its end, does not take it away."""
    calm = place.subject.place().run(watched=True)
    at = next(number for number, (name, path, _) in enumerate(calm.calls) if name == "link" and "/data/" in path)
    paused, other = place.subject.servers.run(
        place.request(watched=True, at=at, fault="WAIT"), place.request(watched=True, late=True)
    )
    assert (paused.code, other.code) == (0, 0)
    written = {path for name, path, _ in paused.calls if name == "openat" and "/data/" in path}
    by_other = {path for name, path, _ in other.calls if name in ("unlink", "unlinkat")}
    assert written
    assert not written & by_other
    assert place.temporaries() == []
    assert os.listdir(place.output / "data")
