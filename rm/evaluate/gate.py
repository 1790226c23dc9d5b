"""The model behind a relevance gate, as a selection with the step `on_topic` uses it.

The gate decides between a response that the step would keep and one that it would drop, and the reward between all others. The
step compares each cosine with the second highest of its prompt's, or with the higher one of two: in a stress test, which has two
responses, the nearer one is taken if their cosines differ by more than the gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm.conversations import Conversation
from rm.evaluate.accuracy import similar_lengths
from rm.evaluate.best_of_n import expected_best, gold_scores
from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, Floats, clustered_means
from rm.evaluate.comparisons import (
    Comparisons,
    Relevance,
    clusters,
    correctness,
    distances_behind,
    join_gate,
    nearer,
    reference_of,
)
from rm.evaluate.stress import OTHER_PROMPT, SIMILAR_PROMPT, Duel, Stress, StressTest, stress_test
from rm.preferences import Group
from rm.relevance_gap import Distances, settle_gap

UNSETTLED = (
    "relevance.gap is auto, and no prompt has two responses with a reward and a cosine; there are no figures behind the "
    "relevance gate; set relevance.gap to a number to have them"
)
"""Why `measure_relevance` returns None."""
MeasureCosines = Callable[
    [Sequence[tuple[Conversation, Sequence[str]]]], tuple[Sequence[ArrayLike], Sequence[ArrayLike]]
]
"""Prompts with responses → the cosines [K] of each, and those [K] with as many responses to another prompt."""


@dataclass(frozen=True)
class Gated(Figures):
    """Figures of the model behind the gate, on the same comparisons, prompts and responses as those of the model alone.

    The reward decides a comparison or a stress test of a response without a cosine. In `best_of_all`, such a response is left
    out, as by the step, unless no response to the prompt has one.
    """

    gap: float
    max_touched: float | None  # by which the gap was settled; None if it was given
    caught: float | None  # share of responses to other prompts beyond the gap; None if none are known
    unknown: int  # responses of the groups without a cosine
    comparisons: int
    decided: float  # share of the comparisons that the gate decides
    nearer: Estimate  # accuracy of the nearer response on these
    accuracy: Estimate
    over_model: Estimate  # accuracy - that of the model alone, paired
    over_rule: Estimate  # accuracy - that of the nearer or longer response, paired
    matched: Estimate  # accuracy on pairs of similar length
    other_prompt: StressTest | None  # against a response to another prompt
    similar_prompt: StressTest | None
    best_of_all: Estimate | None  # gold score of the choice from all responses to a prompt
    best_over_model: Estimate | None  # best_of_all - that of the choice by reward alone, paired


def measure_relevance(
    groups: Sequence[Group],
    rewards: Sequence[ArrayLike],
    stressed: Stress | None,
    measure: MeasureCosines,
    *,
    gap: float | Literal["auto"],
    max_touched: float,
) -> Relevance | None:
    """Measure the cosines of the groups and of the stress tests that a gate takes part in.

    A gap of "auto" is settled as the step settles it over a corpus of these prompts and responses, each group by itself. None if
    no group has two responses with reward and cosine, which it is settled on.
    """
    cosines, foreign = measure([(group.prompt, group.responses) for group in groups])
    behind, foreign_behind = _distances(rewards, cosines, foreign)
    settled_by = None
    if gap == "auto":
        if not len(behind):
            return None
        gap, settled_by = settle_gap(Distances.of(behind, foreign_behind), max_touched).gap, max_touched
    duels = [] if stressed is None else [(duel.prompt, [*duel.texts.values()]) for duel in stressed.duels]
    caught = float((foreign_behind > gap).mean()) if len(foreign_behind) else None
    return Relevance(cosines, gap, measure(duels)[0] if duels else (), settled_by, caught)


def _distances(
    rewards: Sequence[ArrayLike], cosines: Sequence[ArrayLike], foreign: Sequence[ArrayLike]
) -> tuple[Floats, Floats]:
    """The known distances behind others, of responses and of responses to other prompts, in groups with two known responses."""
    distances: tuple[list[Floats], list[Floats]] = ([], [])
    for reward, near, other in zip(rewards, cosines, foreign, strict=True):
        table = np.array([near, other, reward], dtype=np.float64)
        near, other = table[:2, np.isfinite(table[2])]  # a selection has scored responses only
        known = near[np.isfinite(near)]
        if len(known) > 1:
            distances[0].append(distances_behind(known))
            distances[1].append(reference_of(known) - other[np.isfinite(other)])
    behind, foreign_behind = (np.concatenate([np.empty(0), *parts]) for parts in distances)
    return behind, foreign_behind


def behind_gate(
    table: Comparisons,
    groups: Sequence[Group],
    rewards: Sequence[ArrayLike],
    *,
    relevance: Relevance,
    stressed: Stress | None,
    bootstrap: Bootstrap,
) -> Gated:
    """Compute the figures. `table` is that of the groups, with this relevance."""
    used = table[table.scored & ~table.tied]
    signals = (join_gate(used.on_topic, used.gap), used.gap, used.nearer_or_longer)
    gated, model, rule = (correctness(signal, used.probability) for signal in signals)
    sides = np.column_stack([gated, gated - model, gated - rule])
    whole, over_model, over_rule = clustered_means(sides, used.cluster, bootstrap=bootstrap)
    decided = used.on_topic != 0
    parts = (decided, similar_lengths(used))
    nearest, matched = (
        clustered_means(gated[part][:, None], used.cluster[part], bootstrap=bootstrap)[0] for part in parts
    )
    duels = () if stressed is None else stressed.duels
    best, best_over_model = _best_of_all(groups, rewards, relevance, bootstrap) or (None, None)
    return Gated(
        gap=relevance.gap,
        max_touched=relevance.max_touched,
        caught=relevance.caught,
        unknown=sum(int((~np.isfinite(np.asarray(one, dtype=np.float64))).sum()) for one in relevance.cosines),
        comparisons=len(used),
        decided=float(decided.mean()) if len(used) else math.nan,
        nearer=nearest,
        accuracy=whole,
        over_model=over_model,
        over_rule=over_rule,
        matched=matched,
        other_prompt=_against_foreign(OTHER_PROMPT, duels, relevance, bootstrap),
        similar_prompt=_against_foreign(SIMILAR_PROMPT, duels, relevance, bootstrap),
        best_of_all=best,
        best_over_model=best_over_model,
    )


def _against_foreign(name: str, duels: Sequence[Duel], relevance: Relevance, bootstrap: Bootstrap) -> StressTest | None:
    """Test responses against those of another prompt; None if no prompt has both, with rewards and measured cosines."""
    if not relevance.duels:
        return None
    rows = []  # of cosines and rewards, own and foreign
    for duel, cosines in zip(duels, relevance.duels, strict=True):
        if name in duel.texts:
            both = [0, [*duel.texts].index(name)]
            rows.append([*np.asarray(cosines)[both], *duel.rewards[both]])
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    own, foreign, reward, other = table[np.isfinite(table[:, 2:]).all(axis=1)].T
    gaps = join_gate(nearer(own, foreign, gap=relevance.gap), reward - other)
    return stress_test(name, gaps, bootstrap) if len(gaps) else None


def _best_of_all(
    groups: Sequence[Group], rewards: Sequence[ArrayLike], relevance: Relevance, bootstrap: Bootstrap
) -> list[Estimate] | None:
    """The mean gold score of the choice among the responses on topic, and its difference to the choice by reward alone, over the
    groups with several responses that have a reward and a gold score; None if there are none."""
    rows, prompts = [], []
    for prompt, group, reward, cosines in zip(clusters(groups), groups, rewards, relevance.cosines, strict=True):
        table = np.array([gold_scores(group), reward, cosines], dtype=np.float64)
        gold, r, near = table[:, np.isfinite(table[:2]).all(axis=0)]
        if len(gold) < 2:
            continue
        kept = on_topic(near, gap=relevance.gap)
        best = expected_best(gold[kept], r[kept], n=int(kept.sum()))
        rows.append((best, best - expected_best(gold, r, n=len(gold))))
        prompts.append(prompt)
    return clustered_means(rows, prompts, bootstrap=bootstrap) if rows else None


def on_topic(cosines: Floats, *, gap: float) -> NDArray[np.bool_]:
    """Return whether each response [K] to a prompt lies at most `gap` behind, as the step `on_topic` has it; all of them if no
    cosine is known."""
    near = distances_behind(cosines) <= gap
    return near if near.any() else ~near
