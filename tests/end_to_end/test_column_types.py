"""Parquet columns of rarer types: read, or refused by the name of the type before anything is scored."""

from __future__ import annotations

import datetime
import re
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

PROMPTS, RESPONSES = ["p0", "p1"] * 3, [f"r{n}" for n in range(6)]
GRADES = [float(n) for n in range(6)]


@pytest.fixture
def run(tmp_path, bestkept):
    """(columns, settings) → exit code, last line, and the kept rows."""

    def run(columns: dict, *words: str) -> tuple[int, str, list]:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        values = {
            "input": {"path": str(tmp_path / "a.parquet")},
            "scores": {"column": "grade"},
            "report": {"write": False},
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({**values, "output": {"path": str(tmp_path / "out")}}))
        code, _, err = bestkept("run", tmp_path / "c.yaml", *words)
        kept = pq.read_table(tmp_path / "out" / "data").to_pylist() if code == 0 else []
        return code, err.strip().splitlines()[-1], kept

    return run


@pytest.mark.parametrize("shape", ["messages", "original"])
def test_text_that_is_stored_as_views_is_read_and_written_as_text(run, tmp_path, shape):
    view, nested = pa.string_view(), pa.struct([("a", pa.list_(pa.string_view()))])
    columns = {"prompt": pa.array(PROMPTS, view), "response": pa.array(RESPONSES, view), "grade": GRADES}
    columns |= {"source": pa.array(PROMPTS, view), "more": pa.array([{"a": ["x", None]}] * 6, nested)}
    columns |= {"bytes": pa.array([b"\xff"] * 6, pa.binary_view())}
    more = [] if shape == "original" else ["output.include_columns=[more, bytes]"]
    code, last, kept = run(columns, f"output.shape={shape}", "input.carry=[source]", *more)
    assert code == 0, last
    assert sorted((row["source"], row["reward"]) for row in kept) == [("p0", 4.0), ("p1", 5.0)]
    assert [(row["more"], row["bytes"]) for row in kept] == [({"a": ["x", None]}, b"\xff")] * 2
    types = {field.name: field.type for field in pq.read_schema(next((tmp_path / "out" / "data").iterdir()))}
    assert types["more"] == pa.struct([("a", pa.list_(pa.string()))])
    assert types["bytes"] == pa.binary()


@pytest.mark.parametrize("kind", [pa.decimal128(10, 2), pa.decimal256(50, 2), pa.list_(pa.decimal128(10, 2))])
def test_decimals_are_rewards(run, kind):
    grades = [Decimal(n) / 4 for n in range(6)]
    listed = pa.types.is_list(kind)
    responses = {"responses": [[text] for text in RESPONSES]} if listed else {"response": RESPONSES}
    values = pa.array([[grade] for grade in grades] if listed else grades, kind)
    code, last, kept = run({"prompt": PROMPTS, **responses, "grade": values})
    assert code == 0, last
    assert sorted(row["reward"] for row in kept) == [1.0, 1.25]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("grade", [True] * 6, "'grade' holds boolean, and the reward is numbers"),
        ("grade", [[True]] * 6, "'grade' contains list<element: bool>, and the reward is numbers"),
        ("grade", ["1"] * 6, "'grade' holds text, and the reward is numbers"),
        ("prompt", [True, False] * 3, "'prompt' contains bool, and the prompt is text or messages"),
        (
            "prompt",
            [datetime.date(2026, 1, 1)] * 6,
            r"'prompt' contains date32\[day\], and the prompt is text or messages",
        ),
        ("response", [Decimal(1)] * 6, r"'response' contains decimal128\(1, 0\), and the response is text or messages"),
        ("response", [1.5] * 6, "'response' contains double, and the response is text or messages"),
    ],
)
def test_types_that_can_hold_nothing_of_the_kind_are_refused_by_name(run, tmp_path, column, values, words):
    columns = {"prompt": PROMPTS, "response": RESPONSES, "grade": GRADES, column: values}
    code, last, _ = run(columns, "input.columns={prompt: prompt, response: response}")
    assert code == 3, last
    assert re.search(words, last), last
    assert not (tmp_path / "out").exists()
