"""Copies of compressed files: their units have every row once, in order, whatever its bytes and the bounds of parts."""

from __future__ import annotations

import gzip
import os
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipelines.corpus import InputFile, Unit, read_fragments, read_rows, rewrite, rewritten_copy, split_units
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.files import place_in_file, place_of
from pipelines.corpus.jsonl import json_lines, row_lines
from pipelines.errors import InputError, StorageError
from pipelines.storage import publish

MAPPING = RowMapping("prompt_response", prompt="p", response="r")
PIECES = st.sampled_from(
    [b"\n", b"\n\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"\xff", b'{"p": "a", "r": "b"}\n', b'{"p":', b"xyz"]
)
DATA = st.lists(PIECES | st.binary(max_size=9), max_size=40).map(b"".join)


@contextmanager
def copied(data: bytes, *, rows: int, size: int, limit: int, compression: str = "gz"):
    """A compressed file that has been rewritten in parts of these bounds."""
    compress = {"gz": gzip.compress, "zst": zstandard.compress}[compression]
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewritten_copy, "PART_ROWS", rows)
        patch.setattr(rewritten_copy, "PART_BYTES", size)
        path = Path(root) / f"a.jsonl.{compression}"
        path.write_bytes(compress(data))
        status = path.stat()
        copy = f"{root}/scores/rewritten/a"
        file = InputFile(str(path), path.name, "jsonl", compression, status.st_size, str(status.st_mtime), copy)
        rewrite.rewrite(file, copy, max_row_bytes=limit)
        yield file


def itself(file: InputFile) -> tuple[InputFile, Unit]:
    return file._replace(copy=None), Unit(0, 0, file.size, file.size)


@settings(max_examples=150)
@given(DATA, st.integers(1, 7), st.integers(1, 60), st.sampled_from([1, 5, 20, 1000]), st.sampled_from(["gz", "zst"]))
def test_units_have_every_line_once_and_in_order(data, rows, size, limit, compression):
    assume(not data.startswith((b"\xfe\xff", b"\xff\xfe")))  # UTF-16, which is refused
    with copied(data, rows=rows, size=size, limit=limit, compression=compression) as file:
        units = split_units(file)
        lines_of_units = [list(row_lines(file, unit, max_row_bytes=limit)) for unit in units]
        expected = [(line, count) for line, count, _ in row_lines(*itself(file), max_row_bytes=limit)]
        assert [(line, count) for lines in lines_of_units for line, count, _ in lines] == expected
        assert [unit.number for unit in units] == list(range(1, len(units) + 1))
        assert [(unit.start, unit.end - unit.start) for unit in units] == [
            (sum(map(len, lines_of_units[:at])), len(lines)) for at, lines in enumerate(lines_of_units)
        ]
        assert sum(unit.input_bytes for unit in units) == file.size
        assert all(unit.input_bytes >= 0 for unit in units)
        for unit, lines in zip(units, lines_of_units, strict=True):
            kept = [len(line) for line, _, _ in lines if line is not None]
            assert len(lines) <= rows
            assert sum(kept[:-1]) < size or not kept
            assert not lines or lines[-1][2] == unit.input_bytes
        full = [
            len(lines) == rows or sum(len(line or b"") for line, *_ in lines) >= size for lines in lines_of_units[:-1]
        ]
        assert all(full)


@settings(max_examples=100)
@given(DATA, st.integers(1, 9), st.integers(1, 4), st.sampled_from([12, 20, 1000]))
def test_fragments_have_the_rows_of_the_file_itself(data, rows, per_fragment, limit):
    with copied(data, rows=rows, size=2**20, limit=limit) as file:
        sizes = {"rows_per_fragment": per_fragment, "max_row_bytes": limit}
        rows_of_copy = []
        for unit in split_units(file):
            fragments = list(read_fragments(file, unit, MAPPING, **sizes))
            assert [fragment.last for fragment in fragments] == [False] * (len(fragments) - 1) + [True]
            assert [fragment.index for fragment in fragments] == list(range(len(fragments)))
            unit_rows = [row for fragment in fragments for row in fragment.rows]
            assert [row.number for row in unit_rows] == list(range(len(unit_rows)))
            again = read_rows(file, unit, MAPPING, np.arange(len(unit_rows)), more_columns=None, max_row_bytes=limit)
            assert [row.parsed for row in again] == [row.parsed for row in unit_rows]
            rows_of_copy += [row._replace(number=unit.start + row.number, seen_bytes=0) for row in unit_rows]
        expected = [row for fragment in read_fragments(*itself(file), MAPPING, **sizes) for row in fragment.rows]
        assert rows_of_copy == [row._replace(seen_bytes=0) for row in expected]


def test_a_line_too_long_keeps_its_size_and_takes_no_space():
    long = b"x" * 5_000_000
    with copied(long + b"\n" + b'{"p": "a", "r": "b"}\n', rows=9, size=100, limit=4_999_999) as file:
        (unit,) = split_units(file)
        assert [(line, size) for line, size, _ in row_lines(file, unit, max_row_bytes=9)] == [
            (None, 5_000_000),
            (b'{"p": "a", "r": "b"}', 20),
        ]
        assert list(json_lines(file, unit, max_row_bytes=9)) == [None, b'{"p": "a", "r": "b"}']
        assert sum(path.stat().st_size for path in Path(str(file.copy)).iterdir()) < 4_000


