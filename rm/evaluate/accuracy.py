"""Accuracy of rewards on judges' comparisons, always beside that of the responses' length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, average_ranks, clustered_means
from rm.evaluate.comparisons import Comparisons, accepted_shares, correctness
from rm.preferences import Group

MATCHED = 0.8
"""Lengths match where the shorter is at least this share of the longer: a ratio of 0.8 to 1.25."""


@dataclass(frozen=True)
class AccuracyRow(Figures):
    """Accuracy on the comparisons of one kind.

    Every comparison counts once, so a prompt with many comparisons weighs more than one with few; the intervals
    resample prompts and so account for it. A tie (p = 1/2) says nothing about order and is left out; a soft label
    counts as its majority; equal rewards count half, as do equal lengths.
    """

    name: str
    prompts: int  # prompts with a comparison that counts
    comparisons: int  # comparisons that count
    ties: int  # comparisons that are scored, but left out
    unscored: int  # comparisons left out because a side has no reward
    model: Estimate
    length: Estimate  # "the longer one is better"
    difference: Estimate  # model - length, paired
    matched_comparisons: int  # length ratio 0.8 to 1.25
    matched: Estimate  # the model's accuracy on these


@dataclass(frozen=True)
class Accuracy(Figures):
    """Accuracy on all comparisons, and by judge (origin), source and subset (empty where the data name none)."""

    overall: AccuracyRow
    by_origin: tuple[AccuracyRow, ...]
    by_source: tuple[AccuracyRow, ...]
    by_subset: tuple[AccuracyRow, ...]


@dataclass(frozen=True)
class Separation(Figures):
    """Separation of accepted responses from rejected ones across prompts, by their rewards."""

    accepted: int
    rejected: int
    auc: float  # P(an accepted response has the higher reward), equal rewards half


UNNAMED = "(none)"


def accuracy(table: Comparisons, *, bootstrap: Bootstrap) -> Accuracy:
    """Compute the accuracy table of all comparisons and of each kind."""
    return Accuracy(
        accuracy_row("all", table, bootstrap=bootstrap),
        _rows_by_kind(table.origin, table, bootstrap),
        _rows_by_kind(table.source, table, bootstrap),
        _rows_by_kind(table.subset, table, bootstrap),
    )


def _rows_by_kind(kinds: NDArray[np.object_], table: Comparisons, bootstrap: Bootstrap) -> tuple[AccuracyRow, ...]:
    names = sorted({kind for kind in kinds if kind is not None})
    rows = [accuracy_row(name, table[kinds == name], bootstrap=bootstrap) for name in names]
    rest = np.array([kind is None for kind in kinds], dtype=bool)
    if rows and rest.any():
        rows.append(accuracy_row(UNNAMED, table[rest], bootstrap=bootstrap))
    return tuple(rows)


def accuracy_row(name: str, table: Comparisons, *, bootstrap: Bootstrap) -> AccuracyRow:
    """Compute accuracy on the comparisons of `table`, that of length on the same ones, and their paired difference."""
    used = table[table.scored & ~table.tied]
    model = correctness(used.gap, used.probability)
    length = correctness(used.length[:, 0] - used.length[:, 1], used.probability)
    estimates = clustered_means(np.column_stack([model, length, model - length]), used.cluster, bootstrap=bootstrap)
    near = used.length.min(axis=1) >= MATCHED * used.length.max(axis=1)
    return AccuracyRow(
        name=name,
        prompts=len(np.unique(used.cluster)),
        comparisons=len(used),
        ties=int((table.scored & table.tied).sum()),
        unscored=int((~table.scored).sum()),
        model=estimates[0],
        length=estimates[1],
        difference=estimates[2],
        matched_comparisons=int(near.sum()),
        matched=clustered_means(model[near][:, None], used.cluster[near], bootstrap=bootstrap)[0],
    )


def separation(groups: Sequence[Group], rewards: Sequence[ArrayLike]) -> Separation | None:
    """Compute the AUC of rewards over all labelled responses, whatever their prompt; None without labels of both kinds.

    Unlike within-prompt accuracy, it requires rewards to mean the same across prompts, which Bradley-Terry training alone
    does not teach (a constant per prompt cancels), and training with accept/reject labels does. It is the Mann-Whitney
    statistic: `(sum of the accepted ones' ranks - A(A+1)/2) / (A R)`.
    """
    values, accepted = [], []
    for group, reward in zip(groups, rewards, strict=True):
        r = np.asarray(reward, dtype=np.float64)
        for response, share in accepted_shares(group).items():
            if np.isfinite(r[response]) and share != 0.5:
                values.append(r[response])
                accepted.append(share > 0.5)
    flags = np.array(accepted, dtype=bool)
    positive, negative = int(flags.sum()), int((~flags).sum())
    if not positive or not negative:
        return None
    ranks = average_ranks(np.array(values))
    auc = (ranks[flags].sum() - positive * (positive + 1) / 2) / (positive * negative)
    return Separation(positive, negative, float(auc))
