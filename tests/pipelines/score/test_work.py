"""Pieces of work: every unit once whatever the number of shards, large ones first, and no shard much larger than another."""

from __future__ import annotations

import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import InputFiles
from pipelines.corpus import InputFile, Unit, files, split_units
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.fragments import FRAGMENT_BYTES
from pipelines.corpus.listing import list_files
from pipelines.errors import ConfigError
from pipelines.plan import Plan
from pipelines.score import work
from pipelines.score.work import (
    CorpusShard,
    WorkPiece,
    bytes_in,
    deal,
    largest_first,
    pieces_of_shard,
    split_large,
    stripe,
    stripes_of,
    whole_files,
)

sizes = st.lists(st.integers(0, 400), min_size=1, max_size=30)


def jsonl_files(lengths: list[int]) -> list[InputFile]:
    return [InputFile(f"/nowhere/{n}.jsonl", f"{n}.jsonl", "jsonl", None, size, "v") for n, size in enumerate(lengths)]


@pytest.fixture(autouse=True)
def _small_ranges(monkeypatch):
    monkeypatch.setattr(files, "RANGE_BYTES", 50)
    real = files.open_input

    def open_input(file, **how):
        return io.BytesIO() if file.path.startswith("/nowhere/") else real(file, **how)

    monkeypatch.setattr(files, "open_input", open_input)


def all_units(corpus):
    return sorted((number, unit) for number, file in enumerate(corpus) for unit in split_units(file))


def units_of(corpus, dealt):
    found = []
    for piece in dealt:
        found += [(piece.file, unit) for unit in ([piece.unit] if piece.unit else split_units(corpus[piece.file]))]
    return sorted(found)


SLURM = {
    "SLURM_ARRAY_TASK_ID": "6",
    "SLURM_ARRAY_TASK_COUNT": "4",
    "SLURM_ARRAY_TASK_MIN": "3",
    "SLURM_ARRAY_TASK_MAX": "6",
}
KUBERNETES = {"JOB_COMPLETION_INDEX": "2"}


@pytest.mark.parametrize(
    ("text", "environment", "shard"),
    [
        ("auto/4", KUBERNETES, (2, 4)),
        ("auto", SLURM, (3, 4)),
        ("auto/9", SLURM, (6, 9)),
        ("auto", {"CLOUD_RUN_TASK_INDEX": "0", "CLOUD_RUN_TASK_COUNT": "1"}, (0, 1)),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "9", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}, (9, 10)),
        ("1/2", {**SLURM, **KUBERNETES}, (1, 2)),
    ],
)
def test_a_task_of_an_array_knows_its_shard(text, environment, shard):
    assert CorpusShard.of(text, environment) == CorpusShard(*shard)


@pytest.mark.parametrize(
    ("text", "environment", "message"),
    [
        ("auto", {}, "no number of a task; expected one of JOB_COMPLETION_INDEX, SLURM_ARRAY_TASK_ID, "),
        ("auto/4", {"SLURM_ARRAY_TASK_ID": ""}, "no number of a task"),
        ("auto/4", {**SLURM, **KUBERNETES}, "JOB_COMPLETION_INDEX and SLURM_ARRAY_TASK_ID"),
        ("auto", KUBERNETES, "JOB_COMPLETION_INDEX=2 nothing says how many .* --shard auto/N"),
        ("auto/2", KUBERNETES, "--shard is '2/2'; of N shards"),
        ("auto/", KUBERNETES, "--shard is '2/'; expected I/N"),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "x", "AWS_BATCH_JOB_ARRAY_SIZE": "10"}, "'x/10'; expected I/N"),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_MAX": "9"}, "the 4 tasks .* are not all from 3 to 9"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "4", "SLURM_ARRAY_TASK_COUNT": "4"}, "'4/4'; of N shards"),
        ("autos", KUBERNETES, "'autos'; expected I/N"),
    ],
)
def test_a_shard_that_the_environment_does_not_tell_is_refused(text, environment, message):
    with pytest.raises(ConfigError, match=message):
        CorpusShard.of(text, environment)


@given(sizes, st.integers(1, 9))
def test_the_shards_are_all_units_once(lengths, count):
    corpus = jsonl_files(lengths)
    shards = [pieces_of_shard(corpus, CorpusShard(index, count)) for index in range(count)]
    assert sorted(unit for shard in shards for unit in units_of(corpus, shard)) == all_units(corpus)


@given(sizes, st.integers(1, 9))
def test_no_shard_holds_more_than_another_by_more_than_a_piece(lengths, count):
    corpus = jsonl_files(lengths)
    shards = [pieces_of_shard(corpus, CorpusShard(index, count)) for index in range(count)]
    held = [sum(max(1, piece.stored_bytes) for piece in shard) for shard in shards]
    assert max(held) - min(held) <= max(1, max(piece.stored_bytes for shard in shards for piece in shard))


