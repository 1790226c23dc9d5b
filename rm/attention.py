"""Packed forward: many rows in one, without padding; a group's common prompt runs once. Exact, with gradients.

A function registered with transformers' `AttentionInterface`, and absent from its mask registry, is called with no mask
and with the model's own keyword arguments: that is how the plan reaches every layer, whatever the architecture. Keys of
the prefix and of a response are concatenated; merging two attentions by their log-sum-exps would be cheaper, but the
kernels' log-sum-exp carries no gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rm.packing import Layout, Segment, lay_out

log = logging.getLogger(__name__)

NAME = "bestkept_packed"


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    segments: Sequence[Segment] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside segments: `query` [1, heads, T, D], `key` and `value` [1, kv heads, T, D] → [1, T, heads, D].

    Causal modules: the prefix attends to itself causally, each response to the prefix and causally to itself.
    Others: each response attends to all of itself. No token attends outside its segment.
    """
    if attention_mask is not None:
        raise ValueError("packed attention was given a mask; this architecture builds its own")
    repeat = query.shape[1] // key.shape[1]  # grouped-query attention
    if repeat > 1:
        key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    causal = bool(getattr(module, "is_causal", False))
    sizes = [size for segment in segments for size in segment.sizes]
    # split, not slices: the gradient of a slice is a tensor as large as the whole, once per slice
    pieces = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
    parts: list[torch.Tensor] = []
    for segment in segments:
        before = None
        if segment.prefix:
            queries, keys, values = next(pieces)
            before = (keys, values)
            parts.append(scaled_dot_product_attention(queries, keys, values, scale=scaling, is_causal=True))
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
    return torch.cat(parts, 2).transpose(1, 2), None


AttentionInterface.register(NAME, packed_attention)


def packed_rewards(model: Any, layout: Layout, *, causal: bool) -> torch.Tensor:
    """Rewards [R], float32, of a layout's responses, by a sequence classifier whose attention is `NAME`."""
    device = model.device
    inputs = {
        "input_ids": torch.tensor([layout.ids], device=device),  # [1, T]
        "position_ids": torch.tensor([layout.positions], device=device),
    }
    if layout.types is not None:
        inputs["token_type_ids"] = torch.tensor([layout.types], device=device)
    cache = {"use_cache": False} if causal else {}
    hidden = model.base_model(**inputs, **cache, segments=layout.segments)[0]  # [1, T, H]
    pooled = hidden[0, torch.tensor(layout.pooled, device=device)]  # [R, H]
    if causal:
        return model.score(pooled)[:, 0].float()  # type: ignore[no-any-return]
    pooler = getattr(model.base_model, "pooler", None)
    # heads take [R, rows, H] and read row 0: BERT through its pooler, RoBERTa and ELECTRA inside the classifier
    pooled = pooled[:, None] if pooler is None else model.dropout(pooler(pooled[:, None]))
    return model.classifier(pooled)[:, 0].float()  # type: ignore[no-any-return]


def first_position(config: Any) -> int:
    """Where this architecture's positions start: RoBERTa and its kin count from behind the pad token."""
    from rm.identity import OFFSET_POSITIONS

    return int(config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0


def enable_packing(model: Any, *, causal: bool, max_length: int) -> bool:
    """Switch the model to packed attention, if it then still gives the rewards it gives row by row.

    Tried on a few rows of made-up tokens, shared prefix and different lengths included; the outcome is logged. A model
    with sliding windows, its own masks or another kind of head keeps the attention it has.
    """
    why = _unsupported(model.config, max_length)
    if why is None:
        try:
            error = _self_check(model, causal=causal)
        except (TypeError, ValueError, AttributeError, RuntimeError) as problem:
            why = f"its forward does not take packed rows ({type(problem).__name__})"
        else:
            if error <= _TOLERANCE:
                model.set_attn_implementation(NAME)
                log.info("packed rows: no padding%s", ", a group's prompt runs once" if causal else "")
                return True
            why = f"packed rewards differ by {error:.1e} of their spread"
    log.info("padded rows, since %s", why)
    return False


_TOLERANCE = 1e-3  # of the rewards' spread: float32 gives 1e-6; a wrong mask or position gives 0.1 and more


def _unsupported(config: Any, max_length: int) -> str | None:
    """Why this configuration rules packing out, whatever a short self-check says; None where it does not."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return f"the architecture caps attention logits at {text.attn_logit_softcapping}"
    for name in ("sliding_window", "local_attention", "attention_chunk_size"):
        window = getattr(text, name, None)
        if window and window < max_length and getattr(text, "use_sliding_window", True):
            return f"the architecture attends to {name} {window} tokens, fewer than max_length {max_length}"
    return None


@torch.inference_mode()
def _self_check(model: Any, *, causal: bool) -> float:
    """Largest difference between packed and one-by-one rewards, as a share of their spread."""
    training, implementation = model.training, model.config._attn_implementation
    model.eval()
    vocabulary = model.config.get_text_config().vocab_size
    pad = model.config.get_text_config().pad_token_id
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(0, vocabulary, (64,), generator=generator).tolist()
    tokens = [(token + 1) % vocabulary if token == pad else token for token in draw]
    groups = [[tokens[:9] + tokens[20:25], tokens[:9] + tokens[30:31], tokens[:9] + tokens[40:52]], [tokens[52:59]]]
    rows = [row for group in groups for row in group]
    expected = torch.stack([model(input_ids=torch.tensor([row], device=model.device)).logits[0, 0] for row in rows])
    try:
        model.set_attn_implementation(NAME)
        layout = lay_out(
            [[(row, None) for row in group] for group in groups],
            share=causal,
            pad=pad,
            first_position=first_position(model.config),
        )
        got = packed_rewards(model, layout, causal=causal)
    finally:
        model.set_attn_implementation(implementation)
        model.train(training)
    expected = expected.float()
    return float((got - expected).abs().max() / expected.std().clamp_min(1e-12))
