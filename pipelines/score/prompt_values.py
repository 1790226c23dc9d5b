"""Ranks and z-scores of responses among the responses to their prompt. Pure functions.

Prompts are given as positions sorted by prompt, with the start of each prompt among them. NaN is ignored and stays NaN.

Example with one prompt:

    ranks_within([0.5, 0.1, 0.5, nan], prompts)  →  [2, 1, 2, nan]
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]
Prompts = tuple[Positions, Positions]
"""Positions sorted by prompt, and where each prompt starts among them."""

_SIGN = np.uint32(0x80000000)


def ranks_within(values: Floats, prompts: Prompts) -> Floats:
    """1 for the lowest value of a prompt; equal values share a rank, 1 + the number of lower values (SQL's `rank`)."""
    ranks = np.full(len(values), np.nan)
    at, starts = _sort(values, prompts)
    ordered, places = values[at], np.arange(len(at))
    begins = np.append(True, ordered[1:] != ordered[:-1])[: len(at)]
    begins[starts] = True
    first = np.maximum.accumulate(np.where(begins, places, 0))  # of equal values
    ranks[at] = first - np.repeat(starts, np.diff(np.append(starts, len(at)))) + 1
    return ranks


def standardised_within(values: Floats, prompts: Prompts) -> Floats:
    """(value - mean) / standard deviation of the prompt's values; 0 if all of them are equal."""
    scores = np.full(len(values), np.nan)
    at, starts = _sort(-values, prompts)
    if not len(at):
        return scores
    ordered, sizes = values[at], np.diff(np.append(starts, len(at)))  # a fixed order: sums of floats depend on it
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        centred = ordered - np.repeat(np.add.reduceat(ordered, starts) / sizes, sizes)
        scale = np.repeat(np.sqrt(np.add.reduceat(centred**2, starts) / sizes), sizes)
        alike = np.repeat(ordered[starts] == ordered[starts + sizes - 1], sizes)
        scores[at] = np.where(alike, 0.0, centred / np.where(alike, 1.0, np.where(np.isfinite(scale), scale, np.nan)))
    return scores


def _sort(values: Floats, prompts: Prompts) -> Prompts:
    """Positions of the numbers sorted by prompt, then by value, and where each prompt starts among them."""
    order, starts = prompts
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    known = ~np.isnan(values[order])
    order, group = order[known], group[known]
    ordered = values[order]
    with np.errstate(over="ignore"):
        single = ordered.astype(np.float32)
    if np.array_equal(single, ordered):  # one sort of integers instead of two: rewards are float32
        bits = (single + np.float32(0.0)).view(np.uint32)
        bits = np.where(bits & _SIGN, ~bits, bits | _SIGN)
        by = np.argsort((group.astype(np.uint64) << np.uint64(32)) | bits)
    else:
        by = np.lexsort((ordered, group))
    return order[by], np.flatnonzero(np.append(True, group[1:] != group[:-1])[: len(group)])
