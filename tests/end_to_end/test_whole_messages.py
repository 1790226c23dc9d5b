"""Messages with more than text through the whole graph: what went in comes out, key by key, or is rejected by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.corpora import write_jsonl
from support.stubs import StubFactory
from support.tiny_models import word_tokenizer
from support.tool_use import TOOL_TEMPLATE, TOOLS, corpus, save_tool_model

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from rm.conversations import UnusableError, from_messages, split_after_last_user, split_last, with_tools
from rm.text.templates import Template

Message = dict[str, Any]
_LAYOUTS = ("messages", "sharegpt", "prompt_response", "responses", "message_json")
_WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\ufdd0\0"), min_size=1, max_size=8
)
_TEXTS = _WORDS.filter(str.strip)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | _WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_WORDS, inner, max_size=2),
    max_leaves=4,
)
_CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries(
                {"name": _WORDS, "arguments": st.dictionaries(_WORDS, _JSON, max_size=2)}
            ),
        }
    ),
    min_size=1,
    max_size=2,
)
_PARTS = st.lists(_TEXTS.map(lambda text: {"type": "text", "text": text}), min_size=1, max_size=2)
_MORE = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("reasoning_content", "thinking", "reasoning", "name", "tool_call_id"), _WORDS)
)
_USER = st.fixed_dictionaries({"role": st.just("user"), "content": _TEXTS | _PARTS}, optional={"name": _WORDS})
_ANSWER = st.builds(lambda text, more: {"role": "assistant", "content": text, **more}, _TEXTS | _PARTS, _MORE)
_CALL = st.builds(
    lambda text, more, calls: {"role": "assistant", "content": text, **more, "tool_calls": calls},
    st.none() | st.just("") | _TEXTS,
    _MORE,
    _CALLS,
)
_RESULT = st.fixed_dictionaries(
    {"role": st.just("tool"), "content": _WORDS.filter(str.strip) | st.just("")},
    optional={"name": _WORDS, "tool_call_id": _WORDS},
)
_BAD = st.sampled_from(
    [
        ({"role": "user", "content": [{"type": "image", "image": "x"}]}, "content_parts"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "content_parts"),
        ({"role": "assistant", "content": "x", "reasoning_content": 3}, "bad_reasoning_content"),
        ({"role": "assistant", "content": "x", "tool_calls": ["x"]}, "bad_tool_calls"),
        ({"role": "user", "content": "x", "tool_calls": [{"id": "x"}]}, "tool_calls"),
        ({"role": "nobody", "content": "x"}, "bad_role"),
    ]
)  # fmt: skip


@st.composite
def conversations(draw: st.DrawFn) -> tuple[list[Message], list[Message], Any, str | None]:
    """(the messages up to the last user turn, the response, tools, the reason where the row is to be rejected)"""
    prompt = draw(st.lists(st.fixed_dictionaries({"role": st.just("system"), "content": _TEXTS}), max_size=1))
    for _ in range(draw(st.integers(0, 2))):
        prompt += [
            draw(_USER),
            *(draw(st.sampled_from([[_ANSWER], [_CALL, _RESULT, _ANSWER]]).flatmap(lambda kinds: st.tuples(*kinds)))),
        ]
    prompt.append(draw(_USER))
    response = list(
        draw(st.sampled_from([[_ANSWER], [_CALL], [_CALL, _RESULT, _ANSWER]]).flatmap(lambda kinds: st.tuples(*kinds)))
    )
    tools = draw(st.sampled_from([None, TOOLS, TOOLS[:1]]))
    if draw(st.integers(0, 9)) == 0:
        message, reason = draw(_BAD)
        return [message, *prompt], response, tools, reason
    return prompt, response, tools, None


def joined(content: Any) -> Any:
    """Parts of text are text."""
    texts = isinstance(content, list) and all("text" in part for part in content)
    return "".join(part["text"] for part in content) if texts else content


def expected(messages: list[Message]) -> list[Message]:
    """Messages as they come out: parts of text are text, and a key without a value is none."""
    texts = [{**message, "content": joined(message["content"])} for message in messages]
    return [{key: value for key, value in message.items() if value is not None} for message in texts]


def written(message: Message) -> Message:
    """A message of ShareGPT."""
    names = {"role": "from", "content": "value"}
    roles = {"user": "human", "assistant": "gpt"}
    return {names.get(key, key): roles.get(value, value) if key == "role" else value for key, value in message.items()}


def row_of(layout: str, prompt: list[Message], response: list[Message], tools: Any) -> dict[str, Any]:
    more = {"tools": json.dumps(tools) if layout == "message_json" and tools else tools}
    if layout == "messages":
        return {"messages": [*prompt, *response], **more}
    if layout == "message_json":
        return {"messages": json.dumps([*prompt, *response]), **more}
    if layout == "sharegpt":
        return {"conversations": [*map(written, [*prompt, *response])], **more}
    if layout == "prompt_response":
        return {"prompt": prompt, "response": response, **more}
    return {"prompt": prompt, "responses": [response, response], **more}


def read_back(out: Path) -> list[tuple[list[Message], Any]]:
    """(messages, tools) of each row of an output, without the nulls by which a struct says that a key is absent."""
    rows = pq.read_table(out / "data").to_pylist()
    return [([*map(_present, row["messages"])], _tools(row.get("tools"))) for row in rows]


def _present(message: Message) -> Message:
    return {
        key: json.loads(value) if key in ("tool_calls", "function_call") else value
        for key, value in message.items()
        if value is not None
    }


def _tools(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value and [*map(json.loads, value)]


def check(root: Path, stub_model: Path, layout: str, samples: list[Any], *, parquet: bool) -> None:
    rows = [row_of(layout, prompt, response, tools) for prompt, response, tools, _ in samples]
    if parquet:
        path = root / "a.parquet"
        pq.write_table(json_table(rows), path)
    else:
        path = write_jsonl(root / "a.jsonl", rows)
    values = {
        "input": {"path": str(path), "response": "after_last_user", "rows_per_fragment": 7},
        "model": {"path": str(stub_model)},
    }
    values |= {"select": [], "output": {"path": str(root / "out")}, "limits": {"max_rejected_fraction": 1.0}}
    counts = run_curation(RunConfig.model_validate(values), scorer=StubFactory()).manifest["counts"]
    assert counts["read"] == counts["scored"] + counts["rejected_total"]
    repeat = 2 if layout == "responses" else 1
    good = [
        ([*prompt, *response], tools)
        for prompt, response, tools, reason in samples
        if reason is None
        for _ in range(repeat)
    ]
    assert read_back(root / "out") == [(expected(messages), tools) for messages, tools in good]
    rejected = root / "out" / "rejected"
    reasons = [row["reason"] for row in pq.read_table(rejected).to_pylist()] if rejected.exists() else []
    assert sorted(reasons) == sorted(reason for *_, reason in samples if reason is not None for _ in range(repeat))


def json_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows as `datasets` writes them where messages differ: lists of JSON."""
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if all(value is None or isinstance(value, str) for value in values):
            columns[name] = pa.array(values, pa.string())
            continue
        nested = name == "responses"
        kind = pa.list_(pa.list_(pa.string())) if nested else pa.list_(pa.string())
        texts = [
            value and [[*map(json.dumps, item)] if nested else json.dumps(item) for item in value] for value in values
        ]
        columns[name] = pa.array(texts, kind).cast(pa.list_(pa.list_(pa.json_())) if nested else pa.list_(pa.json_()))
    return pa.table(columns)


