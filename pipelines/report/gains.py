"""The gain of a selection over simple rules on the sample of prompts: differences of means, with intervals. Pure.

The kept responses are compared with a random choice (any response is as likely as any other, so that its expected mean is
that of all of them, for any number of tokens), and with the longest and the shortest responses, as many of each prompt as
were kept. If no prompt loses some of its responses and keeps others, the longest and shortest of all prompts together are
taken instead.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.report.samples import prompt_bounds

RULES = {
    "random": "a random choice of as many {}",  # tokens, or characters
    "longest": "taking the longest",
    "shortest": "taking the shortest",
}
"""The names of the rivals in words."""
RIVALS = tuple(RULES)
_RESAMPLES = 1_000

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


def gains(sample: pa.Table) -> dict[str, Any]:
    """Return the gains by `gold`, None if no kept response has a gold score, and those by the `reward` itself.

    Each has the mean of the `kept` responses and of each rival, and, as `over_` the rival, the difference with its 95 %
    interval from a paired bootstrap over prompts; `within_prompt` says whether the longest and shortest are those of each
    prompt.
    """
    if not sample.num_rows:
        return {"gold": None, "reward": None}
    bounds = prompt_bounds(sample)
    length, kept = sample["length"].to_numpy(), sample["kept"].to_numpy().astype(bool)
    within = any(0 < kept[start:end].sum() < end - start for start, end in bounds)
    parts = bounds if within else [(0, sample.num_rows)]
    masks = {
        "kept": kept,
        "random": np.ones(len(kept), bool),
        "longest": _as_many(kept, -length, parts),
        "shortest": _as_many(kept, length, parts),
    }
    columns = {name: sample[name].to_numpy().astype(np.float64) for name in ("gold", "reward")}
    return {name: _gains(values, masks, bounds, within=within) for name, values in columns.items()}


def _as_many(kept: Mask, key: npt.NDArray[Any], parts: Any) -> Mask:
    """Return a choice of the responses with the smallest `key`, as many in each part as were kept."""
    chosen = np.zeros(len(kept), bool)
    for start, end in parts:
        first = np.argsort(key[start:end], kind="stable")[: kept[start:end].sum()]
        chosen[start + first] = True
    return chosen


def _gains(values: Floats, masks: dict[str, Mask], bounds: Any, *, within: bool) -> dict[str, Any] | None:
    known = np.isfinite(values)
    starts = [start for start, _ in bounds]
    # [prompts, choices] sums of values, and numbers of responses
    choices = [mask & known for mask in masks.values()]
    sums = np.stack([np.add.reduceat(np.where(mask, values, 0.0), starts) for mask in choices], axis=1)
    counts = np.stack([np.add.reduceat(mask.astype(np.float64), starts) for mask in choices], axis=1)
    informed = counts[:, 1] > 0  # prompts with any value
    sums, counts = sums[informed], counts[informed]
    if not len(sums) or not counts[:, 0].sum():
        return None
    with np.errstate(invalid="ignore"):
        means = sums.sum(axis=0) / counts.sum(axis=0)
        draws = _resample(np.concatenate([sums, counts], axis=1))
        draws = draws[:, : len(masks)] / draws[:, len(masks) :]
    told: dict[str, Any] = {
        "prompts": len(sums),
        "responses": int(counts[:, 0].sum()),
        "within_prompt": within,
        **{name: float(mean) for name, mean in zip(masks, means, strict=True)},
    }
    for place, name in enumerate(masks):
        if name != "kept":
            told[f"over_{name}"] = _estimate(
                means[0] - means[place], draws[:, 0] - draws[:, place] if len(sums) > 1 else draws[:0, 0]
            )
    return told


def _estimate(value: float, draws: Floats) -> dict[str, float | None]:
    """Return a difference with its interval; null if the rule takes no response with a value, without ends if nothing can
    vary."""
    draws = draws[np.isfinite(draws)]
    if not np.isfinite(value):
        return {"value": None, "low": None, "high": None}
    low, high = np.percentile(draws, [2.5, 97.5]).tolist() if len(draws) > 1 else (None, None)
    return {"value": float(value), "low": low, "high": high}


def _resample(table: Floats) -> Floats:
    """Return the sums of `table` [prompts, columns] over prompts drawn with replacement, [resamples, columns]."""
    rng, count = np.random.default_rng(0), len(table)
    drawn = np.empty((_RESAMPLES, table.shape[1]))
    for number in range(_RESAMPLES):
        drawn[number] = np.bincount(rng.integers(count, size=count), minlength=count) @ table
    return drawn
