"""A part of what `make chaos` does in full: a fault at every kind of durable call, pauses, kills at random times."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
from chaos.campaign import FAULTS, Campaign, Figures
from chaos.conftest import WORKERS
from chaos.harness import Servers, Subject
from chaos.meetings import Meetings
from support.tiny_models import save_encoder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def all_meetings(subject: Subject) -> Meetings:
    return Meetings(subject, WORKERS)


@pytest.fixture
def meetings(all_meetings: Meetings) -> Meetings:
    fresh = copy.copy(all_meetings)
    fresh.figures = Figures()
    return fresh


def kinds(points: list[tuple[str, str]]) -> list[int]:
    """The first point of each kind: of score files and of shards, those of the first and of the last."""
    firsts: dict[object, int] = {}
    for number, (name, path) in enumerate(points):
        firsts.setdefault((name, path if path[0] == "." or path.count("/") < 1 else Path(path).parent), number)
    last = {(name, str(Path(path).parent)): number for number, (name, path) in enumerate(points)}
    return sorted({*firsts.values(), *last.values()})


def kill_at_random(campaign: Campaign, kills: int) -> None:
    """Kill runs until so many were killed: where later runs are faster than the first, most end before their time comes."""
    for seed in range(0, 40, campaign.workers):
        if campaign.figures.kills < kills:
            campaign.random_kills(range(seed, seed + campaign.workers))


def test_a_fault_at_every_kind_of_call(campaign: Campaign):
    points = kinds(campaign.points)
    assert len(points) > 45
    campaign.each_point({point: [FAULTS[number % len(FAULTS)]] for number, point in enumerate(points)})
    assert campaign.figures.faults == len(points)
    assert campaign.figures.defects == []


def test_two_runs_at_once(campaign: Campaign):
    """The second goes from start to end while the first stands at a call; both are whole, and no temporary stays."""
    points = [number for number, (name, _) in enumerate(campaign.points) if name in ("link", "rename")]
    campaign.two_at_once([*points, *(point + 1 for point in points[::3])])
    assert campaign.figures.faults > 10
    assert campaign.figures.defects == []


def test_different_runs_at_once(meetings: Meetings):
    """As the first one makes its claim, owns the output, and publishes its first shard and its manifest."""
    linked = {path: number for number, (name, path) in enumerate(meetings.points) if name == "link"}
    shard = next(path for path in linked if path.startswith("data/"))
    points = [linked[name] for name in ("claim.json", "owner.json", shard, "manifest.json")]
    meetings.different_runs(zip(points, meetings.others, strict=True))
    assert meetings.figures.faults == 4
    assert meetings.figures.defects == []


def test_three_runs_and_clean(meetings: Meetings):
    """A version is made by another run and removed while the first makes it, stands at a shard, its report, its manifest."""
    calls = meetings.version_points.items()
    made = next(number for number, call in calls if call == ("fsync", "versions"))
    links = {path.partition("/")[2].partition("/")[2]: number for number, (name, path) in calls if name == "link"}
    shard = next(number for name, number in links.items() if name.startswith("data/"))
    meetings.versions([made, shard, links["README.md"], links["manifest.json"]])
    assert meetings.figures.faults == 4
    assert meetings.figures.defects == []


def test_two_runs_from_the_same_moment(campaign: Campaign):
    """They score and write the same, in no order."""
    for _ in range(3):
        place = campaign.subject.place()
        runs = campaign.subject.servers.run(place.request(), place.request())
        assert [run.code for run in runs] == [0, 0], runs[0].err + runs[1].err
        assert (place.tree() == campaign.golden, place.temporaries()) == (True, [])


def test_kills_at_random_times(campaign: Campaign):
    kill_at_random(campaign, 5)
    assert campaign.figures.kills >= 5
    assert campaign.figures.defects == []


def test_kills_at_random_times_with_a_real_engine(tmp_path: Path):
    with Servers(1, cache=tmp_path / "cache") as servers:
        campaign = Campaign(Subject(servers, tmp_path, save_encoder(tmp_path / "model"), stub=False), 1)
        kill_at_random(campaign, 2)
    assert campaign.figures.kills >= 2
    assert campaign.figures.defects == []


def test_order_of_durable_calls(campaign: Campaign):
    """Content is synced before it gets its name, and the directory after; the manifest comes when all it names is durable."""
    points = campaign.points
    published = [(number, path) for number, (name, path) in enumerate(points) if name in ("link", "rename")]
    assert {path.split("/")[0] for _, path in published} == {
        *(
            "claim.json",
            "owner.json",
            "shards.json",
            "scores",
            "rejected",
            "data",
            "README.md",
            "manifest.json",
            "run.json",
        ),
        *("samples.parquet", "report.json", "report.html"),
    }
    for number, path in published:
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, f".{name}.*.tmp")
        before = [points[at] for at in (number - 3, number - 2, number - 1)]
        assert before == [("openat", temporary), ("write", temporary), ("fsync", temporary)]
        assert points[number + 1] == ("fsync", directory or ".")
    made = [(number, path) for number, (name, path) in enumerate(points) if name == "mkdir" and path != "."]
    assert made
    for number, path in made:
        assert points[number + 1] == ("fsync", os.path.dirname(path) or ".")
    assert [path for _, path in published][-3:] == ["report.html", "manifest.json", "run.json"]


def test_nothing_is_written_outside_of_the_output(subject: Subject):
    """Whatever files and columns are called."""
    place = subject.place()
    inputs = place.folder / "in"
    inputs.mkdir()
    source = (subject.folder / "in" / "a.jsonl").read_text()
    for name in ("x..%2f..%2fy.jsonl", "a b;$(touch z).jsonl", "back\\..\\slash.jsonl"):
        (inputs / name).write_text(source.replace("generator", "source").replace("g0", "../../g0"))
    for path in sorted((subject.folder / "in").iterdir()):
        (inputs / f"link-{path.name}").symlink_to(path)
    output = place.folder / "else" / "out"
    ended = place.run(watch=["/"], overrides=[f"input.path={inputs}/**", f"output.path={output}"])
    assert ended.code == 0, ended.err
    inside = os.path.realpath(place.folder / "else")
    elsewhere = {Path(path) for _, path, _ in ended.calls if not f"{path}/".startswith(f"{inside}/")}
    own = {place.folder, place.log, *(place.folder / f"{name}-0" for name in ("out", "err")), Path(os.devnull)}
    own |= {path for path in elsewhere if path.is_relative_to(subject.servers.cache / "bestkept")}
    own |= {
        path
        for path in elsewhere
        if path.name.startswith(("beam-pipeline-temp", "bestkept-"))
        or not path.is_absolute()  # the libraries' log; pipes
    }
    assert elsewhere - own == set()
    assert len(ended.calls) > 60
    assert len(list(output.rglob("data/*.parquet"))) == 3
