"""The memory of a batch in scoring: estimates against the allocator's records, and budgets that do not fit."""

from __future__ import annotations

import pytest
from support.allocations import allocated_peak
from support.every_classifier import save_tiny
from support.tiny_models import WORDS, save_sized

from rm.identity import ModelError
from rm.scorer import Scorer

SETTINGS = {"dtype": "float32", "max_length": 256, "too_long": "truncate", "device": "cpu"}
GROUPS = [((("user", f"what is {noun}"),), [f"{grade} {noun} " * 40 for grade in WORDS[30:36]]) for noun in WORDS[:12]]


@pytest.mark.parametrize(
    ("kind", "sizes", "budget"),
    [
        ("causal", {"hidden": 64, "layers": 3}, 1000),
        ("encoder", {"hidden": 128, "layers": 2}, 700),
        ("encoder", {"hidden": 32, "layers": 4, "words": 5000}, 300),
        ("deberta", None, 800),  # its attention holds a matrix of each row
    ],
)
def test_the_estimate_is_near_what_batches_take(tmp_path, kind, sizes, budget):
    directory = save_sized(tmp_path, kind, **sizes) if sizes else save_tiny(tmp_path, kind)
    scorer = Scorer.load(directory, tokens_per_batch=budget, **SETTINGS)
    memory = scorer.measure_memory()
    computed = []
    scorer.on_batch = lambda work: computed.append(work.computed_tokens)
    scorer.score(GROUPS[:1])  # what is made once, at the first batch
    computed.clear()
    scores = []
    taken = allocated_peak(lambda: scores.extend(scorer.score(GROUPS)))
    longest = int(max((group.prompt_tokens + group.response_tokens).max() for group in scores))
    assert max(computed) > 0.6 * budget
    assert memory.bytes(max(computed), longest) == pytest.approx(taken, rel=0.2)


def test_a_budget_that_does_not_fit_is_refused_with_one_that_does(tmp_path, monkeypatch, caplog):
    directory = save_sized(tmp_path, "causal", hidden=64, layers=2)
    memory = Scorer.load(directory, tokens_per_batch=4000, **SETTINGS).measure_memory()
    free = memory.bytes(1500, 256)
    monkeypatch.setattr("rm.scorer.free_bytes", lambda device: free)
    with pytest.raises(ModelError, match=rf"batches of 4,000 tokens need .* {free:,} are free on cpu; set ") as error:
        Scorer.load(directory, tokens_per_batch=4000, **SETTINGS)
    named = int(str(error.value).rpartition("model.tokens_per_batch: ")[2])
    assert named == pytest.approx(1500, abs=2)
    assert Scorer.load(directory, tokens_per_batch=named, **SETTINGS).tokens_per_batch == named
    assert Scorer.load(directory, tokens_per_batch=None, **SETTINGS).tokens_per_batch == named
    assert f"batches of {named} tokens, since {free} bytes are free on cpu" in caplog.text
    monkeypatch.setattr("rm.scorer.free_bytes", lambda device: 0)
    with pytest.raises(ModelError, match="use a larger one, or a 16-bit"):
        Scorer.load(directory, tokens_per_batch=None, **SETTINGS)
    monkeypatch.setattr("rm.scorer.free_bytes", lambda device: None)  # a system that does not say
    assert Scorer.load(directory, tokens_per_batch=4000, **SETTINGS).tokens_per_batch == 4000
