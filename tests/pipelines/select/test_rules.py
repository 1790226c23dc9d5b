from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates, chosen, tables

from pipelines.config import BestOfN, Step, Threshold
from pipelines.select.candidates import count_prompts
from pipelines.select.rules import apply_steps, best_of_n, threshold


def brute_force(rows, *, keep, min_candidates, min_margin):
    kept = set()
    for key in {row[:2] for row in rows}:
        group = sorted((row for row in rows if row[:2] == key), key=lambda row: (-np.float32(row[2]), row[3], row[4:]))
        if len(group) < min_candidates:
            continue
        if len(group) > keep and float(np.float32(group[keep - 1][2])) - float(np.float32(group[keep][2])) < min_margin:
            continue
        kept |= {row[4:] for row in group[:keep]}
    return kept


@settings(max_examples=300)
@given(tables(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 0.25, 0.5, 1.5]))
def test_best_of_n_equals_brute_force(rows, keep, min_candidates, min_margin):
    rule = BestOfN(keep=keep, min_candidates=min_candidates, min_margin=min_margin)
    expected = brute_force(rows, keep=keep, min_candidates=min_candidates, min_margin=min_margin)
    assert chosen(rows, best_of_n(candidates(rows), rule)) == expected


@settings(max_examples=100)
@given(tables().flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows))))
def test_the_order_of_the_rows_does_not_matter(pair):
    rule = BestOfN(keep=2)
    first, second = (chosen(rows, best_of_n(candidates(rows), rule)) for rows in pair)
    assert first == second


@given(tables(), st.sampled_from([-1.0, 0.0, 0.5, 0.75]))
def test_threshold_equals_brute_force(rows, least):
    assert chosen(rows, threshold(candidates(rows), Threshold(min_reward=least))) == {
        row[4:] for row in rows if row[2] >= least
    }


def test_keys_that_share_64_bits_are_different_prompts():
    rows = [(5, 1, 0.1, 0, 0, 0, 0, 0), (5, 2, 0.2, 0, 0, 0, 1, 0), (6, 1, 0.3, 0, 0, 0, 2, 0)]
    assert count_prompts(candidates(rows)) == 3
    assert chosen(rows, best_of_n(candidates(rows), BestOfN(min_candidates=1))) == {row[4:] for row in rows}


def test_ties_go_to_the_smaller_hash_then_file_unit_row_response():
    tied = [
        (1, 1, 0.5, 9, 0, 0, 0, 0),
        (1, 1, 0.5, 4, 2, 1, 3, 1),
        (1, 1, 0.5, 4, 1, 1, 3, 1),
        (1, 1, 0.5, 4, 1, 0, 9, 9),
        (1, 1, 0.5, 4, 1, 0, 8, 1),
        (1, 1, 0.5, 4, 1, 0, 8, 0),
    ]
    order = []
    while tied:
        (winner,) = chosen(tied, best_of_n(candidates(tied), BestOfN(min_candidates=1)))
        order.append(winner)
        tied = [row for row in tied if row[4:] != winner]
    assert order == [(1, 0, 8, 0), (1, 0, 8, 1), (1, 0, 9, 9), (1, 1, 3, 1), (2, 1, 3, 1), (0, 0, 0, 0)]


def test_steps_apply_in_order_each_to_what_is_left():
    rows = [(1, 1, reward, 0, 0, 0, index, 0) for index, reward in enumerate([0.9, 0.8, 0.1])]
    rows += [(2, 2, reward, 0, 0, 0, 10 + index, 0) for index, reward in enumerate([0.7, 0.1])]
    cut, best = Step(threshold=Threshold(min_reward=0.5)), Step(best_of_n=BestOfN(min_candidates=2))
    kept, counts = apply_steps(candidates(rows), [cut, best])
    assert kept.row.tolist() == [0]  # the second prompt has one candidate left, fewer than two
    assert [(count.rule, count.rows, count.prompts) for count in counts] == [("threshold", 3, 2), ("best_of_n", 1, 1)]
    kept, _ = apply_steps(candidates(rows), [best, cut])
    assert sorted(kept.row.tolist()) == [0, 10]


def test_no_steps_keep_everything():
    rows = [(1, 1, 0.1, 0, 0, 0, 0, 0), (1, 1, 0.2, 0, 0, 0, 1, 0)]
    kept, counts = apply_steps(candidates(rows), [])
    assert (len(kept), counts) == (2, [])


def test_a_step_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="names no rule"):
        apply_steps(candidates([]), [Step.model_construct()])
