"""Heads with several outputs: named ones are used, together or alone, and what is not clear is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.classifiers import save
from support.every_classifier import save_tiny
from support.tiny_models import WORDS
from transformers import AutoModelForSequenceClassification

from rm.checkpoint.load import build_without_weights, load_for_scoring
from rm.dry_run import DryRun
from rm.engine.packed_forward import packed_rewards
from rm.identity import ModelError
from rm.scorer import Scorer
from rm.scores import Outputs

SETTINGS = {"dtype": "float32", "max_length": 60, "too_long": "truncate", "device": "cpu"}
NAMED = Outputs(2, {"helpful": 2, "verbose": 0})
GROUPS = [
    (
        (("user", f"what is {noun} of the word"),),
        [f"{grade} {noun} " * count for count, grade in enumerate(WORDS[30:35], 1)],
    )
    for noun in WORDS[:4]
]


def scored(scorer, groups=GROUPS) -> dict[str, np.ndarray]:
    results = scorer.score(groups)
    assert all(reason is None for result in results for reason in result.reasons)
    columns = {"reward": [result.rewards for result in results]}
    columns |= {name: [result.outputs[name] for result in results] for name in scorer.outputs.names}
    return {name: np.concatenate(values) for name, values in columns.items()}


@pytest.mark.parametrize(
    ("kind", "way", "dtype"),
    [
        ("Llama", "packed", "float32"),
        ("Llama", "packed", "bfloat16"),
        ("Bert", "packed", "float32"),
        ("deberta", "padded", "float32"),
        ("convbert", "equal_lengths", "bfloat16"),
    ],
)
def test_every_output_is_that_of_the_row_alone(kind, way, dtype, tmp_path):
    """Packed, padded or of equal lengths: one forward, and all outputs of transformers' own head."""
    directory = (save if kind[0].isupper() else save_tiny)(tmp_path, kind, num_labels=5)
    scorer = Scorer.load(directory, tokens_per_batch=400, **{**SETTINGS, "dtype": dtype}, outputs=NAMED)
    assert ("packed" if scorer.packed else scorer.way) == way
    works = []
    scorer.on_batch = works.append
    together = scored(scorer)
    assert together.keys() == {"reward", "helpful", "verbose"}
    assert np.array_equal(together["reward"], together["helpful"])
    assert sum(work.rows for work in works) == sum(len(responses) for _, responses in GROUPS)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    rows = [row for prompt, responses in GROUPS for row in scorer.template.encode_group(prompt, responses)]
    with torch.inference_mode():
        alone = []
        for row in rows:
            types = {} if row.types is None else {"token_type_ids": torch.tensor([row.types])}
            alone.append(model(input_ids=torch.tensor([row.ids]), **types).logits[0].numpy())
    for name, number in NAMED.names.items():
        exact = np.array(alone)[:, number]
        error = np.abs(together[name] - exact).max()
        assert error <= (1e-5 if dtype == "float32" else 0.2) * exact.std() + 8 * np.spacing(np.abs(exact).max())
    assert np.abs(together["helpful"] - together["verbose"]).max() > 0.1


def test_a_way_that_is_wrong_in_another_output_alone_is_not_taken(tmp_path, monkeypatch):
    """The check at load looks at all outputs, used or not."""
    directory = save(tmp_path, "Llama", num_labels=3)

    def wrong_in_the_last(*args, compute=packed_rewards, **named):
        rewards = compute(*args, **named)
        rewards[0, 2] += rewards[:, 2].std()
        return rewards

    monkeypatch.setattr("rm.engine.packed_forward.packed_rewards", wrong_in_the_last)
    scorer = Scorer.load(directory, tokens_per_batch=400, **SETTINGS, outputs=Outputs(0, {"helpful": 0}))
    assert not scorer.packed


def with_labels(directory, labels):
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["id2label"] = {str(number): label for number, label in enumerate(labels)}
    config["label2id"] = {label: number for number, label in enumerate(labels)}
    path.write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (
            {},
            r"has 3 outputs \(in config.json Help fulness: 0, correct: 1, verbose: 2\), .* with model.outputs=\{NAME: NUMBER\}",
        ),
        ({"helpful": 3}, r"model.outputs.helpful is 3, and .* has 3 outputs .*; expected 0 to 2"),
        ({"helpful": 0, "verbose": 1}, r"model.outputs.verbose is 1, and config.json .* gives that name to output 2"),
        ({"help_fulness": 2}, r"gives that name to output 0"),
    ],
)
def test_what_the_head_does_not_have_is_refused(outputs, message, tmp_path):
    directory = with_labels(save(tmp_path, "Llama", num_labels=3), ["Help fulness", "correct", "verbose"])
    with pytest.raises(ModelError, match=message):
        load_for_scoring(directory, dtype="float32", device="cpu", outputs=outputs)
    with pytest.raises(ModelError, match=message):
        build_without_weights(directory, outputs=outputs)


def test_a_lone_output_may_have_a_name_and_others_their_own(tmp_path):
    one = save(tmp_path / "one", "Llama")
    assert scored(Scorer.load(one, tokens_per_batch=400, **SETTINGS, outputs=Outputs(0, {"helpful": 0})))[
        "helpful"
    ].any()
    three = with_labels(save(tmp_path / "three", "Llama", num_labels=3), ["a", "b", "c"])
    assert (
        load_for_scoring(three, dtype="float32", device="cpu", outputs={"mine": 1, "c": 2}).model.config.num_labels == 3
    )


def test_an_output_that_is_no_number_rejects_the_row(tmp_path):
    scorer = Scorer.load(save(tmp_path, "Llama", num_labels=3), tokens_per_batch=400, **SETTINGS, outputs=NAMED)
    with torch.no_grad():
        scorer.model.model.score.weight[0] = torch.nan
    [result] = scorer.score(GROUPS[:1])
    assert set(result.reasons) == {"nan_reward"}
    assert np.isnan(result.rewards).all()
    assert np.isnan(result.outputs["helpful"]).all()


def test_tokens_are_counted_without_weights(tmp_path):
    directory = save(tmp_path, "Llama", num_labels=3)
    dry = DryRun.of(directory, max_length=60, too_long="truncate", tokens_per_batch=None, device="cpu", outputs=NAMED)
    counted, _ = dry.count(GROUPS)
    assert sum(tokens.sum() for tokens in counted) > 100