@given(sizes, st.integers(1, 9))
def test_a_piece_is_a_unit_where_the_file_is_large(lengths, most_bytes):
    corpus = jsonl_files(lengths)
    for piece in split_large(corpus, whole_files(corpus), most_bytes):
        assert (piece.unit is not None) == (corpus[piece.file].size > most_bytes)
        assert piece.stored_bytes == (piece.unit.input_bytes if piece.unit else corpus[piece.file].size)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=20), st.integers(1, 8))
def test_stripes_are_the_same_work_and_never_too_large(lengths, workers):
    whole = [WorkPiece(number, Unit(0, 0, size, size), size) for number, size in enumerate(lengths)]
    striped = stripe(whole, workers)
    left = sum(lengths)
    for size in sorted(lengths, reverse=True):
        first = striped[0]
        mine, striped = striped[: first.stripes], striped[first.stripes :]
        assert first.unit.input_bytes == size
        assert [(one.file, one.stripe, one.stripes) for one in mine] == [
            (first.file, k, len(mine)) for k in range(len(mine))
        ]
        assert all(one.stored_bytes <= max(1, left // (2 * workers)) for one in mine)
        assert len(mine) == 1 or size > (len(mine) - 1) * max(1, left // (2 * workers)), "no more stripes than need be"
        left -= size
    assert striped == []


def test_units_at_the_end_are_striped_and_those_before_are_not():
    striped = stripe([WorkPiece(number, Unit(0, 0, 100, 100), 100) for number in range(8)], 2)
    assert [piece.stripes for piece in striped if piece.stripe == 0] == [1, 1, 1, 1, 1, 2, 2, 4]


def test_a_whole_file_is_not_striped():
    assert stripe([WorkPiece(0, None, 1000)], 8) == [WorkPiece(0, None, 1000)]


def test_the_largest_come_first_and_equal_ones_in_order():
    dealt = [WorkPiece(2, None, 5), WorkPiece(0, None, 5), WorkPiece(1, None, 9)]
    assert [piece.file for piece in largest_first(dealt)] == [1, 0, 2]
    assert [[piece.file for piece in worker] for worker in deal(dealt, 2)] == [[1], [0, 2]]


def test_new_files_of_one_size_go_to_all_shards():
    """A corpus grows at its end, and what is old is scored already."""
    old, new = jsonl_files([100] * 8), jsonl_files([100] * 12)
    for index in range(4):
        assert (
            sum(piece.stored_bytes for piece in pieces_of_shard(new, CorpusShard(index, 4)) if piece.file >= len(old))
            == 100
        )


def test_footers_of_large_files_alone_are_opened(tmp_path, monkeypatch):
    for number, rows in enumerate([900, *[1] * 30]):
        numbers = np.random.default_rng(number).integers(0, 2**60, rows)
        pq.write_table(pa.table({"prompt": numbers.astype(str)}), tmp_path / f"{number:02}.parquet", row_group_size=100)
    corpus = list_files(InputFiles(path=str(tmp_path / "*")))
    opened = []
    monkeypatch.setattr(work, "split_units", lambda file, **how: opened.append(file.key) or split_units(file, **how))
    shard = pieces_of_shard(corpus, CorpusShard(0, 2))
    assert opened == ["00.parquet"]
    assert {piece.unit.number for piece in shard if piece.unit} < set(range(9))


def test_a_file_that_cannot_be_read_stays_whole(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"no Parquet" * 20)
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    corpus = list_files(InputFiles(path=str(tmp_path / "*")))
    assert split_large(corpus, whole_files(corpus), 50) == [WorkPiece(0, None, 200), WorkPiece(1, None, 10)]


@pytest.mark.parametrize(
    ("text", "shard"), [("0/1", CorpusShard(0, 1)), ("2/3", CorpusShard(2, 3)), ("0/400", CorpusShard(0, 400))]
)
def test_shards_by_name(text, shard):
    assert CorpusShard.of(text) == shard
    assert str(shard) == text


@pytest.mark.parametrize("text", ["", "1", "/", "1/", "/2", "3/3", "-1/2", "0/0", "a/b", "1/2/3", "1 / 2", "²/3"])
def test_other_names_of_shards_are_refused(text):
    with pytest.raises(ConfigError, match=r"--shard is .*expected"):
        CorpusShard.of(text)


def planned(file: InputFile, model: dict | None = None, rows_per_fragment: int = 10) -> Plan:
    mapping = RowMapping("prompt_response", "p", "r")
    return Plan((file,), mapping, rows_per_fragment, 2**20, {} if model is None else model, {}, "f")


@pytest.mark.parametrize(
    ("kind", "unit", "most_bytes", "stripes"),
    [
        ("parquet", Unit(3, 0, 1000, 1000), 300, 10),  # compressed to a third
        ("parquet", Unit(3, 0, 1000, 1000), 1, 100),  # no more than there are fragments
        ("parquet", Unit(0, 0, 11, 1000), 1, 2),
        ("parquet", Unit(0, 0, 2, 64 * 2**20), 2**20, 3),  # which 64 MiB of text end, too
        ("parquet", Unit(3, 0, 1000, 1000), 3000, 1),
        ("parquet", Unit(0, 0, 0, 0), 1, 1),
        ("parquet", Unit(3, 0, 1000, 1000), math.inf, 1),
        ("jsonl", Unit(1, 2**26, 2**27, 2**26), 2**26, 1),
        ("jsonl", Unit(1, 2**26, 2**27, 2**26), 2**26 - 1, 2),
        ("parquet", Unit(0, 0, 1000, 1000), 59, 100),  # of two fragments it would have 60 bytes
        ("parquet", Unit(0, 0, 1000, 1000), 60, 50),
        ("jsonl", Unit(3, 150, 150 + 20480, 20480), 1, 4),  # rows have 512 bytes
    ],
)
def test_units_are_dealt_out_in_stripes_of_so_much_text(kind, unit, most_bytes, stripes):
    plan = planned(InputFile(f"/nowhere/a.{kind}", f"a.{kind}", kind, None, 1000, "v"))
    expected = [(0, tuple(unit), (number, stripes)) for number in range(stripes)]
    assert stripes_of(0, unit, plan, most_bytes) == expected


@given(
    st.sampled_from(["parquet", "jsonl"]),
    st.integers(1, 2_000_000),
    st.integers(0, 2**32),
    st.integers(1, 5000),
    st.integers(1, 2**34),
)
def test_no_stripe_is_longer_than_what_was_wanted_or_a_fragment(kind, rows, stored, rows_per_fragment, most_bytes):
    plan = planned(InputFile(f"/nowhere/a.{kind}", f"a.{kind}", kind, None, stored, "v"), None, rows_per_fragment)
    parts = stripes_of(0, Unit(0, 0, rows if kind == "parquet" else stored, stored), plan, most_bytes)
    assert [part[2] for part in parts] == [(stripe, len(parts)) for stripe in range(len(parts))]
    text_bytes = stored * (3 if kind == "parquet" else 1)
    most_rows = max(rows if kind == "parquet" else text_bytes / 512, 1)
    fragments = math.ceil(max(most_rows / rows_per_fragment, text_bytes / FRAGMENT_BYTES))
    assert len(parts) <= fragments
    numbers = sorted(index for stripe in range(len(parts)) for index in range(stripe, min(fragments, 5000), len(parts)))
    assert numbers == list(range(min(fragments, 5000))), "each fragment is in one of them"
    longest = math.ceil(fragments / len(parts))
    assert longest == 1 or longest * text_bytes / fragments <= most_bytes * 1.0001


def test_a_device_that_is_left_open_is_that_of_the_worker(tmp_path, monkeypatch):
    file = InputFile("/nowhere/a.parquet", "a.parquet", "parquet", None, 2 * 2**30, "v")
    (tmp_path / "model.safetensors").write_bytes(bytes(2_000))
    secs = {}
    for device, gpus in (("auto", []), ("auto", ["0"]), ("cpu", ["0"]), ("cuda", [])):
        monkeypatch.setattr(work.machine, "list_gpus", lambda gpus=gpus: gpus)
        secs[device, bool(gpus)] = bytes_in(1.0, planned(file, {"directory": str(tmp_path), "device": device}))
    assert secs["auto", False] == secs["cpu", True] < secs["auto", True] == secs["cuda", False]


def test_ten_minutes_of_a_model_are_few_megabytes_on_a_small_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(work.machine, "list_gpus", list)
    file = InputFile("/nowhere/a.parquet", "a.parquet", "parquet", None, 2 * 2**30, "v")
    on_store = {"directory": "gs://b/m", "files": {"model.safetensors": [16_000_000_000, "h"], "t.json": [9, "h"]}}
    large = planned(file, {**on_store, "device": "cuda"}, rows_per_fragment=2048)
    assert bytes_in(600, large) == pytest.approx(600 * 30e12 / 16e9 * 4)  # 8e9 parameters, 1,875 tokens/s, 4 bytes each
    assert len(stripes_of(0, Unit(0, 0, 1_000_000, 2**29), large, bytes_in(600, large))) == 489
    with (tmp_path / "model.safetensors").open("wb") as weights:
        weights.truncate(2_000_000)
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    here = planned(file, {"directory": str(tmp_path), "device": "auto"})
    assert bytes_in(600, here) == pytest.approx(600 * 50e9 / 2e6 * 4)
    assert bytes_in(600, planned(file)) == bytes_in(math.inf, here) == math.inf
