"""Ways to put unpacked rows into batches, and the check at load that chooses the first correct one.

Not every architecture gives a padded row the reward of the row alone: some ignore the mask (FNet), some read beyond a row's
end (ConvBERT, XLNet). So a few rows run alone, as plain transformers runs them, and in every way (see `choose_way` for their
lengths).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from rm.checkpoint.embedding_model import EmbeddingModel
from rm.checkpoint.interchange import is_openrlhf
from rm.checkpoint.refusals import embedded_tokens
from rm.checkpoint.reward_model import RewardModel
from rm.engine.device import refuse_broken
from rm.engine.packed_forward import in_float32
from rm.identity import ModelError
from rm.text.templates import Encoded, Template

log = logging.getLogger(__name__)

PADDED, EQUAL_LENGTHS, ONE_BY_ONE = "padded", "equal_lengths", "one_by_one"
WAYS = (PADDED, EQUAL_LENGTHS, ONE_BY_ONE)  # the fastest first

_TOLERANCE = 1e-4  # of the rewards' spread, in float32
_HALF_TOLERANCE = 0.02  # in addition to three times the error of rows alone in 16 bits
_UNKNOWN_ERROR = 0.03  # assumed for rows alone if the architecture does not run in float32 for comparison
_LONGEST = 256  # tokens of a random response, so that loading stays quick
_LONG_FLOPS = {"cpu": 5e11}  # limit for a row beyond a longer window: seconds on a CPU
_LONG_GPU_FLOPS = 1e14
_LENGTHS = (
    "sliding_window",
    "local_attention",
    "attention_chunk_size",
    "attention_window",
    "window_size",
    "local_attn_chunk_length",
    "block_size",
    "num_landmarks",
    "segment_means_seq_len",
)  # a configuration's windows and chunks

_SIZES = ((3, 1), (8, 5), (3, 1), (1, 2), (2, 14), (8, 5))  # words of prompt and response


class _Alone(NamedTuple):
    """The rewards [R] of rows alone: the exact ones, and those in the type of the run."""

    exact: torch.Tensor
    own: torch.Tensor
    widened: bool  # `exact` was computed in float32


@torch.no_grad()
def choose_way(model: RewardModel, template: Template, *, split: int | None) -> str:
    """Return the first of `WAYS` in which batches give rows the rewards that they have alone; the outcome is logged.

    Rewards are compared on the model's device; for 16-bit models both in float32, where rounding hides nothing, and in the
    type of the run. A way that raises an error is not correct. `split` is the result of `split_lengths`. Raises `ModelError`
    if even single rows do not have the rewards of plain transformers.

    The rows are shorter and longer than every window of up to 256 tokens that the configuration names. For longer windows,
    causal models are not checked: no token sees the tokens after it, padding included. For other models one longer row is
    tried; if that would take too long, rows are not padded.
    """
    rows = draw_rows(model, template, _sizes(model, template))
    longer = _longer_window(model, template)
    tried = [rows]
    if longer is not None and _is_quick(model, longer):
        beyond = min(longer + longer // 2, (longer + template.max_length) // 2)
        pair = draw_rows(model, template, ((2, beyond), (3, 1)))
        tried += [pair] if max((len(row.ids) for row in pair), default=0) > longer else []
    if not rows:
        log.warning(
            "responses are scored one by one, which is slower: the chat template renders no conversation to check batches with"
        )
        return ONE_BY_ONE  # correct for every architecture
    pad = template.tokenizer.pad_token_id or 0
    training = model.training
    model.eval()
    wrong: dict[str, str] = {}
    try:
        expected = [_expect(model, drawn, pad=pad) for drawn in tried]
        for way in WAYS:
            reason = None
            if way == PADDED and longer is not None and len(tried) == 1:
                reason = f"would need a check beyond a window of {longer:,} tokens, which takes too long here"
            for drawn, alone in zip(tried, expected, strict=True):
                together = functools.partial(_rewards_together, model, drawn, way, split, pad)
                reason = reason or _difference(model, alone, together)
            if reason is None:
                _report(way, wrong)
                return way
            wrong[way] = reason
    finally:
        model.train(training)
    raise ModelError(
        f"model.path: {type(model.model).__name__} does not give single rows the rewards of plain transformers: they "
        f"{wrong[ONE_BY_ONE]}; choose another architecture"
    )


def padded_rewards(
    model: RewardModel | EmbeddingModel, rows: Sequence[Encoded], *, pad: int
) -> tuple[torch.Tensor, int]:
    """Compute the rewards [rows], or vectors, of rows padded to the longest; return them and the number of tokens computed."""
    lengths = [len(row.ids) for row in rows]
    ids = torch.full((len(rows), max(lengths)), pad, dtype=torch.long)  # masked, so the value does not matter
    types = None if rows[0].types is None else torch.zeros_like(ids)
    for position, row in enumerate(rows):
        ids[position, : lengths[position]] = torch.tensor(row.ids)
        if types is not None and row.types is not None:
            types[position, : lengths[position]] = torch.tensor(row.types)
    device = model.model.device
    rewards = model(ids.to(device), torch.tensor(lengths, device=device), None if types is None else types.to(device))
    return rewards, ids.numel()


def split_lengths(config: Any, max_length: int) -> int | None:
    """Return the length of a row that changes how this configuration treats its whole batch; None if there is none.

    Rotary positions of the kinds `longrope` and `dynamic` depend on the longest row of the batch.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    limits = [
        kind.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        for kind in kinds
        if kind.get("rope_type") in ("longrope", "dynamic")
    ]
    return min((int(limit) for limit in limits if limit and limit < max_length), default=None)