def test_parts_differ_where_their_lines_do():
    def part(*lines):
        table = next(rewritten_copy.cut_into_parts(iter([(line, 9 if line is None else len(line)) for line in lines])))
        return rewritten_copy.Part.of(table).hash

    one = part(b"ab", b"c")
    assert part(b"ab", b"c") == one
    assert (
        len({one, part(b"a", b"bc"), part(b"c", b"ab"), part(b"ab", None), part(b"ab", b""), part(b"ab", b"c", b"")})
        == 6
    )


def test_a_part_ends_with_the_line_that_reaches_its_bounds(monkeypatch):
    monkeypatch.setattr(rewritten_copy, "PART_ROWS", 3)
    monkeypatch.setattr(rewritten_copy, "PART_BYTES", 8)
    sizes = [4, 4, 4, 3, 2, 100, 7, 1, 1, 1, 1, 9]
    lines = iter([(None if size == 100 else b"x" * size, size) for size in sizes])
    parts = [table["bytes"].to_pylist() for table in rewritten_copy.cut_into_parts(lines)]
    assert parts == [[4, 4], [4, 3, 2], [100, 7, 1], [1, 1, 1], [9]]
    assert [table.num_rows for table in rewritten_copy.cut_into_parts(iter([]))] == [0]


def test_a_slice_of_a_table_has_the_hash_of_its_own_lines():
    lines = [(b"a" * n if n % 3 else None, n) for n in range(9)]
    table = next(rewritten_copy.cut_into_parts(iter(lines)))
    assert rewritten_copy.Part.of(table.slice(2, 5)) == rewritten_copy.Part.of(
        next(rewritten_copy.cut_into_parts(iter(lines[2:7])))
    )


def test_the_bounds_of_parts_do_not_move():
    """Score files are named by units: other bounds would find the scores of other rows. Raise `FORMAT`, and give units other
    numbers, before you change them."""
    assert (rewritten_copy.PART_ROWS, rewritten_copy.PART_BYTES, rewritten_copy.FORMAT) == (8_192, 64 * 2**20, 1)


def test_no_flipped_bit_gives_other_lines():
    """Some bits of a Parquet file mean nothing; every other one makes a part that is not read."""
    data = b"".join(b'{"p": "a", "r": "%d"}\n' % n for n in range(20))
    with copied(data, rows=10, size=2**20, limit=100) as file:
        unit = split_units(file)[1]
        path = Path(str(file.copy)) / "000001.parquet"
        whole = path.read_bytes()
        expected = list(json_lines(file, unit, max_row_bytes=100))
        assert expected == data.splitlines()[10:]
        noticed = 0
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            try:
                assert list(json_lines(file, unit, max_row_bytes=100)) == expected
            except StorageError:
                noticed += 1
        assert noticed > len(whole) // 2
        for end in range(0, len(whole), 50):
            path.write_bytes(whole[:end])
            with pytest.raises(StorageError):
                list(json_lines(file, unit, max_row_bytes=100))


@pytest.mark.parametrize("rows", [10, 11, 30])
def test_a_file_of_fewer_or_more_rows_is_not_what_was_copied(rows):
    """Zeros after the last member, which a gzip file may have, make up the size."""
    lines = [b'{"p": "a", "r": "%d"}\n' % n for n in range(30)]
    with copied(b"".join(lines[:20]), rows=10, size=2**20, limit=100) as file:
        other = gzip.compress(b"".join(lines[:rows])).ljust(file.size, b"\0")
        path = Path(file.path)
        path.write_bytes(other)
        os.utime(path, (0, float(file.version)))
        same = file._replace(size=len(other), version=str(path.stat().st_mtime))
        with pytest.raises(
            InputError, match=r"differs from its copy in .*, although its size and version are the same"
        ):
            rewrite.rewrite(same, str(file.copy), max_row_bytes=100, verify=True)


def test_two_at_once_make_one_copy(monkeypatch):
    """Each looks before the other has written anything."""
    data = b"".join(b'{"p": "a", "r": "%d"}\n' % n for n in range(40))
    with copied(data, rows=4, size=2**20, limit=100) as file:
        expected = [line for unit in split_units(file) for line in json_lines(file, unit, max_row_bytes=100)]
        copy = f"{file.copy}-both"
        both, create, came = threading.Barrier(2), publish.create, []

        def together(path, data):
            both.wait()
            came.append(create(path, data))
            return came[-1]

        monkeypatch.setattr(publish, "create", together)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: rewrite.rewrite(file, copy, max_row_bytes=100), range(2)))
        monkeypatch.undo()
        assert (came.count(True), came.count(False)) == (11, 11)
        same = file._replace(copy=copy)
        assert [line for unit in split_units(same) for line in json_lines(same, unit, max_row_bytes=100)] == expected


def test_a_copy_of_other_lines_is_not_overwritten(tmp_path):
    copy = str(tmp_path / "copy")
    rewritten_copy.publish_index(copy, [rewritten_copy.Part(1, 2, "a")], {})
    rewritten_copy.publish_index(copy, [rewritten_copy.Part(1, 2, "a")], {})
    with pytest.raises(StorageError, match=f"^{copy} holds a copy of other lines; remove that folder"):
        rewritten_copy.publish_index(copy, [rewritten_copy.Part(1, 2, "b")], {})
    assert rewritten_copy.read_index(copy) == (rewritten_copy.Part(1, 2, "a"),)


def test_places_count_through_the_file():
    assert [place_of(name, 8192, 4) for name in ("a.jsonl.gz", "a.json.zst", "a.parquet", "a.jsonl")] == [
        "line 8197",
        "line 8197",
        "row 8197",
        "line 5 after byte 8192",
    ]
    assert place_in_file("a.jsonl.gz", 8192, 4) == (0, 8196)
    assert place_in_file("a.parquet", 8192, 4) == (8192, 4)
