"""A GPU's attention kernels without a GPU: how they are called, the shapes that they return, and the trial that they pass."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import pytest
import torch
from support.classifiers import build

from rm.engine import attention_kernels as kernels
from rm.engine import packed_attention
from rm.engine.attention_kernels import KERNELS, Kernel, attend_densely, attend_efficient, attend_flash, kernel_for
from rm.engine.attention_plan import Spans
from rm.engine.layout import lay_out
from rm.engine.packed_attention import ATTENTION_NAME
from rm.engine.packed_forward import packed_rewards

CPU, META = torch.device("cpu"), torch.device("meta")
RECORDED = json.loads(Path(__file__).with_name("attention_operators.json").read_text(encoding="utf-8"))
INSTALLED = {
    name: str(getattr(torch.ops.aten, name).default._schema).removeprefix("aten::") for name in RECORDED["2.6.0"]
}
SMALL = kernels._Heads(4, 2, 8)


def arguments_of(schema: str, args: tuple, kwargs: dict) -> dict:
    """Bind a call to a schema by its names. Raises where the operator would refuse the call."""
    parameters = torch._C.parse_schema(f"aten::{schema}").arguments
    positional = [p.name for p in parameters if not p.kwarg_only]
    assert len(args) <= len(positional)
    bound = dict(zip(positional, args, strict=False))
    for name, value in kwargs.items():
        assert name in {p.name for p in parameters}
        assert name not in bound
        bound[name] = value
    assert not {p.name for p in parameters if not p.has_default_value()} - bound.keys()
    return bound


@pytest.mark.parametrize("version", [*RECORDED, "installed"])
@pytest.mark.parametrize("name", RECORDED["2.6.0"])
def test_the_operators_of_every_torch_take_the_call(name, version, monkeypatch):
    schema = {**RECORDED, "installed": INSTALLED}[version][name]
    calls = []
    monkeypatch.setattr(
        torch.ops.aten, name, lambda *args, **rest: calls.append((args, rest)) or (torch.ones(1, 9), torch.ones(2))
    )
    query, key, value = torch.zeros(9, 2, 8), torch.zeros(14, 2, 8), torch.ones(14, 2, 8)
    spans = Spans.of([5, 4], [5, 9], CPU)
    flash = name == "_flash_attention_forward"
    for causal, window in ((True, None), (False, None), *([(True, 3), (False, 3)] if flash else ())):
        attend = attend_flash if flash else attend_efficient
        attend(query, key, value, spans, causal=causal, scaling=0.3, window=window)
        bound = arguments_of(schema, *calls.pop())
        assert bound.pop("query").shape[-3:] == query.shape
        assert bound.pop("key").shape[-3:] == key.shape
        assert bool(bound.pop("value").all())
        ends = ("cum_seq_q", "cum_seq_k") if flash else ("cu_seqlens_q", "cu_seqlens_k")
        assert [bound.pop(end).tolist() for end in ends] == [[0, 5, 9], [0, 5, 14]]
        if flash:
            assert bound == {
                "max_q": 5,
                "max_k": 9,
                "dropout_p": 0.0,
                "is_causal": causal,
                "return_debug_mask": False,
                "scale": 0.3,
                "window_size_left": -1 if window is None else 2,
                "window_size_right": 0 if causal else -1 if window is None else 2,
            }
        else:
            assert bound == {
                "bias": None,
                "max_seqlen_q": 5,
                "max_seqlen_k": 9,
                "dropout_p": 0.0,
                "custom_mask_type": 2 if causal else 0,
                "compute_log_sumexp": True,
                "scale": 0.3,
            }


@pytest.mark.parametrize("attend", [attend_flash, attend_efficient])
def test_the_operators_return_attention_and_gradients_of_the_right_shapes(attend):
    query, key, value = (
        torch.empty(count, heads, 64, device="meta", dtype=torch.bfloat16, requires_grad=True)
        for count, heads in ((9, 4), (14, 2), (14, 2))
    )
    spans = Spans.of([5, 4], [5, 9], META)
    output, sums = attend(query, key, value, spans, causal=True, scaling=None)
    assert output.shape == query.shape
    assert sums is None or sums.shape == (4, 9)
    output.sum().backward()
    assert [tensor.grad.shape for tensor in (query, key, value)] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(
    ("kernel", "gradients"),
    # torch's check of shapes fails for the gradient of the other kernel when a scale is given
    [(KERNELS[0], False), (KERNELS[0], True), (KERNELS[1], False)],
    ids=["flash", "flash with gradients", "efficient"],
)
@pytest.mark.parametrize("name", ["Llama", "Bert"])
def test_a_whole_forward_goes_through_the_operators(name, kernel, gradients, monkeypatch):
    """On the meta device, which has shapes alone: the operators check them, and whatever waits for a value would fail."""
    monkeypatch.setattr(packed_attention, "kernel_for", lambda *_, **__: kernel)
    model, causal = build(name).to("meta"), name == "Llama"
    model.set_attn_implementation(ATTENTION_NAME)
    rows = [([5, 6, 7, 8], None), ([5, 6, 9], None), ([5, 6, 7], None)]
    layout = lay_out([rows, rows[:1]], share=causal, pad=1)
    with torch.set_grad_enabled(gradients):
        rewards = packed_rewards(model, layout, causal=causal)
    assert rewards.shape == (4,)
    if gradients:
        rewards.sum().backward()
        missing = {key for key, value in model.named_parameters() if value.grad is None}
        assert all("pooler" in key or "token_type" in key for key in missing)


def by_definition(query, key, value, spans, *, causal, scaling, window=None):
    runs = list(zip(spans.query_ends.diff().tolist(), spans.key_ends.diff().tolist(), strict=True))
    return attend_densely(query, key, value, runs, causal=causal, scaling=scaling, window=window), None


def aligned_at_the_first_key(query, key, value, spans, *, causal, scaling, window=None):
    """Compute the wrong causal mask, whose first query sees the first key alone."""
    queries, keys = spans.query_ends.diff().tolist(), spans.key_ends.diff().tolist()
    parts = []
    for q, k, v in zip(query.split(queries), key.split(keys), value.split(keys), strict=True):
        padded = torch.cat([q, q.new_zeros(len(k) - len(q), *q.shape[1:])])
        out = attend_densely(padded, k, v, [(len(k), len(k))], causal=causal, scaling=scaling, window=window)
        parts.append(out[: len(q)])
    return torch.cat(parts), None


def refuse(*_, **__):
    raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nmore")


def without_window(*args, window, **rest):
    return by_definition(*args, **rest)


def with_doubled_gradient(*args, **rest):
    output, _ = by_definition(*args, **rest)
    return 2 * output - output.detach(), None


RIGHT = Kernel("right", by_definition, takes_windows=True, gives_sums=False)
WRONG = {
    "top": (aligned_at_the_first_key, "differs from dense attention", False, False),
    "refuses": (refuse, "bad: FlashAttention only supports Ampere GPUs or newer.;", False, False),
    "window": (without_window, "differs from dense attention", True, False),
    "gradient": (with_doubled_gradient, "differs from dense attention", False, True),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_right_kernel_passes_its_trial(dtype, windowed, gradients, monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", (RIGHT,))
    kernels._choose_kernel.cache_clear()
    with torch.inference_mode():  # as when scoring
        assert kernels._choose_kernel(CPU, dtype, SMALL, windowed=windowed, gradients=gradients) == RIGHT
    kernels._choose_kernel.cache_clear()


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_kernel_is_passed_over_and_without_any_there_is_a_warning(case, monkeypatch, caplog):
    attend, message, windowed, gradients = WRONG[case]
    bad = Kernel("bad", attend, takes_windows=True, gives_sums=False)
    for tried, outcome in (((bad, RIGHT), RIGHT), ((bad, bad._replace(name="worse")), None)):
        monkeypatch.setattr(kernels, "KERNELS", tried)
        kernels._choose_kernel.cache_clear()
        with caplog.at_level(logging.WARNING):
            assert kernels._choose_kernel(CPU, torch.float32, SMALL, windowed=windowed, gradients=gradients) == outcome
    kernels._choose_kernel.cache_clear()
    [warning] = caplog.messages
    assert warning.startswith(
        "attention runs row by row, which is slower: no kernel on cpu takes heads of size 8 in float32"
    )
    assert message in warning


def summing(sums_of):
    def attend(query, key, value, spans, *, causal, scaling, window=None):
        output, _ = by_definition(query, key, value, spans, causal=causal, scaling=scaling, window=window)
        sums, keys = [], key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        starts = zip(spans.query_ends.tolist(), spans.key_ends.tolist(), strict=True)
        for (q, k), (q_end, k_end) in itertools.pairwise(starts):
            scores = scaling * torch.einsum("qhd,khd->hqk", query[q:q_end].float(), keys[k:k_end].float())
            sums.append(scores.logsumexp(-1))
        return output, sums_of(sums)

    return Kernel("summing", attend, takes_windows=True, gives_sums=True)


@pytest.mark.parametrize(
    ("sums_of", "right"),
    [
        (lambda sums: torch.cat(sums, 1), True),
        (lambda sums: torch.cat(sums, 1).T, False),
        (lambda sums: torch.cat(sums, 1) + 1, False),
        # [runs, heads, longest run], as FlashAttention before 2.6 has them
        (lambda sums: torch.stack([torch.nn.functional.pad(part, (0, 5 - part.shape[1])) for part in sums]), False),
        (lambda _: None, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_are_merged_by_only_where_they_are_right(dtype, sums_of, right, monkeypatch):
    monkeypatch.setattr(kernels, "KERNELS", (summing(sums_of),))
    kernels._choose_kernel.cache_clear()
    chosen = kernels._choose_kernel(CPU, dtype, SMALL, windowed=False, gradients=False)
    assert chosen is not None
    assert chosen.gives_sums == right
    kernels._choose_kernel.cache_clear()


def test_a_trial_that_runs_out_of_memory_says_nothing_of_the_kernel(monkeypatch):
    def fill(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kernels, "KERNELS", (Kernel("full", fill, takes_windows=True, gives_sums=False), RIGHT))
    kernels._choose_kernel.cache_clear()
    with pytest.raises(torch.OutOfMemoryError):
        kernels._choose_kernel(CPU, torch.float32, SMALL, windowed=False, gradients=False)


def test_a_kernel_is_asked_for_on_a_gpu_alone():
    assert kernel_for(torch.zeros(3, 2, 8), torch.zeros(3, 2, 8)) is None
