"""Steps one after the other, each on what the one before kept."""

from __future__ import annotations

import pytest
from support.selection_tables import (
    apply_steps,
    candidates,
)

from pipelines.config import BestOfN, Step, Threshold


def test_steps_apply_in_order_each_to_what_is_left():
    rows = [(1, 1, reward, 0, 0, 0, index, 0) for index, reward in enumerate([0.9, 0.8, 0.1])]
    rows += [(2, 2, reward, 0, 0, 0, 10 + index, 0) for index, reward in enumerate([0.7, 0.1])]
    cut, best = Step(threshold=Threshold(min_reward=0.5)), Step(best_of_n=BestOfN(min_candidates=2))
    kept, counts = apply_steps(candidates(rows), [cut, best])
    assert kept.row.tolist() == [0]  # the second prompt has one candidate left, fewer than two
    assert counts == [("threshold", 3, 2), ("best_of_n", 1, 1)]
    kept, _ = apply_steps(candidates(rows), [best, cut])
    assert sorted(kept.row.tolist()) == [0, 10]


def test_no_steps_keep_everything():
    rows = [(1, 1, 0.1, 0, 0, 0, 0, 0), (1, 1, 0.2, 0, 0, 0, 1, 0)]
    kept, counts = apply_steps(candidates(rows), [])
    assert (len(kept), counts) == (2, [])


def test_a_step_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="has no rule"):
        apply_steps(candidates([]), [Step.model_construct()])
