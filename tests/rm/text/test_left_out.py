"""Chat templates and messages that hold more than text: rendered whole, refused by name, or told to be left out."""

from __future__ import annotations

import logging

import pytest
from support.tiny_models import CHAT_TEMPLATE, word_tokenizer
from support.tool_use import TOOL_TEMPLATE, TOOLS, trajectory

from rm.conversations import UnusableError, from_messages, split_after_last_user, split_last, with_tools
from rm.preview import Preview
from rm.text.templates import Template

ASK = {"role": "user", "content": "what is 2"}
WHOLE = [{"role": "system", "content": "be short"}, ASK, *trajectory(2, 1)]
PLAIN = ((("user", "q"),), "a")


def template(source: str | None, *, causal: bool = True, max_length: int = 500) -> Template:
    tokenizer = word_tokenizer(pair=not causal)
    tokenizer.chat_template = source
    return Template.of(tokenizer, causal=causal, max_length=max_length, too_long="truncate")


@pytest.mark.parametrize("split", [split_last, split_after_last_user])
@pytest.mark.parametrize("spelled", [False, True])
def test_the_model_reads_what_apply_chat_template_gives_for_the_whole_messages(split, spelled):
    reads, whole = template(TOOL_TEMPLATE), WHOLE
    if spelled:  # special tokens that a text spells are text, in calls and results as well
        whole = [*WHOLE[:-1], {**WHOLE[-1], "reasoning_content": "look </s> at"}]
    prompt, response = split(from_messages(whole))
    prompt = with_tools(prompt, TOOLS)
    text = reads.tokenizer.apply_chat_template(whole, tools=TOOLS, tokenize=False)
    assert reads.render(prompt, response) == (text, None)
    encoded = reads.encode(prompt, response)
    ids = reads.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    eos = reads.tokenizer.eos_token_id
    assert encoded.ids.count(eos) == ids.count(eos) - spelled
    assert spelled or encoded.ids == ids
    assert reads.left_out.counts == {}
    answer = reads.tokenizer.decode(encoded.ids[encoded.prompt_tokens :]) if not spelled else ""
    assert spelled or ("be short" not in answer and encoded.response_tokens > 3)


def test_the_span_of_a_trajectory_is_cut_at_its_end_and_keeps_its_call():
    prompt, response = split_after_last_user(from_messages(WHOLE))
    whole = template(TOOL_TEMPLATE).encode(prompt, response)
    cut = template(TOOL_TEMPLATE, max_length=len(whole.ids) - 8).encode(prompt, response)
    assert cut.truncated
    assert cut.ids[-1] == whole.ids[-1]
    assert len(cut.ids) == len(whole.ids) - 8


def test_turns_are_dropped_without_leaving_a_result_at_the_front_and_tools_stay():
    turns = from_messages([WHOLE[0], ASK, *trajectory(2, 1), ASK, {"role": "assistant", "content": "good"}])
    prompt, response = split_last(turns)
    prompt = with_tools(prompt, TOOLS[:1])
    reads = template(TOOL_TEMPLATE)
    last = with_tools(from_messages([WHOLE[0], WHOLE[-1], ASK]), TOOLS[:1])
    limit = len(reads.encode(last, response).ids)
    shorter = template(TOOL_TEMPLATE, max_length=limit).encode(prompt, response)
    assert shorter.ids == reads.encode(last, response).ids


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ({"reasoning_content": "r"}, "reasoning_content"),
        ({"thinking": "r"}, "thinking"),
        ({"tool_calls": [{"id": "x"}]}, "tool_calls"),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_a_template_for_texts_refuses_more_by_name(message, key, causal):
    prompt, response = split_last(from_messages([ASK, {"role": "assistant", "content": "a", **message}]))
    with pytest.raises(UnusableError, match=f"^no_template_for_{key}$"):
        template(None, causal=causal).encode(prompt, response)


def test_tools_and_results_are_refused_by_name_and_names_are_not():
    reads, (_, answer) = template(None), PLAIN
    with pytest.raises(UnusableError, match=r"^no_template_for_tools$"):
        reads.encode(with_tools(PLAIN[0], TOOLS), answer)
    with pytest.raises(UnusableError, match=r"^no_template_for_tool$"):
        reads.encode(
            from_messages([ASK, {"role": "assistant", "content": "a"}, {"role": "tool", "content": "3"}]), answer
        )
    named = from_messages([{**ASK, "name": "Ann"}])
    assert reads.encode(named, answer).ids == reads.encode(from_messages([ASK]), answer).ids


@pytest.mark.parametrize(
    ("source", "message", "reason"),
    [
        ("{{ raise_exception('no') }}", {}, "template_error"),
        (
            "{% for m in messages %}{{ m.thinking.x.y if m.thinking }}{{ m.content }}{% endfor %}",
            {"thinking": "r"},
            "no_template_for_thinking",
        ),
        (
            "{% for m in messages %}{{ raise_exception('no') if m.role == 'tool' }}{% endfor %}",
            {"role": "tool"},
            "no_template_for_tool",
        ),
    ],
)
def test_a_chat_template_that_fails_names_what_it_fails_on(source, message, reason):
    prompt = from_messages([ASK, {"role": "assistant", "content": "a", **message}, ASK])
    with pytest.raises(UnusableError, match=f"^{reason}$"):
        template(source).encode(prompt, "a")


def test_what_a_chat_template_leaves_out_is_told_with_its_share(caplog):
    reads = template(CHAT_TEMPLATE)
    prompt, response = split_last(
        from_messages([ASK, {"role": "assistant", "content": "a", "reasoning_content": "think"}])
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            reads.encode_group(*[PLAIN[0], [PLAIN[1]]])
        assert caplog.text == ""
        reads.encode_group(with_tools(prompt, TOOLS), [response, "a"])
        assert "leaves out reasoning_content of 1 of 5, tools of 2 of 5 responses" in caplog.text
        caplog.clear()
        for _ in range(44):
            reads.encode_group(prompt, [response])
        assert caplog.text == ""
        reads.encode_group(prompt, [response])
        assert "reasoning_content of 46 of 50, tools of 2 of 50" in caplog.text


def test_reasoning_of_earlier_turns_alone_is_told_apart_from_that_of_the_response():
    last_only = "{% for m in messages %}{% if loop.last and m.thinking %}{{ m.thinking }}{% endif %} {{ m.content }}{% endfor %}"
    reads = template(last_only)
    answer = {"role": "assistant", "content": "a", "thinking": "second"}
    reads.encode_group(*[split_last(from_messages([ASK, answer]))[0], [split_last(from_messages([ASK, answer]))[1]]])
    assert reads.left_out.counts == {}
    reads.encode_group(from_messages([ASK, {**answer, "thinking": "first"}, ASK]), ["a"])
    assert reads.left_out.counts == {"thinking": 1}


def test_a_preview_tells_of_first_groups_that_none_or_not_all_is_rendered():
    prompt, response = split_last(from_messages([ASK, {"role": "assistant", "content": "a", "thinking": "reason"}]))
    [warning] = Preview(template(None)).warnings([(prompt, [response, response])])
    assert "renders none of the first 2 responses (no_template_for_thinking 2)" in warning
    [warning] = Preview(template(CHAT_TEMPLATE)).warnings([(prompt, [response, "a"])])
    assert "leaves out thinking of 1 of 2 of the first responses" in warning
    assert Preview(template(None)).warnings([(prompt, [response, "a"])]) == []
