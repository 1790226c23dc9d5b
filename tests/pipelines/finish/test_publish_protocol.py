"""A model of the publish protocol: what claims, publishes and cleans, in every interleaving of its calls to a store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from support.interleaving import Search, StepStore

from pipelines.errors import BestkeptError, ConflictError, StorageError
from pipelines.finish import claim, publication, retention, versions
from pipelines.finish.versions import Latest, VersionRun, set_latest, take_turn
from pipelines.storage import removal
from pipelines.storage.canonical_json import to_json
from pipelines.storage.owner import Owner

ROOT = "steps://out"


class Now(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2026, 1, 20, tzinfo=tz or UTC)


class Inline:
    """A pool of the calling thread alone: the steps of an actor have one order."""

    def __init__(self, _count: int) -> None: ...

    def __enter__(self) -> Inline:
        return self

    def __exit__(self, *_: object) -> None: ...

    map = staticmethod(map)


@pytest.fixture(autouse=True)
def still(monkeypatch):
    for module in (versions, retention):
        monkeypatch.setattr(module, "datetime", Now)
    monkeypatch.setattr(removal, "ThreadPoolExecutor", Inline)


class Run:
    """A run of the command: a selection of a corpus that gives some shards."""

    def __init__(self, selection: str, shards: int, *, content: str = "", plan: str = "p") -> None:
        self.selection, self.plan = selection, plan
        data = f"{selection}{content}".encode()
        self.shards = {f"data/train-{number}-of-{shards}.parquet": data for number in range(shards)}
        listed = [{"name": name, "bytes": len(data), "of": data.decode()} for name, data in self.shards.items()]
        self.manifest = {"shards": listed}
        whole = SimpleNamespace(content_hash="i", files=[], file_name="plan", fingerprint="f", fingerprints=["f"])
        self.plans: Any = SimpleNamespace(whole=whole, members=())
        self.version = versions.version_of(self.plans, selection)

    def on(self, output: str, *, versioned: bool = False) -> Callable[[], str]:
        return lambda: self._run(output, versioned=versioned)

    def _run(self, output: str, *, versioned: bool) -> str:
        turn = None
        if versioned:
            config: Any = SimpleNamespace(output=SimpleNamespace(versions=True), path=output)
            turn = take_turn(config, self.plans, self.selection)
            assert turn is not None
            output = turn.path
        owner = Owner(output, "i", self.selection)
        if claim.claim(output, inputs="i", selection=self.selection, plan=self.plan):
            manifest = claim.read_complete_manifest(owner)
            if manifest is not None:
                set_latest(turn)
                return "complete"
        for name, data in self.shards.items():
            owner.publish(name, data, shards={"train": len(self.shards)})
        publication.publish(self.manifest, owner, turn)
        return "published"

    def is_whole(self, store: Mapping[str, bytes], output: str) -> bool:
        """Whether an output is this run's, and nothing but this run's."""
        output = output.removeprefix("steps://")
        data = {
            name.removeprefix(f"{output}/"): data for name, data in store.items() if name.startswith(f"{output}/data/")
        }
        return data == self.shards and store.get(f"{output}/manifest.json") == to_json(self.manifest)


def succeeded(results: Mapping[str, Any]) -> list[str]:
    return [name for name, result in results.items() if isinstance(result, str)]


def on_one_output(
    runs: Mapping[str, Run], start: Mapping[str, bytes] | None = None, *, replaced: bool = False, **bounds: int
) -> Search:
    """Runs at once on one output: at no moment are shards of two there, also where neither goes on, so there is nothing to sweep;
    who ends with 0 has made what is there, then and for ever. Where an input was `replaced` under one claim, who finds the output
    complete may find the other's."""

    def check(store: Mapping[str, bytes], results: Mapping[str, Any]) -> str | None:
        for name, result in results.items():
            if isinstance(result, Exception) and not isinstance(result, ConflictError):
                return f"{name} ended with {result!r}"
        ended = [
            name for name, result in results.items() if result == "published" or (result == "complete" and not replaced)
        ]
        mixed = [name for name in ended if not runs[name].is_whole(store, ROOT)]
        if mixed:
            return f"{mixed} ended with 0 beside {sorted(store)}"
        shards = {name.removeprefix("out/") for name in store if name.startswith("out/data/")}
        owners = [name for name, run in runs.items() if shards <= run.shards.keys()]
        return None if owners else f"shards of several runs: {sorted(shards)}"

    return Search(start or {}, {name: run.on(ROOT) for name, run in runs.items()}, check, **bounds)


