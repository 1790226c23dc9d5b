from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny_models import WORDS, save_causal
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rm.scorer import Scorer

PROMPT = (("user", "what is the answer"),)


def load(directory, *, tokens_per_batch: int = 256, max_length: int = 64, too_long: str = "truncate") -> Scorer:
    return Scorer.load(
        directory,
        dtype="float32",
        max_length=max_length,
        too_long=too_long,
        tokens_per_batch=tokens_per_batch,
        device="cpu",
    )


def some_groups(count: int = 9) -> list:
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [((("user", text(1, 12)),), [text(1, 30) for _ in range(rng.randint(1, 4))]) for _ in range(count)]


def plain_reward(directory, template, prompt, response) -> float:
    """What anyone gets from the checkpoint with transformers alone, one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    first, second = template.render(prompt, response)
    inputs = tokenizer(first, second, return_tensors="pt", add_special_tokens=template.kind != "chat")
    with torch.inference_mode():
        return model(**inputs).logits[0, 0].item()


@pytest.mark.parametrize("kind", ["encoder", "causal", "chat"])
@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10_000])
def test_equals_one_by_one_scoring_in_order(kind, tokens_per_batch, request):
    directory = request.getfixturevalue(kind)
    scorer, groups = load(directory, tokens_per_batch=tokens_per_batch), some_groups()
    results = scorer.score(groups)
    expected = [
        [plain_reward(directory, scorer.template, prompt, response) for response in responses]
        for prompt, responses in groups
    ]
    spread = np.std(np.concatenate([np.array(values) for values in expected]))
    assert spread > 0.05, "a model without spread would pass any comparison"
    assert [len(result.rewards) for result in results] == [len(responses) for _, responses in groups]
    for result, values in zip(results, expected, strict=True):
        assert result.rewards.dtype == np.float32
        tolerance = 1e-5 * spread + 8 * np.spacing(np.abs(np.float32(values)))
        assert np.all(np.abs(result.rewards - np.float32(values)) <= tolerance)
        assert result.reasons == [None] * len(values)


def test_pad_equal_to_eos_scores_as_transformers_does_for_one_row(tmp_path):
    directory = save_causal(tmp_path / "model", pad="</s>")
    scorer, groups = load(directory), some_groups(4)
    expected = np.array(
        [plain_reward(directory, scorer.template, prompt, r) for prompt, responses in groups for r in responses],
        dtype=np.float32,
    )
    rewards = np.concatenate([result.rewards for result in scorer.score(groups)])
    allowed = 1e-5 * expected.std() + 8 * np.spacing(np.abs(expected)).max()  # a batch rounds unlike a lone row
    assert np.abs(rewards - expected).max() <= allowed


def test_exact_duplicates_are_forwarded_once(encoder):
    scorer = load(encoder)
    single = scorer.score([(PROMPT, ["good"])])[0].rewards[0]
    forwarded = []
    scorer.on_batch = lambda rows, tokens: forwarded.append((rows, tokens))
    results = scorer.score([(PROMPT, ["good", "good"]), (PROMPT, ["good"])])
    assert forwarded == [(1, 8)]
    assert [reward for result in results for reward in result.rewards] == [single] * 3


def test_nothing_to_score(encoder):
    assert load(encoder).score([]) == []
    empty = load(encoder).score([(PROMPT, [])])
    assert len(empty) == 1
    assert empty[0].rewards.shape == (0,)


def test_rejections_stand_beside_scored_neighbours(encoder):
    scorer = load(encoder, max_length=12, too_long="reject")
    short, long = "good", " ".join(WORDS[:30])
    result = scorer.score([(PROMPT, [short, long, short])])[0]
    alone = load(encoder, max_length=12, too_long="reject").score([(PROMPT, [short])])[0]
    assert result.reasons == [None, "too_long", None]
    assert np.isnan(result.rewards[1])
    assert result.rewards[0] == result.rewards[2] == alone.rewards[0]


def test_truncation_is_flagged_and_counted_in_tokens(encoder):
    result = load(encoder, max_length=12).score([(PROMPT, ["good", " ".join(WORDS[:30])])])[0]
    assert result.truncated.tolist() == [False, True]
    assert (result.prompt_tokens + result.response_tokens).tolist() == [8, 12]


def test_nan_rewards_are_rejected(encoder):
    scorer = load(encoder)
    with torch.no_grad():
        scorer.model.model.classifier.weight.fill_(float("nan"))
    result = scorer.score([(PROMPT, ["good"])])[0]
    assert result.reasons == ["nan_reward"]


def test_out_of_memory_halves_the_batch_and_rejects_only_what_never_fits(encoder, monkeypatch):
    scorer, groups = load(encoder, tokens_per_batch=10_000), some_groups()
    expected = load(encoder, tokens_per_batch=10_000).score(groups)
    forward, limit, sizes = scorer.model.forward, 60, []

    def small_memory(input_ids, lengths, types):
        sizes.append(input_ids.numel())
        if input_ids.numel() > limit:
            raise torch.OutOfMemoryError("no memory left")
        return forward(input_ids, lengths, types)

    monkeypatch.setattr(scorer.model, "forward", small_memory)
    results = scorer.score(groups)
    assert scorer.tokens_per_batch <= limit
    for got, wanted in zip(results, expected, strict=True):
        assert got.reasons == [None] * len(wanted.rewards)
        assert got.rewards == pytest.approx(wanted.rewards, abs=1e-5)
    monkeypatch.setattr(scorer.model, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("none")))
    assert scorer.score([(PROMPT, ["good", "bad"])])[0].reasons == ["out_of_memory"] * 2
    assert max(sizes) > limit, "the budget was never exceeded, so nothing was tested"
