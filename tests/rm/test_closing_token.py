"""Plain text ends with one eos, whoever writes it, and fingerprints tell of models that used to get two."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from support.tiny_models import save_causal, save_encoder, word_tokenizer
from tokenizers import processors

import rm.preview
from rm.closing_token import reading_mark
from rm.identity import identify
from rm.scorer import Scorer
from rm.text.templates import Template

EOS = 5
CLOSING = {
    "eos": processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", EOS)]),
    "bos and eos": processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 4), ("</s>", EOS)]
    ),
    "as roberta": processors.RobertaProcessing(("</s>", EOS), ("<s>", 4)),
    "in a sequence": processors.Sequence(
        [
            processors.ByteLevel(),
            processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", EOS)]),
        ]
    ),
}
OTHERS = {
    "none": None,
    "bos": processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 4)]),
    "byte level": processors.ByteLevel(),
    "another token": processors.TemplateProcessing(
        single="$A [SEP]", pair="$A $B [SEP]", special_tokens=[("[SEP]", 3)]
    ),
    "eos in front": processors.TemplateProcessing(single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", EOS)]),
}
PROMPT = (("user", "what is the answer"),)


def tokenizer_with(processor):
    tokenizer = word_tokenizer(pair=False)
    if processor is not None:
        tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def template(processor, **settings):
    return Template.of(tokenizer_with(processor), causal=True, **{"max_length": 64, "too_long": "truncate", **settings})


def save(directory, processor, **settings):
    save_causal(directory, **settings)
    tokenizer = tokenizer_with(processor)
    tokenizer.chat_template = "{{ messages }}" if settings.get("chat") else None
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("processor", [*CLOSING, *OTHERS])
@pytest.mark.parametrize("response", ["good answer", "good </s> answer", "answer </s>"])
def test_one_eos_closes_a_text(processor, response):
    ids = template({**CLOSING, **OTHERS}[processor]).encode(PROMPT, response).ids
    closing = ids if processor != "another token" else ids[:-1]
    assert closing.count(EOS) == (2 if processor == "eos in front" else 1), "a spelled one is text"
    assert closing[-1] == EOS
    assert closing[-2] != EOS


@pytest.mark.parametrize("processor", CLOSING)
def test_a_cut_text_keeps_its_closing_eos(processor):
    whole = template(CLOSING[processor])
    long = whole.encode(PROMPT, "day " * 20)
    cut = replace(whole, max_length=12).encode(PROMPT, "day " * 20)
    assert (len(cut.ids), cut.ids[-1], cut.truncated) == (12, EOS, True)
    assert long.response_tokens == 20


@pytest.mark.parametrize("processor", CLOSING)
def test_the_fingerprint_tells_of_models_that_are_read_otherwise(tmp_path, processor):
    settings = {"max_length": 64, "too_long": "truncate", "dtype": "float32"}
    directory = save(tmp_path, CLOSING[processor])
    before = identify(directory, **settings)
    now = identify(directory, **settings, reading=reading_mark(directory))
    assert now.to_json() == {**before.to_json(), "reading": "one closing eos"}
    assert now.fingerprint() != before.fingerprint()


@pytest.mark.parametrize("processor", OTHERS)
def test_models_that_are_read_as_before_have_no_mark(tmp_path, processor):
    assert reading_mark(save(tmp_path, OTHERS[processor])) is None


@pytest.mark.parametrize("processor", CLOSING)
def test_a_chat_template_and_pairs_are_read_as_before(tmp_path, processor):
    assert reading_mark(save(tmp_path / "chat", CLOSING[processor], chat=True)) is None
    encoder = save_encoder(tmp_path / "pair")
    tokenizer = word_tokenizer(pair=True)
    tokenizer.eos_token = "[SEP]"  # as RoBERTa's: the closing token of a pair
    tokenizer.save_pretrained(encoder)
    assert reading_mark(encoder) is None
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "model_type": "mobilebert"}))
    assert reading_mark(encoder) is None, "a type that is not in the list of encoders"


@pytest.mark.parametrize("save_model", [save_causal, save_encoder])
def test_ordinary_models_are_not_loaded_for_it(tmp_path, save_model, monkeypatch):
    monkeypatch.setattr(rm.preview, "Preview", None)
    assert reading_mark(save_model(tmp_path)) is None


def test_mark_and_scorer_agree(tmp_path):
    for name, processor in {**CLOSING, **OTHERS}.items():
        directory = save(tmp_path / name, processor)
        scorer = Scorer.load(
            directory, dtype="float32", max_length=64, too_long="truncate", tokens_per_batch=500, device="cpu"
        )
        assert scorer.template.closes_itself == (reading_mark(directory) is not None), name


def test_the_fingerprint_of_a_plain_model_is_that_of_earlier_releases(tmp_path):
    files = {"config.json": "{}", "model.safetensors": "w", "tokenizer.json": "t", "tokenizer_config.json": "{}"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    identity = identify(tmp_path, max_length=64, too_long="truncate", dtype="float32")
    assert identity.fingerprint(mapping={}) == "c5baa2d64a3c51039bddf3e8"


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "model_type", []),
        ("tokenizer.json", "post_processor", {"type": "TemplateProcessing", "single": 3}),
        ("tokenizer.json", "post_processor", {"type": "Sequence", "processors": "none"}),
    ],
)
def test_malformed_settings_close_nothing(tmp_path, file, key, value):
    """They are refused where the model is loaded."""
    directory = save_causal(tmp_path)
    settings = json.loads((directory / file).read_text())
    (directory / file).write_text(json.dumps({**settings, key: value}))
    assert reading_mark(directory) is None
