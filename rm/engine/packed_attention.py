"""Exact attention over packed rows: every token attends inside its own row, and a group's common prefix is stored once.

A function registered with transformers' `AttentionInterface`, and absent from its mask registry, is called without a mask
and with the model's own keyword arguments. In this way the plan reaches every layer, whatever the architecture.

A response attends to its prefix and to itself. On a GPU this is one kernel call for all rows, over gathered keys: those of
each response's prefix, and its own. If prefixes are much longer than their responses, and on a CPU, it is two attentions,
merged by their log-sum-exps: the softmax over both sets of keys is `w * own + (1 - w) * prefix` with
`w = sigmoid(lse_own - lse_prefix)` (Dao et al. 2022, FlashAttention, section 3.1). So all responses of a group attend to
the prefix in one call without a mask. A kernel's log-sum-exp has no gradient. If no kernel applies, attention runs row by
row over concatenated keys: with gradients on a CPU, with windows shorter than rows, capped logits or sinks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rm.engine.attention_kernels import Kernel, kernel_for
from rm.engine.attention_plan import AttentionPlan

ATTENTION_NAME = "bestkept_packed"


@dataclass(frozen=True)
class Form:
    """The variations of a layer's attention, as transformers passes them to attention functions."""

    causal: bool
    scaling: float | None = None  # None: 1 / sqrt(D)
    window: int | None = None  # a token sees those fewer than so many tokens away
    cap: float | None = None  # logits l become cap * tanh(l / cap)
    sinks: torch.Tensor | None = None  # [heads] logits that take a share of the attention and have no value


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention inside segments: `query` [1, heads, T, D], `key` and `value` [1, kv heads, T, D] → [1, T, heads, D].

    Causal modules: the prefix attends to itself causally, each response to the prefix and causally to itself.
    Others: each response attends to all of itself. No token attends outside its segment.
    """
    if attention_mask is not None:
        raise ValueError("packed attention got a mask; this architecture builds its own")
    plan.told.append((sliding_window, softcap))
    plan = plan.on(query.device)
    window = sliding_window if sliding_window is not None and sliding_window < plan.longest else None
    form = Form(bool(getattr(module, "is_causal", False)), scaling, window, softcap, s_aux)
    plain = softcap is None and s_aux is None
    on_cpu = query.device.type == "cpu"
    if not torch.is_grad_enabled() or not on_cpu:
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotated ones are wider
    if plain and on_cpu and window is None and not torch.is_grad_enabled():
        return _attend_on_cpu(query, key, value, plan, form), None
    kernel = (
        kernel_for(query[0].transpose(0, 1), key[0].transpose(0, 1), windowed=window is not None) if plain else None
    )
    if kernel is not None:
        return _attend_by_kernel(kernel, query, key, value, plan, form), None
    return _attend_by_row(query, key, value, plan, form), None


AttentionInterface.register(ATTENTION_NAME, packed_attention)


def pooled_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Compute the attention of one token of each row to its whole row, without prefixes and gradients.

    `query` [1, heads, R, D], `key` and `value` [1, heads, T, D] → [1, R, heads, D].
    """
    row_query, row_key, row_value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    kernel = kernel_for(row_query, row_key)
    if kernel is not None:
        return kernel.attend(row_query, row_key, row_value, plan.first_tokens, causal=False, scaling=None)[0][None]
    sizes = [size for segment in plan.segments for size in segment.responses]
    rows = zip(query.unbind(2), torch.split(key, sizes, 2), torch.split(value, sizes, 2), strict=True)
    parts = [scaled_dot_product_attention(one[:, :, None], keys, values) for one, keys, values in rows]
    return torch.cat(parts, 2).transpose(1, 2)