_EACH = {
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
}


@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
def test_some_conversations_come_out_as_they_went_in(tmp_path_factory, stub_model, parquet):
    @settings(max_examples=3, **_EACH)
    @given(st.sampled_from(_LAYOUTS), st.lists(conversations(), min_size=12, max_size=20))
    def run(layout, samples):
        check(tmp_path_factory.mktemp("some"), stub_model, layout, samples, parquet=parquet)

    run()


@settings(max_examples=60, **_EACH)
@given(conversations())
def test_the_model_reads_what_apply_chat_template_gives_for_any_messages(sample):
    prompt, response, tools, reason = sample
    whole = [{**message, "content": joined(message["content"])} for message in [*prompt, *response]]
    if reason is not None:
        with pytest.raises(UnusableError, match=f"^{reason}$"):
            from_messages(whole)
        return
    tokenizer = word_tokenizer(pair=False)
    tokenizer.chat_template = TOOL_TEMPLATE
    reads = Template.of(tokenizer, causal=True, max_length=4000, too_long="reject")
    text = tokenizer.apply_chat_template(whole, tools=tools, tokenize=False)
    turns = from_messages([*prompt, *response])
    for before, answer in (split_last(turns), split_after_last_user(turns)):
        before = with_tools(before, tools)
        assert reads.render(before, answer) == (text, None)
        [encoded] = reads.encode_group(before, [answer])
        assert not isinstance(encoded, UnusableError)
        assert encoded.prompt_tokens + encoded.response_tokens == len(encoded.ids)


