"""JSON arrays and tables as lines: against the `json` and `csv` modules, for every cut of the stream, and damaged."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.jsonl import parse_line
from pipelines.corpus.records import to_lines

LIMIT = 1 << 16


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def rows(data: bytes, layout: str, *, size: int = 7, limit: int = LIMIT) -> list[object]:
    lines = to_lines(cut(data, size), layout, limit)
    return ["row_too_large" if line is None else parse_line(line) for line, _ in lines]


TEXT = st.text(st.sampled_from('ab"\\{}[],:\n\té'), max_size=8)
VALUES = st.recursive(TEXT | st.integers(-9, 9) | st.none(), lambda inner: st.lists(inner, max_size=3), max_leaves=5)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=5)


@given(OBJECTS, st.sampled_from([None, 1, 3]), st.integers(4, 40), st.booleans())
def test_an_array_in_any_layout_and_cut_anywhere_is_its_elements(objects, indent, size, bom):
    data = json.dumps(objects, indent=indent, ensure_ascii=bom).encode("utf-8-sig" if bom else "utf-8") + b"\n"
    assert rows(data, "array", size=size) == objects


@pytest.mark.parametrize("size", [4, 5, 1000])
def test_a_bad_element_of_an_array_is_rejected_alone(size):
    data = b'[{"a": 1}, {"a": nope}, {"b": "\xff"}, 7, , {"a": 1, "a": 2}, {"a": "' + b"x" * 99 + b'"}, {"a": 3},\n ]\n'
    assert rows(data, "array", size=size, limit=60) == [
        {"a": 1}, "bad_json", "bad_utf8", "not_an_object", "bad_json", "duplicate_key", "row_too_large", {"a": 3},
    ]  # fmt: skip


@pytest.mark.parametrize("size", [4, 1000])
def test_a_cut_array_is_an_error_wherever_it_is_cut(size):
    data = b'[{"a": "b]"}, {"a": 2}]'
    for end in range(len(data)):
        with pytest.raises(EOFError):
            rows(data[:end], "array", size=size)
    with pytest.raises(OSError, match="there is more text"):
        rows(data + b'{"a": 3}', "array", size=size)
    with pytest.raises(OSError, match="not opened"):
        rows(b'[{"a": 1}}, {"a": 2}]', "array", size=size)


CELL = st.text(st.sampled_from('ab,;"\n\r\té x'), max_size=6)


@given(st.lists(st.tuples(CELL, CELL), max_size=6), st.integers(1, 40), st.sampled_from([("csv", ","), ("tsv", "\t")]))
def test_a_table_cut_anywhere_is_its_rows(cells, size, kind):
    layout, delimiter = kind
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("prompt", "response"), *cells])
    expected = [{"prompt": first, "response": second} for first, second in cells]
    assert rows(sink.getvalue().encode("utf-8-sig"), layout, size=size + 3) == expected


def test_columns_of_numbers_are_numbers_and_text_stays_text():
    data = b"id,zip,response,score,ok\n1,007,42,0.5,true\n2,10,43,,false\n3,11,44,-2,true\n"
    assert rows(data, "csv") == [
        {"id": 1, "zip": "007", "response": "42", "score": 0.5, "ok": True},
        {"id": 2, "zip": "10", "response": "43", "score": None, "ok": False},
        {"id": 3, "zip": "11", "response": "44", "score": -2, "ok": True},
    ]


def test_a_bad_row_of_a_table_is_rejected_alone():
    long = b"x" * 50 + b'""\n' + b"y" * 50
    data = b'prompt;response\na;b\na;b;c\n\n"a"b;c\n\xff;b\n"' + long + b'";d\n"a\n1";""\n;\n'
    assert rows(data, "csv", limit=60) == [
        {"prompt": "a", "response": "b"}, "bad_table_row", "bad_table_row", "bad_utf8", "row_too_large",
        {"prompt": "a\n1", "response": ""}, {"prompt": "", "response": ""},
    ]  # fmt: skip


def test_a_table_that_ends_in_a_quote_or_has_no_header_is_damaged():
    with pytest.raises(EOFError):
        rows(b'prompt,response\na,"b\n', "csv")
    with pytest.raises(OSError, match="not the header"):
        rows(b'"a"b,c\n1,2\n', "csv")
    with pytest.raises(OSError, match="two columns named 'a'"):
        rows(b"a,a\n1,2\n", "csv")
    with pytest.raises(OSError, match=r"longer than twice limits\.max_row_bytes"):
        rows(b"a,b\n" + b"x" * 200, "csv", limit=60)
    assert rows(b"", "csv") == rows(b"a,b\n", "csv") == []
