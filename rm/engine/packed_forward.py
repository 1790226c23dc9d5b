"""The packed forward: many rows in one, without padding; a group's common prompt is computed once. Exact, with gradients.

Loading a model decides whether it is used: the configuration must allow it, and packed rewards must equal those of single
rows.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from rm.engine.attention_plan import AttentionPlan
from rm.engine.device import host_tensor, refuse_broken
from rm.engine.layout import Layout, lay_out
from rm.engine.packed_attention import ATTENTION_NAME, pooled_attention
from rm.identity import OFFSET_POSITIONS

log = logging.getLogger(__name__)


class PackedInputs(NamedTuple):
    """The tensors of a layout in the machine's memory, pinned for a GPU, and its attention plan."""

    ids: torch.Tensor  # [1, T]
    positions: torch.Tensor  # [1, T]
    types: torch.Tensor | None  # [1, T]
    pooled: torch.Tensor  # [R]
    plan: AttentionPlan

    @classmethod
    def of(cls, layout: Layout, device: torch.device) -> PackedInputs:
        """Return the inputs of a forward on this device."""
        ids, positions = (host_tensor(values, device)[None] for values in (layout.ids, layout.positions))
        types = None if layout.types is None else host_tensor(layout.types, device)[None]
        return cls(ids, positions, types, host_tensor(layout.pooled, device), AttentionPlan(layout.segments, device))


def packed_rewards(
    model: Any, packed: Layout | PackedInputs, *, causal: bool, plan: AttentionPlan | None = None
) -> torch.Tensor:
    """Compute the rewards [R], float32, of a layout's responses; [R, N] for a head with N outputs.

    `model` is a sequence classifier whose attention is `ATTENTION_NAME`. `plan` is that of the layout's segments; None makes
    one.
    """
    device = model.device
    if isinstance(packed, Layout):
        packed = PackedInputs.of(packed, device)
    plan = plan or packed.plan
    inputs: dict[str, Any] = {
        "input_ids": packed.ids.to(device, non_blocking=True),
        "position_ids": packed.positions.to(device, non_blocking=True),
    }
    if packed.types is not None:
        inputs["token_type_ids"] = packed.types.to(device, non_blocking=True)
    if causal:
        inputs["use_cache"] = False
    places = packed.pooled.to(device, non_blocking=True)
    with _pool_last_layer(model, places, plan) as reduced:
        hidden = model.base_model(**inputs, plan=plan)[0]  # [1, T, H], or [1, R, H]
    if _averages(model):
        sizes = [size for segment in plan.segments for size in segment.responses]
        pooled = torch.stack([row.mean(0) for row in torch.split(hidden[0], sizes)])
    else:
        pooled = hidden[0] if reduced else hidden[0, places.to(hidden.device)]  # [R, H]
    if causal:
        return model.score(pooled).squeeze(-1).float()  # type: ignore[no-any-return]
    return _classify(model, pooled).squeeze(-1).float()


def _averages(model: Any) -> bool:
    """Return whether the head reads the mean of a row's hidden states (ModernBERT's with `classifier_pooling: mean`)."""
    return getattr(model.config, "classifier_pooling", None) == "mean"


def _classify(model: Any, pooled: torch.Tensor) -> torch.Tensor:
    """Apply an encoder's head to the states that it pools [R, H]; return its logits [R, 1]."""
    if isinstance(getattr(model, "head", None), nn.Module):  # ModernBERT
        return model.classifier(model.drop(model.head(pooled)))  # type: ignore[no-any-return]
    pooler = getattr(model.base_model, "pooler", None)
    # heads take [R, rows, H] and read row 0: BERT through its pooler, RoBERTa and ELECTRA inside the classifier
    pooled = pooled[:, None] if pooler is None else model.dropout(pooler(pooled[:, None]))
    return model.classifier(pooled)  # type: ignore[no-any-return]


