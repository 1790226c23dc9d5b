"""The dataset card against the libraries that read it."""

from __future__ import annotations

import datetime
import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.export.hf_features import features_of, memory_bytes
from pipelines.export.shards import OutputShard
from pipelines.finish import dataset_card

KINDS = [
    *(
        pa.null(),
        pa.bool_(),
        pa.int8(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
    ),
    *(
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.binary(7),
        pa.date32(),
        pa.date64(),
        pa.time32("s"),
    ),
    *(pa.time64("us"), pa.timestamp("ms"), pa.timestamp("us", tz="UTC"), pa.duration("ns"), pa.decimal128(9, 2)),
    *(pa.dictionary(pa.int32(), pa.string()), pa.decimal256(40, 3), pa.json_()),
]
kinds = st.recursive(
    st.sampled_from(KINDS),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        inner.map(lambda kind: pa.list_(kind, 3)),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda parts: pa.struct([pa.field(f"f{at}", kind) for at, kind in enumerate(parts)])
        ),
    ),
    max_leaves=5,
)


@given(st.lists(kinds, min_size=1, max_size=3))
def test_features_are_those_that_datasets_writes(columns):
    import datasets

    schema = pa.schema([pa.field(f"column {at}", kind) for at, kind in enumerate(columns)])
    assert features_of(schema) == datasets.Features.from_arrow_schema(schema)._to_yaml_list()


def test_a_type_without_a_name_leaves_the_features_out():
    schema = pa.schema([("plain", pa.string()), ("map", pa.map_(pa.string(), pa.int32()))])
    assert features_of(schema) is None
    shards = [OutputShard("data/train-00000-of-00001.parquet", 1, 2, "", 3)]
    assert "features" not in dataset_card._dataset_info(shards, schema)


VALUES = pa.table(
    {
        "text": ["a", None, "äöü", ""],
        "number": pa.array([1, 2, 3, None], pa.int32()),
        "flag": [True, False, True, True],
        "messages": [[{"role": "user", "content": "x"}], [], [{"role": "a", "content": None}], None],
        "large": pa.array(["a", "b", "cc", ""], pa.large_string()),
        "when": [datetime.datetime(2020, 1, 1)] * 4,
        "price": [decimal.Decimal("1.20")] * 4,
        "half": pa.array([b"ab"] * 4, pa.binary(2)),
        "nothing": pa.nulls(4),
        "json": pa.array(['{"a": 1}', None, "[]", '"ä"'], pa.json_()),
    }
)


def test_memory_bytes_are_those_of_arrow_however_the_rows_lie():
    assert memory_bytes(VALUES) == VALUES.combine_chunks().nbytes
    cut = pa.concat_tables([VALUES.slice(0, 1), VALUES.slice(1, 2), VALUES.slice(3)])
    assert memory_bytes(cut) == memory_bytes(VALUES)
    assert memory_bytes(VALUES.select(["text"]).slice(2, 1)) == 4 + len("äöü".encode())  # no null, no bitmap


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6 - 1, "100K<n<1M"), (10**6, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories_are_those_of_the_hub(rows, category):
    assert dataset_card._size_category(rows) == category


@pytest.fixture
def out(tmp_path, make_config):
    rows = [{**row, "source": "web", "nested": {"a": [1, 2], "b": None}} for row in corpus_rows()]
    more = {"shape": "original", "license": "apache-2.0", "test_fraction": 0.4, "rows_per_shard": 4}
    run_curation(make_config(write_jsonl(tmp_path / "a.jsonl", rows), output=more), scorer=StubFactory())
    return tmp_path / "out"


def test_the_hub_library_reads_the_card(out):
    from huggingface_hub import DatasetCard

    found = DatasetCard.load(out / "README.md").data
    assert found.license == "apache-2.0"
    assert found.size_categories == ["n<1K"]
    assert found.task_categories == ["text-generation"]
    assert found.tags == ["bestkept"]
    files = [{"split": name, "path": f"data/{name}-*"} for name in ("train", "test")]
    assert found.configs == [{"config_name": "default", "data_files": files}]
    info = found.dataset_info
    shards = {path: pq.ParquetFile(path).metadata for path in (out / "data").iterdir()}
    assert info["download_size"] == sum(path.stat().st_size for path in shards)
    assert info["dataset_size"] == sum(split["num_bytes"] for split in info["splits"])
    assert [split["name"] for split in info["splits"]] == ["train", "test"]
    for split in info["splits"]:
        own = [metadata.num_rows for path, metadata in shards.items() if path.name.startswith(split["name"])]
        assert split["num_examples"] == sum(own) > 0


def test_datasets_finds_what_the_card_says(out, tmp_path):
    import datasets

    told = datasets.load_dataset_builder(str(out), cache_dir=str(tmp_path / "cache")).info
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    for name, split in loaded.items():
        assert told.splits[name].num_examples == split.num_rows
        assert told.splits[name].num_bytes == pytest.approx(split.info.splits[name].num_bytes, rel=0.03)  # bitmaps
    plain = datasets.load_dataset(
        "parquet", data_files=str(out / "data/train-*.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert told.features == loaded["test"].features == plain["train"].features


def test_datasets_refuses_a_card_that_lies(out, tmp_path):
    import datasets

    readme = out / "README.md"
    loaded = (
        datasets.load_dataset_builder(str(out), cache_dir=str(tmp_path / "cache")).info.splits["train"].num_examples
    )
    readme.write_text(readme.read_text().replace(f"num_examples: {loaded}\n", f"num_examples: {loaded + 1}\n"))
    with pytest.raises(datasets.exceptions.NonMatchingSplitsSizesError):
        datasets.load_dataset(str(out), cache_dir=str(tmp_path / "other-cache"))


def test_the_card_holds_the_settings_and_no_text(out):
    text = (out / "README.md").read_text()
    for said in ("test_fraction: 0.4", "shape: original", "| split `train` |", "best_of_n"):
        assert said in text
    assert "prompt number" not in text
