"""What a judge said → edges. One function a kind of judgement; pure, and knows no file format."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

from rm.preferences.groups import ALONE, Edge

GapUse = Literal["none", "weight", "margin"]


def ranking(tiers: Sequence[Sequence[int]]) -> tuple[Edge, ...]:
    """A ranking of responses, best tier first; responses of one tier are tied.

    N(N-1)/2 edges. Each response that beats others is one stage (Plackett 1975; Luce 1959); ties are edges of
    probability 1/2 outside the stages.
    """
    edges: list[Edge] = []
    stage = 0
    for position, tier in enumerate(tiers):
        below = [other for lower in tiers[position + 1 :] for other in lower]
        for winner in tier:
            edges += [Edge(winner, other, stage=stage) for other in below]
            stage += bool(below)
        edges += [Edge(i, j, 0.5, stage=ALONE) for i, j in combinations(tier, 2)]
    return tuple(edges)


def choice(best: int, among: int) -> tuple[Edge, ...]:
    """`best` was chosen among `among` responses: among - 1 edges, one stage; nothing is said of the others."""
    return tuple(Edge(best, other, stage=0) for other in range(among) if other != best)


def votes(first: float, second: float, ties: float = 0.0, *, smoothing: float) -> float:
    """P(first > second) from several annotators: `(first + ties/2 + s) / (first + second + ties + 2 s)`.

    A tie is half a vote for each side. `smoothing` s is the pseudo-count per side (1/2: Jeffreys' prior), so that three
    of three votes are not certainty. Raises `ValueError` without any vote.
    """
    total = first + second + ties
    if total <= 0:
        raise ValueError("votes: no annotator voted; expected at least one vote")
    return (first + ties / 2 + smoothing) / (total + 2 * smoothing)


def scored(
    scores: Sequence[float | None], *, min_gap: float, gap_use: GapUse = "none", gap_scale: float = 1.0
) -> tuple[Edge, ...]:
    """Grades, votes or ratings per response: an edge wherever the gap is positive and at least `min_gap`.

    Smaller gaps say nothing (they are not ties: noise of the grader). With `gap_use`, `gap_scale * gap` becomes the
    edge's weight, or the margin its rewards must keep (Touvron et al. 2023, eq. 2).
    """
    edges = []
    for i, j in combinations(range(len(scores)), 2):
        left, right = scores[i], scores[j]
        if left is None or right is None or left == right or abs(left - right) < min_gap:
            continue
        gap = gap_scale * abs(left - right)
        winner, loser = (i, j) if left > right else (j, i)
        weight, margin = (gap if gap_use == "weight" else 1.0), (gap if gap_use == "margin" else 0.0)
        edges.append(Edge(winner, loser, weight=weight, margin=margin))
    return tuple(edges)
