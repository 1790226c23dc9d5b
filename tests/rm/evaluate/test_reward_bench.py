"""Values worked out by hand from the definitions in allenai/reward-bench, `rewardbench/utils.py`."""

from __future__ import annotations

import math

import pytest
from support.evaluation_groups import group

from rm.evaluate import Bootstrap, evaluate
from rm.evaluate.reward_bench import SUBSETS, reward_bench_2


def item(name, number, correct, incorrect, *, subset):
    """(group, rewards): correct responses first, as in the data set."""
    scores = [1.0] * len(correct) + [0.0] * len(incorrect)
    return group(f"{name}{number}", responses=len(scores), scores=scores, subset=subset, item=str(number)), [
        *correct,
        *incorrect,
    ]


def score(*items):
    groups, rewards = zip(*items, strict=True)
    return reward_bench_2(groups, rewards)


@pytest.mark.parametrize(
    ("correct", "incorrect", "expected"),
    [
        (3.0, [1.0, 2.0, 0.0], 1.0),
        (2.0, [1.0, 3.0, 0.0], 0.0),
        (3.0, [3.0, 2.0, 0.0], 1 / 2),
        (3.0, [3.0, 3.0, 3.0], 1 / 4),
        (2.0, [3.0, 3.0, 2.0], 0.0),
        (math.nan, [1.0, 2.0, 0.0], 0.0),
        (3.0, [1.0, math.nan, 0.0], 0.0),
    ],
)
def test_best_of_four(correct, incorrect, expected):
    got = score(item("m", 1, [correct], incorrect, subset="Math"))
    assert got.subsets[0].score == pytest.approx(expected)
    assert got.subsets[0].unscored == int(any(math.isnan(r) for r in [correct, *incorrect]))


def test_overall_is_the_mean_over_subsets_and_not_over_items():
    right, wrong = ([3.0], [1.0, 2.0, 0.0]), ([0.0], [1.0, 2.0, 3.0])
    got = score(
        *(item("m", k, *right, subset="Math") for k in range(3)),
        item("m", 9, *wrong, subset="Math"),
        item("f", 1, *wrong, subset="focus"),
    )
    assert [(s.name, s.items, s.score) for s in got.subsets] == [("Math", 4, 0.75), ("Focus", 1, 0.0)]
    assert (got.overall, got.complete) == (0.375, False)


def test_ties_by_hand():
    """k=0: spread 1, margins 2 (tied) and 0.5 (ref). k=1: spread 2, margins 1 and 3. k=2: tied wrong by 1, ref by 2.

    Accurate: ref 2 of 3, tied 2 of 3. Preferred (m_t > s): k=0 alone. Hard (least > s): none (0.5, 1, -2).
    Margin: tanh(0.5/1 - 1), tanh(1/2 - 1), tanh(-2/4 - 1).
    """
    got = score(
        item("t", "tied:0", [5.0, 4.0], [2.0, 1.0], subset="Ties"),
        item("t", "ref:0", [1.5], [1.0, 0.0], subset="Ties"),
        item("t", "tied:1", [6.0, 4.0, 5.0], [3.0], subset="Ties"),
        item("t", "ref:1", [4.0], [1.0], subset="Ties"),
        item("t", "tied:2", [5.0, 1.0], [2.0], subset="Ties"),
        item("t", "ref:2", [0.0], [2.0], subset="Ties"),
    ).ties
    margin = (math.tanh(-0.5) + math.tanh(-0.5) + math.tanh(-1.5)) / 3
    assert (got.ref_accuracy, got.tied_accuracy) == pytest.approx((2 / 3, 2 / 3))
    assert (got.correctness_preferred, got.correctness_preferred_hard) == pytest.approx((1 / 3, 0.0))
    assert got.margin_score == pytest.approx(margin)
    assert got.score == pytest.approx(0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 / 3 + 0.01 * margin)


def test_each_part_of_the_ties_score_has_its_own_weight():
    # accurate tied alone: spread 3 > margin 1, ref wrong
    got = score(
        item("t", "tied:0", [5.0, 2.0], [1.0], subset="Ties"), item("t", "ref:0", [0.0], [3.0], subset="Ties")
    ).ties
    assert got.score == pytest.approx(0.3 + 0.01 * math.tanh(-1 - 1))
    # preferred but not hard: ref's margin 1 is below the spread 2
    got = score(
        item("t", "tied:0", [9.0, 7.0], [1.0], subset="Ties"), item("t", "ref:0", [2.0], [1.0], subset="Ties")
    ).ties
    assert got.score == pytest.approx(0.3 + 0.3 + 0.2 + 0.01 * math.tanh(0.5 - 1))


def test_equal_correct_rewards_divide_by_zero_as_the_original_does():
    infinite = score(
        item("t", "tied:0", [5.0, 5.0], [1.0], subset="Ties"), item("t", "ref:0", [2.0], [1.0], subset="Ties")
    ).ties
    assert infinite.score == pytest.approx(0.3 + 0.3 + 0.2 + 0.2 + 0.01)  # tanh(inf) = 1
    undefined = score(
        item("t", "tied:0", [5.0, 5.0], [5.0], subset="Ties"), item("t", "ref:0", [2.0], [1.0], subset="Ties")
    ).ties
    assert undefined.score == pytest.approx(0.3)  # 0/0 counts 0, equal is not better


def test_a_tie_item_without_its_partner_counts_in_accuracy_alone():
    got = score(
        item("t", "tied:0", [5.0, 4.0], [1.0], subset="Ties"),
        item("t", "ref:0", [2.0], [1.0], subset="Ties"),
        item("t", "ref:7", [0.0], [1.0], subset="Ties"),
    ).ties
    assert (got.ref_accuracy, got.correctness_preferred) == (0.5, 1.0)
    alone = score(item("t", "ref:0", [2.0], [1.0], subset="Ties")).ties
    assert math.isnan(alone.score)


def test_only_reward_bench_2_items_count():
    other = [
        group("a", responses=2, scores=[1.0, 0.0], subset="Math"),  # no item
        group("b", responses=2, scores=[1.0, 0.0], subset="math-prm", item="3"),  # RewardBench 1
        group("c", responses=2, scores=[0.7, 0.2], subset="Math", item="3"),  # graded
        group("d", responses=2, scores=[1.0, 1.0], subset="Math", item="3"),  # nothing incorrect
        group("e", responses=2, scores=[1.0, 0.0], subset="Ties", item="3"),  # not ref:k or tied:k
        group("f", [(0, 1)], subset="Math", item="3"),  # no gold
    ]
    assert reward_bench_2(other, [[1.0, 0.0]] * len(other)) is None


def test_all_six_subsets_are_the_leaderboard():
    items = [item(name, 1, [3.0], [1.0, 2.0, 0.0], subset=name) for name in SUBSETS if name != "Ties"]
    items += [
        item("t", "tied:0", [5.0, 4.9], [1.0], subset="Ties"),
        item("t", "ref:0", [2.0], [1.0], subset="Ties"),
    ]
    groups, rewards = zip(*items, strict=True)
    got = evaluate(groups, rewards, bootstrap=Bootstrap(100)).reward_bench_2
    assert got.complete
    assert got.overall == pytest.approx((5 + 1 + 0.01 * math.tanh(9.0)) / 6)
