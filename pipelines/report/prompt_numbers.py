"""Report numbers that require whole prompts, computed from the sample of prompts. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.report.observations import key_text
from pipelines.report.samples import prompt_bounds
from pipelines.select.length_correction import HashSample, fit

if TYPE_CHECKING:
    from rm.preferences import Group

_LENGTH_BINS = 12  # at the most
_RESPONSES_PER_BIN = 50  # about, at the least
_SPAN = 0.5  # of the length fit: the default of `length_correction`
_BINS = 24
_NEAR = 0.1  # of a standard deviation of the rewards
_RESAMPLES = 500
_COMPARED_ROWS = 4096  # listed from the sample, for a comparison of two reports

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _PromptResponses:
    """The responses to one prompt [N]."""

    key: str
    reward: Floats
    length: Floats
    kept: npt.NDArray[np.bool_]
    gold: Floats


def by_prompt(sample: pa.Table, compared: pa.Table, *, temperature: float | None) -> dict[str, Any]:
    """Return margins, overlap, the correlation of reward and length within prompts, and best of n over the prompts in
    `compared`."""
    from rm.evaluate import Bootstrap, best_of_n, length_correlation

    prompts, bootstrap = _prompts(sample), Bootstrap(_RESAMPLES, 0)
    curve = best_of_n(*_as_groups(_prompts(compared)), bootstrap=bootstrap)
    return {
        "sample": {"prompts": len(prompts), "responses": sample.num_rows},
        "best_of_n": None if curve is None else curve.to_json(),
        "length_correlation": length_correlation(*_as_groups(prompts), bootstrap=bootstrap).to_json(),
        "margins": _margins(prompts, temperature),
        "overlap": _overlap(prompts),
    }


def _as_groups(prompts: Sequence[_PromptResponses]) -> tuple[list[Group], list[Floats], list[Floats]]:
    """Return prompts as `rm.evaluate` takes them: groups without text, their rewards and lengths."""
    from rm.preferences import Group

    graded = any(not np.isnan(prompt.gold).all() for prompt in prompts)
    groups = []
    for prompt in prompts:
        gold = tuple(None if math.isnan(value) else float(value) for value in prompt.gold) if graded else ()
        groups.append(Group((("user", prompt.key),), ("",) * len(prompt.reward), scores=gold))
    return groups, [prompt.reward for prompt in prompts], [prompt.length for prompt in prompts]


def _prompts(sample: pa.Table) -> list[_PromptResponses]:
    reward, length, gold = (sample[name].to_numpy().astype(np.float64) for name in ("reward", "length", "gold"))
    kept, high, low = (sample[name].to_numpy() for name in ("kept", "key_high", "key_low"))
    return [
        _PromptResponses(
            key_text(int(high[start]), int(low[start])),
            reward[start:end],
            length[start:end],
            kept[start:end].astype(bool),
            gold[start:end],
        )
        for start, end in prompt_bounds(sample)
    ]


def _margins(prompts: Sequence[_PromptResponses], temperature: float | None) -> dict[str, Any] | None:
    """The lead of each prompt's best response over its second best and, with a temperature, the probability that it is better."""
    best_two = [np.sort(prompt.reward)[-2:] for prompt in prompts if len(prompt.reward) > 1]
    if not best_two:
        return None
    gaps = np.array([best - second for second, best in best_two])
    top = float(np.quantile(gaps, 0.99)) or float(gaps.max()) or 1.0
    edges = np.linspace(0.0, top, _BINS + 1)
    counts, _ = np.histogram(np.minimum(gaps, top), edges)
    margins: dict[str, Any] = {
        "prompts": len(gaps),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "median": float(np.median(gaps)),
        "near_ties": _near_ties(gaps, prompts),
        "temperature": temperature,
        "probabilities": None,
    }
    if temperature is not None:
        probabilities = 1.0 / (1.0 + np.exp(-gaps / temperature))
        edges = np.linspace(0.5, 1.0, 11)
        counts, _ = np.histogram(probabilities, edges)
        margins["probabilities"] = {
            "edges": edges.tolist(),
            "counts": counts.tolist(),
            "mean": float(probabilities.mean()),
        }
    return margins


def _near_ties(gaps: Floats, prompts: Sequence[_PromptResponses]) -> dict[str, Any]:
    """The share of the leads that are smaller than a part of the standard deviation of all rewards."""
    below = _NEAR * float(np.concatenate([prompt.reward for prompt in prompts]).std())
    return {"below": below, "share": float((gaps < below).mean())}


