"""Weights that take the advantage of length away: by hand, and for any judgements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rm.preferences import Edge, Group
from rm.preferences.length_balance import balance_lengths


def pair(number, long, short, *, longer_wins, **edge):
    texts = ("a" * long, "b" * short)
    return Group((("user", str(number)),), texts, (Edge(*((0, 1) if longer_wins else (1, 0)), **edge),))


def weights(groups):
    return [edge.weight for group in balance_lengths(groups) for edge in group.edges]


def test_by_hand():
    groups = [pair(n, 20, 10, longer_wins=n < 24) for n in range(32)]  # 24 against 8
    assert weights(groups) == pytest.approx([32 / 48] * 24 + [32 / 16] * 8)
    assert sum(weights(groups)) == pytest.approx(32)


def test_probabilities_count_in_parts():
    groups = [pair(n, 20, 10, longer_wins=True, probability=0.75) for n in range(20)]
    long, short = 15.0, 5.0
    assert weights(groups) == pytest.approx([0.75 * 10 / long + 0.25 * 10 / short] * 20)


def test_equal_lengths_ties_and_one_sided_bins_stay():
    same = [pair(n, 10, 10, longer_wins=True) for n in range(30)]
    ties = [pair(n, 20, 10, longer_wins=True, probability=0.5) for n in range(30)]
    always = [pair(n, 20, 10, longer_wins=True, weight=0.5) for n in range(30)]
    assert weights(same) + weights(ties) == [1.0] * 60
    assert weights(always) == [0.5] * 30


def test_few_of_a_kind_do_not_decide():
    groups = [pair(n, 20, 10, longer_wins=n > 0) for n in range(40)]
    assert max(weights(groups)) == 5.0


def test_each_bin_is_balanced_by_itself():
    near = [pair(n, 11, 10, longer_wins=n % 2 == 0) for n in range(40)]
    far = [pair(n, 90, 10, longer_wins=n % 4 != 0) for n in range(40)]
    assert weights(near + far)[:40] == pytest.approx([1.0] * 40)
    assert sorted(set(np.round(weights(near + far)[40:], 6))) == [0.666667, 2.0]


@pytest.mark.parametrize(("long", "short"), [(3, 2), (7, 3), (49, 1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_equal_ratios_are_balanced_together_in_any_order(long, short, reverse):
    groups = [pair(n, long, short, longer_wins=n < 30) for n in range(40)]
    assert sum(sorted(weights(groups[::-1] if reverse else groups))[-10:]) == pytest.approx(20)
    many = [pair(n, long, short, longer_wins=n % 4 > 0) for n in range(400)]
    assert sum(weights(many)[::4]) == pytest.approx(200), "more than one bin would hold, all of one ratio"


EDGE = st.tuples(
    st.integers(1, 30), st.integers(1, 30), st.booleans(), st.sampled_from([0.5, 0.7, 1.0]), st.floats(0.1, 3)
)


@given(st.lists(EDGE, max_size=19))
def test_length_alone_is_a_coin(rows):
    groups = [
        pair(n, long, short, longer_wins=wins, probability=p, weight=w)
        for n, (long, short, wins, p, w) in enumerate(rows)
    ]
    after = [group.edges[0] for group in balance_lengths(groups)]
    advantage = limited = 0.0
    for edge, group in zip(after, groups, strict=True):
        sign = np.sign(len(group.responses[edge.preferred]) - len(group.responses[edge.other]))
        before = group.edges[0].weight
        assert edge.weight <= 5 * before + 1e-9
        limited = max(limited, edge.weight / before)
        advantage += sign * (2 * edge.probability - 1) * edge.weight
        if sign == 0 or edge.probability == 0.5:
            assert edge.weight == before
    sides = {
        np.sign(len(g.responses[g.edges[0].preferred]) - len(g.responses[g.edges[0].other]))
        for g in groups
        if g.edges[0].probability == 1.0
    }
    if {1.0, -1.0} <= sides and limited < 2 and all(g.edges[0].probability in (0.5, 1.0) for g in groups):
        assert advantage == pytest.approx(0, abs=1e-9), "one bin of fewer than 20"