@pytest.mark.slow
@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("parquet", [False, True], ids=["jsonl", "parquet"])
def test_any_conversation_comes_out_as_it_went_in(tmp_path_factory, stub_model, layout, parquet):
    @settings(max_examples=2, **_EACH)
    @given(st.lists(conversations(), min_size=10, max_size=40))
    def run(samples):
        check(tmp_path_factory.mktemp("any"), stub_model, layout, samples, parquet=parquet)

    run()


def run_rows(
    root: Path, model: Path, path: Path, *, shape: str = "messages", scorer: Any = None, **input: Any
) -> list[Any]:
    """The rows of the output of a run that keeps everything (or the best pair of each prompt)."""
    values: dict[str, Any] = {"input": {"path": str(path), **input}, "model": {"path": str(model)}, "select": []}
    if shape == "preference":
        values["select"] = [{"pairs": {}}]
    values |= {"output": {"path": str(root / shape), "shape": shape}, "scores": {"path": str(root / "scores")}}
    run_curation(RunConfig.model_validate(values), scorer=scorer or StubFactory())
    return pq.read_table(root / shape / "data").to_pylist()


def test_structs_of_parquet_lose_the_keys_that_other_calls_have(tmp_path, stub_model):
    rows = corpus(2, 3)
    arguments = pa.struct([("city", pa.string()), ("a", pa.int64()), ("b", pa.int64())])
    function = pa.struct([("name", pa.string()), ("arguments", arguments)])
    calls = pa.list_(pa.struct([("id", pa.string()), ("type", pa.string()), ("function", function)]))
    texts = [(name, pa.string()) for name in ("role", "content", "reasoning_content", "tool_call_id", "name")]
    messages = pa.list_(pa.struct([*texts, ("tool_calls", calls)]))
    table = pa.table(
        {"messages": pa.array([row["messages"] for row in rows], messages), "tools": [row["tools"] for row in rows]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    run_rows(tmp_path, stub_model, tmp_path / "a.parquet")
    assert read_back(tmp_path / "messages") == [(expected(row["messages"]), row["tools"]) for row in rows]


def test_every_shape_holds_the_messages_whole(tmp_path, stub_model):
    rows = corpus(2, 4)
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for row, read in zip(rows, run_rows(tmp_path, stub_model, path, shape="prompt_completion"), strict=True):
        assert [*map(_present, read["prompt"])] == row["messages"][:1]
        assert [*map(_present, read["completion"])] == expected(row["messages"][1:])
        assert _tools(read["tools"]) == TOOLS
    answers = [expected(row["messages"][1:]) for row in rows]
    for read in run_rows(tmp_path, stub_model, path, shape="preference"):
        sides = [[*map(_present, read[side])] for side in ("chosen", "rejected")]
        assert sides[0] in answers
        assert sides[1] in answers
        assert sides[0] != sides[1]
        assert _tools(read["tools"]) == TOOLS
    original = run_rows(tmp_path, stub_model, path, shape="original")
    assert [[*map(_values, row["messages"])] for row in original] == [[*map(_values, row["messages"])] for row in rows]


def _values(value: Any) -> Any:
    """A value without nulls, and without what is empty then."""
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _values(item)) not in (None, {})}
    return [*map(_values, value)] if isinstance(value, list) else value


