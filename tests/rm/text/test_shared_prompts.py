"""A prompt that a special token ends is tokenised once, and nothing that is read differs from texts tokenised whole."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rm.text.templates import Encoded, Template

MARKS = ["<|start|>", "<|end|>"]
CHAT = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
TEXTS = [
    "",
    " ",
    "what is the answer",
    "the  word\n",
    "\n of 7 ",
    "h\u00e9llo \u4e2d\u6587",
    "a" * 30,
    "<|end",
    "the answer <|end|> of",
]


def tokenizer_of(kind: str, **options) -> PreTrainedTokenizerFast:
    """A tokenizer trained on some texts, with marks as special tokens."""
    marks = [AddedToken(mark, special=True, normalized=False, **options) for mark in MARKS]
    if kind == "bytes":
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=marks)
    elif kind == "pieces":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=["<unk>", *marks])
    else:  # as Llama 2: a space is put before every piece
        backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", *marks])
    backend.train_from_iterator([*TEXTS, "user", "assistant"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=CHAT)


def template_of(tokenizer, max_length: int = 1000) -> Template:
    return Template.of(tokenizer, causal=True, max_length=max_length, too_long="truncate")


TEMPLATES = {kind: template_of(tokenizer_of(kind)) for kind in ("bytes", "pieces", "prepended")}
texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3).map(" ".join)
prompts = st.lists(texts, min_size=1, max_size=3).map(
    lambda turns: tuple(zip(itertools.cycle(["user", "assistant"]), turns, strict=False))
)


@pytest.mark.parametrize("kind", TEMPLATES)
@given(st.lists(st.tuples(prompts, st.lists(texts, min_size=1, max_size=4)), min_size=1, max_size=3))
def test_groups_are_read_as_lone_responses_are(kind, groups):
    template = TEMPLATES[kind]
    alone = [[template.encode(prompt, response) for response in responses] for prompt, responses in groups]
    assert template.encode_groups(groups) == alone


@pytest.mark.parametrize("max_length", [12, 20, 40])
def test_what_is_cut_is_cut_as_alone(max_length):
    template = template_of(tokenizer_of("bytes"), max_length)
    prompt = (("user", "what is the answer"), ("assistant", "the  word"), ("user", "what is the answer of the word"))
    responses = ["the answer", "a" * 30, "word " * 20]
    assert template.encode_group(prompt, responses) == [template.encode(prompt, one) for one in responses]
    assert any(isinstance(row, Encoded) and row.truncated for row in template.encode_group(prompt, responses))


def characters_read(template: Template, prompt, responses) -> int:
    """Count the characters that the tokenizer is given."""
    template.encode_group(prompt, responses)  # a token is tried once
    given_texts, call = [], template._call_tokenizer

    def counting(firsts, seconds=None):
        given_texts.extend(firsts)
        return call(firsts, seconds)

    object.__setattr__(template, "_call_tokenizer", counting)
    template.encode_group(prompt, responses)
    return sum(map(len, given_texts))


PROMPT, RESPONSES = (("user", "what is the answer " * 20),), ["the word", "of", "answer", "the answer"]


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_prompt_is_given_to_the_tokenizer_once(kind):
    template = template_of(tokenizer_of(kind))
    whole = sum(len(template.render(PROMPT, response)[0]) for response in RESPONSES)
    assert characters_read(template, PROMPT, RESPONSES) == whole - 3 * len(PROMPT[0][1].strip()) - 3 * len(
        "<|start|>user\n " + "<|end|>\n"
    )


@pytest.mark.parametrize("options", [{"lstrip": True}, {"single_word": True}])
def test_a_token_that_depends_on_what_is_before_it_is_no_place_to_cut(options):
    template = template_of(tokenizer_of("bytes", **options))
    whole = sum(len(template.render(PROMPT, response)[0]) for response in RESPONSES)
    assert characters_read(template, PROMPT, RESPONSES) == whole


def test_a_tokenizer_that_looks_beyond_its_special_tokens_is_told(monkeypatch):
    """A normaliser of the whole text is none that exists; a trial finds what no rule does."""
    template = template_of(tokenizer_of("bytes"))
    shared, encode = template._shared_prompts, template._shared_prompts.encode

    def other_beginnings(given_texts):
        return encode([f" {text}" if text.startswith(MARKS[0]) else text for text in given_texts])

    object.__setattr__(shared, "encode", other_beginnings)
    assert not shared._is_cut_at(MARKS[0])
    assert shared._is_cut_at(MARKS[1])
