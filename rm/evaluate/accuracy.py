"""Accuracy of rewards on judges' comparisons, always next to that of the responses' length.

The rule of length is the better of "the longer response" and "the shorter response"; if relevance is known, the best of these
and of "the nearer or longer response" (`rm.evaluate.comparisons.Relevance`). It is chosen by accuracy on the same comparisons
that the model is measured on, and the interval of the difference accounts for that choice (`Resampled.least`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, Floats, Ints, average_ranks, resample
from rm.evaluate.comparisons import Comparisons, accepted_shares, correctness
from rm.preferences import Group

MATCHED = 0.8
"""Lengths match where the shorter is at least this share of the longer: a ratio of 0.8 to 1.25."""


@dataclass(frozen=True)
class AccuracyRow(Figures):
    """Accuracy on the comparisons of one kind.

    Every comparison counts once, so a prompt with many comparisons weighs more than one with few; the intervals
    resample prompts and so account for it. Ties (p = 1/2) are left out; a soft label counts as its majority; equal
    rewards and equal lengths count half.
    """

    name: str
    prompts: int  # prompts with a comparison that counts
    comparisons: int  # comparisons that count
    ties: int  # scored comparisons that are left out
    unscored: int  # comparisons left out because a side has no reward
    model: Estimate
    rule: str  # longer | shorter | nearer or longer: the best on these comparisons
    length: Estimate  # accuracy of this rule
    difference: Estimate  # model - length, paired
    matched_comparisons: int  # length ratio 0.8 to 1.25
    matched: Estimate  # the model's accuracy on these
    matched_rule: str  # the best rule on these
    matched_length: Estimate
    matched_difference: Estimate


@dataclass(frozen=True)
class Accuracy(Figures):
    """Accuracy on all comparisons, and by judge (origin), source and subset (empty where the data name none).

    The rows by kind are exploratory: intervals of one sort of kind (all sources, say) hold together at 95 %, so each of m
    rows has an interval of 1 - 0.05 / m (Bonferroni).
    """

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
    parts = [(name, kinds == name) for name in sorted({kind for kind in kinds if kind is not None})]
    rest = np.array([kind is None for kind in kinds], dtype=bool)
    if parts and rest.any():
        parts.append((UNNAMED, rest))
    return tuple(accuracy_row(name, table[part], bootstrap=bootstrap, among=len(parts)) for name, part in parts)


def accuracy_row(name: str, table: Comparisons, *, bootstrap: Bootstrap, among: int = 1) -> AccuracyRow:
    """Compute accuracy on the comparisons of `table`, that of length on the same ones, and their paired difference.

    Intervals are those of one row `among` several that are read together.
    """
    used = table[table.scored & ~table.tied]
    model = correctness(used.gap, used.probability)
    longer = correctness(used.length[:, 0] - used.length[:, 1], used.probability)
    nearer_or_longer = None if np.isnan(used.nearer).any() else correctness(used.nearer_or_longer, used.probability)
    whole = _against_length(model, longer, nearer_or_longer, cluster=used.cluster, bootstrap=bootstrap, among=among)
    similar = similar_lengths(used)
    matched = _against_length(
        model[similar],
        longer[similar],
        None if nearer_or_longer is None else nearer_or_longer[similar],
        cluster=used.cluster[similar],
        bootstrap=bootstrap,
        among=among,
    )
    return AccuracyRow(
        name=name,
        prompts=len(np.unique(used.cluster)),
        comparisons=len(used),
        ties=int((table.scored & table.tied).sum()),
        unscored=int((~table.scored).sum()),
        model=whole.model,
        rule=whole.rule,
        length=whole.length,
        difference=whole.difference,
        matched_comparisons=int(similar.sum()),
        matched=matched.model,
        matched_rule=matched.rule,
        matched_length=matched.length,
        matched_difference=matched.difference,
    )


def similar_lengths(table: Comparisons) -> NDArray[np.bool_]:
    """Return whether each comparison [C] is of two responses of similar length."""
    matched: NDArray[np.bool_] = table.length.min(axis=1) >= MATCHED * table.length.max(axis=1)
    return matched


class _AgainstLength(NamedTuple):
    model: Estimate
    rule: str
    length: Estimate
    difference: Estimate


def _against_length(
    model: Floats, longer: Floats, nearer_or_longer: Floats | None, *, cluster: Ints, bootstrap: Bootstrap, among: int
) -> _AgainstLength:
    """Compare correctness [C] of the model with that of the best rule: the longer response, the shorter one, or, if relevance is
    known, the nearer or longer one."""
    rules = {"longer": longer, "shorter": 1.0 - longer}
    if nearer_or_longer is not None:
        rules["nearer or longer"] = nearer_or_longer
    columns = np.column_stack([model, *rules.values(), *(model - one for one in rules.values())])
    resampled = resample(columns, cluster, bootstrap=bootstrap)
    best = int(np.argmax(resampled.means[1 : 1 + len(rules)]))
    return _AgainstLength(
        model=resampled.estimate(0, among=among),
        rule=[*rules][best],
        length=resampled.estimate(1 + best, among=among),
        difference=resampled.least(range(1 + len(rules), 1 + 2 * len(rules)), among=among),
    )


def separation(groups: Sequence[Group], rewards: Sequence[ArrayLike]) -> Separation | None:
    """Compute the AUC of rewards over all labelled responses, whatever their prompt; None without labels of both kinds.

    Unlike within-prompt accuracy, it needs rewards that are comparable across prompts, which training with accept/reject
    labels provides and Bradley-Terry training alone does not (a constant per prompt cancels). It is the Mann-Whitney
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
