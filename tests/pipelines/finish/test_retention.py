"""`bestkept clean`: what goes, what stays, in which order, and what an interruption or a run at the same time makes of it."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stubs import StubFactory, scored_rows
from support.versioned import KEEP_2, Place, Reader, disk, fill, place, run

from pipelines.commands import run as run_command
from pipelines.commands.run import run_curation, run_scoring
from pipelines.corpus import files
from pipelines.errors import InputError, RejectedError, StorageError
from pipelines.finish import retention
from pipelines.finish.retention import Version, kept_of
from pipelines.finish.versions import Latest, RunRecord, latest_path, run_numbers
from pipelines.storage import publish, removal

__all__ = ["disk", "place"]  # fixtures

NOW = datetime(2026, 1, 20, tzinfo=UTC)
WEEK_AGO = NOW - timedelta(days=7)
OTHERS = [{"select": [{"best_of_n": {"keep": keep}}]} for keep in (2, 3, 4)]


def clean(place: Place, *, keep: int = 1, unfinished_days: float = 7.0, scores: bool = False, dry_run: bool = False):
    return retention.clean(place.root, keep=keep, unfinished_days=unfinished_days, scores=scores, dry_run=dry_run)


def version(number: int, *, complete: bool, days: int | None, going: bool = False) -> Version:
    own = None if days is None else RunRecord(number, f"{number:016x}", NOW - timedelta(days=days), (), ())
    return Version(f"{number:016x}", own, {} if complete else None, going)


every_version = st.lists(st.tuples(st.booleans(), st.none() | st.integers(0, 30), st.booleans()), max_size=8).map(
    lambda given: [
        version(number, complete=complete, days=days, going=going)
        for number, (complete, days, going) in reversed(list(enumerate(given)))
    ]
)


@given(every_version, st.integers(1, 4), st.data())
def test_what_stays(versions, keep, data):
    by_id = {version.id: version for version in versions}
    latest = data.draw(st.sampled_from([None, *by_id]))
    number = 0 if latest is None else by_id[latest].number
    pointer = None if latest is None else Latest(latest, "a hash", number)
    staying = kept_of(versions, keep=keep, latest=pointer, before=WEEK_AGO)
    assert latest is None or latest in staying
    complete = [one.id for one in versions if one.manifest is not None and not one.going]
    expected = set(complete[:keep])
    for one in versions:
        if one.id == latest:
            continue
        if one.going:
            assert (one.id in staying) == (one.manifest is not None and one.number > number)
        elif one.manifest is None:
            old = one.run is not None and (NOW - one.run.started).days > 7
            assert (one.id in staying) == (not old)
        else:
            assert (one.id in staying) == (one.id in expected or one.number > number)


def test_only_the_newest_and_the_latest_stay(place, tmp_path):
    fill(place)
    first = run(place)
    rest = [run(place, **other).version_run.version for other in OTHERS]
    back = run(place).version_run
    assert back.version == first.version_run.version, "the latest, and the newest, is the one that was made first"
    before = place.contents("out")
    would = clean(place, keep=2, dry_run=True)
    assert (would.kept, would.versions) == ([back.version, rest[2]], [rest[0], rest[1]])
    assert place.contents("out") == before, "a dry run removes nothing"
    done = clean(place, keep=2)
    assert done == would
    after = place.contents("out")
    assert place.outputs().keys() == {back.version, rest[2]}
    gone = {name for name in before if rest[0] in name or rest[1] in name}
    assert before.keys() - after.keys() == gone | {"runs/000001.json", "runs/000002.json", "runs/000003.json"}
    assert after.items() <= before.items(), "what stays, stays as it is"
    assert clean(place, keep=2).versions == []
    log = tmp_path / "log"
    assert run(place, log).already_complete
    assert run(place, log, **OTHERS[2]).already_complete
    assert scored_rows(log) == 0
    remade = run(place, log, **OTHERS[0])
    assert (remade.version_run.version, remade.version_run.number, scored_rows(log)) == (rest[0], 7, 0), (
        "its scores are there"
    )


def test_a_reader_of_the_latest_notices_nothing(place):
    fill(place)
    for other in OTHERS:
        run(place, **other)
    reader = Reader(place.root)
    with reader.polling():
        reader.catch_up()
        assert len(clean(place).versions) == 2
        reader.catch_up()
    assert reader.wrong == []
    assert len(reader.seen) == 1


def test_the_manifest_goes_first(disk, monkeypatch):
    fill(disk)
    old = run(disk).version_run
    run(disk, **KEEP_2)
    removed: list[str] = []
    unlink = removal.os.unlink
    monkeypatch.setattr(removal.os, "unlink", lambda path: (removed.append(str(path)), unlink(path)))
    clean(disk)
    own = [path for path in removed if path.startswith(old.path)]
    assert own[0] == f"{old.path}/manifest.json"
    assert any("/data/" in path for path in own[1:])
    assert not Path(old.path).exists()


@pytest.mark.slow
def test_the_manifest_goes_first_on_a_store_too(make_store, make_config):
    store = make_store("s3")
    place = Place(store.url, store.put, store.contents, make_config)
    fill(place)
    old = run(place).version_run
    run(place, **KEEP_2)
    store.proxy.requests.clear()
    clean(place)
    own = [line for line in store.proxy.lines("DELETE") if old.version in line and "removing" not in line]
    assert own[0].endswith("manifest.json")
    assert len(own) > 4


@pytest.mark.parametrize("after", ["mark", "manifest", "half"])
def test_what_was_interrupted_is_finished_by_the_next(disk, monkeypatch, after, tmp_path):
    fill(disk)
    old = run(disk).version_run
    run(disk, **KEEP_2)

    def killed(*_given):
        raise KeyboardInterrupt

    remove_all = removal.remove_all
    with monkeypatch.context() as patch:
        if after == "mark":
            patch.setattr(retention, "remove", killed)
        elif after == "manifest":
            patch.setattr(retention, "remove_all", killed)
        else:
            patch.setattr(retention, "remove_all", lambda at, names: (remove_all(at, sorted(names)[:3]), killed()))
        with pytest.raises(KeyboardInterrupt):
            clean(disk)
    assert Path(old.path, "manifest.json").exists() == (after == "mark")
    with pytest.raises(
        StorageError, match=rf"{old.version} is being removed by `bestkept clean .*/out`; wait until that ends"
    ):
        run(disk)
    young = disk.contents("out")[f"runs/{run_numbers(disk.root)[-1]:06d}.json"]
    assert json.loads(young)["version"] == old.version, "it counts as begun, and is going all the same"
    whole = after == "mark"  # it may be about to become the latest, so the removal is taken back
    assert clean(disk).versions == ([] if whole else [old.version])
    assert Path(old.path).exists() == whole
    assert not Path(disk.root, "removing").exists() or not list(Path(disk.root, "removing").iterdir())
    log = tmp_path / "log"
    again = run(disk, log)
    assert (again.already_complete, scored_rows(log)) == (whole, 0)
    assert latest_path(disk.root) == old.path


def test_a_version_that_is_begun_again_meanwhile_stays(disk, monkeypatch):
    fill(disk)
    old = run(disk).version_run
    run(disk, **KEEP_2)
    create, begun = publish.create, []

    def overtaken(path: str, content):
        if "/removing/" in path and not begun:
            begun.append(run(disk).version_run)
        return create(path, content)

    monkeypatch.setattr(publish, "create", overtaken)
    assert clean(disk).versions == []
    assert begun == [old._replace(number=3)]
    assert latest_path(disk.root) == old.path
    assert run(disk).already_complete


def test_unfinished_versions_stay_until_they_are_old(disk):
    fill(disk)
    run(disk)
    disk.add("9.jsonl", [{"prompt": "p", "response": ""}] * 9)
    with pytest.raises(RejectedError):
        run(disk)
    (unfinished,) = (name for name, found in disk.outputs().items() if "manifest.json" not in found)
    assert clean(disk).versions == []
    assert set(disk.outputs()) > {unfinished}
    assert clean(disk, unfinished_days=0).versions == [unfinished]
    assert unfinished not in disk.outputs()
    assert run_numbers(disk.root) == [1, 2], "no number is given twice"
    Path(disk.root, "versions", unfinished).mkdir()
    for path in Path(disk.root, "runs").iterdir():
        path.unlink()
    assert clean(disk, unfinished_days=0).versions == [], "nobody knows how old it is"
    with pytest.raises(InputError, match=rf"{unfinished} is unfinished, and runs/ does not say which scores it needs"):
        clean(disk, scores=True)


def scores(place: Place) -> dict[str, set[str]]:
    """Directory below `scores/` → its files."""
    found: dict[str, set[str]] = {}
    for name in place.contents("out"):
        if name.startswith("scores/") and name.count("/") == 2:
            found.setdefault(name.split("/")[1], set()).add(name.split("/")[2])
    return found


def test_scores_that_no_version_needs_go_when_asked(place, tmp_path):
    log = tmp_path / "log"
    place.add("old.jsonl", [{"prompt": "of old", "response": f"answer {n}"} for n in range(6)])
    fill(place)
    run(place, log, model={"max_length": 99})
    first = run(place, log)
    everything = scores(place)
    (other,) = everything.keys() - {"plans", first.manifest["fingerprint"]}
    place.put("in/old.jsonl", b'{"prompt": "of old", "response": "another, and longer"}\n' * 9)
    middle = run(place, log)
    kept = run(place, log, input={"rows_per_fragment": 4, "path": f"{place.url}/in/[0-9].jsonl"})
    assert clean(place, unfinished_days=0).scores == []
    assert scores(place).keys() == everything.keys(), "not asked for"
    assert clean(place, scores=True).scores == [], "too young"
    would = clean(place, scores=True, unfinished_days=0, dry_run=True).scores
    before = scores(place)
    assert clean(place, scores=True, unfinished_days=0).scores == would
    after = scores(place)
    assert other not in after
    assert len(after["plans"]) == 1
    fingerprint = first.manifest["fingerprint"]
    assert middle.manifest["fingerprint"] == fingerprint == kept.manifest["fingerprint"]
    gone = before[fingerprint] - after[fingerprint]
    assert len([name for name in gone if name.endswith(".parquet")]) == 2 + 3, "of 6 and of 9 rows, at 4 a file"
    done = scored_rows(log)
    changes = {"input": {"rows_per_fragment": 4, "path": f"{place.url}/in/[0-9].jsonl"}}
    assert run(place, log, **changes).already_complete
    run(place, log, **changes, **KEEP_2)
    assert scored_rows(log) == done, "what stays has all its scores"


def test_rewritten_copies_go_with_the_last_version_whose_plan_names_them(disk, monkeypatch):
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    corpus = {"path": f"{disk.url}/in/*.jsonl.gz", "rows_per_fragment": 4}
    lines = b"".join(b'{"prompt": "p%d", "response": "answer %d"}\n' % (n % 3, n) for n in range(12))
    disk.put("in/a.jsonl.gz", gzip.compress(lines))
    run(disk, input=corpus)
    (old,) = os.listdir(f"{disk.root}/scores/rewritten")
    disk.put("in/a.jsonl.gz", gzip.compress(lines * 2))
    kept = run(disk, input=corpus)
    (new,) = set(os.listdir(f"{disk.root}/scores/rewritten")) - {old}
    assert clean(disk, keep=2, scores=True, unfinished_days=0).scores == [], "both are needed"
    removed = clean(disk, scores=True, unfinished_days=0).scores
    assert {name.split("/")[1] for name in removed if name.startswith("rewritten/")} == {old}
    assert os.listdir(f"{disk.root}/scores/rewritten/{new}")
    assert run(disk, input=corpus).version_run == kept.version_run


def test_scores_of_a_version_in_work_stay_and_so_does_its_plan(disk, tmp_path, monkeypatch):
    fill(disk)
    log, execute, other = tmp_path / "log", run_command.execute, {"model": {"max_length": 99}}
    run(disk)
    score = disk.config(**other)
    run_scoring(score, scorer=StubFactory(log=str(log)))  # long ago, and for no version
    assert scored_rows(log) == 48
    removed = []

    def halfway(*given):
        for path in Path(disk.root, "scores").rglob("*.*"):
            os.utime(path, (0, 0))
        removed.extend(clean(disk, scores=True).scores)
        return execute(*given)

    monkeypatch.setattr(run_command, "execute", halfway)
    run(disk, log, **other)
    assert scored_rows(log) == 48, "nothing had to be scored again"
    assert removed == [], "each plan and each score file is of a version"


def test_other_directories_are_refused(disk, tmp_path):
    fill(disk)
    plain = disk.config(output={"path": f"{disk.url}/plain", "versions": False})
    run_curation(plain, scorer=StubFactory())
    for path in (f"{disk.url}/plain", str(tmp_path), f"{disk.url}/nowhere"):
        with pytest.raises(
            InputError, match=rf"{path} is not a root of versions: it has neither latest\.json nor runs/; give the"
        ):
            retention.clean(path, keep=1, unfinished_days=0, scores=True, dry_run=False)
    run(disk)
    Path(disk.root, "latest.json").write_text("{")
    before = disk.contents("out")
    with pytest.raises(InputError, match=r"latest\.json does not name a version, so the versions in use are unknown"):
        clean(disk)
    assert disk.contents("out") == before


def test_what_is_not_ours_stays(disk):
    fill(disk)
    run(disk)
    run(disk, **KEEP_2)
    for name in ("versions/notes.txt", "versions/mine/x", "notes.txt", "scores/mine/x", "scores/notes.txt"):
        disk.put(f"out/{name}", b"")
    clean(disk, scores=True, unfinished_days=0)
    names = disk.contents("out")
    for name in ("versions/notes.txt", "versions/mine/x", "notes.txt", "scores/mine/x", "scores/notes.txt"):
        assert name in names


def test_the_command_says_what_it_does(disk, bestkept):
    fill(disk)
    old = run(disk).version_run
    run(disk, **KEEP_2)
    code, out, _ = bestkept("clean", disk.root, "--keep", "1", "--dry-run")
    assert (code, out) == (0, f"would remove {old.path}\nversions kept: 1\n")
    assert Path(old.path).exists()
    code, _, err = bestkept("clean", disk.root, "--keep", "0")
    assert (code, Path(old.path).exists()) == (2, True), err
    code, _, err = bestkept("clean", disk.root, "--keep", "1", "--json-logs")
    last = json.loads(err.splitlines()[-1])
    assert (code, last["removed"], last["dry_run"], len(last["kept"])) == (0, [old.path], False, 1)
    assert not Path(old.path).exists()
    code, out, _ = bestkept("clean", disk.root, "--quiet")
    assert (code, out) == (0, f"{disk.root}\n")
    code, _, err = bestkept("clean", disk.url)
    assert code == 3
    assert "is not a root of versions" in err.splitlines()[-1]


def test_removing_what_cannot_be_removed_says_so(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.touch()
    removal.remove(str(tmp_path / "gone"))

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(removal.os, "unlink", refused)
    with pytest.raises(StorageError, match=rf"cannot remove {path}: Permission denied; grant write access"):
        removal.remove(str(path))


def test_files_below_know_their_age(place):
    place.put("some/a/b", b"x")
    place.put("some/c", b"x")
    found = removal.files_below(f"{place.url}/some")
    assert [one.name for one in found] == ["a/b", "c"]
    assert all(one.modified is not None and datetime.now(UTC) - one.modified < timedelta(hours=1) for one in found)
    assert removal.directories_in(f"{place.url}/some") == ["a"]
    assert removal.files_below(f"{place.url}/none") == removal.directories_in(f"{place.url}/none") == []
    removal.remove_all(f"{place.url}/some", ["a/b", "c", "gone"])
    assert removal.files_below(f"{place.url}/some") == removal.directories_in(f"{place.url}/some") == []
