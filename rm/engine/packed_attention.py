"""Exact attention over packed rows: every token attends inside its own row, and a group's common prefix stands once.

A function registered with transformers' `AttentionInterface`, and absent from its mask registry, is called with no mask
and with the model's own keyword arguments. In this way the plan reaches every layer, whatever the architecture.

A response attends to its prefix and to itself. Without gradients these are two attentions, merged by their
log-sum-exps: the softmax over both sets of keys is `w * own + (1 - w) * prefix` with `w = sigmoid(lse_own - lse_prefix)`
(Dao et al. 2022, FlashAttention, section 3.1). So all responses of a group attend to the prefix in one call without a mask.
The kernels' log-sum-exp carries no gradient; with gradients, keys of prefix and response are concatenated instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rm.engine.device import is_out_of_memory, refuse_broken, to_device
from rm.engine.layout import Segment

ATTENTION_NAME = "bestkept_packed"

Kernel = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""Called as `_varlen_attn` is."""


class Spans(NamedTuple):
    """N runs of queries and the run of keys that each attends to: one call of a variable-length kernel."""

    query_ends: torch.Tensor  # int32 [N + 1], from 0
    key_ends: torch.Tensor  # int32 [N + 1]
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: torch.device) -> Spans:
        """Return the spans of runs of these lengths [N] each."""
        query_ends, key_ends = (
            to_device([0, *accumulate(sizes)], device, dtype=torch.int32) for sizes in (queries, keys)
        )
        return cls(query_ends, key_ends, max(queries), max(keys))


@dataclass(frozen=True)
class AttentionPlan:
    """The segments of a packed row and the spans of its kernels; one plan for all layers of a forward."""

    segments: tuple[Segment, ...]
    device: torch.device

    @cached_property
    def parts(self) -> list[int]:
        """The lengths of the row's parts: for each segment its prefix, if any, and all its responses together."""
        return [part for s in self.segments for part in (s.prefix, sum(s.responses)) if part]

    @cached_property
    def rows(self) -> Spans:
        """Prefixes and responses, each attending to itself."""
        sizes = [size for segment in self.segments for size in segment.sizes]
        return Spans.of(sizes, sizes, self.device)

    @cached_property
    def first_tokens(self) -> Spans:
        """One token of each response, attending to all of it."""
        sizes = [size for segment in self.segments for size in segment.responses]
        return Spans.of([1] * len(sizes), sizes, self.device)

    @cached_property
    def to_prefix(self) -> tuple[torch.Tensor, torch.Tensor, Spans] | None:
        """Indices of the tokens that have a prefix, indices of the prefixes, and their spans; None without any prefix."""
        shared = [segment for segment in self.segments if segment.prefix]
        if not shared:
            return None
        queries: list[torch.Tensor] = []
        keys: list[torch.Tensor] = []
        at = 0
        for segment in self.segments:
            prefix_end, end = at + segment.prefix, at + sum(segment.sizes)
            if segment.prefix:
                keys.append(torch.arange(at, prefix_end))
                queries.append(torch.arange(prefix_end, end))
            at = end
        spans = Spans.of([sum(segment.responses) for segment in shared], [s.prefix for s in shared], self.device)
        return torch.cat(queries).to(self.device), torch.cat(keys).to(self.device), spans


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: AttentionPlan,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention inside segments: `query` [1, heads, T, D], `key` and `value` [1, kv heads, T, D] → [1, T, heads, D].

    Causal modules: the prefix attends to itself causally, each response to the prefix and causally to itself.
    Others: each response attends to all of itself. No token attends outside its segment.
    """
    if attention_mask is not None:
        raise ValueError("packed attention was given a mask; this architecture builds its own")
    causal = bool(getattr(module, "is_causal", False))
    if torch.is_grad_enabled():
        return _attend_concatenated(query, key, value, plan, causal=causal, scaling=scaling), None
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotated ones are wider
    if query.device.type == "cpu":
        return _attend_on_cpu(query, key, value, plan, causal=causal, scaling=scaling), None
    if variable_length is not None and query.dtype in (torch.bfloat16, torch.float16):
        return _attend_by_kernel(variable_length, query, key, value, plan, causal=causal, scaling=scaling), None
    return _attend_concatenated(query, key, value, plan, causal=causal, scaling=scaling), None


AttentionInterface.register(ATTENTION_NAME, packed_attention)


def pooled_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """Compute the attention of one token of each row to its whole row, without prefixes and gradients.

    `query` [1, heads, R, D], `key` and `value` [1, heads, T, D] → [1, R, heads, D].
    """
    if query.device.type != "cpu" and variable_length is not None and query.dtype in (torch.bfloat16, torch.float16):
        row_query, row_key, row_value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return variable_length(row_query, row_key, row_value, plan.first_tokens, causal=False, scaling=None)[0][None]
    sizes = [size for segment in plan.segments for size in segment.responses]
    rows = zip(query.unbind(2), torch.split(key, sizes, 2), torch.split(value, sizes, 2), strict=True)
    parts = [scaled_dot_product_attention(one[:, :, None], keys, values) for one, keys, values in rows]
    return torch.cat(parts, 2).transpose(1, 2)


def _attend_on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    *,
    causal: bool,
    scaling: float | None,
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
            outputs.append(_flash_attention(queries, *before, causal=causal, scaling=scaling)[0])
        queries, *keys = next(parts)
        rows = zip(*(torch.split(tensor, list(segment.responses), 2) for tensor in (queries, *keys)), strict=True)
        results = [_flash_attention(*row, causal=causal, scaling=scaling) for row in rows]
        if before:
            own, lse = (torch.cat(parts) for parts in zip(*results, strict=True))
            outputs.append(
                _merge_attentions(own, lse, *_flash_attention(queries, *before, causal=False, scaling=scaling))
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


class KernelError(RuntimeError):
    """An attention kernel that does not run on this GPU, or not with heads of this size."""


def _varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Spans,
    *,
    causal: bool,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend in many runs at once: [T, heads, D] each → attention [T, heads, D], log-sum-exps [heads, T].

    Raises `KernelError` where the kernel refuses the GPU or the size of the heads.
    """
    try:
        output, lse = varlen.varlen_attn(
            query,
            key,
            value,
            *spans,
            return_aux=varlen.AuxRequest(lse=True),
            scale=scaling,
            window_size=(-1, 0) if causal else (-1, -1),
            enable_gqa=key.shape[1] != query.shape[1],
        )
    except RuntimeError as error:
        refuse_broken(error, trial=True)
        if is_out_of_memory(error):
            raise
        raise KernelError(f"heads of size {query.shape[-1]}: {str(error).strip().splitlines()[0][:150]}") from error
    heads, tokens = query.shape[1], query.shape[0]
    return output, lse if lse.shape == (heads, tokens) else lse.T  # the documentation and the code disagree


