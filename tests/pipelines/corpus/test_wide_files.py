"""Parquet files with very many columns."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.corpus import files, first_rows, read_first_rows, read_rows, split_units
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.errors import InputError, join_names
from pipelines.plan import make_plans


def write_wide(path, columns, *, value=0.5):
    rows = {"prompt": [f"p{row // 4}" for row in range(12)], "response": [f"r{row}" for row in range(12)]}
    pq.write_table(pa.table({**rows, **{f"c{number}": [value] * 12 for number in range(columns)}}), path)
    return path


def configured(path, tmp_path, **changes):
    values = {
        "input": {"path": str(path)},
        "scores": {"column": "c0"},
        "output": {"path": str(tmp_path / "out")},
        "select": [],
    }
    return RunConfig.model_validate({**values, **changes})


def test_no_column_is_looked_for_among_all_the_others(tmp_path):
    """Once for each column, that is quadratic: 8,000 columns took 17 s."""
    path = write_wide(tmp_path / "a.parquet", 300)
    file = files.InputFile(str(path), "a", "parquet", None, path.stat().st_size, "v")
    mapping, calls = RowMapping("prompt_response", prompt="prompt", response="response"), Counter()

    def count(frame, event, function):
        calls.update([function.__qualname__] if event == "c_call" else [])

    sys.setprofile(count)
    try:
        names, rows = read_first_rows(file, max_row_bytes=1 << 20)
        [unit] = split_units(file)
        read = list(read_rows(file, unit, mapping, np.array([0, 11]), more_columns=None, max_row_bytes=1 << 20))
    finally:
        sys.setprofile(None)
    assert (len(names), len(rows), len(rows[0])) == (302, 12, 302)
    assert [len(row.original) for row in read] == [302, 302]
    assert calls["list.count"] + calls["list.index"] < 10


def test_the_sizes_of_binary_columns_are_read_in_one_pass(tmp_path, monkeypatch):
    path = write_wide(tmp_path / "a.parquet", 50, value=b"x" * 10)
    large = pa.table(
        {"text": ["a"] * 2, "image": [b"y" * 100_000] * 2, "r": [{"image": b"z" * 100_000}] * 2, "a.b": [b"1"] * 2}
    )
    pq.write_table(large, tmp_path / "b.parquet", use_dictionary=False)
    sized = []
    monkeypatch.setattr(
        first_rows, "_mean_bytes", lambda metadata, known=first_rows._mean_bytes: sized.append(1) or known(metadata)
    )
    assert len(first_rows.readable_columns(pq.ParquetFile(path))) == 52
    assert first_rows.readable_columns(pq.ParquetFile(tmp_path / "b.parquet")) == ["text", "a.b"]
    assert sized == [1, 1]


def test_an_error_does_not_list_thousands_of_names(tmp_path):
    path = write_wide(tmp_path / "a.parquet", 3000)
    with pytest.raises(
        InputError, match=r"such column; name one of prompt, response, c0, .*, c97 and 2,902 more$"
    ) as raised:
        make_plans(configured(path, tmp_path, scores={"column": "x"}))
    assert len(raised.value.message) < 2000
    assert join_names(["a", "b"]) == "a, b"


@pytest.mark.slow
def test_a_file_with_thirty_thousand_columns_is_curated(tmp_path):
    """In seconds; it took minutes."""
    config = configured(write_wide(tmp_path / "a.parquet", 30_000), tmp_path)
    assert run_curation(config, scorer=None).manifest["counts"]["kept"] == 12
