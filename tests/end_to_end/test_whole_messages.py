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
from support.tool_use import TOOLS

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig

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


def expected(messages: list[Message]) -> list[Message]:
    """Messages as they come out: parts of text are text."""
    joined = [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]
    return [{key: value for key, value in message.items() if value is not None} for message in joined]


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
