from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from pipelines.errors import StorageError
from pipelines.score import score_files
from pipelines.score.score_files import COLUMNS, Footer, ScoreFile, decode, encode


def footer(**changes) -> Footer:
    fields = {
        "fingerprint": "f" * 24,
        "file_key": "a.jsonl",
        "file_size": 10,
        "file_version": "1.5",
        "unit": 0,
        "unit_start": 0,
        "fragment": 0,
        "rows": 3,
        "last": True,
        "responses": 3,
        "scored": 2,
        "text_bytes": 40,
        "rejected": {"empty_response": 1},
        "first_rejected": [[1, "empty_response"]],
        "truncated": 1,
        "tokens": 33,
        "content_hash": "c" * 32,
    }
    return Footer(**{**fields, **changes})


def columns(count: int = 3) -> pa.Table:
    rows = [
        {
            "row": n,
            "response_index": 0,
            "prompt_key": bytes([n]) * 16,
            "response_hash": 2**64 - 1 - n,
            "reward": None if n == 1 else 0.5 * n,
            "reason": "empty_response" if n == 1 else None,
            "prompt_tokens": 3,
            "response_tokens": n,
            "row_bytes": 5,
            "truncated": n == 2,
            "source": None if n == 0 else "web é",
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def test_round_trip():
    table, got = decode(encode(columns(), footer(), "schema"))
    assert table.replace_schema_metadata() == columns()
    assert got == footer()
    assert score_files.original_schema(table) == "schema"


def test_no_flipped_bit_and_no_cut_gives_other_values(tmp_path):
    """What is taken for whole is read by columns, too: a run would end there, and the next one take it for whole again."""
    path = tmp_path / "scores.parquet"
    expected = footer(responses=40)
    data = encode(columns(40), expected, "schema")
    rng, noticed = random.Random(0), 0
    for _ in range(3000):
        position, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        damaged = bytearray(data)
        damaged[position] ^= bit
        there = decode(bytes(damaged))
        if there is None:
            noticed += 1
        else:
            assert there[0].replace_schema_metadata() == columns(40)
            assert there[1] == expected
            path.write_bytes(damaged)
            score_files.read_columns(str(path), COLUMNS.names, there[1])
    assert noticed > 1500
    for cut in range(len(data)):
        assert decode(data[:cut]) is None


@pytest.mark.parametrize("column", COLUMNS.names)
def test_every_column_and_every_null_is_under_the_hash(column):
    data = encode(columns(), footer(), "")
    table, _ = decode(data)
    at = COLUMNS.get_field_index(column)
    for position in range(3):
        values = columns()[column].to_pylist()
        other = next(value for value in [None, *values[::-1], not values[0]] if value != values[position])
        try:
            values[position] = other
            changed = table.set_column(
                at, table.schema.field(column), pa.array(values, type=COLUMNS.field(column).type)
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            continue
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(changed, sink)
        assert decode(sink.getvalue().to_pybytes()) is None


def test_nan_rewards_and_negative_zero_survive():
    table = columns().set_column(
        4, COLUMNS.field("reward"), pa.array(np.array([np.nan, -0.0, 1e-45], dtype=np.float32))
    )
    got = decode(encode(table, footer(), ""))[0]["reward"].to_numpy()
    assert got.tobytes() == np.array([np.nan, -0.0, 1e-45], dtype=np.float32).tobytes()


def test_the_first_valid_file_stands(tmp_path):
    path = str(tmp_path / "a.parquet")
    assert score_files.write(path, columns(), footer(tokens=1), "") == footer(tokens=1)
    assert score_files.write(path, columns(), footer(tokens=2), "") == footer(tokens=1)
    assert score_files.read(path)[1] == footer(tokens=1)


def test_a_damaged_file_is_replaced(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 not really")
    assert score_files.read(str(path)) is None
    score_files.write(str(path), columns(), footer(), "")
    assert score_files.read(str(path))[1] == footer()


def test_scores_of_other_content_are_not_passed_off(tmp_path):
    path = str(tmp_path / "a.parquet")
    score_files.write(path, columns(), footer(content_hash="other"), "")
    with pytest.raises(StorageError, match="other content"):
        score_files.write(path, columns(), footer(), "")


def test_another_format_is_not_valid():
    assert decode(encode(columns(), footer(format=score_files.FORMAT + 1), "")) is None


def test_names_differ_in_every_part_of_the_place():
    place = {"file_key": "a", "unit": 0, "unit_start": 0, "fragment": 0, "rows_per_fragment": 1}
    others = [{**place, key: value} for key, value in [("file_key", "b"), *((k, 9) for k in list(place)[1:])]]
    assert len({score_files.name_of(**fields) for fields in [place, *others]}) == 6


def test_descriptor_round_trip():
    descriptor = ScoreFile("/x/y.parquet", 3, footer())
    assert ScoreFile.from_bytes(descriptor.to_bytes()) == descriptor


def test_names_are_those_of_every_run_before():
    """`echo -n '["a.jsonl", 1, 2, 3, 4]' | sha256sum`: under other names nothing that was scored would be found again."""
    name = score_files.name_of(file_key="a.jsonl", unit=1, unit_start=2, fragment=3, rows_per_fragment=4)
    assert name == "66c9fbc9f9b3c2548ebc604111e4252f"
    assert score_files.path_of("d/", name) == f"d/{name}.parquet"
    assert score_files.path_of("d", name, "v") == f"d/{name}-v.parquet"


def test_scores_under_columns_of_other_types_are_other_content(tmp_path):
    path = str(tmp_path / "s.parquet")
    score_files.write(path, columns(), footer(), "types")
    with pytest.raises(StorageError, match="has the scores of other content"):
        score_files.write(path, columns(), footer(), "others")


def test_a_file_that_is_gone_when_it_is_read_is_written(tmp_path, monkeypatch):
    path = tmp_path / "s.parquet"
    path.write_bytes(b"damaged")

    def gone(_):
        monkeypatch.undo()
        path.unlink()

    monkeypatch.setattr(score_files.publish, "read_with_version", gone)
    assert score_files.write(str(path), columns(), footer(), "types") == footer()
    assert score_files.read(str(path))[1] == footer()


def test_a_damaged_file_that_another_run_replaces_first_stands(tmp_path, monkeypatch):
    path = tmp_path / "s.parquet"
    path.write_bytes(b"damaged")

    def late(*_, **__):
        path.write_bytes(encode(columns(), footer(tokens=34), "types"))
        return False

    monkeypatch.setattr(score_files.publish, "replace", late)
    assert score_files.write(str(path), columns(), footer(), "types") == footer(tokens=34)


def test_some_columns_of_a_file(tmp_path):
    path = str(tmp_path / "s.parquet")
    score_files.write(path, columns(), footer(), "types")
    table = score_files.read_columns(path, ["reward", "reason", "row"], footer())
    assert table.column_names == ["reward", "reason", "row"]
    assert table.to_pylist() == columns().select(["reward", "reason", "row"]).to_pylist()
    assert pa.types.is_dictionary(table["reason"].type)
    with pytest.raises(StorageError, match=r"s\.parquet changed while it was read; run the same command again"):
        score_files.read_columns(path, ["row"], footer(responses=4))
    with pytest.raises(
        StorageError, match=r"none\.parquet is gone or damaged \(FileNotFoundError\); run the same command"
    ):
        score_files.read_columns(str(tmp_path / "none.parquet"), ["row"], footer())


@pytest.mark.parametrize(("start", "count"), [(0, 2), (1, 2), (1, 1), (2, 0)])
def test_the_hash_is_of_the_rows_not_of_the_buffers(start, count):
    part = columns(4).slice(start, count)
    anew = pa.Table.from_pylist(part.to_pylist(), schema=COLUMNS)
    assert score_files.columns_hash(part, "d") == score_files.columns_hash(anew, "d")
    assert score_files.columns_hash(part, "d") != score_files.columns_hash(part, "e")


def test_what_came_of_the_responses():
    assert score_files.outcome_of(columns()) == {
        "scored": 2,
        "rejected": {"empty_response": 1},
        "first_rejected": [[1, "empty_response"]],
        "truncated": 1,
    }


def test_columns_are_those_of_the_format():
    """Files of earlier runs have these; other ones are another `FORMAT`."""
    assert (score_files.FORMAT, " ".join(f"{field.name}:{field.type}" for field in COLUMNS)) == (
        2,
        "row:int32 response_index:int32 prompt_key:fixed_size_binary[16] response_hash:uint64 reward:float reason:string "
        "prompt_tokens:int32 response_tokens:int32 response_chars:int32 row_bytes:int64 truncated:bool source:string",
    )
