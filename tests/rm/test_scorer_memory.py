"""The memory of a batch in scoring: estimates against the allocator's records, and budgets that do not fit."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.allocations import allocated_peak
from support.classifiers import save_wide
from support.every_classifier import save_tiny
from support.tiny_models import WORDS, save_sized
from torch.nn.functional import scaled_dot_product_attention

from rm.engine import packed_attention
from rm.engine.attention_kernels import Kernel
from rm.engine.attention_plan import AttentionPlan, most_gathered
from rm.engine.layout import Segment
from rm.engine.memory import BatchSize
from rm.identity import ModelError
from rm.scorer import Scorer
from rm.scorer_memory import largest_batch, measure_memory

SETTINGS = {"dtype": "float32", "max_length": 256, "too_long": "truncate", "device": "cpu"}
GROUPS = [((("user", f"what is {noun}"),), [f"{grade} {noun} " * 40 for grade in WORDS[30:36]]) for noun in WORDS[:12]]
LONG = [((("user", f"what is {noun}"),), [f"{grade} {noun} " * 240 for grade in WORDS[30:32]]) for noun in WORDS[:3]]


def taken_by(scorer, groups):
    """The bytes that the largest batch took, and the sizes of all."""
    sizes = []

    def recorded(rows, batch, forward=scorer._forward):
        lengths = [len(rows[row].ids) for run in batch for row in run]
        padded = BatchSize.padded(scorer._cost(rows, batch), max(lengths))
        sizes.append(BatchSize.packed(scorer._lay_out(rows, batch).segments) if scorer.packed else padded)
        return forward(rows, batch)

    scorer._forward = recorded
    scorer.score(groups[:1])  # what is made once, at the first batch
    sizes.clear()
    return allocated_peak(lambda: scorer.score(groups)), sizes


@pytest.mark.parametrize(
    ("kind", "sizes", "budget", "groups"),
    [
        ("causal", {"hidden": 64, "layers": 3}, 1000, GROUPS),
        ("encoder", {"hidden": 128, "layers": 2}, 700, GROUPS),
        ("encoder", {"hidden": 32, "layers": 4, "words": 5000}, 300, GROUPS),
        ("deberta", None, 800, GROUPS),  # its attention holds a matrix of each row
        ("Gemma2", {"sliding_window": 48}, 1000, GROUPS),  # a matrix of one row at a time
        ("Gemma2", {"intermediate_size": 600}, 1000, LONG),  # which only in long rows is more than the feed-forward
        ("Gemma2", {"num_attention_heads": 16, "head_dim": 4}, 500, LONG),
        ("GptOss", {"sliding_window": 48}, 1000, GROUPS),
        ("GptOss", {}, 1000, LONG),
    ],
)
def test_the_estimate_is_near_what_batches_take(tmp_path, kind, sizes, budget, groups):
    if kind in ("causal", "encoder"):
        directory = save_sized(tmp_path, kind, **sizes)
    else:
        directory = save_tiny(tmp_path, kind) if sizes is None else save_wide(tmp_path, kind, **sizes)
    scorer = Scorer.load(directory, tokens_per_batch=budget, **{**SETTINGS, "max_length": 600})
    memory = measure_memory(scorer)
    taken, sizes = taken_by(scorer, groups)
    assert max(size.tokens for size in sizes) > 0.6 * budget
    assert max(map(memory.bytes, sizes)) == pytest.approx(taken, rel=0.2)


def gathered_attention(query, key, value, spans, *, causal, scaling, window=None):
    """A GPU's kernel, as far as memory goes: [T, heads, D] without matrices of the heads."""
    outputs = []
    ends = itertools.pairwise(zip(spans.query_ends.tolist(), spans.key_ends.tolist(), strict=True))
    for (q, k), (q_end, k_end) in ends:
        rows = (tensor.transpose(0, 1)[None] for tensor in (query[q:q_end], key[k:k_end], value[k:k_end]))
        if q_end - q == k_end - k:
            outputs.append(scaled_dot_product_attention(*rows, is_causal=True, scale=scaling)[0].transpose(0, 1))
            continue
        sees = torch.ones(q_end - q, k_end - k, dtype=torch.bool).tril(k_end - k - q_end + q)
        outputs.append(scaled_dot_product_attention(*rows, attn_mask=sees, scale=scaling)[0].transpose(0, 1))
    return torch.cat(outputs), None


@pytest.mark.parametrize("count", [4, 60])
def test_keys_that_are_gathered_for_many_responses_are_counted_and_bounded(tmp_path, monkeypatch, count):
    """Each response to a long prompt has a copy of the prompt's keys; where these are too many, several calls share the room."""
    kernel = Kernel("stand-in", gathered_attention, takes_windows=True, gives_sums=False)
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_, **__: kernel)
    monkeypatch.setattr(
        packed_attention, "_attend_on_cpu", lambda *rest: packed_attention._attend_by_kernel(kernel, *rest)
    )
    directory = save_wide(tmp_path, "Llama", intermediate_size=32, num_key_value_heads=4)
    scorer = Scorer.load(directory, tokens_per_batch=1000, **{**SETTINGS, "max_length": 600})
    monkeypatch.setattr(Scorer, "gathers", True)
    monkeypatch.setattr(AttentionPlan, "build", lambda *_: None)  # ahead: what is measured is all that a forward makes
    memory = measure_memory(scorer)
    words = [" ".join(pair) for pair in itertools.permutations(WORDS[30:45], 2)][:count]
    taken, sizes = taken_by(scorer, [((("user", "good thing " * 150),), words)])
    size = max(sizes, key=lambda size: size.gathered)
    most = most_gathered(4, 4, size.tokens)
    assert (size.gathered > most) == (count > 4)
    assert memory.bytes(size._replace(gathered=min(size.gathered, most))) == pytest.approx(taken, rel=0.2)
    assert memory.bytes(size._replace(gathered=0)) < 0.7 * taken
    # any batch may have as many
    assert largest_batch(scorer).gathered == most_gathered(4, 4, 1000)


def test_a_budget_that_does_not_fit_is_refused_with_one_that_does(tmp_path, monkeypatch, caplog):
    directory = save_sized(tmp_path, "causal", hidden=64, layers=2)
    memory = measure_memory(Scorer.load(directory, tokens_per_batch=4000, **SETTINGS))
    free = memory.bytes(BatchSize.packed([Segment(0, (256,))]).times(1500 / 256))
    monkeypatch.setattr("rm.scorer_memory.free_bytes", lambda device: free)
    with pytest.raises(ModelError, match=rf"batches of 4,000 tokens need .* {free:,} are free on cpu; set ") as error:
        Scorer.load(directory, tokens_per_batch=4000, **SETTINGS)
    named = int(str(error.value).rpartition("model.tokens_per_batch: ")[2])
    assert named == pytest.approx(1500, abs=2)
    assert Scorer.load(directory, tokens_per_batch=named, **SETTINGS).tokens_per_batch == named
    assert Scorer.load(directory, tokens_per_batch=None, **SETTINGS).tokens_per_batch == named
    assert f"batches are limited to {named} tokens: {free} bytes are free on cpu" in caplog.text
    monkeypatch.setattr("rm.scorer_memory.free_bytes", lambda device: 0)
    with pytest.raises(ModelError, match="use a larger one, or a 16-bit"):
        Scorer.load(directory, tokens_per_batch=None, **SETTINGS)
    monkeypatch.setattr("rm.scorer_memory.free_bytes", lambda device: None)  # a system that does not say
    assert Scorer.load(directory, tokens_per_batch=4000, **SETTINGS).tokens_per_batch == 4000
