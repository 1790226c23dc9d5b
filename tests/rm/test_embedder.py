"""Relevance: pooling by hand, cosines against a loop over plain transformers, and sentence-transformers itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.slow_helpers import minilm
from transformers import AutoModel, AutoTokenizer

from rm.checkpoint.embedding_config import EmbeddingSettings, read_embedding
from rm.checkpoint.embedding_model import pool
from rm.embedder import Embedder, _read_response, next_others
from rm.identity import ModelError
from rm.messages import pack_messages

MEAN = EmbeddingSettings(("mean",), 16)
WORDS = "how is it that the water of one has been long and good with many others there".split()


def say(text):
    return (("user", text),)


def words(start, count):
    return " ".join(WORDS[(start + at) % len(WORDS)] for at in range(count))


GROUPS = [(say(words(at, 3 + at)), [words(at + one, 1 + 2 * one) for one in range(1 + at)]) for at in range(4)]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[2.0, 0.0], [5.0, 6.0]]),
        ("cls", [[1.0, 1.0], [5.0, 6.0]]),
        ("lasttoken", [[3.0, -1.0], [5.0, 6.0]]),
        ("max", [[3.0, 1.0], [5.0, 6.0]]),
        ("mean_sqrt_len_tokens", [[4 / 2**0.5, 0.0], [5.0, 6.0]]),
        ("weightedmean", [[7 / 3, -1 / 3], [5.0, 6.0]]),
    ],
)
def test_pooling(mode, expected):
    hidden = torch.tensor([[[1.0, 1.0], [3.0, -1.0], [99.0, -99.0]], [[5.0, 6.0], [77.0, 77.0], [-77.0, -77.0]]])
    assert torch.allclose(pool(hidden, torch.tensor([2, 1]), mode), torch.tensor(expected))


def as_embedding(directory, pooling, *, modules=("Transformer", "Pooling", "Normalize"), **files):
    kinds = [
        {"idx": at, "path": "1_Pooling" if name == "Pooling" else "", "type": f"sentence_transformers.models.{name}"}
        for at, name in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(kinds))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_settings_are_those_that_the_model_stores(encoder, tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").write_text((encoder / "config.json").read_text())
    assert read_embedding(plain, None) == EmbeddingSettings(("mean",), 64)
    assert read_embedding(plain, 9).max_length == 9
    assert read_embedding(as_embedding(plain, {"pooling_mode_cls_token": True}), None).pooling == ("cls",)
    stored = as_embedding(
        plain,
        {"pooling_mode": ["lasttoken", "mean"]},
        sentence_bert_config={"max_seq_length": 32, "do_lower_case": True},
        config_sentence_transformers={"prompts": {"query": "q: ", "passage": "p: "}},
    )
    settings = read_embedding(stored, None)
    assert settings == EmbeddingSettings(("lasttoken", "mean"), 32, "q: ", "p: ", lower_case=True)
    assert EmbeddingSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert read_embedding(stored, 48).max_length == 48
    for pooling, modules, message in (
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), "module 'Dense'"),
        ({"pooling_mode": "other"}, ("Transformer", "Pooling"), r"pooling \['other'\]; expected one of mean, cls"),
        ({"pooling_mode": "mean", "include_prompt": False}, ("Transformer", "Pooling"), "instruction before a text"),
        ({}, ("Transformer", "Pooling"), "is missing"),
    ):
        with pytest.raises(ModelError, match=message):
            read_embedding(as_embedding(plain, pooling, modules=modules), None)
    (plain / "modules.json").write_text("{")
    with pytest.raises(ModelError, match=r"modules\.json is no list of modules"):
        read_embedding(plain, None)


@pytest.fixture(scope="module")
def reference(encoder):
    """(text) → its unit vector: the mean over the states of its tokens, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)

    def embed(text, limit=16):
        with torch.no_grad():
            states = model(**tokenizer(text, truncation=True, max_length=limit, return_tensors="pt"))[0][0]
        vector = states.double().mean(0).numpy()
        return vector / np.linalg.norm(vector)

    return embed


@pytest.fixture(scope="module")
def embedder(encoder):
    return Embedder.load(encoder, MEAN, device="cpu")


def test_cosines_are_those_of_a_loop_and_each_text_is_read_once(embedder, reference):
    rows = []
    embedder.on_batch = lambda work: rows.append((work.rows, work.computed_tokens))
    scores = embedder.score([*GROUPS, (say("nothing"), []), *GROUPS])
    distinct = {("p", prompt) for prompt, _ in GROUPS} | {("r", text) for _, texts in GROUPS for text in texts}
    assert sum(count for count, _ in rows) == len(distinct)
    for (prompt, responses), one in zip(GROUPS, scores, strict=False):
        expected = [reference(prompt[0][1]) @ reference(text) for text in responses]
        assert np.allclose(one.rewards, expected, atol=1e-6)
        assert one.reasons == [None] * len(responses)
        tokens = [len(text.split()) + 2 for text in responses]
        assert one.response_tokens.tolist() == [min(16, count) for count in tokens]
        assert set(one.prompt_tokens) == {min(16, len(prompt[0][1].split()) + 2)}
        assert one.truncated.tolist() == [count > 16 for count in tokens]
    assert all(np.array_equal(a.rewards, b.rewards) for a, b in zip(scores, scores[len(GROUPS) + 1 :], strict=False))
    small = embedder.score(GROUPS[:1])
    embedder.tokens_per_batch = 20
    again = embedder.score(GROUPS[:1])
    embedder.tokens_per_batch = 4096
    assert np.allclose(small[0].rewards, again[0].rewards, atol=1e-6)


