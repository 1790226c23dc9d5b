"""Packed attention by hand and against dense attention under a mask, on every way that it can go."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm.engine import packed_attention as attention
from rm.engine.layout import Segment
from rm.engine.packed_attention import AttentionPlan, packed_attention, pooled_attention

CPU = torch.device("cpu")


def module(*, causal: bool) -> torch.nn.Module:
    made = torch.nn.Module()
    made.is_causal = causal
    return made


def spans_kernel(query, key, value, spans, *, causal, scaling):
    """Compute a GPU's variable-length kernel run by run: [T, heads, D] and [heads, T]."""
    outputs, sums = [], []
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    bounds = zip(spans.query_ends.tolist(), spans.key_ends.tolist(), strict=True)
    for (q, k), (q_end, k_end) in itertools.pairwise(bounds):
        assert q_end - q <= spans.longest_query
        assert k_end - k <= spans.longest_key
        scores = torch.einsum("qhd,khd->hqk", query[q:q_end].float(), key[k:k_end].float())
        scores = scores * (scaling if scaling is not None else query.shape[-1] ** -0.5)
        if causal:
            assert q_end - q == k_end - k
            scores = scores.masked_fill(~torch.ones(scores.shape[1:], dtype=torch.bool).tril(), -torch.inf)
        sums.append(torch.logsumexp(scores, -1))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[k:k_end].float()).to(query.dtype))
    return torch.cat(outputs), torch.cat(sums, 1)


def on_gpu(*arguments, **rest):
    return attention._attend_by_kernel(spans_kernel, *arguments, **rest)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


WAYS = {"merged": attention._attend_on_cpu, "two calls": on_gpu, "concatenated": attention._attend_concatenated}


def dense(query, key, value, segments, *, causal, scaling):
    """Reference: one softmax under a mask of who sees whom, straight from the definition."""
    sees = torch.zeros(query.shape[2], query.shape[2], dtype=torch.bool)
    at = 0
    for segment in segments:
        prefix = slice(at, at + segment.prefix)
        for size in segment.sizes:
            own = slice(at, at + size)
            sees[own, prefix] = True
            sees[own, own] = torch.ones(size, size, dtype=torch.bool).tril() if causal else True
            at += size
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    return (scores.masked_fill(~sees, -torch.inf).softmax(-1) @ value).transpose(1, 2)


segment = st.builds(Segment, st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=60)
@given(
    segments=st.lists(segment, min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
    causal=st.booleans(),
    scaling=st.sampled_from([None, 0.7]),
)
def test_every_way_equals_dense_attention(way, segments, heads, causal, scaling):
    if not causal:
        segments = [Segment(0, part.sizes) for part in segments]
    tokens = sum(sum(part.sizes) for part in segments)
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (
        2 * torch.randn(1, tokens, count, 8, generator=generator).transpose(1, 2)
        for count in (heads[0], heads[1], heads[1])
    )
    plan = AttentionPlan(tuple(segments), CPU)
    got = WAYS[way](query, key, value, plan, causal=causal, scaling=scaling)
    expected = dense(query, key, value, segments, causal=causal, scaling=scaling)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("kernel", [None, spans_kernel])
def test_pooled_attention_is_that_of_the_pooled_tokens(kernel, monkeypatch):
    segments = (Segment(0, (3, 1)), Segment(0, (5,)))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 9, 4, 8, generator=generator).transpose(1, 2) for _ in range(3))
    places = [0, 3, 4]
    expected = dense(query, key, value, segments, causal=False, scaling=None)[:, places]
    tolerance = 1e-5
    if kernel is not None:  # as on a GPU
        monkeypatch.setattr(attention, "variable_length", kernel)
        query, key, value = (tensor.bfloat16().as_subclass(OnGpu) for tensor in (query, key, value))
        tolerance = 0.05
    got = pooled_attention(query[:, :, places], key, value, AttentionPlan(segments, CPU))
    assert got.shape == (1, 3, 4, 8)
    assert torch.allclose(got.float(), expected, atol=tolerance)


