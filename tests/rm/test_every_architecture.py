"""Every architecture that classifies sequences: rows together have the rewards of rows alone, or loading refuses the model."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.every_classifier import ALL, POSITIONS, UNMADE, load_scorer, save_tiny
from support.tiny_models import WORDS
from transformers import AutoModelForSequenceClassification, MraForSequenceClassification

from rm.checkpoint.load import load_backbone_for_training
from rm.scorer import ModelError

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
LISTED = dict(re.findall(r"^\| `([\w-]+)` \| ([\w ]+?) \|", PAGE.read_text(encoding="utf-8"), re.M))
SAMPLE = {
    "bert": "packed",
    "llama": "packed",
    "gpt2": "packed",
    "roformer": "padded",
    "t5": "padded",
    "xlnet": "equal lengths",
    "convbert": "equal lengths",
    "fnet": "equal lengths",
}


_SECOND_WHOLE = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
WINDOWED = {
    **dict.fromkeys(("mistral", "ministral3", "mixtral", "phi3", "starcoder2"), ("packed", {"sliding_window": 16})),
    **dict.fromkeys(
        ("cohere_compass_text", "exaone4", "gemma2", "gemma3_text", "gpt_oss", "ministral", "olmo3"),
        ("packed", _SECOND_WHOLE),
    ),
    **dict.fromkeys(("qwen2", "qwen3", "smollm3"), ("packed", {**_SECOND_WHOLE, "use_sliding_window": True})),
    **dict.fromkeys(
        ("modernbert", "modernvbert", "ultrabert"),
        ("packed", {"local_attention": 16, "layer_types": _SECOND_WHOLE["layer_types"]}),
    ),
    "phimoe": ("padded", {"sliding_window": 16}),  # its layers keep the window to themselves
    "qwen2_moe": ("padded", {**_SECOND_WHOLE, "use_sliding_window": True}),
}


def some_groups() -> list:
    """Mixed lengths, from a few tokens to more than the windows of the tiny models."""
    rng = random.Random(0)

    def text(count: int) -> str:
        return " ".join(rng.choices(WORDS, k=count))

    sizes = [(2, (1, 5, 9, 40)), (20, (3, 3, 60)), (5, (1,)), (9, (2, 17, 31, 12, 5))]
    return [((("user", text(prompt)),), [text(length) for length in lengths]) for prompt, lengths in sizes]


def one_by_one(directory, scorer, groups) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    rewards = []
    with torch.inference_mode():
        for prompt, responses in groups:
            for response in responses:
                row = scorer.template.encode(prompt, response)
                inputs = {"input_ids": torch.tensor([row.ids])}
                inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
                if row.types is not None:
                    inputs["token_type_ids"] = torch.tensor([row.types])
                rewards.append(model(**inputs).logits[0, 0].item())
    return np.array(rewards, dtype=np.float32)


def assert_right(directory, scorer) -> None:
    groups = some_groups()
    expected = one_by_one(directory, scorer, groups)
    results = scorer.score(groups)
    assert {reason for result in results for reason in result.reasons} == {None}
    rewards = np.concatenate([result.rewards for result in results])
    assert expected.std() > 0.005 or isinstance(
        scorer.model.model, MraForSequenceClassification
    )  # else agreeing says nothing
    tolerance = 1e-5 * expected.std() + 8 * np.spacing(np.abs(expected).max())
    assert np.abs(rewards - expected).max() <= tolerance


def with_noise(values: dict) -> dict:
    """Return a configuration with every dropout and jitter at 0.3, also in the configurations inside it."""
    noisy = {}
    for name, value in values.items():
        if isinstance(value, dict):
            noisy[name] = with_noise(value)
        else:
            noise = isinstance(value, float) and any(word in name for word in ("drop", "jitter"))
            noisy[name] = 0.3 if noise else value
    return noisy


def assert_training_computes_what_scoring_computes(directory) -> None:
    config = directory / "config.json"
    config.write_text(json.dumps(with_noise(json.loads(config.read_text()))))
    model = load_backbone_for_training(directory)
    torch.manual_seed(1)
    ids = torch.randint(10, 40, (4, 12))
    ids[:, 0], ids[:, -1] = 2, 3
    lengths = torch.full((4,), 12)
    with torch.no_grad():
        expected, rewards = model.eval()(ids, lengths), model.train()(ids, lengths)
    tolerance = 1e-5 * expected.std() + 8 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (rewards - expected).abs().max() <= tolerance


def way_of(scorer) -> str:
    return "packed" if scorer.packed else scorer.way.replace("_", " ")


@pytest.mark.parametrize("kind", SAMPLE)
def test_rows_together_have_the_rewards_of_rows_alone(kind, tmp_path):
    directory = save_tiny(tmp_path / "model", kind)
    scorer = load_scorer(directory, max_length=POSITIONS)
    assert way_of(scorer) == SAMPLE[kind]
    assert_right(directory, scorer)


@pytest.mark.parametrize("kind", ["bert", "mixtral", "phimoe", "gemma3", "qwen3_5", "t5"])
def test_dropout_and_noisy_routers_are_off_in_training(kind, tmp_path):
    """PhiMoE draws experts in training; Gemma 3 and Qwen 3.5 have a configuration inside theirs."""
    assert_training_computes_what_scoring_computes(save_tiny(tmp_path / "model", kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ALL if kind not in UNMADE])
def test_every_architecture_is_right_or_refused(kind, tmp_path):
    directory = save_tiny(tmp_path / "model", kind)
    try:
        scorer = load_scorer(directory, max_length=POSITIONS)
    except ModelError as refusal:
        outcome, reason = "refused", str(refusal)
    else:
        outcome, reason = way_of(scorer), ""
        assert_right(directory, scorer)
        if kind != "diffllama":  # refuses every dropout when it is loaded
            assert_training_computes_what_scoring_computes(directory)
    assert outcome == LISTED[kind], reason


@pytest.mark.slow
@pytest.mark.parametrize("kind", WINDOWED)
def test_windows_shorter_than_rows_are_right_and_packed_where_layers_tell_them(kind, tmp_path):
    outcome, changes = WINDOWED[kind]
    directory = save_tiny(tmp_path / "model", kind, **changes)
    scorer = load_scorer(directory, max_length=POSITIONS)
    assert way_of(scorer) == outcome
    assert_right(directory, scorer)


def test_the_page_lists_every_architecture():
    assert set(LISTED) == set(ALL)
    assert {kind for kind, outcome in LISTED.items() if outcome == "not tried"} == set(UNMADE)
    assert {kind: LISTED[kind] for kind in SAMPLE} == SAMPLE
