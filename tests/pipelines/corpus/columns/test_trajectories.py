"""The response of a conversation with tools: its last turn or all that follows the last user turn, and what is said of it."""

from __future__ import annotations

import json

import pytest
from support.tool_use import TOOLS, corpus, trajectory

from pipelines.config import Columns
from pipelines.corpus.columns.detection import Detection, detect
from pipelines.corpus.columns.row_mapping import parse_row
from rm.conversations import from_messages, tools_in

ASK = {"role": "user", "content": "q"}
PLAIN = {"messages": [ASK, {"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}


def detected(rows, **settings) -> Detection:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return detect(names, rows=rows, format="auto", columns=Columns(), where="a.jsonl", **settings)


@pytest.mark.parametrize(
    ("rows", "setting", "after_last_user", "why"),
    [
        (corpus(2, 3), None, True, "the same up to the last user turn"),
        (corpus(2, 3), "last_turn", False, "input.response=last_turn"),
        (corpus(3, 1), None, False, "3 of the first 3 conversations call tools after the last user turn"),
        (corpus(3, 1), "after_last_user", True, "input.response=after_last_user"),
        ([PLAIN, PLAIN], None, False, None),
        ([{"prompt": [ASK], "response": trajectory(1, 1)}], None, True, "response holds several messages a response"),
        ([{"prompt": [ASK], "response": [ASK, *trajectory(1, 1)]}], None, True, "response holds several"),
        ([{"prompt": [ASK], "response": [ASK, PLAIN["messages"][1]]}], None, False, None),
        ([{"prompt": "q", "responses": [trajectory(1, 1), trajectory(1, 2)]}], None, True, "responses holds several"),
        ([{"prompt": "q", "responses": PLAIN["messages"][1:]}], None, False, None),
        ([{"prompt": "q", "response": "a"}], None, False, None),
    ],
)
def test_the_first_rows_decide_unless_the_setting_does(rows, setting, after_last_user, why):
    found = detected(rows, response=setting)
    assert found.mapping.after_last_user is after_last_user
    assert (found.response.why if found.response else None) is None if why is None else why in found.response.why
    sample = parse_row(rows[0], found.mapping)
    assert sample.reasons == [None] * len(sample.responses)


def test_where_both_are_plausible_the_question_is_asked():
    [note] = detected(corpus(3, 1)).notes
    assert "input.response=after_last_user" in note
    assert "input.response=last_turn" in note
    assert detected(corpus(3, 1), response="last_turn").notes == []
    assert detected(corpus(2, 3)).notes == []


def test_both_readings_are_of_the_same_messages():
    row = corpus(1, 1)[0]
    for setting, turns in (("last_turn", 3), ("after_last_user", 1)):
        sample = parse_row(row, detected([row], response=setting).mapping)
        assert tools_in(sample.prompt) == TOOLS
        assert sample.prompt[1:] == from_messages(row["messages"])[:turns]


@pytest.mark.parametrize("name", ["messages", "response", "responses", "json"])
def test_keys_of_messages_that_are_not_read_are_named(name):
    turns = [{**ASK, "weight": 1, "id": None}, {"role": "assistant", "content": "a", "thinking": "t", "train": True}]
    row = {
        "messages": {"messages": turns},
        "response": {"prompt": turns[:1], "response": turns[1]},
        "responses": {"prompt": turns[:1], "responses": [turns[1:]]},
        "json": {"messages": json.dumps(turns)},
    }[name]
    assert detected([row]).notes == ["messages have train, weight, which no template gets and no output holds"]
    assert detected(corpus(1, 1), response="last_turn").notes == []


def test_a_mapping_of_plain_texts_is_what_it_was():
    fields = detected([{"prompt": "q", "response": "a"}]).mapping.to_json()
    assert {"tools", "after_last_user", "field"}.isdisjoint(fields)


@pytest.mark.parametrize(
    ("values", "read"),
    [
        (([TOOLS], True)),
        ([None], True),
        ([[]], True),
        (["hammer"], False),
        ([3], False),
        ([["saw"]], False),
        ([{"a": 1}], False),
    ],
)
def test_a_column_of_tools_is_read_where_it_holds_some_or_nothing(values, read):
    rows = [{"prompt": "q", "response": "a", "tools": value} for value in values]
    assert detected(rows).mapping.tools == ("tools" if read else None)
