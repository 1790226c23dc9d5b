"""Every crash point, and kills at random times: `make chaos` prints the figures, the slow tests run a part of it.

After every fault the same command runs again, and must end with 0, with the bytes of an undisturbed run, with no
temporary left, and with at most one fragment scored twice for every time that the scorer was ended.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.gate import missing
from chaos.harness import Ended, Place, Servers, Subject, normal, save_stub_model

Fault = tuple[str, bool]  # what happens, and whether from there on
FAULTS: tuple[Fault, ...] = (
    ("KILL", False),
    ("EIO", False),
    ("ENOSPC", True),
    ("TERM", False),
    ("EIO", True),
    ("INT", False),
    ("EROFS", True),
    ("SLOW", False),
)
_NAMES = sorted({name for name, _ in FAULTS})
_CODES = {"KILL": {-9}, "TERM": {143}, "INT": {130}, "SLOW": {0}}


@dataclass
class Figures:
    """What a campaign found; every count but the first three must be zero."""

    points: int = 0
    faults: int = 0
    kills: int = 0
    hangs: int = 0
    false_successes: int = 0
    wrong_ends: int = 0  # exit codes other than documented for that fault, and last lines that say nothing
    failed_again: int = 0
    mismatches: int = 0
    leftovers: int = 0
    scored_twice: int = 0  # beyond the one fragment that a fault may cost
    defects: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, what: str, where: str = "") -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)
            if where:
                self.defects.append(f"{what}: {where}")

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if not name.startswith("_")}


@dataclass
class Campaign:
    """Faults on runs of one subject, compared with its undisturbed run."""

    subject: Subject
    workers: int
    figures: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        place = self.subject.place()
        calm = place.run_undisturbed()
        self.golden = place.tree()
        self.points = [normal(call, place.output) for call in calm.calls]
        self.secs = calm.secs

    def each_point(self, faults: Mapping[int, Iterable[Fault]]) -> None:
        """Faults by point, each on an output of its own."""
        self.figures.points = len(faults)
        cases = [(point, fault) for point, several in faults.items() for fault in several]
        spread(self._at_point, cases, self.workers)

    def random_kills(self, seeds: Iterable[int], *, most: int = 3) -> None:
        """For each seed: one to `most` runs on the same output killed at random times, then one to the end."""
        spread(lambda seed: self._killed(random.Random(seed), most, f"seed {seed}"), list(seeds), self.workers)

    def two_at_once(self, points: Iterable[int]) -> None:
        """One run stops before a point, another one goes from start to end on the same output, then the first goes on."""
        spread(self._paused, list(points), self.workers)

    def _at_point(self, item: tuple[int, Fault]) -> None:
        point, (name, forever) = item
        place, where = self.subject.place(), f"{name}{' for ever' if forever else ''} at {point} {self.points[point]}"
        ended = place.run(watched=True, at=point, fault=name, forever=forever)
        self.figures.add("faults")
        self._check_end(place, ended, name, where)
        self._again(place, where, ended=1)

    def _check_end(self, place: Place, ended: Ended, name: str, where: str) -> None:
        if ended.hung:
            self.figures.add("hangs", where)
        elif ended.code not in _CODES.get(name, {0, 5}):
            self.figures.add("wrong_ends", f"{where}: {ended.code} {ended.last}")
        elif ended.code == 0 and place.tree() != self.golden:
            self.figures.add("false_successes", where)
        elif ended.code > 0 and not says_what_to_do(ended, place if ended.code == 5 else None):
            self.figures.add("wrong_ends", f"{where}: {ended.err}")

    def _killed(self, rng: random.Random, most: int, where: str) -> None:
        place, killed = self.subject.place(), 0
        for _ in range(rng.randint(1, most)):
            ended = place.run(kill_after_secs=rng.uniform(0.0, 1.1 * self.secs))
            killed += ended.code == -9
            if ended.code not in (0, -9):
                self.figures.add("wrong_ends", f"{where}: {ended.code} {ended.last}")
            if ended.code == 0 and place.tree() != self.golden:
                self.figures.add("false_successes", where)
        for _ in range(killed):
            self.figures.add("kills")
        self._again(place, where, ended=killed)

    def _paused(self, point: int) -> None:
        place, where = self.subject.place(), f"pause at {point} {self.points[point]}"
        paused = place.request(watched=True, at=point, fault="WAIT")
        runs = self.subject.servers.run(paused, place.request(late=True))
        self.figures.add("faults")
        for ended in runs:
            if ended.hung:
                self.figures.add("hangs", where)
            elif ended.code != 0:
                self.figures.add("wrong_ends", f"{where}: {ended.code} {ended.last}")
        self._compare(place, where, ended=1)

    def _again(self, place: Place, where: str, *, ended: int) -> None:
        again = place.run()
        if again.hung:
            self.figures.add("hangs", f"again after {where}")
        elif again.code != 0:
            self.figures.add("failed_again", f"{where}: {again.code} {again.last}")
        self._compare(place, where, ended=ended)

    def _compare(self, place: Place, where: str, *, ended: int) -> None:
        there = place.tree()
        if there != self.golden:
            names = sorted(name for name in {*there, *self.golden} if there.get(name) != self.golden.get(name))
            self.figures.add("mismatches", f"{where}: {names}")
        if place.temporaries():
            self.figures.add("leftovers", f"{where}: {place.temporaries()}")
        if place.scored_again() > ended:
            self.figures.add("scored_twice", f"{where}: {place.scored_again()}")


def spread(work: Callable[[Any], None], items: list[Any], workers: int) -> None:
    """Do the work for all items, so many at once."""
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, items):
            pass


def says_what_to_do(ended: Ended, place: Place | None) -> bool:
    """One line of ours at the end, with a remedy, and for storage with the place."""
    said = ended.last.startswith("bestkept: ") and "Traceback" not in ended.err
    remedy = any(words in ended.last for words in ("same command again", "choose "))
    return said and remedy and (place is None or str(place.output) in ended.last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills at random times, at least")
    parser.add_argument("--real", type=int, default=20, help="of them with a real engine")
    parser.add_argument("--faults", nargs="*", default=_NAMES, choices=_NAMES, help="at every point")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if reason := missing():
        sys.exit(f"crash points cannot be found here: {reason}")
    with tempfile.TemporaryDirectory(prefix="bestkept-chaos-") as folder:
        found = [_stub_campaign(Path(folder) / "stub", options), _real_kills(Path(folder) / "real", options)]
    for name, figures in zip(("stub", "real"), found, strict=True):
        print(json.dumps({name: figures.to_json()}, indent=1))
    sys.exit(any(figures.defects for figures in found))


def _stub_campaign(folder: Path, options: argparse.Namespace) -> Figures:
    folder.mkdir()
    with Servers(options.workers, cache=folder / "cache") as servers:
        campaign = Campaign(Subject(servers, folder, save_stub_model(folder / "model")), options.workers)
        faults = [fault for fault in FAULTS if fault[0] in options.faults]
        campaign.each_point(dict.fromkeys(range(len(campaign.points)), faults))
        _say("faults at every point", campaign)
        campaign.two_at_once(range(len(campaign.points)))
        _say("and pauses at every point", campaign)
        _meet(campaign)
        _kill(campaign, options.kills - options.real, options.seed)
    return campaign.figures


def _meet(campaign: Campaign) -> None:
    """Two different runs, and three with `clean`, at every point."""
    from chaos.meetings import Meetings

    meetings = Meetings(campaign.subject, campaign.workers, campaign.figures)
    meetings.different_runs([(point, kind) for point in range(len(meetings.points)) for kind in meetings.others])
    _say("and two different runs at every point", campaign)
    meetings.versions(meetings.version_points)
    _say("and three runs and clean at every point", campaign)


def _say(what: str, campaign: Campaign) -> None:
    counts = {name: value for name, value in campaign.figures.to_json().items() if name != "defects"}
    print(f"{what}: {json.dumps(counts)}", file=sys.stderr, flush=True)


def _real_kills(folder: Path, options: argparse.Namespace) -> Figures:
    from support.tiny_models import save_encoder

    folder.mkdir()
    with Servers(options.workers, cache=folder / "cache") as servers:
        campaign = Campaign(Subject(servers, folder, save_encoder(folder / "model"), stub=False), options.workers)
        _kill(campaign, options.real, options.seed)
    return campaign.figures


def _kill(campaign: Campaign, kills: int, seed: int) -> None:
    """Rounds of random kills until there were so many."""
    while campaign.figures.kills < kills:
        campaign.random_kills(range(seed, seed + campaign.workers))
        seed += campaign.workers


if __name__ == "__main__":
    main()
