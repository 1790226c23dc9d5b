"""Lines and what is in them: limits to the byte, and the reason of every line that is none."""

from __future__ import annotations

import io
import json

import pytest

from pipelines.corpus import InputFile, Unit, jsonl
from pipelines.corpus.jsonl import DEEPEST, held_bytes, json_lines, json_rows, parse_line


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """An object that holds `depth - 1` lists within one another."""
    return f'{{"a": {opening * (depth - 1)}{closing * (depth - 1)}}}'.encode()


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b'{"a": 1}', {"a": 1}),
        (b' {"a": [1.5e308, -0.0, "\\ud83d\\ude00"]} ', {"a": [1.5e308, -0.0, "\U0001f600"]}),
        (b'\xef\xbb\xbf{"a": null}', {"a": None}),
        (b'{"\\u00e9": "\\ud800"}', {"é": "\ud800"}),
        (b'{"a": "\xff"}', "bad_utf8"),
        (b'{"a": 1, "a": 2}', "duplicate_key"),
        (b'{"a": {"b": 1, "b": 1}}', "duplicate_key"),
        (b'{"a": 1', "bad_json"),
        (b"", "bad_json"),
        (b'{"a": NaN}', "nan_literal"),
        (b'{"a": -Infinity}', "nan_literal"),
        (b'{"a": 1e309}', "huge_number"),
        (b'{"a": -1e309}', "huge_number"),
        (b'{"a": ' + b"9" * 4300 + b"}", {"a": int("9" * 4300)}),
        (b'{"a": ' + b"9" * 4301 + b"}", "huge_number"),
        (b"[1]", "not_an_object"),
        (b'"a"', "not_an_object"),
        (b'{"\\ud800": 1}', "lone_surrogate"),
        (b'{"\\udfff": 1}', "lone_surrogate"),
        (nested(DEEPEST + 1), "deep_nesting"),
        (nested(100_000), "deep_nesting"),
        (b'{"a": ' + b'{"b":' * DEEPEST + b"1" + b"}" * DEEPEST + b"}", "deep_nesting"),
        (b'{"a": ' + b"[" * DEEPEST, "deep_nesting"),
        (b'{"a": ' + b"[" * (DEEPEST - 1), "bad_json"),
        (b'{"a": "' + b"[" * 100 + b'\\"', "bad_json"),
        (b'{"a": ' + b"[" * 5000, "deep_nesting"),
        (b'{"a": ' + b"[" * 5000 + b"NaN", "deep_nesting"),
        (b'{"a": 1, "a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "deep_nesting"),
        (b"[" * 500 + b"]" * 500, "deep_nesting"),
        (b'{"\\ud800": ' + b"[" * 500 + b"]" * 500 + b"}", "deep_nesting"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_what_is_in_a_line(line, value):
    assert parse_line(line) == value


def test_depth_is_that_of_values_not_the_number_of_brackets():
    assert isinstance(parse_line(nested(DEEPEST)), dict)
    assert isinstance(parse_line(b'{"a": [' + b"[1],{}," * 50 + b"[]]}"), dict)
    assert isinstance(parse_line(b'{"a": "' + b"[{" * 50 + b'"}'), dict)
    assert isinstance(parse_line(b'{"a": ' + b'{"b":' * (DEEPEST - 1) + b"1" + b"}" * (DEEPEST - 1) + b"}"), dict)


@pytest.mark.parametrize(
    ("line", "held"),
    [
        (b"[" * 2000, 2000),
        (b"[" * 2000 + b" ", 2001),
        (b"[" * 2001, 200 * 2001),
        (b"{" * 1000 + b"[" * 1001, 200 * 2001),
        (b"{" * 2001 + b" " * 10**6, 10**6 + 2001),
        (b" " * 5000, 5000),
    ],
)
def test_brackets_count_as_what_they_take(line, held):
    assert held_bytes(line, len(line)) == held


class Chunks(io.BytesIO):
    """Comes in small pieces."""

    def read(self, count: int | None = -1, /) -> bytes:
        return super().read(3 if count == jsonl._READ_BYTES else count)


def lines(monkeypatch, data: bytes, start: int, end: int, limit: int = 4) -> list[bytes | None]:
    monkeypatch.setattr("pipelines.corpus.files.open_for_reading", lambda _: Chunks(data))
    file = InputFile(path="a.jsonl", key="a.jsonl", kind="jsonl", compression=None, size=len(data), version="")
    return list(json_lines(file, Unit(0, start, end, end - start), max_row_bytes=limit))


DATA = b"1\n2222\n\n 3\n55555\n  \n7"


def test_each_line_belongs_to_the_range_its_first_byte_lies_in(monkeypatch):
    whole = [b"1", b"2222", b" 3", None, b"7"]
    assert lines(monkeypatch, DATA, 0, len(DATA)) == whole
    for cut in range(1, len(DATA)):
        assert lines(monkeypatch, DATA, 0, cut) + lines(monkeypatch, DATA, cut, len(DATA)) == whole


@pytest.mark.parametrize(("limit", "found"), [(3, None), (4, b"2222"), (5, b"2222")])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n1"])
def test_the_limit_itself_is_within_it(monkeypatch, limit, found, end):
    data = b"2222" + end
    assert lines(monkeypatch, data, 0, len(data), limit)[0] == found


def test_rows_come_with_their_bytes_and_those_seen(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [b'{"a": 1}', b"", b'{"b": "' + b"x" * 30 + b'"}', b"[", b'{"c": [' + b"[]," * 2000 + b"[]]}"]
    path.write_bytes(b"\n".join(rows) + b"\n")
    size = path.stat().st_size
    file = InputFile(path=str(path), key="a.jsonl", kind="jsonl", compression=None, size=size, version="")
    found = list(json_rows(file, Unit(0, 0, size, size), max_row_bytes=7000))
    many = 2001 + 2  # lists and objects
    assert [row[:3] for row in found] == [
        ({"a": 1}, 8, 8),
        (json.loads(rows[2]), len(rows[2]), len(rows[2])),
        ("bad_json", 1, 1),
        ("row_too_large", len(rows[4]), 200 * many),  # over 16 times the limit
    ]
    assert {row[3] for row in found} == {size}
    least = -(-200 * many // 16)
    for limit, reason in ((least - 1, "row_too_large"), (least, json.loads(rows[4]))):
        assert list(json_rows(file, Unit(0, 0, size, size), max_row_bytes=limit))[-1][0] == reason
    (_, long, *_) = json_rows(file, Unit(0, 0, size, size), max_row_bytes=38)
    assert long[:3] == ("row_too_large", 39, 39)


def test_rows_of_a_later_range_count_from_its_start(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    file = InputFile(path=str(path), key="a.jsonl", kind="jsonl", compression=None, size=18, version="")
    assert list(json_rows(file, Unit(1, 9, 18, 9), max_row_bytes=100)) == [({"a": 2}, 8, 8, 9)]
    assert list(json_rows(file, Unit(1, 9, 18, 9), max_row_bytes=7)) == [("row_too_large", 8, 8, 9)]
