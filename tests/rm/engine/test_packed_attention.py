"""Packed attention by hand and against dense attention under a mask, on every way that it can go."""

from __future__ import annotations

import contextlib
import functools
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rm.engine import attention_plan
from rm.engine import packed_attention as attention
from rm.engine.attention_kernels import Kernel
from rm.engine.attention_plan import AttentionPlan
from rm.engine.layout import Segment
from rm.engine.packed_attention import Form, packed_attention, pooled_attention

CPU = torch.device("cpu")


def module(*, causal: bool) -> torch.nn.Module:
    made = torch.nn.Module()
    made.is_causal = causal
    return made


def spans_kernel(query, key, value, spans, *, causal, scaling, window=None):
    """Compute a GPU's variable-length kernel run by run: [T, heads, D] and log-sum-exps [heads, T]."""
    outputs, sums = [], []
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    assert spans.query_ends.dtype == spans.key_ends.dtype == torch.int32
    bounds = zip(spans.query_ends.tolist(), spans.key_ends.tolist(), strict=True)
    for (q, k), (q_end, k_end) in itertools.pairwise(bounds):
        assert q_end - q <= spans.longest_query
        assert k_end - k <= spans.longest_key
        wide = query.double() if query.dtype == torch.float64 else query.float()
        scores = torch.einsum("qhd,khd->hqk", wide[q:q_end], key[k:k_end].to(wide.dtype))
        scores = scores * (scaling if scaling is not None else query.shape[-1] ** -0.5)
        behind = torch.arange(q_end - q)[:, None] + (k_end - k) - (q_end - q) - torch.arange(k_end - k)
        hidden = (behind < 0) & causal
        if window is not None:
            hidden |= behind.abs() >= window
        scores = scores.masked_fill(hidden, -torch.inf)
        sums.append(torch.logsumexp(scores, -1))
        part = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[k:k_end].to(wide.dtype))
        outputs.append(part.to(query.dtype))
    assert sum(map(len, outputs)) == len(query)
    assert k_end == len(key)
    return torch.cat(outputs), torch.cat(sums, 1)


GPU = Kernel("definition", spans_kernel, takes_windows=True, gives_sums=True)


def by_kernel(query, key, value, plan, form, *, joined):
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(AttentionPlan, "is_joined", lambda *_: joined)
        return attention._attend_by_kernel(GPU, query, key, value, plan, form)


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    device = torch.device("cuda")


def in_several_calls(query, key, value, plan, form):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_plan, "most_gathered", lambda *_: 4)
        return by_kernel(query, key, value, plan, form, joined=True)


WAYS = {
    "several calls": in_several_calls,
    "merged": attention._attend_on_cpu,
    "two calls": functools.partial(by_kernel, joined=False),
    "one call": functools.partial(by_kernel, joined=True),
    "by row": attention._attend_by_row,
}


def dense(query, key, value, segments, form):
    """Reference: one softmax under a mask of who sees whom, straight from the definition."""
    sees = torch.zeros(query.shape[2], query.shape[2], dtype=torch.bool)
    places = torch.tensor(positions_of(segments))
    at = 0
    for segment in segments:
        prefix = slice(at, at + segment.prefix)
        for size in segment.sizes:
            own = slice(at, at + size)
            sees[own, prefix] = True
            sees[own, own] = torch.ones(size, size, dtype=torch.bool).tril() if form.causal else True
            at += size
    if form.window is not None:
        sees &= (places[:, None] - places).abs() < form.window
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(2, 3) * (form.scaling if form.scaling is not None else query.shape[-1] ** -0.5)
    if form.cap is not None:
        scores = form.cap * torch.tanh(scores / form.cap)
    powers = scores.masked_fill(~sees, -torch.inf).exp()
    total = powers.sum(-1, keepdim=True)
    if form.sinks is not None:
        total = total + form.sinks[:, None, None].exp()
    return (powers / total @ value).transpose(1, 2)


def positions_of(segments):
    """The position of every token in its own row."""
    positions = []
    for segment in segments:
        positions += range(segment.prefix)
        for size in segment.responses:
            positions += range(segment.prefix, segment.prefix + size)
    return positions


