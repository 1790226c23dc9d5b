"""Judgements → edges: hand-derived values, and brute force."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.preferences.edges import (
    apply_gap,
    choice_edges,
    ranking_edges,
    score_edges,
    tiers_of,
    verdict_edges,
    vote_probability,
)
from rm.preferences.groups import ALONE, Edge

ranks = st.lists(st.integers(1, 4), min_size=1, max_size=7)


def test_a_strict_ranking_by_hand():
    assert ranking_edges([[2], [0], [1]]) == (Edge(2, 0, stage=0), Edge(2, 1, stage=0), Edge(0, 1, stage=1))


def test_a_ranking_with_ties_by_hand():
    assert ranking_edges([[1, 3], [0]]) == (Edge(1, 0, stage=0), Edge(3, 0, stage=1), Edge(1, 3, 0.5))


@given(ranks)
def test_a_ranking_of_n_is_all_pairs_once_in_the_order_of_the_ranks(given_ranks):
    edges = ranking_edges(tiers_of(given_ranks))
    n = len(given_ranks)
    assert len(edges) == n * (n - 1) // 2
    assert {frozenset(edge[:2]) for edge in edges} == {frozenset(pair) for pair in combinations(range(n), 2)}
    for edge in edges:
        better, worse = given_ranks[edge.preferred], given_ranks[edge.other]
        assert edge.probability == (0.5 if better == worse else 1.0)
        assert better <= worse
        assert (edge.stage == ALONE) == (better == worse)
        assert (edge.weight, edge.margin) == (1.0, 0.0)


@given(ranks)
def test_the_stages_of_a_ranking_give_its_tiers_back(given_ranks):
    edges = ranking_edges(tiers_of(given_ranks))
    stages: dict[int, set[int]] = {}
    preferred: dict[int, set[int]] = {}
    for edge in edges:
        if edge.stage != ALONE:
            stages.setdefault(edge.stage, set()).add(edge.other)
            preferred.setdefault(edge.stage, set()).add(edge.preferred)
    assert sorted(stages) == list(range(len(stages)))  # numbered without holes
    assert all(len(winners) == 1 for winners in preferred.values())  # one pick each
    picked = [next(iter(preferred[stage])) for stage in sorted(stages)]
    assert len(set(picked)) == len(picked)
    assert [given_ranks[winner] for winner in picked] == sorted(given_ranks[winner] for winner in picked)
    for stage, winner in zip(sorted(stages), picked, strict=True):
        assert stages[stage] == {k for k, rank in enumerate(given_ranks) if rank > given_ranks[winner]}
    below = {k for k, rank in enumerate(given_ranks) if rank == max(given_ranks)}
    assert set(range(len(given_ranks))) - set(picked) == below


def test_a_choice_is_one_pick():
    assert choice_edges(1, 3) == (Edge(1, 0, stage=0), Edge(1, 2, stage=0))
    assert choice_edges(0, 1) == ()


@pytest.mark.parametrize(
    ("first", "second", "ties", "smoothing", "expected"),
    [
        (3, 0, 0, 0.5, 3.5 / 4),
        (0, 3, 0, 0.5, 0.5 / 4),
        (2, 0, 1, 1.0, 3.5 / 5),
        (1, 1, 1, 0.5, 0.5),
        (0, 0, 2, 0.0, 0.5),
        (2, 1, 0, 0.0, 2 / 3),
        (1, 0, 0, 0.0, 1.0),
    ],
)
def test_votes_by_hand(first, second, ties, smoothing, expected):
    assert vote_probability(first, second, ties, smoothing=smoothing) == pytest.approx(expected)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.floats(0, 5))
def test_votes_are_symmetric_and_follow_the_majority(first, second, ties, smoothing):
    if first + second + ties == 0:
        with pytest.raises(ValueError, match="no annotator voted"):
            vote_probability(first, second, ties, smoothing=smoothing)
        return
    share = vote_probability(first, second, ties, smoothing=smoothing)
    assert share + vote_probability(second, first, ties, smoothing=smoothing) == pytest.approx(1.0)
    assert (share > 0.5) == (first > second)
    assert 0.0 <= share <= 1.0


grades = st.none() | st.integers(-3, 3).map(float)


@given(
    st.lists(grades, max_size=6), st.integers(0, 3), st.sampled_from(["none", "weight", "margin"]), st.floats(0.1, 4)
)
def test_scores_equal_brute_force(scores, min_gap, gap_use, scale):
    expected = set()
    for i, j in product(range(len(scores)), repeat=2):
        if (
            scores[i] is not None
            and scores[j] is not None
            and scores[i] > scores[j]
            and scores[i] - scores[j] >= min_gap
        ):
            gap = scale * (scores[i] - scores[j])
            expected.add((i, j, 1.0, gap if gap_use == "weight" else 1.0, gap if gap_use == "margin" else 0.0, ALONE))
    edges = score_edges(scores, min_gap=float(min_gap), gap_use=gap_use, gap_scale=scale)
    assert set(map(tuple, edges)) == expected
    assert len(edges) == len(expected)


def test_a_gap_by_hand():
    options = {"min_gap": 2.0, "gap_scale": 0.5}
    edge = Edge(1, 0, 0.75)
    assert apply_gap(edge, 2.0, gap_use="none", **options) == edge
    assert apply_gap(edge, 3.0, gap_use="weight", **options) == Edge(1, 0, 0.75, weight=1.5)
    assert apply_gap(edge, 3.0, gap_use="margin", **options) == Edge(1, 0, 0.75, margin=1.5)
    assert apply_gap(edge, 1.9, gap_use="none", **options) is None
    assert apply_gap(edge, 0.0, gap_use="none", min_gap=0.0, gap_scale=1.0) is None
    assert apply_gap(edge, -3.0, gap_use="none", min_gap=0.0, gap_scale=1.0) is None


@given(ranks)
def test_verdicts_that_agree_with_a_ranking_are_that_ranking(given_ranks):
    pairs = combinations(given_ranks, 2)
    verdicts = [0 if a == b else 1 if a < b else 2 for a, b in pairs]
    assert verdict_edges(verdicts, len(given_ranks)) == ranking_edges(tiers_of(given_ranks))


@given(st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_verdicts_say_what_they_say_whether_a_ranking_or_not(verdicts):
    edges = {frozenset(edge[:2]): edge for edge in verdict_edges(verdicts, 4)}
    assert len(edges) == 6
    for pair, verdict in zip(combinations(range(4), 2), verdicts, strict=True):
        edge = edges[frozenset(pair)]
        assert edge.probability == (0.5 if verdict == 0 else 1.0)
        assert verdict == 0 or edge[:2] == (pair if verdict == 1 else pair[::-1])
    consistent = any(
        verdicts == [0 if r[i] == r[j] else 1 if r[i] < r[j] else 2 for i, j in combinations(range(4), 2)]
        for r in product(range(4), repeat=4)
    )
    assert consistent or all(edge.stage == ALONE for edge in edges.values())


def test_a_circle_is_three_comparisons():
    assert verdict_edges([1, 2, 1], 3) == (Edge(0, 1), Edge(2, 0), Edge(1, 2))
