"""Files of preferences: the same rows give the same groups, whatever holds them, and what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import READ_ROWS, READING, load_rows, write_jsonl
from support.file_formats import EVERY_FORMAT, arrow, write_as

from pipelines.errors import InputError
from rm.messages import canonical
from rm.preferences import Group, ReadSettings, read_preference_rows, read_preferences

PLAIN = ReadSettings(**READING)
PAIRS = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(3)]


def read_groups(path: Path, **changes: Any) -> Any:
    return read_preferences(str(path), ReadSettings(**{**READING, **changes}), read_rows=READ_ROWS)


@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_rows_of_every_format(tmp_path, name):
    rows = [{"prompt": "p;q", "chosen": f"{n}", "rejected": 'a "b",\nNA;\t', "score_chosen": n + 0.5} for n in range(7)]
    assert load_rows(write_as(tmp_path, name, rows)) == rows


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(str.strip)
pair = st.fixed_dictionaries(
    {
        "prompt": text | st.sampled_from(["p", "q"]),
        "chosen": text,
        "rejected": text,
        "chosen-rating": st.integers(0, 9) | st.integers(-72, 72).map(lambda eighths: eighths / 8),
        "rejected-rating": st.integers(0, 9),
        "source": st.none() | st.sampled_from(["hand", "arena"]),
    }
)
call = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries(
            {
                "name": st.sampled_from(["add", "find"]),
                "arguments": st.dictionaries(st.sampled_from(["a", "b"]), text, min_size=1),
            }
        ),
    }
)
turn = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": text},
    optional={"reasoning_content": text, "tool_calls": st.lists(call, min_size=1, max_size=2)},
)
tool = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": text}, optional={"description": text})}
)
conversation = st.fixed_dictionaries(
    {
        "prompt": text.map(lambda content: [{"role": "user", "content": content}]),
        "chosen": turn.map(lambda message: [message]),
        "rejected": turn.map(lambda message: [message]),
        "tools": st.lists(tool, min_size=1, max_size=2),
    }
)


def sort_keys(row: dict[str, Any]) -> Any:
    return json.loads(json.dumps(row, sort_keys=True))


def assert_same_groups(rows: list[dict[str, Any]], formats: list[str]) -> None:
    groups, rejected = read_preference_rows(rows, PLAIN)
    expected = [*map(canonical_group, groups)], rejected
    for name in formats:
        with tempfile.TemporaryDirectory() as folder:
            groups, rejected = read_groups(write_as(Path(folder), name, rows))
        assert ([*map(canonical_group, groups)], rejected) == expected, name


def canonical_group(group: Group) -> Group:
    """The group with JSON in one form: structs of Arrow have the keys of all rows in one order."""
    prompt = tuple((role, canonical(content)) for role, content in group.prompt)
    return replace(group, prompt=prompt, responses=tuple(map(canonical, group.responses)))


@pytest.mark.slow
@given(st.lists(pair, min_size=1, max_size=8))
@settings(max_examples=25)
def test_pairs_in_any_format_give_the_same_groups(rows):
    assert_same_groups(rows, [*EVERY_FORMAT])


@pytest.mark.slow
@given(st.lists(conversation.map(sort_keys), min_size=1, max_size=4))
@settings(max_examples=25)
def test_conversations_with_tools_in_any_format_give_the_same_groups(rows):
    assert_same_groups(rows, [name for name in EVERY_FORMAT if not name.startswith(("csv", "tsv"))])


def test_an_empty_cell_is_no_verdict(tmp_path):
    columns = "prompt,response_a,response_b,winner\n"
    (tmp_path / "a.csv").write_text(columns + "p,x,y,model_a\nq,x,y,\nr,x,y,tie\n")
    groups, rejected = read_groups(tmp_path / "a.csv")
    assert ([group.edges[0].probability for group in groups], rejected) == ([1.0, 0.5], {"no_votes": 1})


def test_a_file_that_exists_wins_over_the_same_text_as_a_pattern(tmp_path):
    write_jsonl(tmp_path / "shard1.jsonl", PAIRS[1:])
    path = write_jsonl(tmp_path / "shard[1].jsonl", PAIRS[:1])
    assert load_rows(path) == PAIRS[:1]
    assert load_rows(f"{tmp_path}/shard[0-9].jsonl") == PAIRS[1:]


def test_a_file_named_outright_is_told_by_its_first_bytes(tmp_path):
    for name in ("jsonl.gz", "array", "parquet", "arrow"):
        write_as(tmp_path, name, PAIRS).rename(tmp_path / "data")
        assert load_rows(tmp_path / "data") == PAIRS
    (tmp_path / "data").write_text("prompt,chosen,rejected\n")
    with pytest.raises(InputError, match="neither its name tells"):
        load_rows(tmp_path / "data")


def test_what_save_to_disk_writes_is_read_by_split(tmp_path):
    import datasets

    parts = {"train": datasets.Dataset.from_list(PAIRS[:2]), "test": datasets.Dataset.from_list(PAIRS[2:])}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "train" / "cache-12.arrow").write_bytes(arrow(PAIRS))
    with pytest.raises(InputError, match=r"^data\.path .*: test, train; name one of them: data\.split=NAME, or"):
        load_rows(tmp_path / "saved")
    with pytest.raises(InputError, match=r"name the splits test, train, and 'dev' is .* or remove data\.split, or"):
        load_rows(tmp_path / "saved", split="dev")
    assert load_rows(tmp_path / "saved", split="train") == PAIRS[:2]
    assert load_rows(tmp_path / "saved" / "test") == PAIRS[2:]


def test_a_pattern_is_no_union_of_splits_either(tmp_path):
    for name in ("train", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", PAIRS)
    with pytest.raises(InputError, match="several splits: test, train"):
        load_rows(tmp_path / "*.jsonl")
    assert load_rows(tmp_path / "*.jsonl", split="test") == PAIRS


BAD_LINES = {
    '{"prompt": "p", "chosen": "a"': "bad_json",
    '{"prompt": "p", "prompt": "p", "chosen": "a", "rejected": "b"}': "duplicate_key",
    '{"prompt": "p", "chosen": NaN, "rejected": "b"}': "nan_literal",
    "[1]": "not_an_object",
    json.dumps({"prompt": "p" * 2048, "chosen": "a", "rejected": "b"}): "row_too_large",
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_line_that_cannot_be_read_is_rejected_with_the_reason_that_a_corpus_has(tmp_path, line):
    (tmp_path / "a.jsonl").write_text("\n".join([*map(json.dumps, PAIRS), line, line]))
    rows = list(READ_ROWS(str(tmp_path / "a.jsonl"), PLAIN, section="data", max_row_bytes=1024))
    reason = BAD_LINES[line]
    assert rows == [*PAIRS, reason, reason]
    groups, rejected = read_preference_rows(rows, PLAIN)
    assert (len(groups), rejected) == (3, {reason: 2})


def test_a_column_that_the_first_row_lacks_is_null(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p"}, *PAIRS, {"chosen": "c", "more": 1}])
    rows = load_rows(tmp_path / "a.jsonl")
    nothing = dict.fromkeys(("prompt", "chosen", "rejected", "more"))
    assert [rows[0], rows[-1]] == [nothing | {"prompt": "p"}, nothing | {"chosen": "c", "more": 1}]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.xlsx", b"x", r"^input file .*a\.xlsx is of no known kind"),
        ("a.jsonl", b"", r"^heldout\.path names 1 files, and none has a usable row"),
        ("a.jsonl", b"nothing\n", r"none has a usable row; .* \(its first row is rejected as bad_json\)$"),
        ("a.jsonl", b"[\n{}]", "cannot be read: it is a JSON array, not one object per line"),
        (
            "a.jsonl.gz",
            gzip.compress(json.dumps(PAIRS[0]).encode(), mtime=0)[:-9],
            r"a\.jsonl\.gz is cut .* out of heldout\.path$",
        ),
        ("a.json", json.dumps(PAIRS).encode()[:-1], r"a\.json is cut or damaged"),
        ("a.parquet", b"PAR1", r"a\.parquet is cut or damaged .*, or leave it out of heldout\.path$"),
        ("a.csv", "prompt,chosen\n".encode("utf-16"), r"a\.csv cannot be read: it is UTF-16 text; write it as UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, data, expected):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=expected):
        list(READ_ROWS(str(tmp_path / name), PLAIN, section="heldout"))


def test_a_name_that_two_columns_have_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "chosen", "chosen"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has 2 columns named 'chosen'"):
        load_rows(tmp_path / "a.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["array", "array.gz", "csv"])
def test_files_are_streamed(tmp_path, name):
    draw = random.Random(0)
    rows = [{"prompt": draw.randbytes(2048).hex(), "chosen": "a", "rejected": "b"} for _ in range(5000)]
    path = write_as(tmp_path, name, rows)
    tracemalloc.start()
    count = sum(1 for _ in READ_ROWS(str(path), PLAIN, section="data"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, peak < 12 * 2**20) == (5000, True), f"{peak:,} bytes of 20 MB"