def test_an_output_can_be_read_again_with_the_same_prompts(tmp_path, stub_model):
    rows = corpus(2, 3)
    first = run_rows(tmp_path, stub_model, write_jsonl(tmp_path / "a.jsonl", rows))
    second = run_rows(tmp_path / "again", stub_model, tmp_path / "messages" / "data")
    assert read_back(tmp_path / "again" / "messages") == [(expected(row["messages"]), row["tools"]) for row in rows]
    assert [row["prompt_id"] for row in first] == [row["prompt_id"] for row in second]
    assert len({row["prompt_id"] for row in first}) == 2


def test_plain_corpora_have_score_files_without_a_word_of_it(tmp_path, stub_model):
    plain = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": None}]
    run_rows(tmp_path, stub_model, write_jsonl(tmp_path / "a.jsonl", plain))
    [scored] = (tmp_path / "scores").glob("*/*.parquet")
    assert not any(b"message_keys" in value for value in pq.read_schema(scored).metadata.values())
    schema = pq.read_schema(next((tmp_path / "messages" / "data").iterdir()))
    assert schema.names == ["messages", "reward", "prompt_id", "source"]
    assert [field.name for field in schema.field("messages").type.value_type] == ["role", "content"]


def test_tools_that_only_later_rows_have_are_not_left_out_in_silence(tmp_path, stub_model):
    ask = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    path = write_jsonl(
        tmp_path / "a.jsonl", [ask] * 120 + [{**ask, "tools": TOOLS}, {**ask, "tools": json.dumps(TOOLS)}]
    )
    values = {
        "input": {"path": str(path)},
        "model": {"path": str(stub_model)},
        "select": [],
        "output": {"path": str(tmp_path / "out")},
    }
    values["limits"] = {"max_rejected_fraction": 0.5}
    manifest = run_curation(RunConfig.model_validate(values), scorer=StubFactory()).manifest
    assert manifest["rejected"] == {"tools_not_read": 2}


