"""The short form of `fuzz.py`, with examples that do not change from run to run; and what the long form has found."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pipelines.corpus import UnreadableError, read_fragments

spec = importlib.util.spec_from_file_location("bad_input_fuzz", Path(__file__).with_name("fuzz.py"))
assert spec is not None
assert spec.loader is not None
fuzz = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", [name for name in fuzz.TARGETS if name not in fuzz.WHOLE_RUNS])
def test_only_documented_outcomes(name):
    fuzz.run(name, examples=120)


def test_configurations_end_as_documented():
    fuzz.run("configuration", examples=20)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "examples"), [("configuration", 100), ("scores", 10), ("model", 20)])
def test_whole_runs_end_as_documented(name, examples):
    fuzz.run(name, examples=examples)


def test_a_row_group_that_is_shorter_than_its_footer_says(tmp_path):
    """Found by mutation: rows would have been lost without a word."""
    path = tmp_path / "a.parquet"
    path.write_bytes(fuzz.SAMPLE)
    file = fuzz.described(path)
    [first, second] = fuzz.split_units(file)
    longer = second._replace(end=second.end + 1)
    with pytest.raises(UnreadableError, match=r"a\.parquet is damaged: its row group 1 has 3 rows and should have 4"):
        list(read_fragments(file, longer, fuzz.MAPPINGS[0], rows_per_fragment=5, max_row_bytes=4096))
    assert first.end == second.start == 5