def _attend_on_cpu(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, form: Form
) -> torch.Tensor:
    """Use the CPU's flash kernel, which returns the log-sum-exp; one call a response and one a group for its prefix."""
    _, heads, tokens, width = query.shape
    # grouped-query attention without copies of the keys: their heads are the batch, each with its queries' heads
    batch = key.shape[1] if key.shape[1] < heads else 1
    query = query.view(batch, heads // batch, tokens, width)
    if batch > 1:
        key, value = (tensor[0][:, None].expand(query.shape) for tensor in (key, value))
    parts = zip(*(torch.split(tensor, plan.parts, 2) for tensor in (query, key, value)), strict=True)
    outputs: list[torch.Tensor] = []  # [tokens, batch, heads / batch, D] each, as the kernel lays them out
    for segment in plan.segments:
        before: list[torch.Tensor] = []
        if segment.prefix:
            queries, *before = next(parts)
            outputs.append(_flash_attention(queries, *before, causal=form.causal, scaling=form.scaling)[0])
        queries, *keys = next(parts)
        rows = zip(*(torch.split(tensor, list(segment.responses), 2) for tensor in (queries, *keys)), strict=True)
        results = [_flash_attention(*row, causal=form.causal, scaling=form.scaling) for row in rows]
        if before:
            own, lse = (torch.cat(parts) for parts in zip(*results, strict=True))
            outputs.append(
                _merge_attentions(own, lse, *_flash_attention(queries, *before, causal=False, scaling=form.scaling))
            )
        else:
            outputs += [output for output, _ in results]
    return torch.cat(outputs).view(1, tokens, heads, width)


def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, causal: bool, scaling: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention [T, batch, heads, D] and its log-sum-exps [T, batch, heads], from [batch, heads, T, D]."""
    output, lse = _flash_cpu(query, key, value, 0.0, causal, scale=scaling)
    return output.permute(2, 0, 1, 3), lse.permute(2, 0, 1)


_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # (output, log-sum-exp [batch, heads, T])


def _merge_attentions(
    own: torch.Tensor, lse_own: torch.Tensor, other: torch.Tensor, lse_other: torch.Tensor
) -> torch.Tensor:
    """Merge the attentions [..., D] over two sets of keys by their log-sum-exps [...], in float32, rounded once."""
    weight = torch.sigmoid(lse_own.float() - lse_other.float())[..., None]
    return torch.lerp(other.float(), own.float(), weight).to(own.dtype)


def _attend_by_kernel(
    kernel: Kernel, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, form: Form
) -> torch.Tensor:
    """Use a GPU's kernel: one call over gathered keys, or two merged calls if these are estimated to cost less."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    mergeable = kernel.gives_sums and form.window is None and not torch.is_grad_enabled()
    calls = plan.calls(form.window, query.shape[1], key.shape[1], mergeable=mergeable)
    if calls is not None:
        outputs = []
        for keys, queries, spans in calls:
            gathered = (tensor if keys is None else tensor.index_select(0, keys) for tensor in (key, value))
            options: dict[str, Any] = {"causal": form.causal, "scaling": form.scaling, "window": form.window}
            outputs.append(kernel.attend(query[queries], *gathered, spans, **options)[0])
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]
    places, prefixes, spans = plan.to_prefix
    own, sums = kernel.attend(query, key, value, plan.rows, causal=form.causal, scaling=form.scaling)
    from_prefix, prefix_sums = kernel.attend(
        query[places], key[prefixes], value[prefixes], spans, causal=False, scaling=form.scaling
    )
    assert sums is not None
    assert prefix_sums is not None
    own[places] = _merge_attentions(own[places], sums.T[places], from_prefix, prefix_sums.T)
    return own[None]


def _attend_by_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, form: Form
) -> torch.Tensor:
    """Attend on every device, in every type and form, with gradients: row by row, over its prefix's keys and its own."""
    repeat = query.shape[1] // key.shape[1]  # grouped-query attention
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    # split, not slices: the gradient of a slice is a tensor as large as the whole, once per slice
    sizes = [size for size, _ in plan.runs]
    pieces = zip(plan.runs, *(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    parts: list[torch.Tensor] = []
    for segment in plan.segments:
        prefix: tuple[torch.Tensor, torch.Tensor] | None = None
        for _ in segment.sizes:
            (_, before), queries, keys, values = next(pieces)
            if before and prefix is not None:
                keys, values = torch.cat([prefix[0], keys], 2), torch.cat([prefix[1], values], 2)
            elif segment.prefix:
                prefix = (keys, values)
            parts += _attend_in_blocks(queries, keys, values, plan, form)
    return torch.cat(parts, 2).transpose(1, 2)


def _attend_in_blocks(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, form: Form
) -> list[torch.Tensor]:
    """Attend in one row, its queries being those of its last keys.

    With a window, capped logits or sinks in blocks, each to the keys that it sees: the last two hold scores as a matrix.
    """
    queries, keys = query.shape[2], key.shape[2]
    before = keys - queries
    plain, window = form.cap is None and form.sinks is None, keys if form.window is None else min(form.window, keys)
    if window == keys and (plain or queries <= BLOCK):
        return [_attend(query, key, value, plan, form, before=before)]
    size = max(window, BLOCK) if plain else BLOCK
    parts = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first = max(0, before + start - window + 1)
        last = before + stop if form.causal else min(keys, before + stop + window - 1)
        seen = slice(first, last)
        block = (query[:, :, start:stop], key[:, :, seen], value[:, :, seen])
        parts.append(_attend(*block, plan, form, before=before + start - first))
    return parts


BLOCK = 256  # queries that attend together where a window is shorter, or scores are held


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan, form: Form, *, before: int
) -> torch.Tensor:
    """Attend to keys, of which `before` come before the first query: [1, heads, queries, D] each."""
    queries, keys = query.shape[2], key.shape[2]
    plain = form.cap is None and form.sinks is None
    if plain and form.causal and before == 0 and queries == keys and (form.window is None or form.window >= keys):
        return scaled_dot_product_attention(query, key, value, scale=form.scaling, is_causal=True)
    mask = plan.mask(queries, keys, before, causal=form.causal, window=form.window)
    if plain:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=form.scaling)
    scores = query @ key.transpose(2, 3)
    into = None if torch.is_grad_enabled() else scores  # passes over memory are what this costs
    scores = torch.mul(scores, query.shape[-1] ** -0.5 if form.scaling is None else form.scaling, out=into)
    if form.cap is not None:
        scores = torch.tanh(torch.mul(scores, 1 / form.cap, out=into), out=into)
        scores = torch.mul(scores, form.cap, out=into)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if into is None else scores.masked_fill_(~mask, -torch.inf)
    if form.sinks is not None:
        sinks = form.sinks[None, :, None, None].expand(1, -1, queries, 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
    return scores.softmax(-1, dtype=torch.float32)[..., :keys].to(value.dtype) @ value