def _longer_window(model: RewardModel, template: Template) -> int | None:
    """Return the longest window, chunk or limit between the length of short rows and the maximum; None for causal models."""
    named = [length for length in _named_lengths(model.model.config) if _LONGEST <= length < template.max_length]
    return None if model.causal else max(named, default=None)


def _is_quick(model: RewardModel, length: int) -> bool:
    flops = 2.0 * model.computing_parameters * 1.5 * length
    return flops <= _LONG_FLOPS.get(model.model.device.type, _LONG_GPU_FLOPS)


def _sizes(model: RewardModel, template: Template) -> list[tuple[int, int]]:
    """Return the numbers of words of prompt and response for rows of mixed lengths, some of them equal.

    Some exceed the windows, chunks and limits of up to 256 tokens that the configuration names.
    """
    # just beyond a window, and a full window beyond it
    longer = {times * length for length in _named_lengths(model.model.config) for times in (1, 3)}
    return [*_SIZES, *((2, length) for length in sorted(longer) if length < min(template.max_length, _LONGEST))]


def draw_rows(model: RewardModel, template: Template, sizes: Sequence[tuple[int, int]]) -> list[Encoded]:
    """Draw rows of these sizes in the template's layout, with random tokens in place of the texts'."""
    tokenizer = template.tokenizer
    unknown = tokenizer.unk_token_id
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - {unknown}
    vocabulary = min(len(tokenizer), embedded_tokens(model.model) or len(tokenizer))
    ordinary = [token for token in range(vocabulary) if token not in special | {unknown}] or [0]
    generator = torch.Generator().manual_seed(0)
    rows = []
    for prompt, response in sizes:
        row = _encode_drawn(template, prompt, response)
        if row is not None:
            drawn = torch.randint(len(ordinary), (len(row.ids),), generator=generator).tolist()
            pairs = zip(row.ids, drawn, strict=True)
            rows.append(row._replace(ids=[token if token in special else ordinary[place] for token, place in pairs]))
    return rows


def _encode_drawn(template: Template, prompt: int, response: int) -> Encoded | None:
    """Return a conversation of so many words, with a system turn if the template demands one; None if it renders neither."""
    for system in ((), (("system", "the"),)):
        [row] = template.encode_group((*system, ("user", "the " * prompt)), ["the " * response])
        if isinstance(row, Encoded):
            return row
    return None


def _named_lengths(config: Any) -> list[int]:
    """Return the windows, chunks and limits in tokens that the configuration names."""
    text = config.get_text_config()
    named: list[Any] = [split_lengths(config, _LONGEST)]
    for name in _LENGTHS:
        value = getattr(text, name, None)
        named += value if isinstance(value, list | tuple) else [value]
    return [length for length in named if isinstance(length, int) and length > 1]


def compatible_groups(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], *, way: str, split: int | None
) -> list[Sequence[Sequence[int]]]:
    """Divide groups of row numbers into parts, those with the longest rows last; only rows of one part share a batch.

    `lengths` are tokens per row. Rows up to `split` tokens and longer rows are never in one part.
    """
    if way == PADDED and split is None:
        return [groups]
    parts: dict[tuple[int, int], list[list[int]]] = {}
    for group in groups:
        split_group: dict[tuple[int, int], list[int]] = {}
        for row in group:
            length = lengths[row]
            beyond = int(split is not None and length > split)
            key = {PADDED: (beyond, 0), EQUAL_LENGTHS: (length, 0), ONE_BY_ONE: (length, -row)}[way]
            split_group.setdefault(key, []).append(row)
        for key, rows in split_group.items():
            parts.setdefault(key, []).append(rows)
    return [parts[key] for key in sorted(parts)]


