"""A forecast counts what the scorer counts, without weights."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
import torch
from support.checkpoints import rename_tensors
from support.tiny_models import save_encoder

from rm.checkpoint.weight_files import tensor_shapes
from rm.conversations import from_prompt
from rm.dry_run import DryRun
from rm.identity import ModelError
from rm.scorer import Scorer

SETTINGS = {"max_length": 48, "too_long": "truncate", "tokens_per_batch": 96}
GROUPS = [
    (
        from_prompt("how long would it take you to make this many words of a prompt"),
        ["good", "bad reply", "good", "a " * 60],
    ),
    (from_prompt("short prompt"), ["the answer is one two three"]),
    (from_prompt("how long would it take you to make this many words of a prompt"), ["reply number two", "good"]),
    (from_prompt("a lone user prompt"), [f"answer {'do ' * n}" for n in range(20)]),
]


def real(directory, groups):
    done = []
    scorer = Scorer.load(directory, dtype="float32", device="cpu", **SETTINGS)
    scorer.on_batch = done.append
    return scorer, scorer.score(groups), done


@pytest.mark.parametrize("kind", ["encoder", "causal", "chat"])
def test_tokens_and_forwards_are_those_of_the_scorer(kind, request):
    directory = request.getfixturevalue(kind)
    scorer, scores, done = real(directory, GROUPS)
    dry_run = DryRun.of(directory, device="cpu", **SETTINGS)
    assert dry_run.packed == scorer.packed
    tokens, work = dry_run.count(GROUPS)
    for counted, scored in zip(tokens, scores, strict=True):
        np.testing.assert_array_equal(counted, scored.prompt_tokens + scored.response_tokens)
    assert work.rows == sum(each.rows for each in done) == 25  # 27 responses less two that stand twice
    assert work.read_tokens == sum(each.read_tokens for each in done)
    assert work.computed_tokens == sum(each.computed_tokens for each in done)
    assert (work.computed_tokens < work.read_tokens) == (kind != "encoder")
    assert dry_run.shape["computing_parameters"] == scorer.model.computing_parameters
    assert dry_run.shape["parameters"] == sum(math.prod(shape) for _, shape in tensor_shapes(directory))


def test_a_gpu_that_is_not_here_is_asked_for_nothing(causal):
    dry_run = DryRun.of(causal, device="cuda", **SETTINGS)
    dry_run.model.model.to(torch.bfloat16)
    _, work = dry_run.count(GROUPS)
    assert (work.rows, work.secs, work.peak_flops) == (25, 0.0, 0.0)


def test_padding_counts_where_rows_are_padded(encoder, monkeypatch):
    for module in ("rm.engine.packed_forward", "rm.dry_run"):
        monkeypatch.setattr(f"{module}.packing_obstacle", lambda *_: "this test says so")
    _, _, done = real(encoder, GROUPS)
    dry_run = DryRun.of(encoder, device="cpu", **SETTINGS)
    assert not dry_run.packed
    _, work = dry_run.count(GROUPS)
    assert work.computed_tokens == sum(each.computed_tokens for each in done) > work.read_tokens
    assert work.padding_tokens == sum(each.padding_tokens for each in done)


def test_rejected_responses_have_no_tokens(encoder):
    dry_run = DryRun.of(encoder, device="cpu", max_length=12, too_long="reject", tokens_per_batch=None)
    tokens, work = dry_run.count([(from_prompt("short"), ["good", "bad " * 40])])
    assert tokens[0].tolist()[1] == 0
    assert work.rows == 1


def test_no_weight_is_read(encoder, tmp_path):
    directory = shutil.copytree(encoder, tmp_path / "model")
    rename_tensors(directory, {"bert.encoder.layer.0.attention.self.query.weight": None})
    assert DryRun.of(directory, device="cpu", **SETTINGS).count(GROUPS)[1].rows == 25


def test_a_head_of_two_outputs_is_refused_as_it_is_by_a_run(tmp_path):
    with pytest.raises(ModelError, match="has 2 outputs"):
        DryRun.of(save_encoder(tmp_path, labels=2), device="cpu", **SETTINGS)
