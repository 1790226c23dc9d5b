"""Files as people have them through the whole graph: what the rows say is scored and exported, or named as rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig


@pytest.fixture
def export(tmp_path, stub_model):
    """Runs a corpus without any selection: (conversations of the output, reasons of the rejected rows)."""

    def run(path: Path, *, shape: str = "messages", name: str = "out", **input: Any) -> tuple[list[Any], list[str]]:
        out = tmp_path / f"{name}-{shape}"
        values = {"input": {"path": str(path), **input}, "model": {"path": str(stub_model)}, "select": []}
        values |= {"output": {"path": str(out), "shape": shape}, "limits": {"max_rejected_fraction": 0.9}}
        counts = run_curation(RunConfig.model_validate(values), scorer=StubFactory()).manifest["counts"]
        assert counts["read"] == counts["scored"] + counts["rejected_total"]
        rejected = pq.read_table(out / "rejected").to_pylist() if (out / "rejected").exists() else []
        rows = pq.read_table(out / "data").to_pylist()
        conversations = [row.get("messages") or [*row["prompt"], *row["completion"]] for row in rows]
        return conversations, [row["reason"] for row in rejected]

    return run


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def test_a_file_whose_name_is_a_pattern_of_another_is_the_one_that_is_read(export, tmp_path):
    write_jsonl(tmp_path / "shard1.jsonl", [{"prompt": "q", "response": "wrong file"}])
    path = write_jsonl(tmp_path / "shard[1].jsonl", [{"prompt": "q", "response": "right file"}])
    assert export(path) == ([turns("q", "right file")], [])


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), pa.binary())], ids=str)
def test_text_stored_as_binary_is_text(export, tmp_path, kind):
    prompts = pa.array([b"name a river", "où ?".encode(), b"q", b"\xff\xfe"], pa.binary()).cast(kind)
    responses = pa.array([b"the Elbe", "là".encode(), b"caf\xe9", b"r"], pa.binary()).cast(kind)
    pq.write_table(pa.table({"prompt": prompts, "response": responses}), tmp_path / "a.parquet")
    conversations, reasons = export(tmp_path / "a.parquet")
    assert conversations == [turns("name a river", "the Elbe"), turns("où ?", "là")]
    assert reasons == ["bad_utf8", "bad_utf8"]


def test_text_stored_as_binary_in_lists_and_records_is_text(export, tmp_path):
    message = pa.struct([("role", pa.binary()), ("content", pa.binary())])
    rows = [turns("name a river", "the Elbe"), turns("où ?", "là"), turns("q", "caf")]
    encoded = [[{key: value.encode() for key, value in turn.items()} for turn in row] for row in rows]
    encoded[2][1]["content"] = b"caf\xe9"
    pq.write_table(pa.table({"messages": pa.array(encoded, pa.list_(message))}), tmp_path / "a.parquet")
    assert export(tmp_path / "a.parquet") == (rows[:2], ["bad_utf8"])
    assert export(tmp_path / "a.parquet", shape="original") == (encoded[:2], ["bad_utf8"]), "as they are in the file"


@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_messages_stored_as_json_text_are_messages(export, tmp_path, name):
    rows = [turns("name a river", "the Elbe"), turns("hi", "hello", "où ?", "là")]
    broken = ['[{"role": "user", "content"', '[{"role": "user", "content": "q"}]', "plain"]
    texts = [*(json.dumps(row, indent=2) for row in rows), *broken]
    path = write_jsonl(tmp_path / "a.jsonl", [{name: text} for text in texts[:4]])
    assert export(path) == (rows, ["bad_json", "last_turn_not_assistant"])


@pytest.mark.parametrize("shape", ["messages", "prompt_completion"])
def test_a_prompt_of_messages_as_json_text_is_a_conversation(export, tmp_path, shape):
    prompts = [json.dumps(turns("hi", "hello", "où ?")), "[1] is a reference", "plain", '[{"role": "user"}]']
    table = pa.table({"prompt": prompts, "response": ["là", "yes", "no", "so"]})
    pq.write_table(table, tmp_path / "a.parquet")
    plain = [turns(prompt, response) for prompt, response in zip(prompts[1:], ("yes", "no", "so"), strict=True)]
    expected = [turns("hi", "hello", "où ?", "là"), *plain]
    assert export(tmp_path / "a.parquet", shape=shape) == (expected, [])
    write_jsonl(tmp_path / "a.jsonl", table.to_pylist())
    assert export(tmp_path / "a.jsonl", shape=shape, name="again") == (expected, [])


def test_a_completion_that_repeats_the_prompt_loses_it_once(export, tmp_path):
    system = [{"role": "system", "content": "Be brief"}]
    first, second = turns("name a river", "the Elbe"), turns("hi", "hello", "hi", "hello", "hi", "hello")
    rows = [
        {"prompt": first[:1], "completion": first},
        {"prompt": [*system, *first[:1]], "completion": first},
        {"prompt": second[:3], "completion": second[:4]},
        {"prompt": second[:1], "completion": second[2:4]},
        {"prompt": second[:1], "completion": second[:4]},
        {"prompt": first[:1], "completion": second[:2]},
    ]
    kept = [first, [*system, *first], second[:4], second[:2]]
    assert export(write_jsonl(tmp_path / "a.jsonl", rows)) == (kept, ["last_turn_not_assistant"] * 2)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("shape", ["messages", "prompt_completion"])
def test_whole_texts_of_a_generator_are_scored_and_exported_without_their_prompts(export, tmp_path, shape, kind):
    asked = [f"Name river number {n}, please." for n in range(20)]
    rows = [{"prompt": text, "generated_text": f"{text}\n\nThe Rhine {n}."} for n, text in enumerate(asked)]
    rows[3]["generated_text"], rows[4]["generated_text"] = asked[3], "No, please."
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
    expected = [turns(text, f"The Rhine {n}." if n != 4 else "No, please.") for n, text in enumerate(asked) if n != 3]
    assert export(path, shape=shape) == (expected, ["empty_response"])
    manifest = json.loads((tmp_path / f"out-{shape}" / "manifest.json").read_text())
    assert manifest["counts"]["cut_prompts"] == 18
    kept, _ = export(path, shape=shape, name="kept", repeated_prompt="keep")
    assert [turn[-1]["content"] for turn in kept] == [row["generated_text"] for row in rows]
    manifest = json.loads((tmp_path / f"kept-{shape}" / "manifest.json").read_text())
    assert "cut_prompts" not in manifest["counts"]


def test_open_transcripts_in_parquet_are_turns_of_the_output(export, tmp_path):
    asked = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a river?\n\nAssistant:"
    rows = [{"prompt": asked, "response": "The Rhine."}, {"prompt": asked, "response": f"{asked} The Elbe."}]
    for name, row in zip("ab", rows, strict=True):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{name}.parquet")
        expected = turns("hi", "hello", "a river?", row["response"].rpartition(":")[2].strip())
        assert export(tmp_path / f"{name}.parquet", name=name) == ([expected], [])
