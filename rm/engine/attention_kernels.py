"""A GPU's attention kernels for many runs at once, with one interface for torch 2.6 and later; tried before they are used.

PyTorch's own function for this, `torch.nn.attention.varlen.varlen_attn`, lacks scale and windows in torch 2.10 and heads of
grouped queries in 2.11, and does not exist before. The operators beneath it take the same arguments in all of them, and
have gradients. In causal calls both align the last query of a run with its last key.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from rm.engine.attention_plan import Spans
from rm.engine.device import describe_gpu, is_out_of_memory, refuse_broken

log = logging.getLogger(__name__)

_TOLERANCE = {torch.float32: 1e-2}  # of attentions of about 1; float32 may be computed with TF32
_HALF_TOLERANCE = 5e-2
_AT_THE_LAST_KEY = 2  # _efficient_attention_forward's causal mask whose last query sees the last key


class Kernel(NamedTuple):
    """A kernel: [T, heads, D] queries, [K, key heads, D] keys and values → attention [T, heads, D], log-sum-exps [heads, T].

    Log-sum-exps have no gradient, and are None if the kernel does not give them in this shape. With a `window`, a query
    sees keys fewer than so many tokens away.
    """

    name: str
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
    takes_windows: bool
    gives_sums: bool


def attend_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    *,
    causal: bool,
    scaling: float | None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend by FlashAttention: 16-bit types, on Ampere and newer."""
    around = -1 if window is None else window - 1
    output, sums, *_ = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        *spans,
        0.0,  # dropout
        causal,
        False,  # return_debug_mask
        scale=scaling,
        window_size_left=around,
        window_size_right=0 if causal else around,
    )
    return output, sums


def attend_efficient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    *,
    causal: bool,
    scaling: float | None,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend by the memory-efficient kernel: float32 as well, and older GPUs."""
    assert window is None  # its gradient does not know windows
    repeat = query.shape[1] // key.shape[1]  # grouped-query attention
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    output, *_ = torch.ops.aten._efficient_attention_forward(
        query[None],
        key[None],
        value[None],
        None,  # bias
        *spans,
        0.0,  # dropout
        _AT_THE_LAST_KEY if causal else 0,
        torch.is_grad_enabled(),  # compute_log_sumexp, which the backward pass reads
        scale=scaling,
    )
    return output[0], None


KERNELS = (
    Kernel("FlashAttention", attend_flash, takes_windows=True, gives_sums=True),
    Kernel("memory-efficient attention", attend_efficient, takes_windows=False, gives_sums=False),
)


def kernel_for(query: torch.Tensor, key: torch.Tensor, *, windowed: bool = False) -> Kernel | None:
    """Return the first kernel that is correct for such `query` [T, heads, D] and `key`; None if there is none, or no GPU."""
    if query.device.type != "cuda":
        return None
    heads = _Heads(query.shape[1], key.shape[1], query.shape[2])
    return _choose_kernel(query.device, query.dtype, heads, windowed=windowed, gradients=torch.is_grad_enabled())


class _Heads(NamedTuple):
    queries: int
    keys: int
    width: int


@functools.cache
def _choose_kernel(
    device: torch.device, dtype: torch.dtype, heads: _Heads, *, windowed: bool, gradients: bool
) -> Kernel | None:
    refusals = []
    for kernel in KERNELS:
        if windowed and not kernel.takes_windows:
            continue
        try:
            problem = _try_kernel(kernel, device, dtype, heads, windowed=windowed, gradients=gradients)
        except (RuntimeError, TypeError, AttributeError) as error:  # no kernel for it, or another torch's arguments
            refuse_broken(error, trial=True)
            if is_out_of_memory(error):
                raise
            problem = (str(error).strip().splitlines() or [type(error).__name__])[0][:150]
        if problem is None:
            summed = kernel.gives_sums and not (gradients or windowed) and _sums_are_right(kernel, device, dtype, heads)
            return kernel._replace(gives_sums=summed)
        refusals.append(f"{kernel.name}: {problem}")
    log.warning(
        "attention runs row by row, which is slower: no kernel on %s takes heads of size %d in %s (%s)",
        describe_gpu(device),
        heads.width,
        str(dtype).removeprefix("torch."),
        "; ".join(refusals),
    )
    return None


def _try_kernel(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: _Heads, *, windowed: bool, gradients: bool
) -> str | None:
    """Compare a kernel with dense attention on a few random tokens; return the fault, None if there is none."""
    runs = [(5, 5), (3, 8), (1, 6)]  # queries and keys
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False), torch.set_grad_enabled(gradients):
        query, key, value = (
            torch.randn(count, number, heads.width, generator=generator).to(device, dtype).requires_grad_(gradients)
            for count, number in ((9, heads.queries), (19, heads.keys), (19, heads.keys))
        )
        spans = Spans.of([q for q, _ in runs], [k for _, k in runs], device)
        for causal in (True, False):
            options: dict[str, Any] = {"causal": causal, "scaling": 0.2, "window": 3 if windowed else None}
            got, _ = kernel.attend(query, key, value, spans, **options)
            exact = attend_densely(query.float(), key.float(), value.float(), runs, **options)
            pairs = [(got, exact)]
            if gradients:
                one, other = (torch.autograd.grad(out.float().sin().sum(), (query, key, value)) for out in (got, exact))
                pairs += zip(one, other, strict=True)
            for result, expected in pairs:
                largest = expected.detach().abs().max().clamp_min(1)
                error = float((result.float() - expected.float()).detach().abs().max() / largest)
                if not error <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
                    return f"differs from dense attention by {error:.1e}"
    return None


@torch.inference_mode()
def _sums_are_right(kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: _Heads) -> bool:
    """Return whether log-sum-exps [heads, T] are correct; older kernels have another layout."""
    runs = [(3, 8), (4, 5)]  # queries and keys
    generator = torch.Generator().manual_seed(0)
    query, key = (
        torch.randn(count, number, heads.width, generator=generator).to(device, dtype)
        for count, number in ((7, heads.queries), (13, heads.keys))
    )
    spans = Spans.of([q for q, _ in runs], [k for _, k in runs], device)
    _, sums = kernel.attend(query, key, key, spans, causal=False, scaling=0.2)
    if sums is None or sums.shape != (heads.queries, len(query)):
        return False
    wide = key.float().repeat_interleave(heads.queries // heads.keys, 1)
    scores = 0.2 * torch.einsum("qhd,khd->hqk", query.float(), wide)
    exact = torch.cat([scores[:, :3, :8].logsumexp(-1), scores[:, 3:, 8:].logsumexp(-1)], 1)
    return bool((sums.float() - exact).abs().max() <= _TOLERANCE.get(dtype, _HALF_TOLERANCE))


def attend_densely(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[tuple[int, int]],
    *,
    causal: bool,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Compute what a kernel computes, run by run from the definition; `runs` are (queries, keys), as in `Spans`."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    queries, keys = [q for q, _ in runs], [k for _, k in runs]
    parts = []
    split = (torch.split(tensor, sizes) for tensor, sizes in ((query, queries), (key, keys), (value, keys)))
    for q, k, v in zip(*split, strict=True):
        places = torch.arange(len(k) - len(q), len(k), device=q.device)
        distances = places[:, None] - torch.arange(len(k), device=q.device)
        hidden = (distances < 0) & causal
        if window is not None:
            hidden |= distances.abs() >= window
        scores = (torch.einsum("qhd,khd->hqk", q, k) * scaling).masked_fill(hidden, -torch.inf)
        parts.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(parts)