def _expect(model: RewardModel, rows: Sequence[Encoded], *, pad: int) -> _Alone:
    """Compute the rewards of rows alone. Raises `ModelError` if the model does not run."""
    try:
        own = _rewards_alone(model, rows, pad=pad)
    except Exception as error:  # any error here means that the model cannot score
        refuse_broken(error, trial=True)
        raise ModelError(
            f"model.path: {type(model.model).__name__} cannot score a single row in "
            f"{str(_narrowest(model)).removeprefix('torch.')} ({_describe(error)}); choose another model.dtype or architecture"
        ) from error
    if _narrowest(model) == torch.float32:
        return _Alone(own, own, widened=False)
    try:
        with in_float32(model.model):
            return _Alone(_rewards_alone(model, rows, pad=pad), own, widened=True)
    except Exception as error:  # an architecture that casts to the original type of its weights
        refuse_broken(error, trial=True)
        log.debug("no rewards in float32 to compare with: %s", type(error).__name__)
        return _Alone(own, own, widened=False)


def _narrowest(model: RewardModel) -> torch.dtype:
    """Return the type of the run: some weights are float32 in every run, and autocast may compute in another type."""
    device = model.model.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return min({value.dtype for value in model.parameters()}, key=lambda dtype: dtype.itemsize)


def _rewards_alone(model: RewardModel, rows: Sequence[Encoded], *, pad: int) -> torch.Tensor:
    """Compute the rewards [R] of rows alone as plain transformers does; OpenRLHF's checkpoints read another token."""
    if is_openrlhf(model.model.config):
        return torch.cat([padded_rewards(model, [row], pad=pad)[0] for row in rows]).cpu()
    rewards = []
    for row in rows:
        ids = torch.tensor([row.ids], device=model.model.device)
        types = {} if row.types is None else {"token_type_ids": torch.tensor([row.types], device=ids.device)}
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids), **types).logits
        rewards.append(logits[0].squeeze(-1).float().cpu())
    return torch.stack(rewards)


def _rewards_together(
    model: RewardModel, rows: Sequence[Encoded], way: str, split: int | None, pad: int
) -> torch.Tensor:
    rewards: torch.Tensor | None = None  # with one output per row for each of the head's
    groups = [[row] for row in range(len(rows))]
    for part in compatible_groups(groups, [len(row.ids) for row in rows], way=way, split=split):
        members = [row for [row] in part]
        part_rewards = padded_rewards(model, [rows[row] for row in members], pad=pad)[0].cpu()
        rewards = torch.empty(len(rows), *part_rewards.shape[1:]) if rewards is None else rewards
        rewards[members] = part_rewards
    assert rewards is not None
    return rewards


def _difference(model: RewardModel, expected: _Alone, together: Callable[[], torch.Tensor]) -> str | None:
    """Describe how the rewards of batches differ from those of rows alone, if by more than rounding; else None."""
    limit = _TOLERANCE
    try:
        if expected.widened:
            with in_float32(model.model):
                error = _distance(together(), expected.exact)
            if not error <= limit:
                return f"give rewards that differ by {error:.1e} of their spread"
        if _narrowest(model) != torch.float32:
            own = _distance(expected.own, expected.exact) if expected.widened else _UNKNOWN_ERROR
            limit = 3 * own + _HALF_TOLERANCE
        error = _distance(together(), expected.exact)
    except Exception as problem:  # any error in a trial means that this way is not correct
        refuse_broken(problem, trial=True)
        return f"fail ({_describe(problem)})"
    words = f"give rewards that differ by {error:.1e} of their spread, and {limit:.1e} is allowed"
    return None if error <= limit else words


def _distance(rewards: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest difference beyond rounding, as a share of the exact rewards' standard deviation.

    Rewards that are not finite in both count as equal: such a row is rejected when it is scored. With several outputs, the
    largest difference counts.
    """
    if exact.ndim > 1:
        return max(map(_distance, rewards.unbind(1), exact.unbind(1)))
    finite = torch.isfinite(exact)
    if not torch.equal(finite, torch.isfinite(rewards)):
        return float("inf")
    if not finite.any():
        return 0.0
    rewards, exact = rewards[finite].double(), exact[finite].double()
    rounding = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
    excess = ((rewards - exact).abs().max() - rounding).clamp_min(0)
    return float(excess / exact.std(correction=0).clamp_min(1e-12))


def _report(way: str, wrong: dict[str, str]) -> None:
    if way == PADDED:
        log.info("padding does not change the rewards")
    elif way == EQUAL_LENGTHS:
        log.warning("only rows of equal length share a batch, which is slower: padded rows %s", wrong[PADDED])
    else:
        log.warning(
            "rows are scored one by one, which is slow: padded rows %s; rows of equal length %s",
            wrong[PADDED],
            wrong[EQUAL_LENGTHS],
        )


def _describe(error: Exception) -> str:
    message = str(error).strip().splitlines()
    return f"{type(error).__name__}: {message[0][:150]}" if message else type(error).__name__
