"""The language-model loss of preferred responses: which ones, its value by hand and by transformers, and what refuses it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.corpora import write_jsonl
from support.every_classifier import _tiny_config
from support.tiny_models import WORDS, save_causal, save_encoder, save_language_model, word_tokenizer
from support.training_groups import collator, encoded_group, row, run_settings
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rm.checkpoint.load import ensure_distinct_pad, load_backbone_for_training, load_tokenizer
from rm.checkpoint.text_head import load_text_head
from rm.engine.packed_forward import enable_packing, first_position
from rm.identity import ModelError
from rm.text.templates import Template
from rm.train import train
from rm.train.language_loss import ChosenText, chosen_text, preferred, text_loss
from rm.train.loss_network import GroupNetwork


def preferred_of(edges=(), labels=(), count=4):
    group = encoded_group([row(1, 2, 3)] * count, edges, labels)
    return preferred(group.responses, group.edges, group.labels)


def test_preferred_responses_by_hand():
    assert preferred_of([(1, 0)]) == [1]
    assert preferred_of([(2, 0, 0.875)]) == [2]
    assert preferred_of([(2, 0, 0.2)]) == [0], "the one that is more likely preferred"
    assert preferred_of([(0, 1), (0, 2), (1, 2)]) == [0], "the best of a ranking"
    assert preferred_of([(0, 1, 0.5), (0, 2), (1, 2)]) == [], "two are best"
    assert preferred_of([(0, 1, 0.5)]) == []
    assert preferred_of([], [(0, 1.0), (1, 0.0), (2, 0.9)]) == [0, 2]
    assert preferred_of([(1, 0)], [(3, 1.0)]) == [1, 3]
    assert preferred_of([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]) == [0], "foreign ones, 2 and 3, lose to all"
    assert preferred_of([(0, 1, 0.5), (0, 2), (0, 3), (1, 2), (1, 3)]) == []


def test_a_text_is_a_response_behind_at_least_one_token():
    assert chosen_text(3, row(5, 6, 7)) == ChosenText(3, 1, [6, 7])
    assert chosen_text(0, row(5, 6, 7)._replace(response_start=0, response_tokens=3)) == ChosenText(0, 1, [6, 7])
    assert chosen_text(0, row(5, 6, 7)._replace(response_start=1, response_tokens=1)) == ChosenText(0, 1, [6])


def test_the_loss_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0], [math.log(7.0), 0.0]])  # of two tokens
    texts = [ChosenText(0, 1, [1, 0]), ChosenText(1, 1, [0])]
    value = text_loss(lambda states: states, logits, texts)
    assert value.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2 + math.log(8 / 7))


def test_chunks_change_nothing():
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(11, 6, generator=generator).requires_grad_()
    states = torch.randn(700, 6, generator=generator).requires_grad_()
    tokens = torch.randint(11, (700,), generator=generator).tolist()
    value = text_loss(
        lambda some: some @ head.T, states, [ChosenText(0, 1, tokens[:300]), ChosenText(1, 1, tokens[300:])]
    )
    value.backward()
    got = states.grad.clone(), head.grad.clone()
    states.grad = head.grad = None
    losses = torch.nn.functional.cross_entropy(states @ head.T, torch.tensor(tokens), reduction="none")
    expected = losses[:300].mean() + losses[300:].mean()
    expected.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(got[0], states.grad, atol=1e-6)
    assert torch.allclose(got[1], head.grad, atol=1e-5)


def save_tiny_language_model(directory, kind, **changes):
    torch.manual_seed(0)
    config = _tiny_config(kind, tie_word_embeddings=False, **changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer = word_tokenizer(pair=True)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    tokenizer.save_pretrained(directory)
    return directory


MODELS = {
    "untied": lambda path: save_language_model(path),
    "tied": lambda path: save_language_model(path, tied=True),
    "tied, with a pad token added": lambda path: save_language_model(path, tied=True, pad=None, unk=None),
    "gemma2": lambda path: save_tiny_language_model(path, "gemma2", final_logit_softcapping=2.0),
    "gpt_neox": lambda path: save_tiny_language_model(path, "gpt_neox"),
}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_the_language_model(tmp_path, name, packed):
    directory = MODELS[name](tmp_path / "m")
    loaded = load_backbone_for_training(directory)
    ensure_distinct_pad(loaded.model, load_tokenizer(directory))
    head = load_text_head(directory, loaded.model)
    if packed:
        assert enable_packing(loaded.model, causal=True, max_length=48)
    draw = np.random.default_rng(0).integers(9, 60, 99).tolist()
    rows = [
        row(*draw[:9], *draw[20 + 9 * at : 23 + 9 * at + at])._replace(response_start=5, response_tokens=5 + at)
        for at in range(4)
    ]
    groups = [encoded_group(rows[:3], [(1, 0), (1, 2)]), encoded_group(rows[3:], [], [(0, 1.0)])]
    making = collator(packed=packed, first_position=first_position(loaded.model.config), texts=True)
    network = GroupNetwork(loaded.model, causal=True, text_head=head)
    language = AutoModelForCausalLM.from_pretrained(directory)
    expected = 0.0
    for one in (rows[1], rows[3]):
        ids = torch.tensor([one.ids])
        labels = ids.clone()
        labels[0, :5] = -100
        labels[0, 5 + one.response_tokens :] = -100
        expected += language(input_ids=ids, labels=labels).loss.item()
    assert making.count_texts(groups) == 2
    outputs = network.outputs(making.micro_batch(groups))
    assert outputs.text_loss.item() == pytest.approx(expected, rel=1e-4)
    assert network(making.micro_batch(groups)).tolist() == pytest.approx(outputs.heads[:, 0].tolist(), rel=1e-4)


def test_what_has_no_head_for_text_refuses(tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", list(text_rows()))
    for save, reason in (
        (save_encoder, "BertForSequenceClassification is an encoder"),
        (save_causal, "have no lm_head.weight"),
    ):
        with pytest.raises(ModelError, match=f"train.language_loss needs.*{reason}.*remove train.language_loss"):
            train(run_settings(data, save(tmp_path / save.__name__), tmp_path / "out", language_loss={"weight": 1.0}))
    assert not (tmp_path / "out").exists()
    directory = save_tiny_language_model(tmp_path / "opt", "opt")
    with pytest.raises(ModelError, match="OPTForSequenceClassification has no language model that can be used"):
        load_text_head(directory, load_backbone_for_training(directory).model)


def text_rows():
    for noun in WORDS[:24]:
        yield {"prompt": f"what is {noun}", "chosen": f"good {noun} answer", "rejected": f"bad {noun}"}


LORA = {"rank": 4, "alpha": 8, "targets": "all-linear"}


@pytest.mark.parametrize(("lora", "rate"), [(None, 3e-3), (LORA, 2e-2)], ids=["all", "lora"])
def test_text_is_learnt_beside_rewards_and_its_head_is_not_saved(tmp_path, lora, rate):
    data = write_jsonl(tmp_path / "pairs.jsonl", list(text_rows()))
    backbone = save_language_model(tmp_path / "m")

    def trained(name, **changes):
        out = tmp_path / name
        train(
            run_settings(data, backbone, out, epochs=4, learning_rate=rate, lora=lora, heldout_fraction=0.0, **changes)
        )
        weights = load_file(out / "model.safetensors")
        assert "lm_head.weight" not in weights
        _, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
        assert not any(info.values())
        classifier = load_backbone_for_training(out).model
        head = load_text_head(backbone, classifier)
        template = Template.of(load_tokenizer(out), causal=True, max_length=48, too_long="truncate")
        losses = []
        for noun in WORDS[:4]:
            encoded = template.encode((("user", f"what is {noun}"),), f"good {noun} answer")
            text = chosen_text(0, encoded)
            assert len(text.tokens) == 3
            states = classifier.base_model(input_ids=torch.tensor([encoded.ids]))[0][0]
            losses.append(text_loss(head.logits, states[text.start - 1 :][:3], [text]).item())
        return sum(losses) / len(losses)

    plain, learnt = trained("plain"), trained("text", language_loss={"weight": 1.0})
    assert learnt < plain - 0.5, (plain, learnt)


def test_a_rejected_response_that_beats_foreign_ones_is_not_learnt():
    group = replace(encoded_group([row(1, 2, 3)] * 3, [(0, 1), (0, 2)], [(0, 0.0)]), members=(0, -1, -1))
    assert collator(texts=True).count_texts([group]) == 0
    assert collator(texts=True).micro_batch([group]).texts == ()
