"""Versions of an output under one root: who reads sees whole ones, and the last run to begin has the last word."""

from __future__ import annotations

import errno
import json
import os
import pwd
import tempfile
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import TIMED, corpus_rows
from support.stubs import StubFactory, loads, scored_rows
from support.versioned import KEEP_2, Place, Reader, disk, fill, place, run

from pipelines.commands import run as run_command
from pipelines.commands.run import run_curation
from pipelines.errors import InputError, StorageError
from pipelines.finish import hub, publication, versions
from pipelines.finish.versions import VersionRun, latest_path, read_latest, run_numbers, set_latest
from pipelines.storage import files
from pipelines.storage.canonical_json import to_json

__all__ = ["disk", "place"]  # fixtures


def grow(place: Place) -> None:
    place.add("3.jsonl", [{"prompt": "another", "response": f"answer {n}"} for n in range(5)])


def test_two_scheduled_runs_on_a_growing_corpus(place, tmp_path):
    fill(place)
    log, reader = tmp_path / "log", Reader(place.root)
    with reader.polling():
        first = run(place, log)
        assert scored_rows(log) == 48
        reader.catch_up()
        again = run(place, log)
        grow(place)
        second = run(place, log)
        assert scored_rows(log) == 48 + 5, "what was scored is not scored again"
        reader.catch_up()
    assert reader.wrong == []
    assert reader.seen == [(first.version_run.version, 12), (second.version_run.version, 13)]
    assert (again.already_complete, again.version_run) == (True, first.version_run)
    assert latest_path(place.root) == second.version_run.path == f"{place.root}/versions/{second.version_run.version}"
    assert run_numbers(place.root) == [1, 2], "nothing is left by a run that has nothing to do"
    assert place.outputs().keys() == {first.version_run.version, second.version_run.version}


def test_a_version_has_the_bytes_of_an_output_without_versions(disk):
    fill(disk)
    outcome = run(disk)
    plain = disk.config(output={"path": f"{disk.url}/plain", "versions": False})
    assert run_curation(plain, scorer=StubFactory()).version_run is None
    timed = ("scores/", *TIMED)
    here, there = (disk.contents(below) for below in ("plain", f"out/versions/{outcome.version_run.version}"))
    assert there.keys() - {*TIMED} == {name for name in here if not name.startswith(timed)}
    assert all(here[name] == data for name, data in there.items() if name not in TIMED)
    assert not any(name.startswith("scores/") for name in there), "these are beside all versions"


@pytest.mark.parametrize("change", ["nothing", "order", "touched", "grown", "selection", "model"])
def test_what_makes_another_version(disk, change):
    fill(disk)
    first = run(disk).version_run.version
    changes = {"selection": KEEP_2, "model": {"model": {"max_length": 99}}}.get(change, {})
    if change == "grown":
        grow(disk)
    elif change == "touched":
        disk.add("1.jsonl", corpus_rows()[1::3])
    elif change == "order":
        changes = {"runner": {"options": {}}, "limits": {"max_rejected_fraction": 0.5}}
    second = run(disk, **changes).version_run.version
    assert (second == first) == (change in ("nothing", "order"))
    assert versions.ID.fullmatch(second)


def test_a_file_that_changes_in_place_makes_a_version_and_no_conflict(disk):
    fill(disk)
    first = run(disk)
    rows = corpus_rows()[1::3]
    rows[0]["response"] = rows[0]["response"][::-1]  # as long as before
    disk.add("1.jsonl", rows)
    second = run(disk)
    assert second.version_run.version != first.version_run.version
    assert latest_path(disk.root) == second.version_run.path


class Killed(Exception):
    pass


def test_a_run_that_ends_between_manifest_and_pointer_is_mended_by_the_next(place, tmp_path, monkeypatch):
    fill(place)
    log = tmp_path / "log"
    first = run(place, log)
    grow(place)

    def killed(turn: VersionRun | None) -> bool:
        assert turn is not None
        assert files.size_of(f"{turn.path}/manifest.json") is not None, "the pointer comes after what it names"
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publication, "set_latest", killed)
        with pytest.raises(StorageError, match="Killed"):
            run(place, log)
    assert latest_path(place.root) == first.version_run.path, "readers have what they had"
    before = loads(log)
    mended = run(place, log)
    assert mended.already_complete
    assert loads(log) == before
    assert latest_path(place.root) == mended.version_run.path != first.version_run.path


