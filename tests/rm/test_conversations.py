from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.conversations import (
    UnusableError,
    canonical_json,
    from_hh,
    from_messages,
    from_prompt,
    from_response,
    prompt_key,
    response_hash,
    split_last,
    to_messages,
)


def test_text_and_one_turn_list_are_the_same_prompt():
    assert from_prompt("Why?") == from_prompt([{"role": "user", "content": "Why?"}]) == (("user", "Why?"),)


def test_sharegpt_and_openai_names_mean_the_same():
    sharegpt = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    openai = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert from_messages(sharegpt) == from_messages(openai) == (("user", "Hi"), ("assistant", "Hello"))


def test_content_parts_of_text_are_joined_and_others_refused():
    text = {"type": "text", "text": "a"}
    assert from_messages([{"role": "user", "content": [text, text]}]) == (("user", "aa"),)
    with pytest.raises(UnusableError, match="content_parts"):
        from_messages([{"role": "user", "content": [text, {"type": "image_url"}]}])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "null_prompt"),
        ("", "empty_prompt"),
        (" \n", "empty_prompt"),
        (7, "wrong_type"),
        ([], "empty_prompt"),
        (["text"], "wrong_type"),
        ([{"role": "user", "content": None}], "null_prompt"),
        ([{"role": "judge", "content": "x"}], "bad_role"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "bad_role"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "tool_calls"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "prompt_ends_with_assistant"),
        ("\ud800", "lone_surrogate"),
    ],
)
def test_unusable_prompts_have_a_reason(value, reason):
    with pytest.raises(UnusableError) as caught:
        from_prompt(value)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "null_response"), ("", "empty_response"), (3, "wrong_type"), ("\udfff", "lone_surrogate")],
)
def test_unusable_responses_have_a_reason(value, reason):
    with pytest.raises(UnusableError) as caught:
        from_response(value)
    assert caught.value.reason == reason


def test_response_as_one_assistant_message():
    assert from_response([{"role": "assistant", "content": "Yes"}]) == "Yes"
    with pytest.raises(UnusableError, match="last_turn_not_assistant"):
        from_response([{"role": "user", "content": "Yes"}])


def test_split_last_needs_an_assistant_turn_after_something():
    assert split_last((("user", "a"), ("assistant", "b"))) == ((("user", "a"),), "b")
    with pytest.raises(UnusableError, match="last_turn_not_assistant"):
        split_last((("user", "a"),))
    with pytest.raises(UnusableError, match="empty_prompt"):
        split_last((("assistant", "b"),))


def test_hh_string():
    text = "\n\nHuman: One\n\nstill one\n\nAssistant: Two: Human: no turn\n\nHuman: Three\n\nAssistant: Four"
    assert from_hh(text) == (
        ("user", "One\n\nstill one"),
        ("assistant", "Two: Human: no turn"),
        ("user", "Three"),
        ("assistant", "Four"),
    )


def test_text_before_the_first_turn_is_the_system_turn():
    for text in ("Be brief.\n\nHuman: a\n\nAssistant: b", "\n\nSystem: Be brief.\n\nHuman: a\n\nAssistant: b"):
        assert from_hh(text) == (("system", "Be brief."), ("user", "a"), ("assistant", "b"))


@pytest.mark.parametrize("text", ["no marker", "preamble\n\nAssistant: a", "\n\nhuman: a"])
def test_hh_without_a_turn_of_the_human_first_is_refused(text):
    with pytest.raises(UnusableError, match="bad_hh_format"):
        from_hh(text)


def test_system_prompt_is_put_first_once():
    assert from_prompt("x", system="be brief") == (("system", "be brief"), ("user", "x"))
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]
    assert from_prompt(own, system="be brief")[0] == ("system", "own")


def test_prompt_key_is_stable_and_16_bytes():
    assert prompt_key((("user", "Why?"),)).hex() == "9940d9380e72705689536acfe60770c2"
    assert response_hash("Because.") == 8624880274617923097


def test_prompt_key_ignores_unicode_form_and_nothing_else():
    composed, decomposed = "caf\u00e9", unicodedata.normalize("NFD", "caf\u00e9")
    assert composed != decomposed
    assert prompt_key((("user", composed),)) == prompt_key((("user", decomposed),))
    assert prompt_key((("user", "a"),)) != prompt_key((("user", "a "),))
    assert prompt_key((("user", "a"),)) != prompt_key((("system", "a"),))


turns = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text()), min_size=1, max_size=4)


@given(turns, turns)
def test_different_conversations_have_different_canonical_json(left, right):
    same = [(r, unicodedata.normalize("NFC", c)) for r, c in left] == [
        (r, unicodedata.normalize("NFC", c)) for r, c in right
    ]
    try:
        assert (canonical_json(tuple(left)) == canonical_json(tuple(right))) == same
    except UnicodeEncodeError:
        assert any("\ud800" <= char <= "\udfff" for _, content in left + right for char in content)


def test_to_messages_round_trip():
    prompt = (("system", "s"), ("user", "u"))
    messages = to_messages(prompt, "r")
    assert messages[-1] == {"role": "assistant", "content": "r"}
    assert split_last(from_messages(messages)) == (prompt, "r")


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(st.characters(exclude_categories=["Cs"])))))
def test_canonical_json_is_compact_json_in_nfc(turns):
    expected = unicodedata.normalize("NFC", json.dumps(turns, ensure_ascii=False, separators=(",", ":")))
    assert canonical_json(tuple(turns)) == expected.encode()
