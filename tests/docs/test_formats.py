"""Every snippet in docs/formats.md, run on an output in the tool that it is for; skipped where the tool is not installed."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation

DOCUMENT = Path(__file__).parents[2] / "docs" / "formats.md"


def snippets(heading: str, language: str) -> list[str]:
    """The code below a heading, up to the next."""
    sections = re.split(r"^## ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = [text for text in sections if text.startswith(heading + "\n")]
    return re.findall(rf"^```{language}\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


def ran(code: str, **known: Any) -> SimpleNamespace:
    exec(code, known)
    return SimpleNamespace(**known)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, configure):
    """A directory with `curated` and `pairs`, as the document has them."""
    root = tmp_path_factory.mktemp("formats")
    path = write_jsonl(root / "in" / "a.jsonl", corpus_rows(40))
    curated = {"path": str(root / "curated"), "test_fraction": 0.2, "rows_per_shard": 9}
    run_curation(configure(root, path, output=curated), scorer=StubFactory())
    pairs = {"path": str(root / "pairs"), "shape": "preference"}
    run_curation(configure(root, path, select=[{"pairs": {}}], output=pairs), scorer=StubFactory())
    return root


@pytest.fixture
def here(outputs, tmp_path, monkeypatch):
    """The directory that the snippets run in."""
    for name in ("curated", "pairs"):
        (tmp_path / name).symlink_to(outputs / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def rows_of(out: Path, split: str) -> list[dict[str, Any]]:
    return [row for path in sorted(out.glob(f"data/{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]


@pytest.fixture
def train(outputs):
    return rows_of(outputs / "curated", "train")


@pytest.fixture
def test(outputs):
    return rows_of(outputs / "curated", "test")


def test_the_document_names_no_tool_without_a_snippet():
    text = DOCUMENT.read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(#([^)]+)\)", text))
    headings = {line.lower().replace(" ", "-") for line in re.findall(r"^## (.+)$", text, flags=re.MULTILINE)}
    assert links == headings


def test_datasets(here, train, test):
    whole, streamed = snippets("datasets", "python")
    loaded = ran(whole)
    assert (loaded.train.to_list(), loaded.test.to_list()) == (train, test)
    streaming = ran(streamed)
    assert streaming.first == train[0]
    assert list(streaming.train) == train


def test_pandas(here, train):
    pytest.importorskip("pandas")
    found = ran(*snippets("pandas", "python")).train
    assert found["prompt_id"].tolist() == [row["prompt_id"] for row in train]
    assert [list(messages) for messages in found["messages"]] == [row["messages"] for row in train]


def test_polars(here, train):
    pytest.importorskip("polars")
    found = ran(*snippets("Polars", "python"))
    assert found.train.collect().to_dicts() == train
    assert found.best.to_dicts() == sorted(train, key=lambda row: -row["reward"])[:3]


def test_duckdb(here, train):
    pytest.importorskip("duckdb")
    found = ran(*snippets("DuckDB", "python")).answers.fetchall()
    best = sorted(train, key=lambda row: -row["reward"])
    assert found == [(row["messages"][-1]["content"], row["reward"]) for row in best]


@pytest.fixture
def tiny(tmp_path):
    """A language model of a few thousand parameters, loaded from a directory, and its tokenizer with a chat template."""
    from support.tiny_models import save_language_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    path = save_language_model(tmp_path / "tiny")
    return {"model": LlamaForCausalLM.from_pretrained(path), "tokenizer": AutoTokenizer.from_pretrained(path)}


@pytest.fixture
def on_cpu(tiny, monkeypatch):
    """The trainers' settings, with nothing that a CPU lacks."""
    trl = pytest.importorskip("trl")
    for name in ("SFTConfig", "DPOConfig"):
        settings = {"report_to": "none", "use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        monkeypatch.setattr(trl, name, partial(getattr(trl, name), **settings))
    return tiny


@pytest.mark.slow
def test_trl_sft(here, on_cpu, train):
    found = ran(*snippets("TRL SFT", "python"), **on_cpu)
    assert found.trainer.state.global_step == 1
    assert found.trainer.state.log_history[-1]["train_loss"] > 0
    assert len(found.trainer.train_dataset) == len(train)


@pytest.mark.slow
def test_trl_dpo(here, on_cpu, outputs):
    found = ran(*snippets("TRL DPO", "python"), **on_cpu)
    assert found.trainer.state.global_step == 1
    assert found.trainer.state.log_history[-1]["train_loss"] > 0
    assert len(found.trainer.train_dataset) == len(rows_of(outputs / "pairs", "train"))


def test_what_configurations_name_is_there(here):
    """Also where LLaMA-Factory and axolotl are not installed."""
    ran(*snippets("LLaMA-Factory DPO", "python"))
    import datasets

    for heading in ("LLaMA-Factory SFT", "LLaMA-Factory DPO"):
        (entry,) = json.loads(*snippets(heading, "json")).values()
        where = entry.get("script_url") or "parquet"
        files = {"data_files": entry["file_name"]} if where == "parquet" else {}
        row = datasets.load_dataset(where, split=entry.get("split", "train"), **files)[0]
        messages = row[entry["columns"]["messages"]]
        assert set(messages[0]) == {entry["tags"]["role_tag"], entry["tags"]["content_tag"]}
        assert isinstance(row.get("chosen", {}), dict)
        assert len(messages) % 2 == (1 if entry.get("ranking") else 0)
    for heading in ("axolotl SFT", "axolotl DPO"):
        settings = yaml.safe_load(*snippets(heading, "yaml"))
        for entry in [*settings["datasets"], *settings.get("test_datasets", [])]:
            row = datasets.load_dataset(entry["path"], split=entry["split"])[0]
            fields = [entry[name] for name in ("field_messages", "field_chosen", "field_rejected") if name in entry]
            assert all(set(row[name][0]) == set(entry["message_property_mappings"].values()) for name in fields)


def converted_by_llama_factory(heading: str) -> list[dict[str, Any]]:
    """What LLaMA-Factory's own loader and converter make of an entry of the document."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    loader = pytest.importorskip(
        "llamafactory.data.loader", exc_type=ImportError, reason="LLaMA-Factory is not installed"
    )
    parser = pytest.importorskip("llamafactory.data.parser", exc_type=ImportError)
    info = json.loads(*snippets(heading, "json"))
    Path("dataset_info.json").write_text(json.dumps(info))
    (attributes,) = parser.get_dataset_list(list(info), ".")
    data = SimpleNamespace(
        dataset_dir=".",
        streaming=False,
        preprocessing_num_workers=None,
        overwrite_cache=True,
        max_samples=None,
        media_dir=".",
    )
    model = SimpleNamespace(cache_dir=None, hf_hub_token=None)
    training = SimpleNamespace(local_process_index=0, dataloader_num_workers=0)
    found: list[dict[str, Any]] = loader._load_single_dataset(attributes, model, data, training).to_list()
    return found


def test_llama_factory_sft(here, train):
    found = converted_by_llama_factory("LLaMA-Factory SFT")
    assert [row["_prompt"] + row["_response"] for row in found] == [row["messages"] for row in train]
    assert all(len(row["_response"]) == 1 for row in found)


def test_llama_factory_dpo(here, outputs):
    pytest.importorskip("llamafactory.data.loader", exc_type=ImportError, reason="LLaMA-Factory is not installed")
    ran(*snippets("LLaMA-Factory DPO", "python"))
    found = converted_by_llama_factory("LLaMA-Factory DPO")
    pairs = rows_of(outputs / "pairs", "train")
    assert [row["_prompt"] for row in found] == [row["prompt"] for row in pairs]
    assert [row["_response"] for row in found] == [row["chosen"] + row["rejected"] for row in pairs]


def test_axolotl_dpo(here, outputs, tiny):
    strategy = pytest.importorskip(
        "axolotl.prompt_strategies.dpo.chat_template", exc_type=ImportError, reason="axolotl is not installed"
    )
    import datasets

    settings = yaml.safe_load(*snippets("axolotl DPO", "yaml"))
    transform, options = strategy.default({**settings, "chat_template": "tokenizer_default"})
    data = datasets.load_dataset("pairs", split="train")
    found = data.map(transform, fn_kwargs={"tokenizer": tiny["tokenizer"]}, **options).to_list()
    for row, pair in zip(found, rows_of(outputs / "pairs", "train"), strict=True):
        assert pair["prompt"][-1]["content"] in row["prompt"]
        for side in ("chosen", "rejected"):
            assert row[side].startswith(pair[side][0]["content"])


def test_axolotl_sft(here, train, tiny):
    module = pytest.importorskip(
        "axolotl.prompt_strategies.chat_template", exc_type=ImportError, reason="axolotl is not installed"
    )
    settings = yaml.safe_load(*snippets("axolotl SFT", "yaml"))["datasets"][0]
    from axolotl.utils.dict import DictDefault

    config = DictDefault({"chat_template": "tokenizer_default", "sequence_len": 64, "train_on_inputs": False})
    strategy = module.load(tiny["tokenizer"], config, settings)
    assert [strategy.get_conversation_thread(row) for row in train] == [row["messages"] for row in train]
