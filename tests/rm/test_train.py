from __future__ import annotations

import numpy as np
import pytest
import torch
from corpora import write_jsonl
from tiny_models import WORDS, save_causal, word_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm import train as training
from rm.losses import bradley_terry
from rm.preferences import Edge, Group, Rejections
from rm.scorer import Scorer
from rm.templates import Encoded, Template
from rm.train import Collator, EncodedGroup, TrainingError, TrainSettings, accuracy, encode_groups, train

PROMPT = (("user", "what is it"),)


def settings(data, model, output, **changes) -> TrainSettings:
    values = {
        "data_path": str(data),
        "data_format": "auto",
        "origin": "human",
        "heldout_fraction": 0.25,
        "heldout_path": None,
        "model_path": str(model),
        "revision": None,
        "max_length": 48,
        "epochs": 6,
        "learning_rate": 3e-3,
        "groups_per_batch": 4,
        "gradient_accumulation": 1,
        "warmup_fraction": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 0,
        "report_to": (),
        "output_path": str(output),
    }
    return TrainSettings(**{**values, **changes})


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"prompt": f"what is {word}", "chosen": f"good {word} answer", "rejected": f"bad {word} reply"}
        for word in WORDS[:60]
    ]
    return write_jsonl(tmp_path / "pairs.jsonl", rows)


def encoded(*ids: int) -> Encoded:
    return Encoded(list(ids), [0] * len(ids), 1, len(ids) - 1, False)


def test_a_batch_by_hand():
    groups = [
        EncodedGroup([encoded(5, 6), encoded(7)], [(0, 1, 1.0)]),
        EncodedGroup([encoded(8), encoded(9, 9, 9), encoded(4)], [(2, 0, 0.75), (1, 2, 1.0)]),
    ]
    batch = Collator(pad=1)(groups)
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 1, 1], [8, 1, 1], [9, 9, 9], [4, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]
    assert batch["edges"].tolist() == [[0, 1], [4, 2], [3, 4]]
    assert batch["probabilities"].tolist() == [1.0, 0.75, 1.0]
    assert batch["weights"].tolist() == [1.0, 0.5, 0.5]


def test_sides_equal_after_truncation_are_rejected_and_their_group_shrinks():
    template = Template(word_tokenizer(pair=True), "pair", 8, "truncate")
    long = "one one one one one one"
    group = Group(PROMPT, (long + " good", long + " bad", "good"), (Edge(0, 1, 1.0), Edge(2, 1, 1.0)), "human")
    rejected = Rejections()
    (got,) = encode_groups([group], template, rejected)
    assert rejected == {"equal_after_truncation": 1}
    assert got.edges == [(1, 0, 1.0)]
    assert [row.response_tokens for row in got.responses] == [5, 1]
    assert encode_groups([Group(PROMPT, group.responses[:2], group.edges[:1], "human")], template, rejected) == []


def test_accuracy_by_hand():
    group = EncodedGroup([encoded(1)] * 3, [(0, 1, 1.0), (1, 2, 1.0), (0, 2, 0.2), (1, 0, 0.5)])
    # right; equal (half); said the other way round (wrong); a tie (left out)
    assert accuracy([np.array([2.0, 1.0, 1.0])], [group]) == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.parametrize("kind", ["encoder", "causal", "chat"])
def test_training_learns_and_saves_an_ordinary_checkpoint(tmp_path, pairs, kind, request):
    result = train(settings(pairs, request.getfixturevalue(kind), tmp_path / "out"))
    assert result.groups + result.heldout_comparisons == 60
    assert result.heldout_comparisons > 5
    assert result.heldout_accuracy == 1.0
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.pad_token_id == tokenizer.pad_token_id
    arguments = {"dtype": "float32", "max_length": 48, "too_long": "truncate", "tokens_per_batch": 999, "device": "cpu"}
    rewards = (
        Scorer.load(tmp_path / "out", **arguments).score([(PROMPT, ["good it answer", "bad it reply"])])[0].rewards
    )
    assert rewards[0] > rewards[1]


def test_swapped_labels_teach_the_opposite(tmp_path, pairs, encoder):
    text = pairs.read_text().replace("chosen", "x").replace("rejected", "chosen").replace('"x"', '"rejected"')
    pairs.write_text(text)
    train(settings(pairs, encoder, tmp_path / "out"))
    arguments = {"dtype": "float32", "max_length": 48, "too_long": "truncate", "tokens_per_batch": 999, "device": "cpu"}
    rewards = (
        Scorer.load(tmp_path / "out", **arguments).score([(PROMPT, ["good it answer", "bad it reply"])])[0].rewards
    )
    assert rewards[0] < rewards[1]


def test_pad_equal_to_eos_is_mended_before_training(tmp_path, pairs):
    backbone = save_causal(tmp_path / "backbone", pad="</s>")
    train(settings(pairs, backbone, tmp_path / "out", epochs=1))
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert config.pad_token_id != config.eos_token_id


def test_the_same_seed_gives_the_same_model(tmp_path, pairs, encoder):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(settings(pairs, encoder, tmp_path / name, seed=seed, epochs=1))
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_the_trainers_loss_is_the_groups_loss(tmp_path, pairs, encoder):
    """The first logged step, recomputed with the loss alone on the untouched model."""
    logged = []
    original = training.bradley_terry

    def spy(*arguments):
        logged.append((original(*arguments).item(), [argument.detach().clone() for argument in arguments]))
        return original(*arguments)

    training.bradley_terry = spy
    try:
        train(settings(pairs, encoder, tmp_path / "out", epochs=1))
    finally:
        training.bradley_terry = original
    loss, (rewards, edges, probabilities, weights) = logged[0]
    assert len(edges) == len(weights) == 4
    gaps = [(rewards[i] - rewards[j]).item() for i, j in edges.tolist()]
    assert loss == pytest.approx(np.mean([np.log1p(np.exp(-gap)) for gap in gaps]), rel=1e-5)
    assert bradley_terry(rewards, edges, probabilities, weights).item() == pytest.approx(loss)


def test_collapse_and_divergence_fail_loudly():
    with pytest.raises(TrainingError, match="collapsed"):
        training._refuse_collapse([np.full(4, 0.5, dtype=np.float32)], 0.7)
    with pytest.raises(TrainingError, match="diverged"):
        training._refuse_collapse([np.array([0.5, np.nan])], 0.7)
    with pytest.raises(TrainingError, match="diverged"):
        training._refuse_collapse([np.array([0.5, 0.1])], float("nan"))
    training._refuse_collapse([np.array([0.5, 0.1, 0.2])], 0.7)


def test_a_collapsed_run_saves_nothing(tmp_path, pairs, encoder, monkeypatch):
    monkeypatch.setattr(training, "bradley_terry", lambda rewards, *_: (rewards * 0).sum())
    backbone = AutoModelForSequenceClassification.from_pretrained(encoder)
    torch.nn.init.zeros_(backbone.classifier.weight)
    backbone.save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(encoder).save_pretrained(tmp_path / "backbone")
    with pytest.raises(TrainingError, match="every response has the reward"):
        train(settings(pairs, tmp_path / "backbone", tmp_path / "out", epochs=1))
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_default_learning_rate_follows_size(tmp_path, pairs, encoder):
    assert train(settings(pairs, encoder, tmp_path / "out", learning_rate=None, epochs=0.1)).learning_rate == 3e-5
