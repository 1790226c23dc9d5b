"""A corpus looked at: counts against brute force, whole and sampled, and every row drawn with the same chance."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import corpus_rows, write_jsonl

from pipelines.commands.estimate import survey as module
from pipelines.commands.estimate.survey import spread_evenly, survey
from pipelines.config import RunConfig
from pipelines.corpus import files, rewrite, rewritten_copy
from pipelines.errors import InputError
from pipelines.plan import make_plans

LISTS = st.lists(
    st.one_of(st.none(), st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=4)), min_size=1, max_size=9
)


@pytest.fixture
def small_limits(monkeypatch):
    """Everything is large: nothing is read whole."""
    monkeypatch.setattr(module, "WHOLE_BYTES", 0)


@pytest.fixture(scope="module")
def looked(configure, tmp_path_factory):
    def look(path, *, skip: bool = False, seed: int = 0, **changes):
        plan = make_plans(configure(tmp_path_factory.mktemp("out"), path, **changes)).whole
        return plan, survey(plan, skip_bad_files=skip, seed=seed)

    return look


def test_a_small_corpus_is_read_whole(looked, tmp_path):
    rows = corpus_rows(5)
    write_jsonl(tmp_path / "in" / "a.jsonl", [*rows[:9], {"prompt": "p", "response": ""}])
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(r).encode() + b"\n" for r in rows[9:]))
    )
    _, found = looked(tmp_path / "in", input={"rows_per_fragment": 4})
    assert (found.whole, found.files, found.rows.value, found.responses.value) == (True, 2, 21, 21)
    assert found.rows.basis == found.responses.basis == "exact"
    assert [len(block.rows) for block in found.blocks] == [4, 4, 2, 4, 4, 3]


@settings(max_examples=40)
@given(LISTS, st.integers(1, 4))
def test_footers_count_the_responses_that_reading_counts(lists, per_group):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        columns = {"prompt": ["p"] * len(lists), "responses": pa.array(lists, type=pa.list_(pa.string()))}
        table = pa.table({**columns, "reward": [0.5] * len(lists)})
        pq.write_table(table, Path(name) / "a.parquet", row_group_size=per_group)
        values = {
            "input": {"path": name + "/*.parquet"},
            "output": {"path": name + "/out"},
            "scores": {"column": "reward"},
        }
        plan = make_plans(RunConfig.model_validate(values)).whole
        whole = survey(plan, skip_bad_files=False, seed=0)
        patch.setattr(module, "WHOLE_BYTES", 0)
        footers = survey(plan, skip_bad_files=False, seed=0)
    assert (whole.whole, footers.whole) == (True, False)
    assert footers.rows == whole.rows
    assert footers.responses == whole.responses
    assert footers.responses.basis == "exact"


def test_lists_within_lists_are_sampled_instead(looked, tmp_path, small_limits):
    rows = [1 + n % 3 for n in range(600)]
    lists = pa.array([[["a"] * 3] * n for n in rows], type=pa.list_(pa.list_(pa.string())))
    table = pa.table({"prompt": ["p"] * 600, "responses": lists})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=50)
    named = {"columns": {"prompt": "prompt", "responses": "responses"}}
    _, found = looked(tmp_path / "a.parquet", input=named)
    assert (found.rows.value, found.rows.basis) == (600, "exact")
    assert found.responses.basis == "sampled"
    assert found.responses.low <= sum(rows) <= found.responses.high


def test_messages_in_lists_are_counted_by_footers(looked, tmp_path, small_limits):
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    lists = pa.array([[{"role": "assistant", "content": "a"}] * (n % 3) for n in range(9)], type=pa.list_(turn))
    pq.write_table(pa.table({"prompt": ["p"] * 9, "responses": lists}), tmp_path / "a.parquet")
    _, found = looked(tmp_path / "a.parquet")
    assert (found.responses.value, found.responses.basis) == (3 * (1 + 1 + 2), "exact")


def test_rows_of_a_large_compressed_file(looked, tmp_path, small_limits, monkeypatch):
    """Read in pieces, of which the first ones are counted: whole pieces, or rows would be missed."""
    monkeypatch.setattr(module, "_COMPRESSED_BYTES", 2**20)
    draw = random.Random(0)
    lines = [json.dumps({"prompt": "p", "response": draw.randbytes(draw.randint(100, 900)).hex()}) for _ in range(9000)]
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 1))
    _, found = looked(tmp_path / "a.jsonl.gz")
    assert found.rows.value == pytest.approx(9000, rel=0.05)


@pytest.mark.parametrize("form", ["parquet", "jsonl", "jsonl.gz"])
def test_a_sample_finds_the_counts_within_its_interval(looked, tmp_path, small_limits, monkeypatch, form):
    monkeypatch.setattr(module, "BLOCK_ROWS", 20)
    monkeypatch.setattr(module, "BLOCKS", 24)
    monkeypatch.setattr(module, "_SMALL_FILE", 0)
    draw, held, total = random.Random(3), 0, 0
    (tmp_path / "in").mkdir()
    for number in range(30):
        rows = [
            {"prompt": f"prompt {n}", "response": "word " * draw.randint(1, 10 + number)}
            for n in range(draw.randint(60, 120))
        ]
        total += len(rows)
        path = tmp_path / "in" / f"{number:02d}.{form}"
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=25)
        else:
            data = "".join(json.dumps(row) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(data) if form == "jsonl.gz" else data)
    for seed in range(20):
        _, found = looked(tmp_path / "in", seed=seed)
        assert not found.whole
        held += found.rows.low <= total <= found.rows.high
        assert found.rows.value == pytest.approx(total, rel=0.25)
    assert held >= 17


def test_of_very_many_files_a_sample_is_opened(looked, tmp_path, small_limits, monkeypatch):
    monkeypatch.setattr(module, "MOST_FOOTERS", 40)
    rows = [{"prompt": f"prompt {n}", "response": "word"} for n in range(9)]
    (tmp_path / "in").mkdir()
    for number in range(120):
        pq.write_table(pa.Table.from_pylist(rows[: 3 + number % 7]), tmp_path / "in" / f"{number:03d}.parquet")
    total = sum(3 + number % 7 for number in range(120))
    _, found = looked(tmp_path / "in")
    assert (found.footers, found.rows.basis, found.responses.basis) == (40, "sampled", "sampled")
    assert found.rows.low <= total <= found.rows.high
    assert found.rows.high < 1.5 * total


def test_files_that_cannot_be_read(looked, tmp_path, small_limits):
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(corpus_rows(3)), tmp_path / "in" / "a.parquet")
    (tmp_path / "in" / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InputError, match=r"b\.parquet"):
        looked(tmp_path / "in")
    _, found = looked(tmp_path / "in", skip=True, limits={"skip_bad_files": True})
    assert (found.rows.value, found.unreadable) == (12, 1)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.integers(1, 30), st.integers(0, 9))
def test_points_are_spread_in_proportion(sizes, count, seed):
    found = dict(spread_evenly(sizes, count, random.Random(seed)))
    total = sum(sizes)
    assert sum(found.values()) == (count if total else 0)
    for index, hits in found.items():
        assert abs(hits - count * sizes[index] / total) < 1
    assert all(found.get(index, 0) > 0 for index, size in enumerate(sizes) if total and size * count > total)


@pytest.fixture
def large(monkeypatch, tmp_path):
    """A corpus of one compressed file of 600 rows, to be rewritten in parts of 50."""
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(rewritten_copy, "PART_ROWS", 50)
    rows = corpus_rows(60, 10)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in rows)))
    return path


@pytest.mark.parametrize("whole", [True, False])
def test_a_file_to_be_rewritten_is_looked_at_before_and_after(looked, large, monkeypatch, whole):
    monkeypatch.setattr(module, "WHOLE_BYTES", 2**30 if whole else 0)
    monkeypatch.setattr(module, "BLOCKS", 6)
    plan, before = looked(large, input={"rows_per_fragment": 20})
    (file,) = plan.files
    assert {block.unit for block in before.blocks} == {0}
    rewrite.rewrite(file, file.copy, max_row_bytes=plan.max_row_bytes)
    after = survey(plan, skip_bad_files=False, seed=0)
    assert before.rows.value == 600
    assert after.rows.low <= 600 <= after.rows.high
    assert before.measure == after.measure
    drawn = {(block.unit, block.fragment) for block in after.blocks}
    if whole:
        assert drawn == {(unit, fragment) for unit in range(1, 13) for fragment in range(3)}
    else:
        assert len({unit for unit, _ in drawn}) == 6
        assert {fragment for _, fragment in drawn} == {0}
    rewritten_copy.parts_of.cache_clear()
    shutil.rmtree(file.copy)
    assert survey(plan, skip_bad_files=False, seed=0) == before
    assert not Path(file.copy).exists()