def test_the_pointer_is_set_without_a_launcher(disk):
    fill(disk)
    outcome = run_curation(disk.config(), ["--no_wait_until_finish"], scorer=StubFactory())
    assert outcome.handed_over
    assert latest_path(disk.root) == outcome.version_run.path


def test_an_older_run_that_ends_last_moves_nothing_back(place, monkeypatch):
    fill(place)
    execute, newer = run_command.execute, []

    def overtaken(*given):
        monkeypatch.setattr(run_command, "execute", execute)
        grow(place)
        newer.append(run(place))
        return execute(*given)

    monkeypatch.setattr(run_command, "execute", overtaken)
    older = run(place)
    assert (older.version_run.number, newer[0].version_run.number) == (1, 2)
    assert older.manifest["counts"]["kept"] == 12
    assert latest_path(place.root) == newer[0].version_run.path
    assert len(place.outputs()) == 2


def test_going_back_to_earlier_settings_goes_back_to_their_version(disk, tmp_path):
    fill(disk)
    first, other = run(disk), run(disk, **KEEP_2)
    assert latest_path(disk.root) == other.version_run.path
    back = run(disk, tmp_path / "log")
    assert back.already_complete
    assert back.version_run == first.version_run._replace(number=3)
    assert latest_path(disk.root) == first.version_run.path
    assert loads(tmp_path / "log") == 0


def made(root: str, *ids: str) -> None:
    for name in ids:
        path = Path(root, "versions", name)
        path.mkdir(parents=True, exist_ok=True)
        (path / "manifest.json").write_bytes(to_json({"shards": [], "of": name}))


IDS = [f"{number:016x}" for number in range(4)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=8))
def test_the_largest_number_stands_in_whatever_order(turns):
    number_of = {number: version for version, number in turns}  # a number belongs to one run
    with tempfile.TemporaryDirectory() as root:
        made(root, *IDS)
        highest = 0
        for _, number in turns:
            now = set_latest(VersionRun(root, IDS[number_of[number]], number))
            highest = max(highest, number)
            assert now == (number_of[number] == number_of[highest])
            assert read_latest(root)[::2] == (IDS[number_of[highest]], highest)
            assert latest_path(root) == versions.path_of(root, IDS[number_of[highest]])


def test_many_at_once_leave_the_largest_number(tmp_path):
    root = str(tmp_path)
    made(root, *IDS)
    for _ in range(20):
        turns = [VersionRun(root, IDS[number % 4], number) for number in range(1, 9)]
        threads = [threading.Thread(target=set_latest, args=(turn,)) for turn in turns]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_latest(root).number == 8
        (tmp_path / "latest.json").unlink()


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_on_a_store_the_pointer_is_replaced_only_as_it_was_read(make_store, scheme):
    store = make_store(scheme)
    for name in IDS:
        store.put(f"out/versions/{name}/manifest.json", to_json({"shards": [], "of": name}))
    first, older, newer = (VersionRun(f"{store.url}/out", IDS[number], number) for number in (1, 2, 3))
    assert set_latest(first)
    store.proxy.add("call", r"^(PUT /bucket|POST /upload).*latest", hook=lambda: set_latest(newer))
    assert not set_latest(older), "it looks again, and finds the newer one"
    assert read_latest(first.root).version == newer.version


def test_runs_that_begin_at_once_have_numbers_of_their_own(disk):
    fill(disk)
    turns: list[VersionRun] = []
    config = disk.config()
    plans = run_command.make_plans(config)

    def begin(number: int) -> None:
        turns.append(versions.take_turn(config, plans, f"selection {number}"))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(turn.number for turn in turns) == [*range(1, 9)] == run_numbers(disk.root)
    assert len({turn.version for turn in turns}) == 8


def test_numbers_go_on_where_the_pointer_is_though_runs_are_gone(disk):
    fill(disk)
    run(disk)
    run(disk, **KEEP_2)
    for path in Path(disk.root, "runs").iterdir():
        path.unlink()
    grow(disk)
    assert run(disk).version_run.number == 3


