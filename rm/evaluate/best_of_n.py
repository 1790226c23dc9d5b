"""Best-of-n curves: the expected value of a response chosen among n, computed without sampling.

For a prompt with N graded responses, all C(N, n) ways to draw n are averaged in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, Floats, clustered_means
from rm.evaluate.comparisons import accepted_shares, clusters
from rm.preferences import Group

_PROMPT_SHARE = 0.5  # of the prompts must have n responses for a point at n


@dataclass(frozen=True)
class BestOfNPoint(Figures):
    """The value of the response kept among n, averaged over the prompts that have n responses."""

    n: int
    kl: float  # log n - (n-1)/n, in nats: how far best-of-n is from the policy that wrote the responses
    prompts: int
    model: Estimate
    random: Estimate
    longest: Estimate
    oracle: Estimate
    over_random: Estimate  # model - random, paired
    over_longest: Estimate  # model - longest, paired


@dataclass(frozen=True)
class BestOfNCurve(Figures):
    """The curve, measured by gold scores, or, without gold scores, by the reward itself.

    The latter only shows how much selection raises the reward, not whether that is of any value (Gao et al. 2023).
    """

    measured_by: str  # gold | reward
    points: tuple[BestOfNPoint, ...]


def best_of_n(
    groups: Sequence[Group], rewards: Sequence[ArrayLike], lengths: Sequence[ArrayLike], *, bootstrap: Bootstrap
) -> BestOfNCurve | None:
    """Compute curves of the model, a random pick, the longest response and an oracle; None if no prompt has two responses.

    The gold score of a response is its score, or, in groups without scores, the share of its labels that accept it. A
    response counts if it has a reward and, if there are any gold scores, a gold score. n takes the powers of two, and the
    least number of responses of any prompt, as long as half of the prompts have n responses; `prompts` is their number.
    All curves of a point are over the same prompts.
    """
    graded = [gold_scores(group) for group in groups]
    gold = any(np.isfinite(value).any() for value in graded)
    pools: list[Floats] = []  # [4, N] each: value, then the keys to choose by: reward, length and value
    prompts: list[int] = []
    for prompt, grades, reward, length in zip(clusters(groups), graded, rewards, lengths, strict=True):
        r, size = np.asarray(reward, dtype=np.float64), np.asarray(length, dtype=np.float64)
        value = grades if gold else r
        known = np.isfinite(r) & np.isfinite(value)
        if known.sum() >= 2:
            pools.append(np.stack([value, r, size, value])[:, known])
            prompts.append(prompt)
    if not pools:
        return None
    sizes = np.array([pool.shape[1] for pool in pools])
    points = tuple(
        _point(n, [pool for pool in pools if pool.shape[1] >= n], np.array(prompts)[sizes >= n], bootstrap)
        for n in _curve_sizes(sizes.tolist())
    )
    return BestOfNCurve("gold" if gold else "reward", points)


def gold_scores(group: Group) -> Floats:
    """Return gold scores [K]; NaN for a response without one."""
    if group.scores:
        return np.array([math.nan if score is None else score for score in group.scores], dtype=np.float64)
    accepted = accepted_shares(group)
    return np.array([accepted.get(place, math.nan) for place in range(len(group.responses))], dtype=np.float64)


def _curve_sizes(sizes: list[int]) -> list[int]:
    enough = sorted(sizes)[math.floor(_PROMPT_SHARE * (len(sizes) - 1))]  # at least half of the prompts have this many
    powers = {2**k for k in range(enough.bit_length())}
    return sorted(n for n in powers | {min(sizes)} if n <= enough)


def _point(n: int, pools: list[Floats], prompts: ArrayLike, bootstrap: Bootstrap) -> BestOfNPoint:
    rows = []
    for value, *keys in pools:
        model, longest, oracle = (expected_best(value, key, n=n) for key in keys)
        random = float(value.mean())
        rows.append((model, random, longest, oracle, model - random, model - longest))
    estimates = clustered_means(rows, prompts, bootstrap=bootstrap)
    return BestOfNPoint(n, kl_best_of_n(n), len(np.unique(prompts)), *estimates)


def expected_best(value: ArrayLike, key: ArrayLike, *, n: int) -> float:
    """Return the expected `value` of the response with the highest `key` among n drawn without replacement from N.

    `sum_{i=n..N} C(i-1, n-1) / C(N, n) g_(i)` with g sorted by key, ascending: the i-th is the best of those subsets
    that hold it and n - 1 of the i - 1 below it (Nakano et al. 2021; unbiased for n fresh samples).
    Equal keys are chosen among at random, so that each has the mean value of its block. Raises `ValueError` unless
    1 <= n <= N.
    """
    g, by = np.asarray(value, dtype=np.float64), np.asarray(key, dtype=np.float64)
    if not 1 <= n <= len(g):
        raise ValueError(f"best of {n} among {len(g)} responses; expected 1 <= n <= {len(g)}")
    _, block, counts = np.unique(by, return_inverse=True, return_counts=True)
    means = np.bincount(block, weights=g) / counts
    return float(_weights(len(g), n) @ np.repeat(means, counts))


def _weights(total: int, n: int) -> Floats:
    """Return `C(i-1, n-1) / C(N, n)` for i = 1..N, computed from the top down: w_N = n/N and w_(i-1) = w_i (i - n)/(i - 1).

    No factorial is formed, so that N may be 10,000 and more; weights that underflow to 0 are smaller than any float.
    """
    i = np.arange(total, 1, -1)  # N .. 2
    downwards = np.concatenate([[n / total], n / total * np.cumprod(np.maximum(i - n, 0) / (i - 1))])
    weights: Floats = downwards[::-1]
    return weights


def kl_best_of_n(n: int) -> float:
    """Return `log n - (n-1)/n`, in nats: the KL of best-of-n from its policy, an upper bound where responses can repeat.

    Stiennon et al. 2020, Gao et al. 2023; Beirami et al. 2024 show that it is a bound.
    """
    return math.log(n) - (n - 1) / n
