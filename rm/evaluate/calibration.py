"""Calibration: `P(i ≻ j) = σ((r_i - r_j) / T)` against the judges' stated probabilities, and the T that fits them.

The scale of rewards is independent of their accuracy: scaled by any factor they rank responses equally, but give other
probabilities. Temperature scaling (Guo et al. 2017) corrects this with one number and changes no ranking.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rm.evaluate.bootstrap import Figures, Floats, equal_mass_bins
from rm.evaluate.comparisons import Comparisons

CALIBRATION_BINS = 15
_WIDEST = 100.0
"""The temperature is searched between 1/100 and 100 times the root mean square of the reward gaps."""
_STEPS = 60


@dataclass(frozen=True)
class FittedTemperature(Figures):
    """A temperature, and whether it is at a bound of the search.

    It is at the lower bound if rewards order all comparisons correctly, and at the upper bound if they are no better than
    a coin, so that 1/2 is the best probability.
    """

    value: float
    at_bound: bool
    helps: bool = True  # False: it is 1, since temperatures fitted on half of the prompts do not help on the other half


NO_SCALING = FittedTemperature(1.0, at_bound=False, helps=False)


@dataclass(frozen=True)
class Bin(Figures):
    """Comparisons with similar stated probabilities."""

    comparisons: int
    predicted: float  # mean probability the model gives to i
    observed: float  # mean probability the judges gave to i


@dataclass(frozen=True)
class Fit(Figures):
    """Distances of stated probabilities from judgements; all three are 0 at best (for certain judgements)."""

    nll: float  # mean of -[y log p + (1 - y) log(1 - p)], in nats; log 2 = 0.693 is a coin
    brier: float  # mean of (p - y)^2; 0.25 is a coin
    ece: float  # mean |predicted - observed| over equal-mass bins, weighted by their size
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Calibration(Figures):
    """Calibration of the model before and after temperature scaling.

    `temperature` is fitted on all comparisons, for use elsewhere, if temperatures reduce the loss on prompts that they were
    not fitted on; else it is 1, and the rewards are unchanged. `after` measures that: each half of the prompts uses the
    temperature fitted on the other half (None if a half is empty; then the temperature is 1).
    """

    comparisons: int
    prompts: int
    temperature: FittedTemperature
    before: Fit
    after: Fit | None


def calibration(table: Comparisons) -> Calibration | None:
    """Compute calibration over the scored comparisons, ties and soft labels included; None if there are none."""
    used = table[table.scored]
    if len(used) == 0:
        return None
    scaled = cross_fitted_gaps(used)
    before = measure_fit(used.gap, used.probability)
    after = None if scaled is None else measure_fit(scaled, used.probability)
    helps = after is not None and after.nll < before.nll
    return Calibration(
        comparisons=len(used),
        prompts=len(np.unique(used.cluster)),
        temperature=fit_temperature(used.gap, used.probability) if helps else NO_SCALING,
        before=before,
        after=after,
    )


def cross_fitted_gaps(table: Comparisons) -> Floats | None:
    """Divide each gap [C] by the temperature of the other half of the prompts; None if a half is empty."""
    half = table.half
    if half.all() or not half.any():
        return None
    scaled = np.empty(len(table))
    for side in (half, ~half):
        scaled[side] = table.gap[side] / fit_temperature(table.gap[~side], table.probability[~side]).value
    return scaled


def measure_fit(gap: Floats, probability: Floats) -> Fit:
    """Compute NLL, Brier score and ECE of `σ(gap)` against the stated `probability` that i is preferred."""
    predicted = sigmoid(gap)
    # log σ(g) = -log(1 + e^-g), so that -[y log p + (1-y) log(1-p)] = log(1 + e^-g) + (1-y) g
    nll = np.mean(np.logaddexp(0.0, -gap) + (1.0 - probability) * gap)
    bins = tuple(
        Bin(len(index), float(predicted[index].mean()), float(probability[index].mean()))
        for index in equal_mass_bins(predicted, CALIBRATION_BINS)
    )
    ece = sum(bin.comparisons * abs(bin.predicted - bin.observed) for bin in bins) / len(gap)
    return Fit(float(nll), float(np.mean((predicted - probability) ** 2)), float(ece), bins)


def fit_temperature(gap: Floats, probability: Floats) -> FittedTemperature:
    """Find the T that minimises the mean NLL of `σ(gap / T)`. Raises `ValueError` without comparisons.

    The NLL is convex in β = 1/T; its slope `mean(gap (σ(β gap) - y))` rises with β, and its root is found by bisection
    of log β between the bounds. Scaling all gaps scales T. If all gaps are 0, T is 1.
    """
    if len(gap) == 0:
        raise ValueError("there is no comparison to fit a temperature on")
    scale = float(np.sqrt(np.mean(gap**2)))
    if scale == 0.0:
        return FittedTemperature(1.0, at_bound=False)
    unit = gap / scale

    def slope(log_beta: float) -> float:
        return float(np.mean(unit * (sigmoid(np.exp(log_beta) * unit) - probability)))

    low, high = -np.log(_WIDEST), np.log(_WIDEST)
    if slope(low) >= 0.0:
        return FittedTemperature(scale * _WIDEST, at_bound=True)
    if slope(high) <= 0.0:
        return FittedTemperature(scale / _WIDEST, at_bound=True)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0.0 else (low, middle)
    return FittedTemperature(float(scale / np.exp((low + high) / 2)), at_bound=False)


def sigmoid(values: Floats) -> Floats:
    """Return `1 / (1 + e^-v)`, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * values))
