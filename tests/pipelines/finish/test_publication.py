"""Whole runs that meet others on one output: what ends with 0 is whole, and nothing of another run lies beside it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support.versioned import KEEP_2, Place, disk, fill, place, run

from pipelines.commands import run as run_command
from pipelines.errors import ConflictError, StorageError
from pipelines.finish import retention
from pipelines.finish.versions import latest_path
from pipelines.report import write
from pipelines.storage import publish
from pipelines.storage.owner import Owner

__all__ = ["disk", "place"]  # fixtures

ONE = {"output": {"versions": False}}
OTHER = {"output": {"versions": False, "rows_per_shard": 5}, **KEEP_2}


def once(work: Callable[[], object]) -> Callable[[], None]:
    """`work`, the first time that it is called."""
    left = [work]
    return lambda: left.pop()() and None if left else None


def shards(place: Place) -> list[str]:
    return sorted(name for name in place.contents("out") if name.startswith("data/"))


def named(place: Place) -> list[str]:
    return sorted(shard["name"] for shard in json.loads(place.contents("out")["manifest.json"])["shards"])


def test_a_run_whose_claim_was_taken_over_publishes_nothing(place, monkeypatch):
    fill(place)
    execute, other = run_command.execute, once(lambda: run(place, **OTHER))
    monkeypatch.setattr(run_command, "execute", lambda *given: (other(), execute(*given))[1])
    with pytest.raises(ConflictError, match=r"out (has been claimed by another run since|belongs to a run with other)"):
        run(place, **ONE)
    assert shards(place) == named(place)
    assert len(shards(place)) > 1
    assert run(place, **OTHER).already_complete


def test_a_run_that_is_overtaken_as_it_begins_to_publish_keeps_its_output(disk, monkeypatch):
    """The other one looked before anything was published, and takes the claim after that; it ends, and nothing is mixed."""
    fill(disk)
    settle, other, ends = Owner.settle, [], []

    def overtaken(owner: Owner) -> None:
        settle(owner)
        if not other:
            other.append(owner)
            disk.put("out/claim.json", json.dumps({**owner._asdict(), "selection": "another"}).encode())
            with pytest.raises(ConflictError, match="belongs to a run with other select or output settings"):
                run(disk, **OTHER)
            ends.append("other")

    monkeypatch.setattr(Owner, "settle", overtaken)
    run(disk, **ONE)
    assert ends == ["other"]
    assert shards(disk) == named(disk)
    assert not run(disk, **ONE).already_complete, (
        "the claim is the other's, and nobody knows of which plan the output is"
    )
    with pytest.raises(ConflictError, match="belongs to a run with other select or output settings"):
        run(disk, **OTHER)


@pytest.mark.parametrize("when", ["before the manifest", "complete"])
def test_shards_that_no_manifest_names_are_a_conflict(place, when):
    fill(place)
    if when == "complete":
        run(place, **ONE)
    place.put("out/data/train-00000-of-00009.parquet", b"of another run")
    if when != "complete":
        place.put("out/claim.json", claim_of(place))
    with pytest.raises(
        ConflictError, match=r"train-00000-of-00009\.parquet is a shard that manifest\.json does not name"
    ):
        run(place, **ONE)
    assert ("manifest.json" in place.contents("out")) == (when == "complete")


def claim_of(place: Place) -> bytes:
    """The claim of `ONE` for this corpus."""
    run(place, output={"versions": False, "path": f"{place.url}/elsewhere"})
    return place.contents("elsewhere")["claim.json"]


def test_a_version_that_is_removed_under_a_run_is_no_success(place, monkeypatch):
    """Another run makes the same version and ends, a newer one comes, and `clean` removes what this one is about to name."""
    fill(place)
    publish = Owner.publish

    def others() -> None:
        run(place)
        newer.append(run(place, **KEEP_2).version_run)
        removed.extend(retention.clean(place.root, keep=1, unfinished_days=7, scores=False, dry_run=False).versions)

    newer, removed, meet = [], [], once(others)

    def overtaken(owner: Owner, name: str, *given, **more) -> str:
        if name == "manifest.json":
            meet()
        return publish(owner, name, *given, **more)

    monkeypatch.setattr(Owner, "publish", overtaken)
    with pytest.raises(StorageError, match=r"is missing.*run the same command again"):
        run(place)
    assert len(removed) == 1
    assert latest_path(place.root) == newer[0].path
    again = run(place)
    assert not again.already_complete
    assert latest_path(place.root) == again.version_run.path
    assert run(place).already_complete


def test_a_version_that_is_removed_as_its_card_is_written_is_told_as_such(place, monkeypatch):
    """The numbers that the report is drawn from are gone with the version: that is no fault of the settings."""
    fill(place)

    def others() -> None:
        run(place)
        run(place, **KEEP_2)
        removed.extend(retention.clean(place.root, keep=1, unfinished_days=7, scores=False, dry_run=False).versions)

    removed, meet, read = [], once(others), write.read_numbers
    monkeypatch.setattr(write, "read_numbers", lambda output: (meet(), read(output))[1])
    with pytest.raises(StorageError, match=r"is missing.*run the same command again"):
        run(place, report={"write": True})
    assert len(removed) == 1


def test_an_owner_that_is_removed_before_it_is_read_is_made_again(tmp_path, monkeypatch):
    output, path = Owner(str(tmp_path), inputs="i", selection="s"), tmp_path / "owner.json"
    (tmp_path / "claim.json").write_text(json.dumps({"inputs": "i", "selection": "s", "plan": "p"}))
    remove = once(path.unlink)
    read = publish.read_with_version

    def gone(name: str):
        remove()
        return read(name)

    create = publish.create
    other = once(lambda: path.write_text("{}"))
    monkeypatch.setattr(publish, "create", lambda *given: other() or create(*given))
    monkeypatch.setattr(publish, "read_with_version", gone)
    output.settle()
    assert output.is_settled()
