"""Units that are decoded once for all stripes that a process reads of them."""

from __future__ import annotations

import gc
import itertools
import json
import threading
import weakref
from collections import namedtuple
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from support.stubs import forget_units

from pipelines.config import Limits
from pipelines.corpus import InputFile, decoded_units, read_raw_fragments, split_units
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.decoded_units import read_stripe
from pipelines.corpus.fragments import RawFragment
from pipelines.score.workers import worker

MAPPING = RowMapping("prompt_response", "prompt", "response")
Usage = namedtuple("Usage", "free")


class Unit:
    """A unit of a file with rows of many kinds, that counts how often it is read."""

    def __init__(self, root, rows: int = 13):
        values = [{"prompt": f"p {n}", "response": f"r {n}\ud800é", "n": [n, None, {"a": 2**60}]} for n in range(rows)]
        path = root / "a.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        file = InputFile(str(path), "a.jsonl", "jsonl", None, path.stat().st_size, "")
        [unit] = split_units(file)
        bounds = {"rows_per_fragment": 2, "max_row_bytes": 2**20}
        self.whole = list(read_raw_fragments(file, unit, MAPPING, **bounds))
        self.decoded, self.unit_bytes = 0, unit.input_bytes

    def read(self):
        self.decoded += 1
        yield from self.whole

    def stripe(self, stripe: int, stripes: int) -> list[RawFragment]:
        return list(read_stripe(id(self), self.read, stripe=stripe, stripes=stripes))


@pytest.fixture
def unit(tmp_path):
    forget_units()
    yield Unit(tmp_path)
    forget_units()


@pytest.mark.parametrize("stripes", [2, 3, 7, 9])
def test_stripes_in_any_order_are_the_unit_decoded_once(unit, stripes):
    parts = [unit.stripe(stripe, stripes) for stripe in reversed(range(stripes))]
    assert sorted((raw for part in parts for raw in part), key=lambda raw: raw.index) == unit.whole
    assert [[raw.index % stripes for raw in part] for part in parts] == [
        [stripe] * len(part) for stripe, part in zip(reversed(range(stripes)), parts, strict=True)
    ]
    assert unit.decoded == 1
    assert sum(raw.input_bytes for raw in unit.whole) == unit.unit_bytes
    assert [raw.first for raw in unit.whole] == [2 * raw.index for raw in unit.whole]


def test_a_whole_unit_is_not_kept(unit):
    assert unit.stripe(0, 1) == unit.stripe(0, 1) == unit.whole
    assert unit.decoded == 2


