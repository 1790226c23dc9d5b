"""The scorer against plain transformers, one row at a time, for every architecture on the way that it takes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from support.classifiers import CAUSAL, ENCODERS, LENGTH, REFUSED, save
from support.tiny_models import WORDS
from transformers import AutoModelForSequenceClassification

from rm.scorer import Scorer

PACKED = ["Llama", "Qwen2", "Qwen3", "Mistral-wide", "GPT2", "GPTNeoX", "Bert", "Roberta"]
PACKED += ["Mistral-window", "Qwen2-window", "Gemma2", "GptOss", "ModernBert", "ModernBert-mean"]
PLAIN = ["DebertaV2"]
ARCHITECTURES = [*((name, True) for name in PACKED), *((name, False) for name in PLAIN)]


def load(directory, *, dtype="float32", tokens_per_batch=100) -> Scorer:
    return Scorer.load(
        directory,
        dtype=dtype,
        max_length=LENGTH,
        too_long="truncate",
        tokens_per_batch=tokens_per_batch,
        device="cpu",
    )


def saved(tmp_path, name, *, packed):
    return save(tmp_path / "model", name, **({} if packed else REFUSED[name]))


def texts(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(count)]


def some_groups() -> list:
    """No prompt, an empty response (the two together are one token), one response, equal ones, too long ones."""
    some = texts(30)
    long = " ".join(WORDS[:60])
    user = (("user", some[0]),)
    return [
        (user, some[1:6]),
        ((), [some[6], "", some[7]]),
        ((("user", some[8]),), ["", some[9]]),
        ((("user", some[10]),), [some[11]]),
        ((("user", some[12]),), [some[13], some[13], some[14]]),
        ((("user", some[15]),), [long, some[16], f"{some[16]} {long}"]),
        ((("user", long),), [some[17], some[18], long]),
        ((("system", some[19]), ("user", some[20]), ("assistant", some[21]), ("user", some[22])), some[23:26]),
        (user, [some[26], some[1]]),  # a prompt that was there before
        ((("user", some[27]),), []),
    ]


def one_by_one(directory, scorer, groups, *, dtype=torch.float32):
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=dtype).eval()
    model.get_submodule("score" if hasattr(model, "score") else "classifier").float()
    rewards = []
    with torch.inference_mode():
        for prompt, responses in groups:
            for response in responses:
                row = scorer.template.encode(prompt, response)
                inputs = {"input_ids": torch.tensor([row.ids])}
                if row.types is not None:
                    inputs["token_type_ids"] = torch.tensor([row.types])
                rewards.append(model(**inputs).logits[0, 0].float().item())
    return np.array(rewards, dtype=np.float32)


@pytest.mark.parametrize(("name", "packed"), ARCHITECTURES)
@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10_000])
def test_float32_equals_one_by_one(name, packed, tokens_per_batch, tmp_path):
    directory, groups = saved(tmp_path, name, packed=packed), some_groups()
    scorer = load(directory, tokens_per_batch=tokens_per_batch)
    assert scorer.packed == packed
    expected = one_by_one(directory, scorer, groups)
    results = scorer.score(groups)
    rewards = np.concatenate([result.rewards for result in results])
    spread = expected.std()
    assert spread > 0.1  # else agreeing says nothing
    tolerance = 1e-5 * spread + 8 * np.spacing(np.abs(expected))
    assert np.all(np.abs(rewards - expected) <= tolerance)
    start = 0
    for result in results:
        wanted = np.sort(expected[start : start + len(result.rewards)])[::-1]
        if len(wanted) > 1 and wanted[0] - wanted[1] > 2 * tolerance.max():
            assert result.rewards.argmax() == expected[start : start + len(wanted)].argmax()
        start += len(wanted)
    assert [reason for result in results for reason in result.reasons] == [None] * len(expected)
    truncated = [bool(flag) for result in results for flag in result.truncated]
    rows = [scorer.template.encode(prompt, response) for prompt, responses in groups for response in responses]
    assert truncated == [row.truncated for row in rows]
    assert truncated.count(True) >= 5
    assert min(len(row.ids) for row in rows) == (1 if name in CAUSAL else 3)


@pytest.mark.parametrize("name", PACKED)
def test_bfloat16_is_as_near_as_padding_is(name, tmp_path):
    directory = save(tmp_path / "model", name)
    rng = random.Random(1)
    groups = [((("user", prompt),), [" ".join(rng.choices(WORDS, k=8)) for _ in range(8)]) for prompt in texts(60)]
    packed, padded = (load(directory, dtype="bfloat16", tokens_per_batch=1000) for _ in range(2))
    assert packed.packed
    padded.packed = False
    padded.model.model.set_attn_implementation("eager" if name in ("Gemma2", "GptOss") else "sdpa")
    exact = np.concatenate([result.rewards for result in load(directory).score(groups)])
    errors = [
        np.sqrt(np.mean((np.concatenate([result.rewards for result in scorer.score(groups)]) - exact) ** 2))
        for scorer in (packed, padded)
    ]
    assert 0 < errors[0] <= 1.1 * errors[1]


def test_all_architectures_are_tried():
    assert {name.partition("-")[0] for name in (*PACKED, *PLAIN)} >= {
        "Llama", "Qwen2", "Qwen3", "Mistral", "Gemma2", "GptOss", "GPT2", "GPTNeoX", "Bert", "DebertaV2", "ModernBert",
    }  # fmt: skip
    assert set(PACKED) <= {*CAUSAL, *ENCODERS}