def test_foreign_cosines_are_with_responses_to_the_next_other_prompt(embedder, reference):
    groups = [GROUPS[0], GROUPS[0], GROUPS[2], GROUPS[3]]
    scores = embedder.score(groups)
    for at, other in ((0, 2), (1, 2), (2, 3), (3, 0)):
        prompt, responses = groups[at]
        texts = [groups[other][1][index % len(groups[other][1])] for index in range(len(responses))]
        expected = [reference(prompt[0][1]) @ reference(text) for text in texts]
        assert np.allclose(scores[at].outputs["foreign"], expected, atol=1e-6)
    assert np.isnan(embedder.score([GROUPS[3]])[0].outputs["foreign"]).all()


def test_the_next_other_number_of_a_circle():
    assert next_others([]) == []
    assert next_others([4]) == [None]
    assert next_others([4, 4]) == [None, None]
    assert next_others([4, 4, 7, 4, 9, 9]) == [2, 2, 3, 4, 0, 0]


def test_a_long_prompt_loses_its_oldest_turns_and_a_long_text_its_end(embedder, reference):
    turns = (("system", words(0, 9)), ("user", words(3, 9)), ("assistant", words(5, 9)), ("user", words(7, 4)))
    [scores] = embedder.score([(turns, [words(1, 3), words(2, 30)])])
    expected = [reference(words(7, 4)) @ reference(text) for text in (words(1, 3), words(2, 30))]
    assert np.allclose(scores.rewards, expected, atol=1e-6)
    assert scores.truncated.tolist() == [True, True]
    assert scores.response_tokens.tolist() == [5, 16]


def test_special_tokens_that_a_text_spells_are_text(embedder):
    [scores] = embedder.score([(say("the [SEP] of"), ["the [SEP] of", "the of"])])
    assert scores.rewards[0] == pytest.approx(1.0)
    assert scores.response_tokens.tolist() == [5 + 2, 2 + 2]


def test_prefixes_and_small_letters(encoder, reference):
    settings = EmbeddingSettings(("mean",), 16, query="how ", document="one ", lower_case=True)
    [scores] = Embedder.load(encoder, settings, device="cpu").score([(say("Is It"), ["The Water"])])
    assert scores.rewards[0] == pytest.approx(reference("how is it") @ reference("one the water"), abs=1e-6)


def test_padding_that_changes_a_text_is_noticed(embedder, monkeypatch):
    forward = embedder.model.forward
    monkeypatch.setattr(
        embedder.model, "forward", lambda ids, lengths, types=None: forward(ids, lengths, types) + ids.shape[1]
    )
    assert embedder.padding_error() > 0.01


def test_a_model_without_its_weights_is_refused(encoder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(encoder, broken)
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {name: one for name, one in tensors.items() if "layer.1.output" not in name}, broken / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"lacks 4 weights \(encoder\.layer\.1\.output"):
        Embedder.load(broken, MEAN, device="cpu")


TEXTS = [
    "How do I boil an egg?",
    "Put it into boiling water for seven minutes; then cool it.",
    " The capital of France\nis Paris. ",
    "\u4f60\u597d, \u00fcber alles!",
    "word " * 400,
]


@pytest.mark.slow
def test_cosines_are_those_of_sentence_transformers():
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm()), device="cpu").encode(TEXTS, convert_to_numpy=True)
    embedder = Embedder.load(minilm(), read_embedding(minilm(), None), device="cpu")
    [scores] = embedder.score([(say(TEXTS[0]), TEXTS[1:])])
    assert np.allclose(scores.rewards, theirs[1:] @ theirs[0], atol=2e-6)
    assert scores.truncated.tolist() == [False, False, False, True]
    assert scores.rewards[0] > 0.5 > scores.rewards[1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lasttoken", "weightedmean", "cls"])
def test_a_causal_model_is_read_as_sentence_transformers_reads_it(causal, tmp_path, mode):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    backbone = Transformer(str(causal), max_seq_length=12)
    model = SentenceTransformer(modules=[backbone, Pooling(32, pooling_mode=mode)], device="cpu")
    model.save(str(tmp_path / "model"))
    texts = [words(at, 2 + 3 * at) for at in range(5)]
    theirs = model.encode(texts, convert_to_numpy=True, normalize_embeddings=True)
    settings = read_embedding(tmp_path / "model", None)
    assert (settings.pooling, settings.max_length) == ((mode,), 12)
    [scores] = Embedder.load(tmp_path / "model", settings, device="cpu").score([(say(texts[0]), texts[1:])])
    assert np.allclose(scores.rewards, theirs[1:] @ theirs[0], atol=2e-6)


def test_calls_of_tools_without_text_are_read_as_what_they_say():
    def call(name):
        function = {"type": "function", "function": {"name": name, "arguments": {}}}
        return pack_messages([{"role": "assistant", "content": "", "tool_calls": [function]}])

    weather, hotel = (_read_response(call(name), MEAN) for name in ("get_weather", "book_hotel"))
    assert weather != hotel
    assert "get_weather" in weather
    assert _read_response("plain", MEAN) == "plain"
