from __future__ import annotations

import pytest

from pipelines.config import Columns
from pipelines.corpus.columns.detection import detect
from pipelines.corpus.columns.row_mapping import ParsedRow, RowMapping, parse_row
from pipelines.errors import InputError


def detect_mapping(names, *, format="auto", carry=(), group_by=(), **columns):
    return detect(
        names, format=format, columns=Columns(**columns), carry=carry, group_by=group_by, where="a.jsonl"
    ).mapping


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["prompt", "response"], {"format": "prompt_response", "prompt": "prompt", "response": "response"}),
        (["question", "answer", "id"], {"format": "prompt_response", "prompt": "question", "response": "answer"}),
        (["prompt", "responses"], {"format": "responses_list", "prompt": "prompt", "responses": "responses"}),
        (["messages", "source"], {"format": "messages", "messages": "messages", "source": "source"}),
        (["conversations"], {"format": "messages", "messages": "conversations"}),
        (
            ["instruction", "input", "output"],
            {"format": "alpaca", "prompt": "instruction", "input": "input", "response": "output"},
        ),
        (["instruction", "output"], {"format": "prompt_response", "prompt": "instruction", "response": "output"}),
    ],
)
def test_names_of_columns_decide_the_layout(names, expected):
    columns = {key: value for key, value in detect_mapping(names).to_json().items() if value}
    assert columns == expected


def test_columns_win_over_detection():
    mapping = detect_mapping(["prompt", "response", "q", "a"], prompt="q", response="a")
    assert (mapping.prompt, mapping.response) == ("q", "a")
    assert detect_mapping(["messages", "q", "a"], prompt="q", response="a").messages is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["prompt", "text"]}, r"columns prompt, text; cannot tell.*input\.columns="),
        (
            {"names": ["prompt", "response"], "response": "reply"},
            r"input\.columns\.response is 'reply'.*name one of prompt, response",
        ),
        ({"names": ["prompt", "response"], "carry": ["x"]}, r"input\.carry is 'x'"),
        ({"names": ["prompt", "response"], "group_by": ["x"]}, r"input\.group_by is 'x'"),
        ({"names": ["prompt", "response"], "format": "messages"}, "cannot tell which hold messages"),
        (
            {"names": ["p", "r", "rs"], "format": "prompt_response", "prompt": "p", "responses": "rs"},
            "cannot tell|no place",
        ),
        (
            {"names": ["prompt", "response", "m"], "format": "messages", "messages": "m", "prompt": "prompt"},
            "has no place",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_with_the_remedy(arguments, message):
    with pytest.raises(InputError, match=message):
        detect_mapping(**arguments)


def test_a_column_named_input_is_no_alpaca_input_where_roles_are_named():
    mapping = detect_mapping(["input", "output"], prompt="input", response="output")
    assert parse_row({"input": "IN", "output": "o"}, mapping).prompt == (("user", "IN"),)
    mapping = detect_mapping(["question", "input", "answer"], prompt="question", response="answer")
    assert mapping.input is None


@pytest.mark.parametrize("columns", [{"prompt": "a", "response": "a"}, {"response": "a", "responses": "b"}])
def test_contradicting_columns_are_refused(columns):
    with pytest.raises(ValueError, match=r"two roles|exclude each other"):
        Columns(**columns)


def test_columns_to_read_are_those_and_the_carried():
    mapping = detect_mapping(["prompt", "response", "source", "x", "y"], carry=["x"], group_by=["y", "x"])
    assert mapping.columns() == ["prompt", "response", "source", "x", "y"]
    assert RowMapping.from_json(mapping.to_json()) == mapping


def test_alpaca_input_is_appended_where_there_is_one():
    mapping = detect_mapping(["instruction", "input", "output"])
    row = {"instruction": "Translate.", "input": "Hallo", "output": "Hello"}
    assert parse_row(row, mapping).prompt == (("user", "Translate.\n\nHallo"),)
    assert parse_row({**row, "input": ""}, mapping).prompt == (("user", "Translate."),)
    assert parse_row({**row, "input": None}, mapping).prompt == (("user", "Translate."),)


def test_messages_split_at_the_last_assistant_turn():
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    parsed = parse_row(row, detect_mapping(["messages"]))
    assert (parsed.prompt, parsed.responses, parsed.reasons) == (tuple(turns[:3]), ["d"], [None])
    row["messages"].pop()
    assert parse_row(row, detect_mapping(["messages"])).reasons == ["last_turn_not_assistant"]


def test_every_entry_of_a_list_is_a_response_in_its_order():
    mapping = detect_mapping(["prompt", "responses"])
    assert parse_row({"prompt": "p", "responses": ["a", None, "b", 3, "a"]}, mapping) == ParsedRow(
        prompt=(("user", "p"),),
        responses=["a", None, "b", None, "a"],
        reasons=[None, "null_response", None, "wrong_type", None],
    )
    assert parse_row({"prompt": "p", "responses": ["a"]}, mapping).responses == ["a"]
    assert parse_row({"prompt": "p", "responses": "a"}, mapping).responses == ["a"]
    assert parse_row({"prompt": "p", "responses": []}, mapping).reasons == ["null_response"]
    assert parse_row({"prompt": None, "responses": ["a", "b"]}, mapping).reasons == ["null_prompt"] * 2


def test_records_of_a_list_are_responses_by_their_field():
    mapping = RowMapping("responses_list", prompt="prompt", responses="choices", field="message")
    answers = [{"message": {"role": "assistant", "content": text}, "index": 0} for text in ("first", "second")]
    assert parse_row({"prompt": "p", "choices": answers}, mapping).responses == ["first", "second"]


def test_a_row_that_could_not_be_read_is_rejected_for_its_reason():
    assert parse_row("bad_json", detect_mapping(["prompt", "response"])) == ParsedRow(None, [None], ["bad_json"])


def test_a_system_column_is_the_first_turn():
    mapping = detect_mapping(["prompt", "response", "sys"], system="sys")
    row = {"prompt": "p", "response": "r", "sys": "be kind"}
    assert parse_row(row, mapping).prompt == (("system", "be kind"), ("user", "p"))
    assert parse_row({**row, "sys": None}, mapping).prompt == (("user", "p"),)
    mapping = detect_mapping(["messages", "sys"], system="sys")
    messages = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]
    parsed = parse_row({"messages": messages, "sys": "be kind"}, mapping)
    assert (parsed.prompt, parsed.responses) == ((("system", "be kind"), ("user", "p")), ["r"])