def test_a_damaged_pointer_is_replaced_by_the_next_run(disk):
    fill(disk)
    first = run(disk)
    for content in ("{", "[]", json.dumps({"version": "../../etc", "manifest": "", "run": 9})):
        Path(disk.root, "latest.json").write_text(content)
        with pytest.raises(
            InputError, match=r"out has no latest\.json that names a version; give the output\.path of runs"
        ):
            latest_path(disk.root)
        assert run(disk).already_complete
        assert latest_path(disk.root) == first.version_run.path


def test_a_version_whose_manifest_is_gone_is_no_latest(disk):
    fill(disk)
    first = run(disk)
    manifest = Path(first.version_run.path, "manifest.json")
    data = manifest.read_bytes()
    manifest.unlink()
    with pytest.raises(
        InputError, match=r"latest\.json names .*, whose manifest\.json is missing or has changed; run the"
    ):
        latest_path(disk.root)
    assert not run(disk).already_complete
    assert latest_path(disk.root) == first.version_run.path
    manifest.write_bytes(data + b" ")
    with pytest.raises(InputError, match="missing or has changed"):
        latest_path(disk.root)
    pointer, files_seen = Path(disk.root, "latest.json"), []
    for _ in range(2):
        assert run(disk).already_complete
        assert latest_path(disk.root) == first.version_run.path
        files_seen.append(pointer.stat().st_mtime_ns)
    assert files_seen[0] == files_seen[1], "what is right stays as it is"


def test_commands_follow_the_pointer(disk, bestkept, monkeypatch, tmp_path):
    fill(disk)
    monkeypatch.setattr(run_command, "default_scorer", lambda config: StubFactory())
    code, out, err = bestkept("latest", disk.root)
    assert (code, out) == (3, "")
    assert "has no latest.json that names a version" in err.splitlines()[-1]
    path = tmp_path / "nightly.yaml"
    path.write_text(disk.config().model_dump_json(exclude_defaults=True))
    code, quiet, err = bestkept("run", path, "--quiet")
    assert code == 0, err
    code, out, _ = bestkept("latest", disk.root)
    assert (code, out) == (0, quiet)
    assert Path(out.strip(), "manifest.json").exists()
    code, table, _ = bestkept("run", path)
    assert f"{out.strip()}/report.html" in table
    page = Path(out.strip(), "report.html")
    page.unlink()
    code, written, _ = bestkept("report", disk.root)
    assert (code, written.strip()) == (0, str(page))
    assert page.exists()


def test_only_the_latest_is_uploaded(disk, monkeypatch):
    fill(disk)
    pushed: list[str] = []
    monkeypatch.setattr(hub, "check", lambda target: None)
    monkeypatch.setattr(
        hub, "push", lambda output, target, manifest: pushed.append(output) or hub.PushResult("url", True)
    )
    target = {"output": {"push_to_hub": "a/b"}}
    outcome = run(disk, **target)
    assert pushed == [outcome.version_run.path]
    monkeypatch.setattr(run_command, "is_latest", lambda turn: False)
    assert run(disk, **target).pushed is None
    assert len(pushed) == 1


@pytest.mark.slow
def test_datasets_loads_the_latest_version(disk):
    from datasets import load_dataset

    fill(disk)
    outcome = run(disk)
    assert load_dataset(latest_path(disk.root), split="train").num_rows == outcome.manifest["counts"]["kept"] == 12


@pytest.mark.parametrize("readable", [True, False])
def test_a_lock_of_another_user(tmp_path, monkeypatch, readable):
    """Reading suffices for a lock; where that is refused, too, the error says whose the file is."""
    real, lock = os.open, tmp_path / ".latest.lock"
    lock.touch()

    def refusing(path, flags, *mode, **more):
        if str(path) == str(lock) and (flags & os.O_RDWR or not readable):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", refusing)
    if readable:
        with versions._hold_lock(str(tmp_path)):
            return
    with pytest.raises(StorageError) as raised, versions._hold_lock(str(tmp_path)):
        pass
    owner = pwd.getpwuid(os.getuid()).pw_name
    assert (
        f"cannot open the lock {lock}, which belongs to user {owner}: Permission denied; let that"
        in raised.value.message
    )
    assert f"chmod a+rw {lock}" in raised.value.message
