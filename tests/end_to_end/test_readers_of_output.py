"""The output opens in the tools that people already use: the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation


@pytest.fixture
def out(tmp_path, make_config) -> Path:
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [{**row, "source": "web"} for row in corpus_rows()])
    config = make_config(path, output={"rows_per_shard": 5, "license": "apache-2.0"})
    run_curation(config, scorer=StubFactory())
    return tmp_path / "out"


def test_datasets(out, tmp_path):
    import datasets

    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    assert loaded["train"].num_rows == 12
    assert loaded["train"].column_names == ["messages", "reward", "prompt_id", "source"]
    assert loaded["train"][0]["messages"][-1]["role"] == "assistant"


def test_pandas(out):
    import pandas

    frame = pandas.read_parquet(out / "data")
    assert frame["prompt_id"].nunique() == len(frame) == 12
    assert frame["reward"].dtype == "float32"


def test_duckdb(out):
    import duckdb

    query = f"SELECT count(*), count(DISTINCT prompt_id), min(messages[1].role) FROM '{out}/data/*.parquet'"
    assert duckdb.sql(query).fetchall() == [(12, 12, "user")]


def test_parquet_is_written_as_documented(out):
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(out / "data" / "train-00000-of-00003.parquet").metadata
    column = metadata.row_group(0).column(0)
    assert (metadata.num_rows, column.compression, column.has_offset_index) == (5, "ZSTD", True)


def test_the_card_tells_the_counts_and_no_text(out):
    import yaml

    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---\n")[1])
    assert header["license"] == "apache-2.0"
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*"}]
    assert "12 of 48 scored responses to 12 prompts" in card
    assert "prompt number" not in card


def test_the_manifest_tells_inputs_model_and_shards_and_no_place_or_time(out, tmp_path):
    text = (out / "manifest.json").read_text()
    manifest = json.loads(text)
    assert [entry["key"] for entry in manifest["inputs"]] == ["a.jsonl"]
    assert manifest["inputs"][0] | {"size": 0, "content": ""} == {
        "key": "a.jsonl",
        "rows": 48,
        "responses": 48,
        "scored": 48,
        "size": 0,
        "content": "",
    }
    assert [shard["rows"] for shard in manifest["shards"]] == [5, 5, 2]
    for shard in manifest["shards"]:
        assert (out / shard["name"]).stat().st_size == shard["bytes"]
    assert str(tmp_path / "in") not in text
    assert str(out) not in text


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["messages", "prompt_completion"])
def test_one_step_of_trl_sft(tmp_path, make_config, shape):
    datasets, trl = pytest.importorskip("datasets"), pytest.importorskip("trl")
    from support.tiny_models import CHAT_TEMPLATE, word_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()), output={"shape": shape})
    run_curation(config, scorer=StubFactory())
    tokenizer = word_tokenizer(pair=False)
    tokenizer.chat_template = CHAT_TEMPLATE
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    arguments = trl.SFTConfig(output_dir=str(tmp_path / "sft"), max_steps=1, report_to="none", use_cpu=True, bf16=False)
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)
    outcome = trainer.train()
    assert outcome.global_step == 1
    assert outcome.training_loss > 0