def test_reasoning_is_read_and_kept_or_told_to_be_left_out(tmp_path, chat, caplog):
    """The case of a reasoning field: the reward is that of the whole messages, and the output holds them."""
    from rm.scorer import Scorer

    answers = [("the sea", "think of time"), ("the sea", "think of number two"), ("a hot day", None)]  # known words
    messages = [
        [
            {"role": "user", "content": "what is good"},
            {"role": "assistant", "content": text, **({"reasoning_content": why} if why else {})},
        ]
        for text, why in answers
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": conversation} for conversation in messages])
    model = save_tool_model(tmp_path / "model")
    scorer = Scorer.load(model, dtype="float32", max_length=512, too_long="reject", tokens_per_batch=None)
    rows = run_rows(tmp_path / "with", model, path, scorer=lambda _: scorer)
    assert [[*map(_present, row["messages"])] for row in rows] == messages
    texts = [scorer.template.tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in messages]
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(model)
    for row, text in zip(rows, texts, strict=True):
        ids = scorer.template.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            assert row["reward"] == pytest.approx(float(plain(ids).logits[0, 0]), abs=1e-5)
    assert rows[0]["reward"] != rows[1]["reward"]
    assert "leaves out" not in caplog.text
    other = Scorer.load(chat, dtype="float32", max_length=512, too_long="reject", tokens_per_batch=None)
    run_rows(tmp_path / "without", chat, path, scorer=lambda _: other)
    assert "leaves out reasoning_content of 2 of 3 of the first responses" in caplog.text
    manifests = [
        json.loads((tmp_path / name / "messages" / "manifest.json").read_text()) for name in ("with", "without")
    ]
    assert [manifest["counts"].get("left_out") for manifest in manifests] == [None, {"reasoning_content": 2}]
    assert [len(manifest["warnings"]) for manifest in manifests] == [0, 1]
    assert "leaves out reasoning_content of 2 of 3 scored responses" in manifests[1]["warnings"][0]


@pytest.mark.slow
def test_a_tool_use_corpus_goes_all_the_way_to_a_trainer(tmp_path, bestkept, monkeypatch):
    import datasets
    import yaml

    trl = pytest.importorskip("trl.data_utils")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = corpus(3, 4)
    path, model = write_jsonl(tmp_path / "a.jsonl", rows), save_tool_model(tmp_path / "model")
    code, out, _ = bestkept("inspect", path, "--json", f"model.path={model}")
    document = json.loads(out)
    assert code == 0
    assert document["corpus"]["mapping"]["tools"] == "tools"
    assert document["corpus"]["response"]["taken"] == "after_last_user"
    assert document["corpus"]["first"][0]["tools"] == TOOLS
    assert document["corpus"]["tokens"]["rejected"] == {}
    config = {"input": {"path": str(path)}, "model": {"path": str(model)}, "select": [{"best_of_n": {"keep": 2}}]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**config, "output": {"path": str(tmp_path / "out")}}))
    code, out, err = bestkept("run", tmp_path / "c.yaml")
    assert code == 0, err
    assert "leaves out" not in err
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert len(loaded) == 6
    wanted = [expected(row["messages"]) for row in rows]
    from rm.preview import Preview

    tokenizer = Preview.load(model, max_length=512).template.tokenizer
    for row in loaded:
        messages = [{key: value for key, value in message.items() if value is not None} for message in row["messages"]]
        assert messages in wanted
        assert row["tools"] == TOOLS
        assert trl.is_conversational(row)
        text = trl.apply_chat_template({"messages": row["messages"]}, tokenizer, tools=row["tools"])["text"]
        assert text == tokenizer.apply_chat_template(messages, tools=TOOLS, tokenize=False)


def test_responses_that_differ_in_calls_alone_are_scored_apart_also_where_texts_are_shuffled(tmp_path, stub_model):
    rows = corpus(2, 4)
    path = write_jsonl(tmp_path / "a.jsonl", rows[::-1])
    alone = run_rows(tmp_path, stub_model, path)
    values = {
        "input": {"path": str(path)},
        "model": {"path": str(stub_model)},
        "select": [],
        "score": {"colocate": "prompt"},
    }
    values |= {"output": {"path": str(tmp_path / "out")}}
    run_curation(RunConfig.model_validate(values), scorer=StubFactory())
    assert pq.read_table(tmp_path / "out" / "data").to_pylist() == alone
    assert len({row["reward"] for row in alone}) == len(rows)


def test_prompts_as_json_text_beside_plain_responses_are_whole_in_the_output(tmp_path, stub_model):
    """Parquet with plain text is exported as columns, which know texts alone."""
    prompts = [
        [{"role": "user", "content": "q", "name": "Ann"}],
        "a plain one",
        row_of("messages", corpus(1, 1)[0]["messages"], [], None)["messages"],
    ]
    prompts[2] = [*prompts[2], {"role": "user", "content": "and now"}]
    texts = [prompt if isinstance(prompt, str) else json.dumps(prompt) for prompt in prompts]
    pq.write_table(pa.table({"prompt": texts, "response": ["a", "b", "c"]}), tmp_path / "a.parquet")
    run_rows(tmp_path, stub_model, tmp_path / "a.parquet")
    wanted = [[{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt for prompt in prompts]
    answers = [[{"role": "assistant", "content": text}] for text in "abc"]
    assert read_back(tmp_path / "messages") == [
        (expected([*one, *two]), None) for one, two in zip(wanted, answers, strict=True)
    ]