def draw(segments, heads, *, seed=0, width=8):
    tokens = sum(sum(part.sizes) for part in segments)
    generator = torch.Generator().manual_seed(seed or tokens)
    return [
        2 * torch.randn(1, tokens, count, width, generator=generator, dtype=torch.float64).transpose(1, 2)
        for count in (heads[0], heads[1], heads[1])
    ]


segment = st.builds(Segment, st.integers(0, 5), st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
batches = st.lists(segment, min_size=1, max_size=4)
head_counts = st.sampled_from([(1, 1), (4, 2), (6, 1)])


@pytest.mark.parametrize("way", WAYS)
@settings(deadline=None, max_examples=60)
@given(segments=batches, heads=head_counts, causal=st.booleans(), scaling=st.sampled_from([None, 0.7]))
def test_every_way_equals_dense_attention(way, segments, heads, causal, scaling):
    if not causal:
        segments = [Segment(0, part.sizes) for part in segments]
    tensors = draw(segments, heads)
    plan, form = AttentionPlan(tuple(segments), CPU), Form(causal, scaling)
    got = WAYS[way](*tensors, plan, form)
    expected = dense(*tensors, segments, form)
    assert got.shape == expected.shape
    assert torch.allclose(
        got, expected, atol=1e-5 if way in ("merged", "two calls") else 1e-12
    )  # sums of exponentials are float32


@pytest.mark.parametrize("way", ["one call", "several calls", "by row"])
@settings(deadline=None, max_examples=60)
@given(segments=batches, heads=head_counts, causal=st.booleans(), window=st.integers(1, 12), block=st.integers(1, 4))
def test_windows_equal_dense_attention(way, segments, heads, causal, window, block):
    if not causal:
        segments = [Segment(0, part.sizes) for part in segments]
    tensors = draw(segments, heads)
    plan, form = AttentionPlan(tuple(segments), CPU), Form(causal, window=window)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        got = WAYS[way](*tensors, plan, form)
    assert torch.allclose(got, dense(*tensors, segments, form), atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    segments=batches,
    heads=head_counts,
    causal=st.booleans(),
    window=st.none() | st.integers(1, 12),
    cap=st.none() | st.floats(0.5, 5),
    sinks=st.booleans(),
    block=st.sampled_from([1, 3, 256]),
)
def test_caps_and_sinks_equal_dense_attention(segments, heads, causal, window, cap, sinks, block):
    if not causal:
        segments = [Segment(0, part.sizes) for part in segments]
    tensors = [tensor.float() for tensor in draw(segments, heads)]
    form = Form(causal, None, window, cap, torch.linspace(-1, 2, heads[0]) if sinks else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "BLOCK", block)
        got = attention._attend_by_row(*tensors, AttentionPlan(tuple(segments), CPU), form)
    assert torch.allclose(got, dense(*tensors, segments, form), atol=2e-5)


@pytest.mark.parametrize("way", ["one call", "several calls", "by row"])
def test_gradients_equal_those_of_dense_attention(way, monkeypatch):
    segments = (Segment(4, (3, 5, 1)), Segment(0, (6,)), Segment(2, (1, 1)))
    for form in (Form(causal=True), Form(causal=True, window=3)):
        tensors = [tensor.requires_grad_() for tensor in draw(segments, (4, 2))]
        plan = AttentionPlan(segments, CPU)
        if way == "several calls":
            monkeypatch.setattr(attention_plan, "most_gathered", lambda *_: 4)
        # joined, whatever it costs: log-sum-exps have no gradient
        got = (
            WAYS[way](*tensors, plan, form)
            if way == "by row"
            else attention._attend_by_kernel(GPU, *tensors, plan, form)
        )
        expected = dense(*tensors, segments, form)
        for one, other in zip(*(torch.autograd.grad(out.sin().sum(), tensors) for out in (got, expected)), strict=True):
            assert torch.allclose(one, other, atol=1e-10)


def test_one_call_by_hand():
    plan = AttentionPlan((Segment(2, (1, 3)), Segment(0, (2,))), CPU)
    [(places, queries, spans)] = plan.joined(None, 100)
    assert places.tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4, 5, 6, 7]
    assert queries == slice(0, 8)
    assert spans.query_ends.tolist() == [0, 2, 3, 6, 8]
    assert spans.key_ends.tolist() == [0, 2, 5, 10, 12]
    assert (spans.longest_query, spans.longest_key) == (3, 5)
    assert plan.joined(None, 100) is plan.joined(None, 100)
    assert AttentionPlan((Segment(0, (2, 1)),), CPU).joined(None, 1)[0][:2] == (None, slice(None))


