"""Messages that hold more than text: kept as they are, told apart by what they hold, plain ones as ever."""

from __future__ import annotations

import pytest
from support.tool_use import TOOLS, call

from rm.conversations import (
    UnusableError,
    canonical_json,
    count_characters,
    describe_response,
    from_messages,
    from_response,
    keys_of,
    prompt_key,
    response_hash,
    split_after_last_user,
    split_last,
    to_messages,
    tools_in,
    with_system,
    with_tools,
)
from rm.messages import DEEPEST, DeepNestingError, load_json, map_texts

ASK = {"role": "user", "content": "q"}
CALL = {"role": "assistant", "content": None, "tool_calls": [call("add", 1, a=1, b=None)]}
RESULT = {"role": "tool", "content": "", "tool_call_id": "call-1", "name": "add"}
ANSWER = {"role": "assistant", "content": "a", "reasoning_content": "r"}


def test_messages_come_back_as_they_were():
    whole = [{"role": "system", "content": "s"}, ASK, CALL, RESULT, ANSWER]
    turns = from_messages(whole)
    assert to_messages(turns) == whole
    assert [*to_messages(turns)[2]] == [*CALL]  # in their own order
    assert to_messages(*split_last(turns)) == whole
    prompt, response = split_after_last_user(turns)
    assert (to_messages(prompt), to_messages((), response)) == (whole[:2], whole[2:])
    assert keys_of(prompt, response) == {"tool_calls", "tool_call_id", "name", "reasoning_content"}


def test_plain_messages_are_texts_and_hash_as_ever():
    turns = from_messages([{"role": "user", "content": "q", "name": None, "tool_calls": None, "id": 7}])
    assert turns == (("user", "q"),)
    assert canonical_json(turns) == b'[["user","q"]]'
    assert from_messages([{"role": "tool", "content": "3"}]) == (("tool", "3"),)
    assert split_after_last_user((("user", "q"), ("assistant", "a"))) == split_last((("user", "q"), ("assistant", "a")))


def test_what_a_message_holds_tells_responses_and_prompts_apart():
    plain, *others = [
        from_messages([{"role": "assistant", "content": "a", **more}])[0][1]
        for more in ({}, {"reasoning_content": "r"}, {"reasoning_content": "s"}, {"thinking": "r"}, {"name": "r"})
    ]
    assert plain == "a"
    assert len({response_hash(response) for response in (plain, *others)}) == 5
    prompts = [(("user", "q"),), with_tools((("user", "q"),), TOOLS), with_tools((("user", "q"),), TOOLS[:1])]
    assert len(set(map(prompt_key, prompts))) == 3


def test_the_order_of_keys_tells_nothing_apart():
    reverse = {key: ANSWER[key] for key in reversed(ANSWER)}
    one, other = (from_messages([message])[0][1] for message in (ANSWER, reverse))
    assert one != other  # a template may write them in their order
    assert response_hash(one) == response_hash(other)
    assert prompt_key((("assistant", one),)) == prompt_key((("assistant", other),))