A, B = Run("a", 2), Run("b", 1)
REPLACED = {"A": A, "B": Run("a", 1, content="+", plan="q")}
CLAIMED = {"out/claim.json": to_json({"inputs": "i", "selection": "c", "plan": "p"})}


STARTS = [pytest.param({}, id="new"), pytest.param(CLAIMED, id="claimed by a run that was killed")]


@pytest.mark.parametrize("start", STARTS)
def test_two_selections_on_one_output_never_mix(start):
    search = on_one_output({"A": A, "B": B}, start).explore()
    assert search.faults == []
    ends = {tuple(succeeded(results)) for results in search.ends}
    assert ends == {("A",), ("B",)}, "one of them has it, whatever happens"


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_two_commands_that_crash_and_are_started_again_never_mix(start):
    """Twice in all, anywhere."""
    search = on_one_output({"A": A, "B": B}, start, crashes=2).explore()
    assert search.faults == []
    assert {tuple(succeeded(results)) for results in search.ends} == {("A",), ("B",)}


@pytest.mark.slow
def test_three_selections_on_one_output_never_mix():
    """All their interleavings."""
    search = on_one_output({"A": A, "B": B, "C": Run("c", 1)}).explore()
    assert search.faults == []
    assert {tuple(succeeded(results)) for results in search.ends} == {("A",), ("B",), ("C",)}


@pytest.mark.slow
def test_three_commands_of_which_one_crashes_never_mix():
    search = on_one_output({"A": A, "B": B, "C": Run("c", 1)}, crashes=1, switches=2).explore()
    assert search.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [0, 1])
def test_equal_selections_join(crashes):
    search = on_one_output({"A": Run("a", 1), "again": Run("a", 1)}, crashes=crashes).explore()
    assert search.faults == []
    assert {tuple(succeeded(results)) for results in search.ends} == {("A", "again")}


@pytest.mark.slow
def test_an_input_replaced_in_place_never_mixes_shards_of_before_and_after():
    """Its size stays, so the claim is the same; the rows that are kept are others."""
    search = on_one_output(REPLACED, replaced=True).explore()
    assert search.faults == []


def test_the_search_finds_mixtures_where_owners_are_not_settled(monkeypatch):
    monkeypatch.setattr(Owner, "settle", lambda _: None)
    monkeypatch.setattr(Owner, "is_settled", lambda _: False)
    monkeypatch.setattr(Owner, "_settle_shards", lambda *_: None)
    search = on_one_output({"A": A, "B": B}).explore()
    assert "ended with 0 beside" in search.faults[0][0]


def test_the_search_finds_a_false_complete_where_the_owner_is_not_read_after_the_manifest(monkeypatch):
    monkeypatch.setattr(claim, "read_complete_manifest", lambda owner: claim.read_manifest(owner.output))
    search = on_one_output({"A": A, "B": B}).explore()
    assert "ended with 0 beside" in search.faults[0][0]


def test_the_search_finds_mixtures_where_shards_are_not_settled(monkeypatch):
    monkeypatch.setattr(Owner, "_settle_shards", lambda *_: None)
    search = on_one_output(REPLACED, replaced=True).explore()
    assert "ended with 0 beside" in search.faults[0][0]


V, NEWER = Run("v", 1), Run("w", 1)


def clean(*, unfinished_days: float = 7.0) -> list[str]:
    return retention.clean(ROOT, keep=1, unfinished_days=unfinished_days, scores=False, dry_run=False).versions


def with_versions(
    runs: Mapping[str, Run],
    start: Mapping[str, bytes] | None = None,
    *,
    clean: Callable[[], Any] = clean,
    **bounds: int,
) -> Search:
    """Runs that write versions, and `clean`: who ends with 0 leaves no manifest without shards, and the latest version has all of
    them."""

    def check(store: Mapping[str, bytes], results: Mapping[str, Any]) -> str | None:
        for name, result in results.items():
            if isinstance(result, Exception) and not isinstance(result, BestkeptError):
                return f"{name} ended with {result!r}"
        latest = store.get("out/latest.json")
        if latest is not None and not _stands(store, f"out/versions/{json.loads(latest)['version']}/manifest.json"):
            return f"the latest has no shards, or no manifest: {sorted(store)}"
        return None

    def check_end(store: Mapping[str, bytes], name: str, result: Any) -> str | None:
        if name not in runs or isinstance(result, Exception):
            return None
        made = f"out/versions/{runs[name].version}/manifest.json"
        return f"{name} ended with 0, and without shards" if made in store and not _stands(store, made) else None

    actors = {name: run.on(ROOT, versioned=True) for name, run in runs.items()}
    return Search(start or {}, {**actors, "clean": clean}, check, check_end, **bounds)


