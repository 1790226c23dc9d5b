"""Reading a remote object through windows: the same bytes as the object, in few requests of bounded size."""

from __future__ import annotations

import io
import random

import pytest

from pipelines.storage.stores import ranged_reader
from pipelines.storage.stores.remote_object import ObjectStat

FIRST, MOST = 100, 800  # bytes of the first window, and of the largest, here


class Recorded:
    """An object that knows which ranges of it were read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.ranges: list[tuple[int, int]] = []

    def read_range(self, start: int, end: int, seen: ObjectStat) -> bytes:
        assert seen.version == "v"
        self.ranges.append((start, end))
        return self.data[start:end]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(ranged_reader, "_FIRST_BYTES", FIRST)
    monkeypatch.setattr(ranged_reader, "_MOST_BYTES", MOST)


def opened(size: int) -> tuple[Recorded, ranged_reader.RemoteFile]:
    there = Recorded(random.Random(size).randbytes(size))
    return there, ranged_reader.RemoteFile(there, ObjectStat(size, "v"))  # type: ignore[arg-type]


def test_a_scan_takes_windows_that_double_up_to_the_bound():
    there, file = opened(3000)
    assert b"".join(iter(lambda: file.read(50), b"")) == there.data
    assert there.ranges == [(0, 100), (100, 300), (300, 700), (700, 1500), (1500, 2300), (2300, 3000)]


def test_a_window_goes_on_from_the_part_that_is_left_of_it():
    there, file = opened(3000)
    assert file.read(70) + file.read(60) + file.read(20) == there.data[:150]
    assert there.ranges == [(0, 100), (100, 300)]
    file.seek(0)
    assert file.read(10) == there.data[:10]  # what lies before the window is fetched again
    assert there.ranges[2:] == [(0, 100)]


def test_a_read_larger_than_any_window_is_one_request():
    there, file = opened(5000)
    assert file.read(2000) == there.data[:2000]
    assert file.read(2500) == there.data[2000:4500]
    assert there.ranges == [(0, 2000), (2000, 4500)]


def test_a_large_read_from_inside_a_window_fetches_what_is_missing_and_no_more():
    there, file = opened(5000)
    file.read(70)
    assert file.read(2000) == there.data[70:2070]
    assert there.ranges == [(0, 100), (100, 2070)]


def test_nothing_is_fetched_of_an_empty_object():
    there, file = opened(0)
    assert (file.read(10), file.seek(0, io.SEEK_END), there.ranges) == (b"", 0, [])


def test_windows_of_128_kib_to_4_mib(monkeypatch):
    monkeypatch.undo()
    size = 20 * 2**20
    there = Recorded(bytes(size))
    with ranged_reader.open_remote(there, ObjectStat(size, "v")) as file:  # type: ignore[arg-type]
        assert sum(len(chunk) for chunk in iter(lambda: file.read(2**16), b"")) == size
    kib = [(end - start) // 2**10 for start, end in there.ranges]
    assert kib[:7] == [128, 256, 512, 1024, 2048, 4096, 4096]
    assert max(kib) == 4096


def test_streams_in_turns_keep_their_windows_and_the_one_not_used_longest_goes():
    there, file = opened(20_000)
    starts = [1000 * number for number in range(ranged_reader._WINDOWS)]
    for offset in (0, 10, 20):
        for start in starts:
            file.seek(start + offset)
            assert file.read(10) == there.data[start + offset : start + offset + 10]
    assert there.ranges == [(start, start + FIRST) for start in starts]
    file.seek(15_000)
    file.read(1)
    there.ranges.clear()
    file.seek(starts[1] + 30)
    file.read(10)
    assert there.ranges == []
    file.seek(starts[0] + 30)
    file.read(10)
    assert there.ranges == [(30, 130)]


def test_seeking_and_the_end():
    there, file = opened(250)
    assert file.readable()
    assert file.seekable()
    assert (file.seek(-10, io.SEEK_END), file.tell(), file.read(50)) == (240, 240, there.data[240:])
    assert (file.read(1), file.tell()) == (b"", 250)
    assert (file.seek(-250, io.SEEK_CUR), file.read(3)) == (0, there.data[:3])
    assert (file.seek(400), file.read(1), file.tell()) == (400, b"", 400)
    file.seek(7)
    with pytest.raises(OSError, match="negative seek position") as raised:
        file.seek(-8, io.SEEK_CUR)
    assert (raised.value.errno, file.tell()) == (22, 7)
    assert there.ranges == [(240, 250), (0, 100)]


def test_random_reads_are_those_of_the_bytes():
    there, file = opened(4000)
    chance, plain = random.Random(3), io.BytesIO(there.data)
    for _ in range(400):
        position, count = chance.randrange(4200), chance.randrange(300)
        assert (file.seek(position), plain.seek(position)) == (position, position)
        assert file.read(count) == plain.read(count)
    assert all(0 <= start < end <= 4000 for start, end in there.ranges)
