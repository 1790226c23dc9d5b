from __future__ import annotations

import pytest
from support.tiny_models import CHAT_TEMPLATE, word_tokenizer

from rm.conversations import UnusableError
from rm.text.templates import Template

ONE = (("user", "the prompt"),)
MANY = (("system", "be short"), ("user", "one two three"), ("assistant", "so"), ("user", "the prompt was this"))


def template(kind: str, *, max_length: int = 64, too_long: str = "truncate") -> Template:
    tokenizer = word_tokenizer(pair=kind == "pair")
    if kind == "chat":
        tokenizer.chat_template = CHAT_TEMPLATE
    return Template.of(tokenizer, causal=kind != "pair", max_length=max_length, too_long=too_long)


def words(template: Template, encoded) -> str:
    return " ".join(template.tokenizer.convert_ids_to_tokens(encoded.ids))


def test_kind_follows_tokenizer_and_model():
    assert [template(kind).kind for kind in ("chat", "pair", "plain")] == ["chat", "pair", "plain"]
    tokenizer = word_tokenizer(pair=True)
    tokenizer.chat_template = CHAT_TEMPLATE
    assert Template.of(tokenizer, causal=False, max_length=8, too_long="reject").kind == "chat"


def test_pair_is_the_tokenizers_own_pair_encoding():
    t = template("pair")
    encoded = t.encode(ONE, "good answer")
    expected = t.tokenizer("the prompt", "good answer")
    assert encoded.ids == expected["input_ids"]
    assert encoded.types == expected["token_type_ids"]
    assert words(t, encoded) == "[CLS] the prompt [SEP] good answer [SEP]"
    assert (encoded.prompt_tokens, encoded.response_tokens, encoded.truncated) == (5, 2, False)


def test_plain_is_prompt_blank_line_response_eos():
    t = template("plain")
    assert t.render(ONE, "good answer") == ("the prompt\n\ngood answer</s>", None)
    assert words(t, t.encode(ONE, "good answer")) == "the prompt good answer </s>"


def test_several_turns_are_marked_by_speaker():
    text, _ = template("plain").render(MANY, "good")
    assert text == (
        "System: be short\n\nHuman: one two three\n\nAssistant: so\n\nHuman: the prompt was this\n\ngood</s>"
    )


def test_chat_template_is_used_without_a_doubled_bos():
    t = template("chat")
    encoded = t.encode(ONE, "good answer")
    assert words(t, encoded) == "<s> <|user|> the prompt </s> <|assistant|> good answer </s>"
    assert encoded.response_tokens == 2


def test_oldest_turns_go_first_and_the_system_turn_stays():
    t = template("chat", max_length=15)
    encoded = t.encode(MANY, "good answer")
    # whole: 27 tokens; without the first exchange: system (4), last user turn (6), response (4) and <s>
    assert words(t, encoded) == (
        "<s> <|system|> be short </s> <|user|> the prompt was this </s> <|assistant|> good answer </s>"
    )
    assert encoded.truncated


def test_then_the_left_of_the_remaining_prompt():
    t = template("chat", max_length=13)
    encoded = t.encode(MANY, "good answer")
    assert words(t, encoded) == "<s> <|system|> be short </s> <|user|> was this </s> <|assistant|> good answer </s>"
    assert (encoded.prompt_tokens, encoded.response_tokens) == (11, 2)


def test_pair_loses_the_left_of_the_prompt():
    t = template("pair", max_length=6)
    assert words(t, t.encode((("user", "one two three"),), "good answer")) == "[CLS] three [SEP] good answer [SEP]"


def test_a_response_too_long_by_itself_is_cut_at_its_end_with_the_closing_kept():
    t = template("chat", max_length=8)
    encoded = t.encode(ONE, "one two three word many")
    assert words(t, encoded) == "<s> <|user|> </s> <|assistant|> one two three </s>"
    assert (encoded.prompt_tokens, encoded.response_tokens, encoded.truncated) == (5, 3, True)
    p = template("pair", max_length=5)
    encoded = p.encode(ONE, "one two three")
    assert words(p, encoded) == "[CLS] [SEP] one two [SEP]"
    assert encoded.types == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("kind", ["chat", "pair", "plain"])
def test_exactly_full_is_not_cut(kind):
    full = len(template(kind).encode(ONE, "good answer").ids)
    assert template(kind, max_length=full).encode(ONE, "good answer").truncated is False
    assert template(kind, max_length=full - 1).encode(ONE, "good answer").truncated is True
    with pytest.raises(UnusableError, match="too_long"):
        template(kind, max_length=full - 1, too_long="reject").encode(ONE, "good answer")


def test_the_prompts_words_inside_the_response_do_not_confuse_the_cut():
    t = template("plain", max_length=5)
    encoded = t.encode((("user", "one two"),), "one two three")
    assert words(t, encoded) == "two one two three </s>"


def test_a_template_longer_than_the_model_rejects():
    with pytest.raises(UnusableError, match="too_long"):
        template("chat", max_length=3).encode(ONE, "good")


def test_a_template_that_raises_rejects():
    t = template("chat")
    t.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UnusableError, match="template_error"):
        t.encode(ONE, "good")


def test_a_template_that_rewrites_the_response_warns_and_still_cuts_the_prompt(caplog):
    t = template("chat", max_length=12)
    t.tokenizer.chat_template = CHAT_TEMPLATE.replace("| trim", "| replace('good', 'bad') | trim")
    encoded = t.encode((("user", "one two has look more day could go"),), "good answer")
    assert words(t, encoded) == "<s> <|user|> has look more day could go </s> <|assistant|> bad answer </s>"[:0] + (
        "<s> <|user|> look more day could go </s> <|assistant|> bad answer </s>"
    )
    assert encoded.truncated
