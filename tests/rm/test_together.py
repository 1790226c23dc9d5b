"""The ways in which rows run together unpacked: what is tried, what is taken, and what the log says."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from support.every_classifier import load_scorer, save_tiny
from support.tiny_models import save_encoder

from rm import together
from rm.checkpoint.reward_model import RewardModel
from rm.scorer import ModelError
from rm.together import EQUAL_LENGTHS, ONE_BY_ONE, PADDED, compatible_groups

GROUPS = [
    ((("user", "what is the answer"),), ["good", "bad bad word of it", "the word " * 15, "so"]),
    ((("user", "a long long prompt of some words about that"),), ["go", "no number of them could see " * 3]),
]


def scored(scorer) -> np.ndarray:
    return np.concatenate([result.rewards for result in scorer.score(GROUPS)])


def test_parts_by_hand():
    groups, lengths = [[0, 1], [2, 3]], [5, 9, 5, 7]
    assert compatible_groups(groups, lengths, way=PADDED, split=None) == [groups]
    assert compatible_groups(groups, lengths, way=PADDED, split=6) == [[[0], [2]], [[1], [3]]]
    assert compatible_groups(groups, lengths, way=EQUAL_LENGTHS, split=None) == [[[0], [2]], [[3]], [[1]]]
    assert compatible_groups(groups, lengths, way=ONE_BY_ONE, split=None) == [[[2]], [[0]], [[3]], [[1]]]
    assert compatible_groups([], [], way=EQUAL_LENGTHS, split=None) == []


@pytest.mark.parametrize(("kind", "dtype"), [("xlnet", "float32"), ("convbert", "float32"), ("convbert", "bfloat16")])
def test_a_model_that_reads_the_padding_runs_rows_of_equal_lengths(kind, dtype, tmp_path, caplog):
    directory = save_tiny(tmp_path / "model", kind)
    with caplog.at_level(logging.INFO):
        scorer = load_scorer(directory, dtype=dtype)
    assert (scorer.packed, scorer.way) == (False, EQUAL_LENGTHS)
    [warning] = [record for record in caplog.records if record.name == together.log.name]
    assert warning.levelno == logging.WARNING
    assert (
        "only rows of equal length share a batch, which is slower: padded rows give rewards that differ by"
        in warning.getMessage()
    )
    alone = scored(load_scorer(directory, dtype=dtype, tokens_per_batch=1))
    rewards = scored(scorer)
    assert np.abs(rewards - alone).max() <= (1e-5 if dtype == "float32" else 0.05) * alone.std()


def test_a_trial_of_packing_that_crashes_is_no_crash(tmp_path, caplog):
    directory = save_tiny(tmp_path / "model", "roformer")
    with caplog.at_level(logging.INFO):
        scorer = load_scorer(directory)
    assert "computing with padding: the architecture does not support packed rows (IndexError)" in caplog.messages
    assert caplog.messages[-1] == "padding does not change the rewards"
    assert scorer.way == PADDED
    alone = scored(load_scorer(directory, tokens_per_batch=1))
    assert np.abs(scored(scorer) - alone).max() <= 1e-5 * alone.std()


@pytest.mark.parametrize("error", [IndexError("x"), KeyError("x"), AssertionError(), NotImplementedError("x")])
def test_whatever_a_trial_raises_means_not_this_way(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    directory = save_encoder(tmp_path / "model")
    expected = scored(load_scorer(directory))
    monkeypatch.setattr("rm.engine.packed_forward.packed_rewards", fail)
    scorer = load_scorer(directory)
    assert (scorer.packed, scorer.way) == (False, PADDED)
    np.testing.assert_allclose(scored(scorer), expected, rtol=0, atol=1e-5)


def unpacked(monkeypatch, forward):
    """Let no rows be packed, and `forward(original, model, rows)` compute those that run together."""
    monkeypatch.setattr("rm.scorer.enable_packing", lambda *_, **__: False)
    original = together.padded_rewards
    monkeypatch.setattr(
        together, "padded_rewards", lambda model, rows, *, pad: forward(lambda: original(model, rows, pad=pad), rows)
    )


def test_rows_run_one_by_one_where_nothing_else_is_right(tmp_path, monkeypatch, caplog):
    def fail(run, rows):
        if len(rows) > 1:
            raise ValueError("one row at a time")
        return run()

    directory = save_encoder(tmp_path / "model")
    expected = scored(load_scorer(directory))
    unpacked(monkeypatch, fail)
    scorer, sizes = load_scorer(directory), []
    assert scorer.way == ONE_BY_ONE
    assert (
        "rows are scored one by one, which is slow: padded rows fail (ValueError: one row at a time); rows of "
        in caplog.text
    )
    scorer.on_batch = lambda work: sizes.append(work.rows)
    np.testing.assert_allclose(scored(scorer), expected, rtol=0, atol=1e-5)
    assert sizes == [1] * 6


def test_a_model_that_is_never_right_is_refused(tmp_path, monkeypatch):
    def shifted(run, rows):
        rewards, computed = run()
        return rewards + torch.arange(len(rows)) + 1.0 * len(rows[0].ids), computed

    unpacked(monkeypatch, shifted)
    with pytest.raises(
        ModelError, match="BertForSequenceClassification does not give single rows the rewards of plain transf"
    ):
        load_scorer(save_encoder(tmp_path / "model"))


def test_a_model_that_fails_on_every_row_is_refused(tmp_path):
    directory = save_tiny(tmp_path / "model", "xlnet")
    load_scorer(directory)
    with pytest.raises(ModelError, match="XLNetForSequenceClassification cannot score a single row in bfloat16"):
        load_scorer(directory, dtype="bfloat16")  # nor does transformers alone


@pytest.mark.parametrize("kind", ["phi3", "minicpm3"])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_on_both_sides_of_a_longrope_limit_are_never_mixed(kind, packed, tmp_path, monkeypatch):
    factors = {"short_factor": [1.0] * 4, "long_factor": [3.0, 9.0, 20.0, 40.0]}
    limits = {"original_max_position_embeddings": 24, "max_position_embeddings": 128}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors, **limits}
    directory = save_tiny(tmp_path / "model", kind, rope_parameters=rope, **limits)
    if not packed:
        monkeypatch.setattr("rm.scorer.enable_packing", lambda *_, **__: False)
    scorer = load_scorer(directory)
    assert scorer.split == 24
    alone = scored(load_scorer(directory, tokens_per_batch=1))
    assert np.abs(scored(scorer) - alone).max() <= 1e-5 * alone.std()
    assert load_scorer(directory, max_length=20).split is None


NEEDS_SYSTEM = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
EVERY_TURN = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@pytest.mark.parametrize(
    ("template", "way"),
    [(NEEDS_SYSTEM + EVERY_TURN, EQUAL_LENGTHS), ("{{ raise_exception('never') }}", ONE_BY_ONE)],
    ids=["with a system turn", "never"],
)
def test_a_template_that_takes_few_conversations_leaves_no_way_unchecked(tmp_path, template, way):
    directory = save_tiny(tmp_path, "xlnet")
    (directory / "chat_template.jinja").write_text(template)
    assert load_scorer(directory).way == way


@pytest.mark.slow
def test_rows_beyond_a_window_longer_than_short_rows_are_tried_or_not_padded(tmp_path, monkeypatch, caplog):
    sizes = {"attention_window": 260, "max_position_embeddings": 500}
    directory = save_tiny(tmp_path / "model", "longformer", **sizes)
    causal = save_tiny(tmp_path / "causal", "gpt_neo", window_size=300, max_position_embeddings=500)
    for place in (directory, causal):
        settings = json.loads((place / "tokenizer_config.json").read_text())
        (place / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 500}))
    lengths = []
    alone = together._rewards_alone

    def note(model, rows, **settings):
        lengths.append(max(len(row.ids) for row in rows))
        return alone(model, rows, **settings)

    monkeypatch.setattr(together, "_rewards_alone", note)
    assert load_scorer(directory, max_length=256).way == PADDED
    assert max(lengths) <= 256, "no row can be longer than the window"
    assert load_scorer(directory, max_length=400).way == PADDED
    assert max(lengths) > 260

    # a model that reads the padding of rows that share a batch with one beyond the window
    forward = RewardModel.forward

    def wrong_beyond(self, ids, tokens, types=None):
        rewards = forward(self, ids, tokens, types)
        return rewards + (tokens < ids.shape[1]) * float(ids.shape[1] > 260)

    with monkeypatch.context() as patch:
        patch.setattr(RewardModel, "forward", wrong_beyond)
        assert load_scorer(directory, max_length=400).way == EQUAL_LENGTHS
        assert load_scorer(directory, max_length=256).way == PADDED
    caplog.clear()
    monkeypatch.setattr(together, "_LONG_FLOPS", {"cpu": 0})
    assert load_scorer(directory, max_length=400).way == EQUAL_LENGTHS
    assert "padded rows would need a check beyond a window of 260 tokens" in caplog.text
    assert load_scorer(causal, max_length=400).way == PADDED