def test_a_window_gathers_no_more_of_a_prefix_than_a_response_sees():
    plan = AttentionPlan((Segment(3, (2, 1)),), CPU)
    [(places, _, spans)] = plan.joined(3, 100)
    assert places.tolist() == [0, 1, 2, 1, 2, 3, 4, 1, 2, 5]
    assert spans.key_ends.tolist() == [0, 3, 7, 10]


def test_many_keys_are_gathered_in_several_calls():
    plan = AttentionPlan((Segment(2, (1, 3)), Segment(0, (2,))), CPU)
    calls = plan.joined(None, 5)
    assert [places.tolist() for places, _, _ in calls] == [[0, 1, 0, 1, 2], [0, 1, 3, 4, 5], [6, 7]]
    assert [queries for _, queries, _ in calls] == [slice(0, 3), slice(3, 6), slice(6, 8)]
    assert [spans.key_ends.tolist() for _, _, spans in calls] == [[0, 2, 5], [0, 5], [0, 2]]
    assert len(plan.joined(None, 1)) == 4  # a run by itself is not cut


def test_two_calls_are_made_where_prefixes_are_long_against_their_responses():
    def is_joined(prefix, response, count, heads=(32, 8)):
        return AttentionPlan((Segment(prefix, (response,) * count),), CPU).is_joined(*heads)

    assert is_joined(200, 350, 16)
    assert is_joined(1000, 500, 8)
    assert is_joined(50, 200, 2, heads=(16, 16))
    assert not is_joined(4000, 20, 16)  # each response would fill a tile of queries, and copy the prefix
    assert not is_joined(4000, 400, 16, heads=(16, 16))


def test_masks_are_made_once_a_plan():
    plan = AttentionPlan((Segment(2, (3, 3)),), CPU)
    mask = plan.mask(3, 5, 2, causal=True, window=None)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert plan.mask(3, 5, 2, causal=True, window=9) is mask
    assert plan.mask(3, 5, 2, causal=True, window=2).int().tolist() == [
        [0, 1, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert plan.mask(1, 5, 4, causal=True, window=None) is None
    assert plan.mask(3, 3, 0, causal=False, window=3) is None


@pytest.mark.parametrize("kernel", [None, GPU])
def test_pooled_attention_is_that_of_the_pooled_tokens(kernel, monkeypatch):
    segments = (Segment(0, (3, 1)), Segment(0, (5,)))
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 9, 4, 8, generator=generator).transpose(1, 2) for _ in range(3))
    places = [0, 3, 4]
    expected = dense(query, key, value, segments, Form(causal=False))[:, places]
    tolerance = 1e-5
    if kernel is not None:  # as on a GPU
        monkeypatch.setattr(attention, "kernel_for", lambda *_: kernel)
        query, key, value = (tensor.bfloat16() for tensor in (query, key, value))
        tolerance = 0.05
    got = pooled_attention(query[:, :, places], key, value, AttentionPlan(segments, CPU))
    assert got.shape == (1, 3, 4, 8)
    assert torch.allclose(got.float(), expected, atol=tolerance)


@pytest.mark.parametrize("way", ["merged", "two calls", "one call"])
def test_bfloat16_rounds_the_merge_once(way):
    segments = (Segment(30, (20, 25, 1)), Segment(0, (9,)), Segment(3, (40, 2)))
    tokens = sum(sum(part.sizes) for part in segments)
    generator = torch.Generator().manual_seed(1)
    wide = [torch.randn(1, tokens, 4, 16, generator=generator).transpose(1, 2).bfloat16() for _ in range(3)]
    got = WAYS[way](*wide, AttentionPlan(segments, CPU), Form(causal=True))
    assert got.dtype == torch.bfloat16
    exact = dense(*(tensor.float() for tensor in wide), segments, Form(causal=True))
    assert float((got.float() - exact).abs().max()) < 0.03
    assert float((got.float() - exact).pow(2).mean().sqrt()) < 2e-3


