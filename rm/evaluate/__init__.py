"""Evaluation of a reward model from groups, rewards and lengths: pure computation, without output or models.

    evaluation = evaluate(groups, rewards)  # rewards: an array [K] for each group
    evaluation.accuracy.overall.model.value

The only file that this package reads and writes is `calibration.json` beside a model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from rm.conversations import count_characters
from rm.evaluate.accuracy import Accuracy, AccuracyRow, Separation, accuracy, separation
from rm.evaluate.best_of_n import BestOfNCurve, BestOfNPoint, best_of_n, expected_best, kl_best_of_n
from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, clustered_means, paired_difference
from rm.evaluate.calibration import Bin, Calibration, Fit, FittedTemperature, calibration, fit_temperature
from rm.evaluate.calibration_file import load_temperature, store_centring, store_offset, store_temperature
from rm.evaluate.comparisons import Comparisons, Relevance, clusters, correctness, tabulate
from rm.evaluate.diagnostics import LengthCorrelation, MarginBin, length_correlation, margin_bins
from rm.evaluate.gate import UNSETTLED, Gated, behind_gate, measure_relevance
from rm.evaluate.reward_bench import RewardBench2, reward_bench_2
from rm.evaluate.stress import ScoreGroups, Stress, StressTest, stress
from rm.evaluate.trained_prompts import share_trained_on, store_trained_prompts
from rm.evaluate.verdict import Verdict
from rm.preferences import Group


@dataclass(frozen=True)
class Evaluation(Figures):
    """All figures of an evaluation; None for figures that the data do not allow."""

    groups: int
    prompts: int
    responses: int
    unscored_responses: int
    lengths_in: str  # tokens | characters
    bootstrap: Bootstrap
    verdict: Verdict
    accuracy: Accuracy
    separation: Separation | None
    calibration: Calibration | None
    length_correlation: LengthCorrelation
    margins: tuple[MarginBin, ...]
    best_of_n: BestOfNCurve | None
    reward_bench_2: RewardBench2 | None
    stress: Stress | None
    gated: Gated | None  # the model behind a relevance gate


def evaluate(
    groups: Sequence[Group],
    rewards: Sequence[ArrayLike],
    *,
    lengths: Sequence[ArrayLike] | None = None,
    bootstrap: Bootstrap | None = None,
    stressed: Stress | None = None,
    relevance: Relevance | None = None,
) -> Evaluation:
    """Compute all figures of these rewards.

    `rewards` holds an array [K] for each group, aligned with its responses; NaN if a response could not be scored.
    `lengths` are the responses' lengths in tokens, in the same form; without them, characters are counted. Where a model
    truncates, its token counts stop at the limit and weaken the length baseline: omit them then. `stressed` is the result of
    `stress`, which needs a model. With `relevance`, length and the model behind a relevance gate are measured as well.

    Raises `ValueError` if the arrays do not fit the groups.
    """
    sizes = (
        lengths
        if lengths is not None
        else [[count_characters(response) for response in group.responses] for group in groups]
    )
    bootstrap = bootstrap or Bootstrap()
    table = tabulate(groups, rewards, sizes, relevance)
    accuracies = accuracy(table, bootstrap=bootstrap)
    gated = None
    if relevance is not None:
        gated = behind_gate(table, groups, rewards, relevance=relevance, stressed=stressed, bootstrap=bootstrap)
    return Evaluation(
        groups=len(groups),
        prompts=len(np.unique(clusters(groups))),
        responses=sum(len(group.responses) for group in groups),
        unscored_responses=sum(int((~np.isfinite(np.asarray(r, dtype=np.float64))).sum()) for r in rewards),
        lengths_in="characters" if lengths is None else "tokens",
        bootstrap=bootstrap,
        verdict=Verdict.of(accuracies.overall),
        accuracy=accuracies,
        separation=separation(groups, rewards),
        calibration=calibration(table),
        length_correlation=length_correlation(groups, rewards, sizes, bootstrap=bootstrap),
        margins=margin_bins(table),
        best_of_n=best_of_n(groups, rewards, sizes, bootstrap=bootstrap),
        reward_bench_2=reward_bench_2(groups, rewards),
        stress=stressed,
        gated=gated,
    )


def calibrate(groups: Sequence[Group], rewards: Sequence[ArrayLike]) -> Calibration | None:
    """Compute only the calibration, for `store_temperature`; None if no comparison could be scored."""
    return calibration(tabulate(groups, rewards, [np.ones(len(group.responses)) for group in groups]))


__all__ = [
    "UNSETTLED",
    "Accuracy",
    "AccuracyRow",
    "BestOfNCurve",
    "BestOfNPoint",
    "Bin",
    "Bootstrap",
    "Calibration",
    "Comparisons",
    "Estimate",
    "Evaluation",
    "Fit",
    "FittedTemperature",
    "Gated",
    "LengthCorrelation",
    "MarginBin",
    "Relevance",
    "RewardBench2",
    "ScoreGroups",
    "Separation",
    "Stress",
    "StressTest",
    "Verdict",
    "best_of_n",
    "calibrate",
    "clustered_means",
    "correctness",
    "evaluate",
    "expected_best",
    "fit_temperature",
    "kl_best_of_n",
    "length_correlation",
    "load_temperature",
    "measure_relevance",
    "paired_difference",
    "share_trained_on",
    "store_centring",
    "store_offset",
    "store_temperature",
    "store_trained_prompts",
    "stress",
    "tabulate",
]
