from __future__ import annotations

import random
from collections import Counter

import pytest
from support.tiny_models import CHAT_TEMPLATE, WORDS, word_tokenizer

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


def cut_by_words(kind: str, prompt, responses, *, max_length: int):
    """The responses to a prompt with words left out before they are encoded, a word being a token; None where none is left."""
    whole = template(kind, max_length=10**6)
    kept = [turn for turn in prompt[:-1] if turn[0] == "system"]
    others = [turn for turn in prompt if turn not in kept]
    forms = [(*kept, *others[first:]) for first in range(len(others))]

    def needed(form):
        rows = [whole.encode(form, response) for response in responses]
        return max(row.prompt_tokens + min(row.response_tokens, max_length // 2) for row in rows)

    form = next((form for form in forms if needed(form) <= max_length), forms[-1])
    role, last = form[-1]
    left = (*form[:-1], (role, " ".join(last.split()[max(0, needed(form) - max_length) :])))
    expected = []
    for response in responses:
        alone = whole.encode(left, response)
        room = alone.response_tokens - max(0, len(alone.ids) - max_length)
        cut = whole.encode(left, " ".join(response.split()[:room])) if room > 0 else None
        is_cut = left != prompt or room < alone.response_tokens
        expected.append(None if cut is None else (cut.ids, cut.prompt_tokens, is_cut))
    return expected


@pytest.mark.parametrize("kind", ["chat", "pair", "plain"])
def test_a_group_is_cut_once_for_all_of_its_responses(kind):
    rng, seen = random.Random(1), Counter()

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS[10:30], k=rng.randint(low, high)))

    for _ in range(150):
        several = kind != "pair"  # which cuts what it has of all turns
        turns = [("system", text(1, 4))] * rng.randint(0, several)
        count = rng.choice([1, 1, 3, 5]) if several else 1
        turns += [(("user", "assistant")[place % 2], text(1, 12)) for place in range(count)]
        prompt, responses = tuple(turns), [text(1, rng.choice([4, 30])) for _ in range(rng.randint(1, 5))]
        max_length = rng.randint(12, 60)
        expected = cut_by_words(kind, prompt, responses, max_length=max_length)
        got = template(kind, max_length=max_length, too_long="truncate_group").encode_group(prompt, responses)
        for one, right in zip(got, expected, strict=True):
            if right is None:
                continue
            assert (one.ids, one.prompt_tokens, one.truncated) == right
            assert len(one.ids) <= max_length
            seen[one.truncated] += 1
        assert len({tuple(one.ids[: one.prompt_tokens - 2]) for one in got if not isinstance(one, UnusableError)}) == 1
    assert min(seen.values()) > 50


def test_a_group_that_fits_is_not_cut_and_a_long_response_leaves_the_others_their_prompt():
    together = {"too_long": "truncate_group", "max_length": 18}
    prompt, short, long = (("user", "one two three word"),), "good answer", " ".join(["day"] * 30)
    assert template("chat", **together).encode_group(prompt, [short]) == [template("chat").encode(prompt, short)]
    rows = template("chat", **together).encode_group(prompt, [short, long])
    assert [words(template("chat"), row) for row in rows] == [
        "<s> <|user|> one two three word </s> <|assistant|> good answer </s>",
        "<s> <|user|> one two three word </s> <|assistant|> " + "day " * 9 + "</s>",
    ]
    assert [row.truncated for row in rows] == [False, True]
    both = template("chat", **together).encode_group((("user", "one " * 9),), [short, "day " * 6])
    assert [row.prompt_tokens for row in both] == [12, 12]  # alike, though the first would fit by itself
    assert all(row.truncated for row in both)


def test_what_a_template_does_not_render_leaves_the_others_of_its_group_as_they_are():
    t = template("chat", max_length=10, too_long="truncate_group")
    t.tokenizer.chat_template = (
        "{% if messages[-1]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}" + CHAT_TEMPLATE
    )
    first, second, third = t.encode_group((("user", "one two three word"),), ["good answer", "bad", "day"])
    assert isinstance(second, UnusableError)
    assert first.prompt_tokens == third.prompt_tokens == 8
    assert t.encode_group(ONE, []) == []
    assert [one.reason for one in t.encode_group(ONE, ["bad"])] == ["template_error"]


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
