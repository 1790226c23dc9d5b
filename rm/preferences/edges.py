"""Judgements → edges: one pure function for each kind of judgement, without any file format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from rm.preferences.groups import ALONE, Edge

GapUse = Literal["none", "weight", "margin"]


def ranking_edges(tiers: Sequence[Sequence[int]]) -> tuple[Edge, ...]:
    """Return the N(N-1)/2 edges of a ranking of responses, best tier first; responses of one tier are tied.

    Each response that beats others is one stage (Plackett 1975; Luce 1959); ties are edges of
    probability 1/2 outside the stages.
    """
    edges: list[Edge] = []
    stage = 0
    for position, tier in enumerate(tiers):
        below = [other for lower in tiers[position + 1 :] for other in lower]
        for winner in tier:
            edges += [Edge(winner, other, stage=stage) for other in below]
            stage += 1
        edges += [Edge(i, j, 0.5, stage=ALONE) for i, j in combinations(tier, 2)]
    return tuple(edges)


def choice_edges(best: int, among: int) -> tuple[Edge, ...]:
    """Return the `among - 1` edges, one stage, of a choice of `best` among `among` responses.

    A choice does not order the others.
    """
    return tuple(Edge(best, other, stage=0) for other in range(among) if other != best)


def vote_probability(first: float, second: float, ties: float = 0.0, *, smoothing: float) -> float:
    """Return P(first > second) from several annotators: `(first + ties/2 + s) / (first + second + ties + 2 s)`.

    A tie is half a vote for each side. `smoothing` s is the pseudo-count per side (1/2: Jeffreys' prior), so that three
    of three votes are not certainty. Raises `ValueError` without any vote.
    """
    total = first + second + ties
    if total <= 0:
        raise ValueError("votes: no annotator voted; expected at least one vote")
    return (first + ties / 2 + smoothing) / (total + 2 * smoothing)


def apply_gap(edge: Edge, gap: float, *, min_gap: float, gap_use: GapUse, gap_scale: float) -> Edge | None:
    """Return `edge` with the gap between its two grades applied, or None if the gap is not significant.

    A gap that is not positive or is below `min_gap` is not significant: noise of the grader, not a tie. With `gap_use`,
    `gap_scale * gap` becomes the edge's weight, or the margin its rewards must keep (Touvron et al. 2023, eq. 2).
    """
    if gap <= 0 or gap < min_gap:
        return None
    if gap_use == "weight":
        return edge._replace(weight=gap_scale * gap)
    if gap_use == "margin":
        return edge._replace(margin=gap_scale * gap)
    return edge


def score_edges(
    scores: Sequence[float | None], *, min_gap: float, gap_use: GapUse = "none", gap_scale: float = 1.0
) -> tuple[Edge, ...]:
    """Return an edge for every two grades, votes or ratings whose gap is significant (see `apply_gap`).

    `scores` [K] are those of the responses, None for a response without one.
    """
    edges = []
    for i, j in combinations(range(len(scores)), 2):
        left, right = scores[i], scores[j]
        if left is None or right is None:
            continue
        edge = Edge(i, j) if left > right else Edge(j, i)
        used = apply_gap(edge, abs(left - right), min_gap=min_gap, gap_use=gap_use, gap_scale=gap_scale)
        if used is not None:
            edges.append(used)
    return tuple(edges)


def tiers_of(ranks: Sequence[float]) -> list[list[int]]:
    """Convert ranks per response (1 is best, equal ranks are ties) to tiers for `ranking_edges`, best first."""
    places: dict[float, list[int]] = {}
    for response, rank in enumerate(ranks):
        places.setdefault(rank, []).append(response)
    return [places[rank] for rank in sorted(places)]


def verdict_edges(verdicts: Sequence[int], among: int) -> tuple[Edge, ...]:
    """Return the edges of verdicts on all pairs (0, 1), (0, 2), ... (n-2, n-1): 1 the first is better, 2 the second, 0 a tie.

    Verdicts that agree with one ranking (with ties) give its `ranking_edges`, stages included; verdicts with a cycle remain
    comparisons of two.
    """
    pairs = list(combinations(range(among), 2))
    wins = [0] * among
    for (i, j), verdict in zip(pairs, verdicts, strict=True):
        sign = {0: 0, 1: 1, 2: -1}[verdict]
        wins[i] += sign
        wins[j] -= sign
    agree = all(
        verdict == (0 if wins[i] == wins[j] else 1 if wins[i] > wins[j] else 2)
        for (i, j), verdict in zip(pairs, verdicts, strict=True)
    )
    if agree:  # wins minus losses: equal exactly within a tier, falling from tier to tier
        return ranking_edges(tiers_of([-count for count in wins]))
    return tuple(
        Edge(j, i) if verdict == 2 else Edge(i, j, 0.5 if verdict == 0 else 1.0)
        for (i, j), verdict in zip(pairs, verdicts, strict=True)
    )