@contextlib.contextmanager
def _pool_last_layer(model: Any, places: torch.Tensor, plan: AttentionPlan) -> Iterator[bool]:
    """Without gradients, limit the last layer mostly to the tokens that the head reads, at `places` [R].

    Yields whether the layer returns only the hidden states of `places`. It does in BERT and its relatives, where only keys
    and values are computed for all tokens. In causal layers the `mlp` runs only on `places`, and the other tokens' hidden
    states are meaningless. Other layers run whole.
    """
    layers = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    whole = torch.is_grad_enabled() or not layers or _averages(model)
    last: Any = None if whole else layers[0][-1]
    hooks = []
    spread = "forward" in vars(last) if last is not None else False  # over devices, by a forward of accelerate's
    bert = hasattr(last, "feed_forward_chunk") and hasattr(last.attention, "self") and not spread
    if bert:
        last.forward = functools.partial(_pooled_bert_layer, last, places, plan)
    elif isinstance(getattr(last, "mlp", None), nn.Module) and not hasattr(last, "feed_forward_chunk"):
        size: list[int] = []

        def gather(_: Any, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            size.append(arguments[0].shape[1])
            return (arguments[0][:, places.to(arguments[0].device)],)

        def scatter(_: Any, __: Any, output: Any) -> Any:
            computed, *rest = output if isinstance(output, tuple) else (output,)  # some routers give their scores, too
            states = computed.new_zeros(1, size[0], computed.shape[-1]).index_copy_(
                1, places.to(computed.device), computed
            )
            return (states, *rest) if rest else states

        hooks += [last.mlp.register_forward_pre_hook(gather), last.mlp.register_forward_hook(scatter)]
    try:
        yield bert
    finally:
        for hook in hooks:
            hook.remove()
        if bert:
            del last.forward


def _pooled_bert_layer(
    layer: Any, places: torch.Tensor, plan: AttentionPlan, hidden: torch.Tensor, /, *_: Any, **__: Any
) -> torch.Tensor:
    """Run `BertLayer.forward` (or RoBERTa's or ELECTRA's) for the tokens at `places`: [1, T, H] → [1, R, H]."""
    attention, pooled = layer.attention, hidden[:, places]
    projections = attention.self

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.view(1, -1, projections.num_attention_heads, projections.attention_head_size).transpose(1, 2)

    queries, keys, values = projections.query(pooled), projections.key(hidden), projections.value(hidden)
    context = pooled_attention(heads(queries), heads(keys), heads(values), plan)
    return layer.feed_forward_chunk(attention.output(context.flatten(2), pooled))  # type: ignore[no-any-return]


def first_position(config: Any) -> int:
    """Return this architecture's first position: in RoBERTa and its relatives, it is the one after the pad token's id."""
    return int(config.pad_token_id or 0) + 1 if config.model_type in OFFSET_POSITIONS else 0


def enable_packing(model: Any, *, causal: bool, max_length: int) -> bool:
    """Switch the model to packed attention if that does not change rewards; return whether it was switched.

    The check runs on a few rows of random tokens, with a shared prefix and different lengths; the outcome is logged. A
    model with its own masks or another kind of head keeps its attention.
    """
    try:
        obstacle = packing_obstacle(model.config, max_length) or _packing_error(
            model, causal=causal, max_length=max_length
        )
    except Exception as problem:  # any error in the trial means that packed rows are not supported
        refuse_broken(problem, trial=True)
        obstacle = f"the architecture does not support packed rows ({type(problem).__name__})"
    if obstacle is None:
        model.set_attn_implementation(ATTENTION_NAME)
        shared = "; a prompt that several responses share is computed once" if causal else ""
        log.info("computing without padding%s", shared)
        return True
    log.info("computing with padding: %s", obstacle)
    return False


_TOLERANCE = 1e-3  # of the rewards' spread: float32 gives 1e-6; a wrong mask or position gives 0.1 and more
_HALF_TOLERANCE = 0.02  # in addition to three times the error of unpacked rows
_LONGEST_WINDOW = 256  # tokens: longer windows are not tried, so that loading stays quick


def packing_obstacle(config: Any, max_length: int) -> str | None:
    """Return why this configuration rules packing out, whatever the check of rewards shows; None if it does not."""
    chunk = getattr(config.get_text_config(), "attention_chunk_size", None)
    if chunk and chunk < max_length:
        return f"the architecture attends to attention_chunk_size {chunk} tokens, fewer than max_length {max_length}"
    return None


def _window_of(config: Any, max_length: int) -> int | None:
    """Return the configuration's window if rows may be longer; None if they may not, or the window is off."""
    text = config.get_text_config()
    for name in ("sliding_window", "local_attention"):
        window = getattr(text, name, None)
        if window and window < max_length and getattr(text, "use_sliding_window", True):
            return int(window)
    return None


def _untold(config: Any, told: Sequence[tuple[int | None, float | None]], max_length: int) -> str | None:
    """Describe a setting of the configuration that layers did not pass to their attention; None if all were passed.

    `told` is that of `AttentionPlan`. The rows of the trial may be too short to show a window, or their logits too small
    for a cap; transformers' own kernels also know only what layers pass.
    """
    text = config.get_text_config()
    cap = getattr(text, "attn_logit_softcapping", None)
    if cap and any(told_cap != cap for _, told_cap in told):
        return f"the architecture caps attention logits at {cap} by itself"
    window, kinds = _window_of(config, max_length), getattr(text, "layer_types", None)
    sliding = sum(kind != "full_attention" for kind in kinds) if kinds else len(told)
    if window is not None and sum(told_window is not None for told_window, _ in told) != sliding:
        return f"the architecture attends to {window} tokens, fewer than max_length {max_length}, by itself"
    return None


@torch.no_grad()
def _packing_error(model: Any, *, causal: bool, max_length: int) -> str | None:
    """Describe how packed rewards differ from those of single rows, if by more than rounding; else None.

    They are compared in float32, where rounding hides nothing, and in training mode also with gradients, which take another
    path. For a 16-bit model, packed rewards in its own type must also be as near to the float32 rewards as those of single
    rows, in the same modes.
    """
    training, implementation = model.training, model.config._attn_implementation
    groups = _random_groups(model.config, max_length)
    rows = [torch.tensor([row], device=model.device) for group in groups for row, _ in group]
    pad = model.config.get_text_config().pad_token_id
    layout = lay_out(groups, share=causal, pad=pad, first_position=first_position(model.config))
    plan, device = AttentionPlan(layout.segments, model.device), model.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype
    half = dtype != torch.float32
    modes = (False, True) if training else (False,)

    def alone() -> torch.Tensor:
        return torch.stack([model(input_ids=row).logits[0].squeeze(-1) for row in rows]).float()

    def packed(*, gradients: bool) -> torch.Tensor:
        with torch.set_grad_enabled(gradients):
            return packed_rewards(model, layout, causal=causal, plan=plan).detach()

    model.eval()
    try:
        half_alone = alone() if half else None
        with in_float32(model):
            exact = alone()
            model.set_attn_implementation(ATTENTION_NAME)
            errors = [_distance(packed(gradients=False), exact)]
            untold = _untold(model.config, plan.told, max_length)
            errors += [_distance(packed(gradients=True), exact)] if training else []
        half_errors = [_distance(packed(gradients=gradients), exact) for gradients in modes if half]
    finally:
        if model.config._attn_implementation != implementation:
            model.set_attn_implementation(implementation)
        model.train(training)
    if untold is not None:
        return untold
    for error in errors:
        if not error <= _TOLERANCE:
            return f"packed rewards differ by {error:.1e} of their spread"
    limit = 3 * _distance(half_alone, exact) + _HALF_TOLERANCE if half_alone is not None else 0.0
    for error in half_errors:
        if not error <= limit:
            return f"packed rewards in {dtype} are off by {error:.1e} of their spread, and {limit:.1e} is allowed"
    return None


def _distance(rewards: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference, as a share of the standard deviation of the rewards, or of that output's."""
    return float(((rewards - exact).abs() / exact.std(0).clamp_min(1e-12)).max())


def _random_groups(config: Any, max_length: int) -> list[list[tuple[list[int], None]]]:
    """Draw groups of token ids without the pad token: a shared prefix, equal rows, a short row, a single row.

    With a window of up to 256 tokens, two more rows exceed it, one of them within its prefix.
    """
    text = config.get_text_config()
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        drawn = torch.randint(0, text.vocab_size, (count,), generator=generator).tolist()
        return [(token + 1) % text.vocab_size if token == text.pad_token_id else token for token in drawn]

    tokens = draw(64)
    start = tokens[:9]
    groups = [
        [start + tokens[20:25], start + tokens[30:31], start + tokens[40:52], start + tokens[30:31]],
        [tokens[52:59]],
    ]
    window = _window_of(config, max_length)
    if window is not None and window <= _LONGEST_WINDOW:
        prefix = draw(min(window + 3, max_length // 2))
        groups.append([prefix + draw(min(window + 8, max_length - len(prefix))), prefix + draw(3)])
    return [[(row, None) for row in group] for group in groups]


@contextlib.contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Make every module compute in float32, widening one module at a time, so that no second model is in memory.

    Autocast to another type is off for that time.
    """
    narrow: dict[nn.Parameter, torch.Tensor] = {}

    def widen(module: nn.Module, _: Any) -> None:
        for parameter in module.parameters(recurse=False):
            narrow[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, _: Any, __: Any) -> None:
        for parameter in module.parameters(recurse=False):
            parameter.data = narrow.pop(parameter)

    hooks = []
    for module in model.modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks += [module.register_forward_pre_hook(widen), module.register_forward_hook(restore)]
    try:
        with torch.autocast(next(model.parameters()).device.type, enabled=False):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, data in narrow.items():
            parameter.data = data