def test_tools_are_part_of_the_prompt_as_list_and_as_text():
    import json

    ask = (("user", "q"),)
    listed, text = with_tools(ask, TOOLS), with_tools(ask, json.dumps(TOOLS, indent=1))
    assert tools_in(listed) == tools_in(text) == TOOLS
    assert prompt_key(listed) == prompt_key(text)
    assert to_messages(listed) == [ASK]
    assert [role for role, _ in with_system(listed, "s")] == ["tools", "system", "user"]
    for nothing in (None, [], "", "[]", "null"):
        assert with_tools(ask, nothing) == ask
    for bad in ("hammer", 3, [3], ["x"], {"a": 1}, b"x"):
        with pytest.raises(UnusableError, match="bad_tools"):
            with_tools(ask, bad)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({**ANSWER, "reasoning_content": 3}, "bad_reasoning_content"),
        ({**ANSWER, "thinking": ["x"]}, "bad_thinking"),
        ({**ANSWER, "name": b"x"}, "bad_utf8"),
        ({**ANSWER, "tool_calls": "x"}, "bad_tool_calls"),
        ({**ANSWER, "tool_calls": [float("nan")]}, "bad_tool_calls"),
        ({**ANSWER, "tool_calls": [{"a": float("nan")}]}, "bad_tool_calls"),
        ({**ANSWER, "tool_calls": [{"a": "\ud800"}]}, "lone_surrogate"),
        ({**ANSWER, "function_call": [1, 2]}, "bad_function_call"),
        ({**ANSWER, "content": None}, "null_response"),
        ({**ANSWER, "content": " "}, "empty_response"),
        ({**CALL, "content": 3}, "wrong_type"),
        ({**CALL, "tool_calls": []}, "null_response"),
        ({**CALL, "role": "user"}, "tool_calls"),
        ({"role": "assistant", "content": "\ufdd0[]"}, "noncharacter"),
        ({"role": "assistant", "content": [{"type": "image_url"}]}, "content_parts"),
        ({"role": "tool", "content": None}, "null_prompt"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_name(message, reason):
    with pytest.raises(UnusableError) as caught:
        from_messages([ASK, message])
    assert caught.value.reason == reason


def test_calls_and_messages_may_be_json_text():
    import json

    written = json.dumps({**CALL, "tool_calls": json.dumps(CALL["tool_calls"])})
    assert to_messages(from_messages([ASK, written])) == [ASK, CALL]


def test_a_response_of_several_messages_ends_with_the_assistant():
    ask = (("user", "q"),)
    assert to_messages((), from_response([ASK, CALL, RESULT, ANSWER], after=ask, several=True)) == [
        CALL,
        RESULT,
        ANSWER,
    ]
    for value, several in (([CALL, RESULT, ANSWER], False), ([CALL, RESULT], True), ([CALL, ASK, ANSWER], True)):
        with pytest.raises(UnusableError, match="last_turn_not_assistant"):
            from_response(value, after=ask, several=several)


def test_every_text_is_counted_and_changed_and_shown():
    response = from_response([CALL, RESULT, ANSWER], several=True)
    changed = to_messages((), map_texts(response, str.upper))
    assert changed[2] == {"role": "assistant", "content": "A", "reasoning_content": "R"}
    assert changed[0]["tool_calls"] == [
        {"ID": "CALL-1", "TYPE": "FUNCTION", "FUNCTION": {"NAME": "ADD", "ARGUMENTS": {"A": 1, "B": None}}}
    ]
    assert count_characters(response) == len("call-1functionadd" + "call-1add" + "ar")
    assert describe_response(response).splitlines()[-2:] == ["assistant: a", "[reasoning_content] r"]
    assert describe_response("a") == "a"


@pytest.mark.parametrize("depth", [DEEPEST + 1, 500, 5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":[', "]}")])
def test_json_that_is_nested_too_deep_is_refused_on_every_interpreter(depth, opening, closing):
    depth //= len(closing)
    value = load_json(opening * (DEEPEST // len(closing)) + closing * (DEEPEST // len(closing)))
    assert value
    with pytest.raises(DeepNestingError):
        load_json(opening * (depth + 1) + closing * (depth + 1))
    with pytest.raises(ValueError):
        load_json(opening * depth)


@pytest.mark.parametrize("depth", [DEEPEST, 500, 5000])
def test_calls_in_json_that_is_nested_too_deep_reject_the_row_on_every_interpreter(depth):
    calls = '[{"a": ' + "[" * depth + "]" * depth + "}]"
    with pytest.raises(UnusableError, match="bad_tool_calls"):
        from_messages([ASK, {"role": "assistant", "content": "a", "tool_calls": calls}])
    assert from_messages([{"role": "user", "content": calls}]) == (("user", calls),)


@pytest.mark.parametrize(
    ("called", "result"),
    [
        (
            {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 2}}'},
            {"from": "observation", "value": "4"},
        ),
        (
            {"role": "tool_call", "content": '[{"name": "add", "arguments": {"x": 2}}]'},
            {"role": "tool_response", "content": "4"},
        ),
        (
            CALLED := {"role": "function_call", "content": {"name": "add", "arguments": {"x": 2}}},
            {"from": "tool", "value": "4"},
        ),
        (CALLED, {"role": "function_response", "content": "4"}),
    ],
)
def test_older_ways_to_write_calls_and_results_are_read_as_tool_calls_and_tool_turns(called, result):
    turns = from_messages([ASK, called, result, {"from": "gpt", "value": "4"}])
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}
    assert to_messages(turns) == [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]


def test_a_function_s_result_is_a_tool_s_and_the_call_before_stays_as_it_is():
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"x": 2}'}}
    turns = from_messages(
        [ASK, call, {"role": "function", "name": "add", "content": "4"}, {"role": "bing", "content": "4"}]
    )
    assert to_messages(turns)[1:] == [
        call,
        {"role": "tool", "name": "add", "content": "4"},
        {"role": "assistant", "content": "4"},
    ]


@pytest.mark.parametrize("value", ["[]", "[3]", '[{"name": "add"}, {}]', "{}", "add", None])
def test_calls_without_names_are_refused(value):
    with pytest.raises(UnusableError, match="bad_function_call"):
        from_messages([ASK, {"role": "tool_call", "content": value}])
