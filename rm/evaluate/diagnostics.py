"""Diagnostics: the correlation of rewards with length, and accuracy by the size of the reward gap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rm.evaluate.bootstrap import (
    Bootstrap,
    Estimate,
    Figures,
    average_ranks,
    clustered_means,
    equal_mass_bins,
    pearson,
)
from rm.evaluate.calibration import cross_fitted_gaps, sigmoid
from rm.evaluate.comparisons import Comparisons, clusters, correctness
from rm.preferences import Group

MARGIN_BINS = 10


@dataclass(frozen=True)
class LengthCorrelation(Figures):
    """The correlation of rewards with length.

    `within_prompt`, which matters for selection, is Spearman's rank correlation among the responses to a prompt, averaged over
    the groups in which both vary. `overall` is Pearson's over all responses, which includes differences between prompts.
    """

    groups: int
    within_prompt: Estimate
    responses: int
    overall: float


@dataclass(frozen=True)
class MarginBin(Figures):
    """Comparisons with similar reward gaps: their mean size, accuracy, and predicted accuracy."""

    comparisons: int
    gap: float  # mean |r_i - r_j|
    accuracy: float
    predicted: float  # mean σ(|gap|)
    predicted_after: float | None  # with the other half's temperature; None if it could not be fitted


def length_correlation(
    groups: Sequence[Group], rewards: Sequence[ArrayLike], lengths: Sequence[ArrayLike], *, bootstrap: Bootstrap
) -> LengthCorrelation:
    """Compute the correlation of reward and length over the responses that have a reward."""
    within, prompts, pooled = [], [], []
    for prompt, reward, length in zip(clusters(groups), rewards, lengths, strict=True):
        r, size = np.asarray(reward, dtype=np.float64), np.asarray(length, dtype=np.float64)
        r, size = r[known := np.isfinite(r)], size[known]
        pooled.append(np.column_stack([r, size]))
        rho = pearson(average_ranks(r), average_ranks(size)) if len(r) > 1 else math.nan
        if math.isfinite(rho):
            within.append(rho)
            prompts.append(prompt)
    flat = np.concatenate(pooled) if pooled else np.empty((0, 2))
    mean = clustered_means(np.array(within).reshape(-1, 1), np.array(prompts, dtype=np.int64), bootstrap=bootstrap)[0]
    return LengthCorrelation(len(within), mean, len(flat), pearson(flat[:, 0], flat[:, 1]))


def margin_bins(table: Comparisons) -> tuple[MarginBin, ...]:
    """Compute accuracy by the size of the reward gap, in bins of equal mass, ascending; ties are left out."""
    scored = table[table.scored]
    scaled = cross_fitted_gaps(scored)
    kept = ~scored.tied
    used = scored[kept]
    right, size = correctness(used.gap, used.probability), np.abs(used.gap)
    after = None if scaled is None else sigmoid(np.abs(scaled[kept]))
    return tuple(
        MarginBin(
            len(index),
            float(size[index].mean()),
            float(right[index].mean()),
            float(sigmoid(size[index]).mean()),
            None if after is None else float(after[index].mean()),
        )
        for index in equal_mass_bins(size, MARGIN_BINS)
    )