def test_threads_share_what_one_of_them_decodes(unit):
    parts: dict[int, list[RawFragment]] = {}
    threads = [threading.Thread(target=lambda n=n: parts.update({n: unit.stripe(n, 4)})) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [parts[n] for n in range(4)] == [unit.whole[n::4] for n in range(4)]
    assert unit.decoded == 1


def test_a_disk_without_room_costs_time_alone(unit, monkeypatch):
    monkeypatch.setattr(decoded_units.shutil, "disk_usage", lambda _: Usage(1000))  # three or so fragments
    assert [unit.stripe(n, 3) for n in range(3)] == [unit.whole[n::3] for n in range(3)]
    assert unit.decoded == 4, "for each stripe, after the first time in vain"


def test_a_folder_that_cannot_be_written_costs_time_alone(unit, monkeypatch):
    def refuses(**_):
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr(decoded_units.tempfile, "TemporaryFile", refuses)
    assert [unit.stripe(n, 2) for n in range(2)] == [unit.whole[n::2] for n in range(2)]
    assert unit.decoded == 3


def test_values_that_cannot_be_kept_cost_time_alone(unit):
    unit.whole[4].rows[0] = unit.whole[4].rows[0]._replace(values={"at": datetime(2026, 11, 30, tzinfo=UTC)})
    assert [unit.stripe(n, 2) for n in range(2)] == [unit.whole[n::2] for n in range(2)]
    assert unit.decoded == 3


def test_a_process_with_many_units_has_few_open_files(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded_units, "_MOST_UNITS", 3)
    units = [Unit(tmp_path) for _ in range(5)]
    for unit in units:
        assert unit.stripe(0, 2) == unit.whole[::2]
    assert len(decoded_units._units) == 3
    for unit, decoded in zip(
        units, (2, 2, 2, 2, 2), strict=True
    ):  # the first ones anew, which takes the places of the others
        assert unit.stripe(1, 2) == unit.whole[1::2]
        assert unit.decoded == decoded
    forget_units()


def test_units_that_were_used_longest_ago_make_room(tmp_path, monkeypatch):
    forget_units()
    units = [Unit(tmp_path, rows=12) for _ in range(3)]
    units[0].stripe(0, 2)
    used = next(iter(decoded_units._units.values())).stored_bytes
    monkeypatch.setattr(  # room for two in all
        decoded_units.shutil,
        "disk_usage",
        lambda _: Usage(int(4 * 2.5 * used) - sum(unit.stored_bytes for unit in decoded_units._units.values())),
    )
    for unit in (units[1], units[0], units[2], units[0], units[1]):
        assert unit.stripe(1, 2) == unit.whole[1::2]
    assert [unit.decoded for unit in units] == [1, 2, 1]
    forget_units()


def test_an_error_comes_in_its_place_and_each_attempt_reads_anew(unit):
    def broken():
        unit.decoded += 1
        yield from unit.whole[:3]
        raise ValueError("broken")

    for stripe, readable in ((0, [0, 2]), (1, [1])):
        with pytest.raises(ValueError, match="broken"):
            list(read_stripe("key", broken, stripe=stripe, stripes=2))
        indices: list[int] = []
        noted = (indices.append(raw.index) for raw in read_stripe("key", broken, stripe=stripe, stripes=2))
        with pytest.raises(ValueError, match="broken"):
            list(noted)
        assert indices == readable
    assert unit.decoded == 4


@pytest.mark.parametrize("free", [10**12, 1000])
def test_no_rows_stay_in_memory(unit, monkeypatch, free):
    """Neither of a unit that is kept, nor of one for which there is no room."""
    monkeypatch.setattr(decoded_units.shutil, "disk_usage", lambda _: Usage(free))
    read_rows: list[weakref.ref[RawFragment]] = []

    def read():
        for raw in unit.whole:
            fresh = replace(raw)
            read_rows.append(weakref.ref(fresh))
            yield fresh

    assert sum(1 for _ in read_stripe("key", read, stripe=0, stripes=2)) == 4
    gc.collect()
    assert len(read_rows) >= 7
    assert not [number for number, rows in enumerate(read_rows) if rows() is not None]


def test_a_unit_that_was_given_up_while_it_is_read_keeps_to_its_share(tmp_path, monkeypatch):
    forget_units()
    first, second = Unit(tmp_path, rows=200), Unit(tmp_path, rows=200)
    made: list[decoded_units._DecodedUnit] = []
    used = [0]

    def usage(_):
        used[0] = max(used[0], sum(one.stored_bytes for one in made))
        return Usage(20_000 - sum(one.stored_bytes for one in made))

    begin = decoded_units._DecodedUnit.__init__
    monkeypatch.setattr(
        decoded_units._DecodedUnit, "__init__", lambda one, read: (made.append(one), begin(one, read))[1]
    )
    monkeypatch.setattr(decoded_units.shutil, "disk_usage", usage)
    both = [read_stripe(number, one.read, stripe=0, stripes=3) for number, one in enumerate((first, second))]
    parts = list(itertools.zip_longest(*both))
    assert [part[0] for part in parts] == first.whole[::3]
    assert [part[1] for part in parts] == second.whole[::3]
    assert used[0] < 10_000, "two at a time, each at most a quarter"
    forget_units()


def test_a_worker_on_this_machine_keeps_one_unit(tmp_path, monkeypatch):
    monkeypatch.setattr(decoded_units, "_MOST_UNITS", 64)
    job = SimpleNamespace(paths=SimpleNamespace(members=["plan"]), scorer=None, directories=None, limits=Limits())
    worker._score(job, SimpleNamespace(send=lambda *_: None, receive=lambda: None))
    for key in ("a", "b"):
        list(read_stripe(key, Unit(tmp_path).read, stripe=0, stripes=2))
    assert [*decoded_units._units] == ["b"]
    forget_units()
