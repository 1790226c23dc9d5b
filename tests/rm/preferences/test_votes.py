"""Votes: what makes them unusable, and verdicts without votes."""

from __future__ import annotations

from support.preferences.cases import settings
from support.preferences.votes import HELPSTEER2, HELPSTEER3, helpsteer2_row, helpsteer3_row, pandalm_row

from rm.preferences import Edge, read_preference_rows


def reasons(rows):
    return read_preference_rows(rows, settings())[1]


def test_votes_that_cannot_be_used_are_counted_by_reason():
    assert reasons([HELPSTEER2[0], helpsteer2_row("q", -100), helpsteer2_row("q", 4)]) == {"bad_preference": 2}
    assert reasons([HELPSTEER3[0], helpsteer3_row("q", 1, 1, 9)]) == {"bad_preference": 1}
    assert reasons([pandalm_row("", 1, 2, 3), pandalm_row("", None, None)]) == {"bad_vote": 1, "no_votes": 1}


def test_without_individual_scores_the_overall_one_is_the_only_vote():
    row = {**helpsteer3_row("q", -3), "individual_preference": None}
    (group,), _ = read_preference_rows([row], settings())
    assert group.edges == (Edge(0, 1, 0.75),)  # (1 + 1/2) / (1 + 1)