def test_device_gradients_and_form_choose_the_way(monkeypatch):
    called, asked = [], []
    for name in ("_attend_on_cpu", "_attend_by_row", "_attend_by_kernel"):
        monkeypatch.setattr(attention, name, lambda *_, _name=name, **__: called.append(_name))

    def choose(query, key, *, windowed):
        asked.append((query.dtype, query.shape, windowed))
        return kernel if query.device.type == "cuda" else None

    monkeypatch.setattr(attention, "kernel_for", choose)
    tensor = torch.zeros(1, 1, 2, 4)
    gpu = tensor.bfloat16().as_subclass(OnGpu)
    plan = AttentionPlan((Segment(0, (2,)),), CPU)
    cases = [
        (tensor, False, {}, "_attend_on_cpu"),
        (tensor, False, {"sliding_window": 2}, "_attend_on_cpu"),  # as long as the row
        (tensor, False, {"sliding_window": 1}, "_attend_by_row"),
        (tensor, True, {}, "_attend_by_row"),
        (tensor, False, {"softcap": 5.0}, "_attend_by_row"),
        (gpu, False, {}, "_attend_by_kernel"),
        (gpu, True, {}, "_attend_by_kernel"),
        (gpu, False, {"sliding_window": 1}, "_attend_by_kernel"),
        (gpu, False, {"s_aux": torch.zeros(1)}, "_attend_by_row"),
    ]
    for kernel in (GPU, None):
        for query, grad, form, expected in cases:
            with contextlib.nullcontext() if grad else torch.no_grad():
                packed_attention(module(causal=True), query, query, query, None, plan=plan, **form)
            assert called.pop() == (expected if kernel or query is tensor else "_attend_by_row")
    assert (torch.bfloat16, (2, 1, 4), True) in asked


def test_a_query_that_is_wider_under_autocast_has_the_type_of_the_values(monkeypatch):
    monkeypatch.setattr(attention, "kernel_for", lambda *_, **__: GPU)
    monkeypatch.setattr(
        AttentionPlan, "on", lambda self, _: self
    )  # its indices are the CPU's, as the tensors really are
    query = torch.zeros(1, 1, 2, 4).as_subclass(OnGpu)
    plan = AttentionPlan((Segment(0, (2,)),), CPU)
    got, _ = packed_attention(module(causal=True), query, query, query.bfloat16(), None, plan=plan)
    assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("way", WAYS)
def test_attention_by_hand(way):
    """Prefix [a], responses [b, c] and [d]: who attends to whom, from values that are powers of ten."""
    query = key = torch.zeros(1, 1, 4, 4)
    value = torch.tensor([1.0, 10.0, 100.0, 1000.0]).reshape(1, 1, 4, 1).expand(1, 1, 4, 4)
    got = WAYS[way](query, key, value, AttentionPlan((Segment(1, (2, 1)),), CPU), Form(causal=True))
    assert got.shape == (1, 4, 1, 4)
    assert got[0, :, 0, 0].tolist() == pytest.approx([1, 11 / 2, 111 / 3, 1001 / 2])
    plan = AttentionPlan((Segment(0, (3,)), Segment(0, (1,))), CPU)
    got = WAYS[way](query, key, value, plan, Form(causal=False))
    assert got[0, :, 0, 0].tolist() == pytest.approx([37, 37, 37, 1000])


@pytest.mark.parametrize("way", WAYS)
def test_grouped_queries_and_scaling_by_hand(way):
    """Two query heads a key head, in order; `scaling` reaches the softmax."""
    query = torch.ones(1, 4, 2, 1)
    key = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).reshape(1, 2, 2, 1)
    value = torch.tensor([[1.0, 3.0], [10.0, 30.0]]).reshape(1, 2, 2, 1)
    got = WAYS[way](query, key, value, AttentionPlan((Segment(0, (2,)),), CPU), Form(causal=False, scaling=0.5))
    leaning = 1 + 2 * torch.sigmoid(torch.tensor(1.0)).item()
    assert got[0, 0, :, 0].tolist() == pytest.approx([leaning, leaning, 20, 20])


def test_a_mask_from_the_architecture_is_refused():
    tensor = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="got a mask"):
        packed_attention(
            module(causal=True), tensor, tensor, tensor, torch.ones(1), plan=AttentionPlan((Segment(0, (2,)),), CPU)
        )