@pytest.mark.parametrize("way", ["merged", "two calls"])
def test_bfloat16_rounds_the_merge_once(way):
    segments = (Segment(30, (20, 25, 1)), Segment(0, (9,)), Segment(3, (40, 2)))
    tokens = sum(sum(part.sizes) for part in segments)
    generator = torch.Generator().manual_seed(1)
    wide = [torch.randn(1, tokens, 4, 16, generator=generator).transpose(1, 2).bfloat16() for _ in range(3)]
    got = WAYS[way](*wide, AttentionPlan(segments, CPU), causal=True, scaling=None).float()
    exact = dense(*(tensor.float() for tensor in wide), segments, causal=True, scaling=None)
    assert got.dtype == torch.float32
    assert float((got - exact).abs().max()) < 0.03
    assert float((got - exact).pow(2).mean().sqrt()) < 2e-3


def test_device_type_and_gradients_choose_the_way(monkeypatch):
    called = []
    for name in ("_attend_on_cpu", "_attend_concatenated", "_attend_by_kernel"):
        monkeypatch.setattr(attention, name, lambda *_, _name=name, **__: called.append(_name))

    tensor = torch.zeros(1, 1, 2, 4)
    half, full = tensor.bfloat16().as_subclass(OnGpu), tensor.as_subclass(OnGpu)
    plan = AttentionPlan((Segment(0, (2,)),), CPU)
    for kernel in (spans_kernel, None):
        monkeypatch.setattr(attention, "variable_length", kernel)
        for grad, query in ((True, tensor), (False, tensor), (False, half), (False, full), (True, half)):
            with contextlib.nullcontext() if grad else torch.no_grad():
                packed_attention(module(causal=True), query, query, query, None, plan=plan)
    with_kernel = [
        "_attend_concatenated",
        "_attend_on_cpu",
        "_attend_by_kernel",
        "_attend_concatenated",
        "_attend_concatenated",
    ]
    without = [
        "_attend_concatenated",
        "_attend_on_cpu",
        "_attend_concatenated",
        "_attend_concatenated",
        "_attend_concatenated",
    ]
    assert called == with_kernel + without


@pytest.mark.parametrize("way", WAYS)
def test_attention_by_hand(way):
    """Prefix [a], responses [b, c] and [d]: who attends to whom, from values that are powers of ten."""
    query = key = torch.zeros(1, 1, 4, 4)
    value = torch.tensor([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 4, 1).expand(1, 1, 4, 4)
    got = WAYS[way](query, key, value, AttentionPlan((Segment(1, (2, 1)),), CPU), causal=True, scaling=None)
    assert got.shape == (1, 4, 1, 4)
    assert got[0, :, 0, 0].tolist() == pytest.approx([1, 11 / 2, 111 / 3, 1001 / 2])
    plan = AttentionPlan((Segment(0, (3,)), Segment(0, (1,))), CPU)
    got = WAYS[way](query, key, value, plan, causal=False, scaling=None)
    assert got[0, :, 0, 0].tolist() == pytest.approx([37, 37, 37, 1000])


@pytest.mark.parametrize("way", WAYS)
def test_grouped_queries_and_scaling_by_hand(way):
    """Two query heads a key head, in order; `scaling` reaches the softmax."""
    query = torch.ones(1, 4, 2, 1)
    key = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    value = torch.tensor([[1.0, 3.0], [10.0, 30.0]]).reshape(1, 2, 2, 1)
    got = WAYS[way](query, key, value, AttentionPlan((Segment(0, (2,)),), CPU), causal=False, scaling=0.5)
    leaning = 1 + 2 * torch.sigmoid(torch.tensor(1.0)).item()
    assert got[0, 0, :, 0].tolist() == pytest.approx([leaning, leaning, 20, 20])


def test_a_mask_from_the_architecture_is_refused():
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="given a mask"):
        packed_attention(
            module(causal=True), tensor, tensor, tensor, torch.ones(1), plan=AttentionPlan((Segment(0, (2,)),), CPU)
        )