def _stands(store: Mapping[str, bytes], manifest: str) -> bool:
    if manifest not in store:
        return False
    output, shards = manifest.removesuffix("/manifest.json"), json.loads(store[manifest])["shards"]
    return all(f"{output}/{shard['name']}" in store for shard in shards)


def after(*runs: Run) -> dict[str, bytes]:
    """What runs leave that write versions one after the other."""
    StepStore.objects.clear()
    for run in runs:
        run.on(ROOT, versioned=True)()
    return dict(StepStore.objects)


def removed_under_a_run() -> Search:
    """Run A stands before its manifest; another has made the version and ended, a newer version is there, and `clean` begins."""
    search = with_versions({"A": V}, after(V, V, NEWER))
    turn = VersionRun(ROOT, V.version, 1)

    def last_steps() -> str:
        publication.publish(V.manifest, Owner(turn.path, "i", V.selection), turn)
        return "published"

    search.actors = {**search.actors, "A": last_steps}
    return search


def test_no_manifest_without_shards_where_a_version_is_removed_under_a_run():
    search = removed_under_a_run().explore()
    assert search.faults == []
    assert {type(results["A"]) for results in search.ends} >= {str, StorageError}


@pytest.mark.slow
def test_no_manifest_without_shards_where_a_version_is_removed_under_a_run_and_both_crash():
    search = removed_under_a_run()
    search.crashes = 2
    assert search.explore().faults == []


def test_the_search_finds_a_manifest_without_shards_where_nobody_looks_at_them(monkeypatch):
    monkeypatch.setattr(publication, "_check", lambda *_: None)
    search = removed_under_a_run().explore()
    assert "without shards" in search.faults[0][0]


@pytest.mark.slow
def test_a_version_that_a_run_is_about_to_make_the_latest_is_not_removed():
    """A newer one is complete, and neither is the latest yet, when `clean` begins."""
    assert with_versions({"A": V, "B": NEWER}, switches=2).explore().faults == []


@pytest.mark.slow
def test_the_search_finds_the_latest_removed_where_the_order_of_runs_is_not_heeded(monkeypatch):
    kept_of = retention.kept_of
    last = Latest("", "", 9)
    monkeypatch.setattr(
        retention, "kept_of", lambda *given, latest, **more: kept_of(*given, latest=latest or last, **more)
    )
    search = with_versions({"A": V, "B": NEWER}, switches=2).explore()
    assert "the latest has no shards" in search.faults[0][0]


@pytest.mark.slow
def test_three_runs_two_of_one_version_and_a_cleaning():
    """From the start: one stands before its manifest, another makes the same version and ends, a third a newer one."""
    search = with_versions({"A": V, "again": V, "B": NEWER}, switches=1).explore()
    assert search.faults == []
    assert any("again" in succeeded(results) and isinstance(results["A"], StorageError) for results in search.ends)


@pytest.mark.slow
def test_a_run_of_an_old_version_and_a_cleaning_of_which_one_crashes():
    search = with_versions({"A": V}, after(V, NEWER), crashes=1).explore()
    assert search.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("crashes", [0, 1])
def test_an_unfinished_version_that_ends_while_it_is_removed(crashes):
    """It counts as old at once."""
    search = with_versions({"A": V}, clean=lambda: clean(unfinished_days=-1), crashes=crashes).explore()
    assert search.faults == []


@pytest.mark.slow
def test_the_search_finds_a_version_removed_under_a_run_where_an_interrupted_removal_is_always_finished(monkeypatch):
    listed = retention.kept_of
    monkeypatch.setattr(
        retention, "kept_of", lambda versions, **more: listed([one for one in versions if not one.going], **more)
    )
    search = with_versions({"A": V}, after(V, NEWER), crashes=1).explore()
    assert "the latest has no shards" in search.faults[0][0]