variable_length: Kernel | None = None
with contextlib.suppress(ImportError):  # torch before 2.10 has none; keys are concatenated instead
    from torch.nn.attention import varlen

    variable_length = _varlen_attn


def _attend_by_kernel(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    *,
    causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """Use a GPU's kernel: one call in which every part attends to itself, one for the responses' attention to prefixes."""
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [T, heads, D]
    own, lse = kernel(query, key, value, plan.rows, causal=causal, scaling=scaling)
    if plan.to_prefix is not None:
        places, prefixes, spans = plan.to_prefix
        keys, values = key[prefixes], value[prefixes]
        from_prefix, lse_prefix = kernel(query[places], keys, values, spans, causal=False, scaling=scaling)
        own[places] = _merge_attentions(own[places], lse.T[places], from_prefix, lse_prefix.T)
    return own[None]


def _attend_concatenated(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: AttentionPlan,
    *,
    causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """Attend with gradients, on every device and in every type: one call a response, over its prefix's keys and its own."""
    repeat = query.shape[1] // key.shape[1]  # grouped-query attention
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    sizes = [size for segment in plan.segments for size in segment.sizes]
    # split, not slices: the gradient of a slice is a tensor as large as the whole, once per slice
    pieces = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    parts: list[torch.Tensor] = []
    for segment in plan.segments:
        before = None
        if segment.prefix:
            queries, keys, values = next(pieces)
            before = (keys, values)
            parts.append(scaled_dot_product_attention(queries, keys, values, scale=scaling, is_causal=causal))
        for length in segment.responses:
            queries, keys, values = next(pieces)
            mask = None
            if before is not None:
                keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
                mask = torch.ones(length, segment.prefix + length, dtype=torch.bool, device=query.device)
                mask = mask.tril(segment.prefix)  # row t sees the prefix and its own tokens up to t
            parts.append(
                scaled_dot_product_attention(
                    queries, keys, values, attn_mask=mask, scale=scaling, is_causal=causal and mask is None
                )
            )
    return torch.cat(parts, 2).transpose(1, 2)
