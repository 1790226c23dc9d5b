"""The model behind a relevance gate, as a selection with the step `on_topic` uses it.

The gate decides between a response that the step would keep and one that it would drop, and the reward between all others. The
step compares each cosine with the second highest of its prompt's, or with the higher one of two: in a stress test, which has two
responses, the nearer one is taken if their cosines differ by more than the gap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rm.evaluate.accuracy import similar_lengths
from rm.evaluate.best_of_n import expected_best, gold_scores
from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, Floats, clustered_means
from rm.evaluate.comparisons import Comparisons, Relevance, clusters, correctness, distances_behind, join_gate, nearer
from rm.evaluate.stress import OTHER_PROMPT, SIMILAR_PROMPT, Duel, ScoreGroups, Stress, StressTest, stress_test
from rm.preferences import Group


@dataclass(frozen=True)
class Gated(Figures):
    """Figures of the model behind the gate, on the same comparisons, prompts and responses as those of the model alone.

    The reward decides a comparison or a stress test of a response without a cosine. In `best_of_all`, such a response is left
    out, as by the step, unless no response to the prompt has one.
    """

    gap: float
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


def measure_relevance(groups: Sequence[Group], stressed: Stress | None, score: ScoreGroups, *, gap: float) -> Relevance:
    """Measure the cosines, which `score` returns, of the groups and of the stress tests that a gate takes part in."""
    cosines = score([(group.prompt, group.responses) for group in groups])
    duels = [] if stressed is None else [(duel.prompt, [*duel.texts.values()]) for duel in stressed.duels]
    return Relevance(cosines, gap, score(duels) if duels else ())


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