def _overlap(prompts: Sequence[_PromptResponses]) -> dict[str, Any] | None:
    """Among kept responses to prompts that also lose some, the share that are the longest, and the shortest, and the share
    expected by chance."""
    kept = longest = shortest = by_chance = 0.0
    for prompt in prompts:
        k, n = int(prompt.kept.sum()), len(prompt.kept)
        if 0 < k < n:
            kept += k
            # the sample's order between equals
            longest += int(prompt.kept[np.argsort(-prompt.length, kind="stable")[:k]].sum())
            shortest += int(prompt.kept[np.argsort(prompt.length, kind="stable")[:k]].sum())
            by_chance += k * k / n
    if not kept:
        return None
    shares = {"longest": longest, "shortest": shortest, "random": by_chance}
    return {"responses": int(kept), **{name: count / kept for name, count in shares.items()}}


def by_length(sample: pa.Table) -> dict[str, Any] | None:
    """Mean reward by length of the response, in bins of equal numbers: the reward itself, and less its fit on length."""
    if sample.num_rows < 2:
        return None
    length, reward = sample["length"].to_numpy(), sample["reward"].to_numpy()
    kept, tokens = sample["kept"].to_numpy().astype(bool), sample["size"].to_numpy()
    most = min(_LENGTH_BINS, max(2, len(length) // _RESPONSES_PER_BIN))
    curve = fit(HashSample(np.zeros(len(length), np.uint64), length, tokens, reward), span=_SPAN)
    corrected = reward.astype(np.float64) - curve(length) + float(reward.astype(np.float64).mean())
    edges = np.unique(np.quantile(length, np.linspace(0, 1, most + 1)))
    at = np.clip(np.searchsorted(edges, length, side="right") - 1, 0, max(0, len(edges) - 2))
    bins = []
    for number in np.unique(at).tolist():
        in_bin = at == number
        bins.append(
            {
                "characters": float(np.median(length[in_bin])),
                "responses": int(in_bin.sum()),
                "reward": float(reward[in_bin].astype(np.float64).mean()),
                "corrected": float(corrected[in_bin].mean()),
                "kept": float(kept[in_bin].mean()),
            }
        )
    return {"bins": bins}


def disagreement(sample: pa.Table) -> dict[str, Any] | None:
    """The distances of the models of an ensemble on the same response, in standard deviations of a model's rewards."""
    spread, kept = sample["spread"].to_numpy().astype(np.float64), sample["kept"].to_numpy().astype(bool)
    known = np.isfinite(spread)
    if not known.any():
        return None
    edges = np.linspace(0.0, float(np.quantile(spread[known], 0.99)) or 1.0, _BINS + 1)
    inside = np.minimum(spread, edges[-1])
    return {
        "edges": edges.tolist(),
        "kept": np.histogram(inside[known & kept], edges)[0].tolist(),
        "dropped": np.histogram(inside[known & ~kept], edges)[0].tolist(),
        "kept_mean": float(spread[known & kept].mean()) if (known & kept).any() else None,
        "dropped_mean": float(spread[known & ~kept].mean()) if (known & ~kept).any() else None,
    }


def gold_means(sample: pa.Table) -> dict[str, Any]:
    """Mean gold scores of the kept and of the dropped responses whose gold score is known."""
    gold, kept = sample["gold"].to_numpy().astype(np.float64), sample["kept"].to_numpy().astype(bool)
    known = np.isfinite(gold)
    return {
        "responses": int(known.sum()),
        "kept": float(gold[known & kept].mean()) if (known & kept).any() else None,
        "dropped": float(gold[known & ~kept].mean()) if (known & ~kept).any() else None,
    }


def list_prompts(sample: pa.Table) -> dict[str, list[list[Any]]]:
    """The first prompts of the sample by id: [hash of the response, reward, whether kept] of each response."""
    named: dict[str, list[list[Any]]] = {}
    for start, end in prompt_bounds(sample):
        if start >= _COMPARED_ROWS:
            break
        rows = sample.slice(start, end - start)
        high, low, *columns = (
            rows[name].to_pylist() for name in ("key_high", "key_low", "response_hash", "reward", "kept")
        )
        named[key_text(high[0], low[0])] = [
            [f"{value:016x}", reward, kept] for value, reward, kept in zip(*columns, strict=True)
        ]
    return named
