"""Runs that meet others at each durable call: different ones on one output, and three that write versions, with `bestkept clean`.

The first run stops before a call; the others go from start to end, one after the other; then the first goes on. Whoever ends with
0 must have made what is there, alone; whoever does not ends with 6 on one output, and with 5 where its version has been removed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.campaign import Figures, says_what_to_do, spread
from chaos.harness import Ended, Place, Subject, normal
from support.corpora import TIMED

Tree = dict[str, bytes]
NEWER = ["output.versions=true", "select=[{best_of_n: {keep: 2}}]"]


@dataclass
class Meetings:
    """Meetings of runs of one subject."""

    subject: Subject
    workers: int
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self.others = {
            "select": ["select=[{best_of_n: {keep: 2}}]"],
            "corpus": [f"input.path={self.subject.folder}/in/a.jsonl"],
            "model": [f"model.path={self.subject.other_model}"],
            "column": ["model=null", "scores.column=quality", f"input.path={self.subject.folder}/rated/a.jsonl"],
        }
        calm, place = self._calm()
        self.golden = _published(place.tree())
        self.points = [normal(call, place.output) for call in calm.calls]
        self.goldens = {kind: _published(self._calm(*overrides)[1].tree()) for kind, overrides in self.others.items()}
        calm, place = self._calm("output.versions=true")
        self.version_points = _outside_of_the_lock([normal(call, place.output) for call in calm.calls])
        (self.version,) = [path.name for path in (place.output / "versions").iterdir()]

    def different_runs(self, cases: Iterable[tuple[int, str]]) -> None:
        """For each point and key of `others`: the other run begins and ends while the first stands there."""
        spread(self._meet, list(cases), self.workers)

    def versions(self, points: Iterable[int]) -> None:
        """For each point of a run with versions: another makes the same one, a third a newer one, and `clean --keep 1` runs."""
        spread(self._remove, list(points), self.workers)

    def _calm(self, *overrides: str) -> tuple[Ended, Place]:
        place = self.subject.place()
        return place.run_undisturbed(*overrides), place

    def _meet(self, case: tuple[int, str]) -> None:
        point, kind = case
        place, where = self.subject.place(), f"other {kind} at {point} {self.points[point]}"
        overrides = self.others[kind]
        paused = place.request(watched=True, at=point, fault="WAIT")
        runs = self.subject.servers.run(paused, place.request(late=True, overrides=overrides))
        self.figures.add("faults")
        self._check_ends(runs, 6, place, where)
        winners = [number for number, ended in enumerate(runs) if ended.code == 0]
        if len(winners) != 1:
            self.figures.add(
                "false_successes" if winners else "wrong_ends", f"{where}: {[ended.last for ended in runs]}"
            )
            return
        self._compare(place, [self.golden, self.goldens[kind]][winners[0]], where)
        again = place.run(overrides=[[], overrides][winners[0]])
        if again.code != 0 or "already complete" not in again.out:
            self.figures.add("failed_again", f"{where}: {again.code} {again.last}")

    def _remove(self, point: int) -> None:
        place, where = self.subject.place(), f"versions at {point} {self.version_points[point]}"
        same = ["output.versions=true"]
        clean = {**place.request(late=True), "words": ["clean", str(place.output), "--keep", "1"]}
        runs = self.subject.servers.run(
            place.request(watched=True, at=point, fault="WAIT", overrides=same),
            place.request(late=True, overrides=same),
            place.request(late=True, overrides=NEWER),
            clean,
        )
        self.figures.add("faults")
        self._check_ends(runs, 5, place, where)
        if any(ended.code != 0 for ended in runs[1:]):
            self.figures.add("wrong_ends", f"{where}: {[ended.last for ended in runs]}")
        if runs[0].code == 0 and (place.output / "versions" / self.version).exists():
            self._compare_version(place, where)
        latest = place.output / "latest.json"
        if not _is_whole(place, json.loads(latest.read_bytes())):
            self.figures.add("mismatches", f"{where}: the latest is not whole")
        again = place.run(overrides=same)
        if again.code != 0:
            self.figures.add("failed_again", f"{where}: {again.code} {again.last}")
        self._compare_version(place, where)

    def _check_ends(self, runs: list[Ended], code: int, place: Place, where: str) -> None:
        for ended in runs:
            if ended.hung:
                self.figures.add("hangs", where)
            elif ended.code not in (0, code) or (ended.code == code and not says_what_to_do(ended, place)):
                self.figures.add("wrong_ends", f"{where}: {ended.code} {ended.last}")

    def _compare_version(self, place: Place, where: str) -> None:
        below = f"versions/{self.version}/"
        tree = place.tree()
        self._compare(
            place, self.golden, where, {name.removeprefix(below): data for name, data in tree.items() if below in name}
        )

    def _compare(self, place: Place, golden: Tree, where: str, tree: Tree | None = None) -> None:
        tree = _published(place.tree() if tree is None else tree)
        if tree != golden:
            names = sorted(name for name in {*tree, *golden} if tree.get(name) != golden.get(name))
            self.figures.add("mismatches", f"{where}: {names}")
        if temporaries := [name for name in place.temporaries() if name != ".latest.lock"]:
            self.figures.add("leftovers", f"{where}: {temporaries}")


def _published(tree: Tree) -> Tree:
    """The files of the selection that an output belongs to: scores are of whoever came by, a claim is of the last, and drift is
    against what was the latest."""
    others = ("scores/", "claim.json", "drift.json", *TIMED)
    return {name: data for name, data in tree.items() if not name.startswith(others)}


def _is_whole(place: Place, latest: dict[str, str]) -> bool:
    output = place.output / latest["path"]
    manifest = output / "manifest.json"
    if not manifest.exists() or hashlib.sha256(manifest.read_bytes()).hexdigest() != latest["manifest"]:
        return False
    shards = json.loads(manifest.read_bytes())["shards"]
    data = {path.name for path in (output / "data").iterdir()}
    return data == {shard["name"].removeprefix("data/") for shard in shards}


def _outside_of_the_lock(points: list[tuple[str, str]]) -> dict[int, tuple[str, str]]:
    """The points at which a run holds no lock that others wait for: `latest.json` is set under one on a local disk."""
    locked = next(number for number, (_, path) in enumerate(points) if path == ".latest.lock")
    last = max(number for number, (_, path) in enumerate(points) if path.startswith((".latest.json.", "latest.json")))
    return {number: call for number, call in enumerate(points) if not locked < number <= last + 1}
