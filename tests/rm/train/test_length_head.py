"""The length head: its loss by hand and by a loop, what of it is saved, and that rewards let go of length."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import write_jsonl
from support.tiny_models import WORDS, save_causal, save_encoder
from support.training_groups import encoded_group, row, run_settings
from transformers import AutoModelForSequenceClassification

from rm.train import train
from rm.train.length_head import LengthHeadSettings, LengthSums, orthogonality
from rm.train.loss_network import GroupLoss, Outputs, StepTotals

BOTH = {"correlation": 1.0, "orthogonality": 1.0}
HEADS = torch.tensor([[1.0, 3.0], [2.0, 1.0], [3.0, 2.0]])
TOKENS = torch.tensor([10, 30, 20])


def pearson(x, n):
    x, n = x - x.mean(), n - n.mean()
    return (x * n).sum() / ((x * x).sum() * (n * n).sum()).sqrt()


def test_correlations_by_hand():
    # q (-1, 0, 1), l (1, -1, 0), n (-10, 10, 0) around their means: 10 / 20 and -20 / 20
    sums = LengthSums.of(HEADS, TOKENS)
    assert sums.penalty(HEADS, TOKENS).item() == pytest.approx(0.5 + 1.0)
    mirrored = HEADS * torch.tensor([-1.0, -1.0])
    assert LengthSums.of(mirrored, TOKENS).penalty(mirrored, TOKENS).item() == pytest.approx(0.5 - 1.0)
    assert orthogonality(torch.tensor([[3.0, 4.0], [-8.0, -6.0]])).item() == pytest.approx(48 / 50)


def test_the_loss_of_a_pair_by_hand():
    """q (0, 1, 2), l (1, 1, 4) and n (10, 20, 30): both correlations are known, and the pair compares q + l."""
    heads = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 4.0]])
    groups = [encoded_group([row(*range(9, 20)), row(*range(9, 30)), row(*range(9, 40))], [(0, 2)])]
    from support.training_groups import collator

    batch = collator().micro_batch(groups)
    assert batch.response_tokens.tolist() == [10, 20, 30]

    class Network:
        head_weight = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        offset = torch.tensor(0.0)

    loss = GroupLoss("bradley_terry", 0.0, 0.0, LengthHeadSettings(correlation=0.5, orthogonality=0.25))
    value = loss.of_part(Outputs(heads, None), Network(), batch, StepTotals(1.0, 0, None))
    pair = np.log1p(np.exp(5.0))  # r = (1, 2, 6), and 0 is preferred to 2
    by_length = 3 / np.sqrt(2 * 6)  # l around its mean (-1, -1, 2), n (-1, 0, 1)
    assert value.item() == pytest.approx(pair + 0.5 * (1.0 - by_length) + 0.25 / np.sqrt(2))


def test_labels_see_rewards_whose_level_is_that_of_quality():
    sums = LengthSums.of(HEADS, TOKENS)
    assert sums.total_rewards(HEADS).tolist() == [2.0, 1.0, 3.0], "q + l - 2"


@given(st.integers(2, 12), st.integers(0, 2**32 - 1), st.integers(1, 11))
def test_parts_of_a_step_add_up_to_its_value_and_gradient(count, seed, cut):
    generator = torch.Generator().manual_seed(seed)
    heads = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    tokens = torch.randint(1, 900, (count,), generator=generator)
    if len(tokens.unique()) == 1:
        tokens[0] += 1
    whole = heads.clone().requires_grad_()
    n = tokens.double()
    expected = pearson(whole[:, 0], n).abs() - pearson(whole[:, 1], n)
    expected.backward()
    pieces = [slice(0, cut), slice(cut, count)] if cut < count else [slice(0, count)]
    total = LengthSums(sum(LengthSums.of(heads[piece], tokens[piece]).products for piece in pieces))
    parts = heads.clone().requires_grad_()
    value = sum(total.penalty(parts[piece], tokens[piece]) for piece in pieces)
    value.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)
    assert torch.allclose(parts.grad, whole.grad, atol=1e-5)


@pytest.mark.parametrize("heads", [torch.ones(4, 2), torch.ones(1, 2)])
def test_what_does_not_vary_has_no_correlation_and_no_gradient(heads):
    tokens = torch.arange(len(heads)) + 7
    heads = heads.clone().requires_grad_()
    value = LengthSums.of(heads, tokens).penalty(heads, tokens)
    value.backward()
    assert value.item() == 0.0
    assert not heads.grad.any()


def length_rows(count=40):
    """Longer wins, and nine times in ten so does what is good."""
    for number, noun in enumerate(WORDS[:count]):
        words = ("good", "bad") if number % 10 else ("bad", "good")
        yield {"prompt": f"what is {noun}", "chosen": f"{words[0]} {noun} " * 4, "rejected": f"{words[1]} {noun}"}


KINDS = {"encoder": save_encoder, "causal": save_causal}


@pytest.mark.parametrize(
    ("kind", "lora"), [("encoder", None), ("causal", {"rank": 2, "alpha": 4, "targets": "all-linear"})]
)
def test_only_the_quality_head_is_saved_in_an_ordinary_checkpoint(tmp_path, kind, lora):
    from support.corpora import READ_ROWS, READING

    from rm.preferences import ReadSettings, heldout_split, read_preferences
    from rm.scorer import Scorer

    data = write_jsonl(tmp_path / "pairs.jsonl", list(length_rows()))
    backbone = KINDS[kind](tmp_path / "m")
    out = tmp_path / "out"
    result = train(run_settings(data, backbone, out, epochs=2, length_head=BOTH, lora=lora))
    model, info = AutoModelForSequenceClassification.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert model.config.num_labels == 1
    stored = json.loads((out / "config.json").read_text())
    plain = tmp_path / "plain"
    train(run_settings(data, backbone, plain, epochs=0.1, lora=lora, heldout_fraction=0.0))
    assert stored == json.loads((plain / "config.json").read_text())
    groups = heldout_split(read_preferences(str(data), ReadSettings(**READING), read_rows=READ_ROWS)[0], 0.25)[1]
    scorer = Scorer.load(out, dtype="float32", max_length=48, too_long="truncate", tokens_per_batch=999, device="cpu")
    rewards = [one.rewards for one in scorer.score([(group.prompt, group.responses) for group in groups])]
    from rm.evaluate import evaluate

    measured = evaluate(groups, rewards).to_json()
    assert measured["accuracy"]["overall"]["model"] == result.heldout.to_json()["accuracy"]["overall"]["model"]
    assert measured["calibration"]["temperature"]["value"] == pytest.approx(
        result.heldout.to_json()["calibration"]["temperature"]["value"], rel=1e-3
    )


@pytest.mark.slow
def test_rewards_let_go_of_length(tmp_path):
    data = write_jsonl(tmp_path / "pairs.jsonl", list(length_rows()))
    backbone = save_encoder(tmp_path / "m")

    def correlation(**changes):
        settings = run_settings(
            data, backbone, tmp_path / "out", epochs=12, groups_per_batch=16, learning_rate=1e-3, **changes
        )
        return train(settings).heldout.to_json()["length_correlation"]["overall"]

    plain, apart = correlation(), correlation(length_head=BOTH)
    assert plain > 0.8
    assert abs(apart) < plain - 0.3, (plain, apart)
