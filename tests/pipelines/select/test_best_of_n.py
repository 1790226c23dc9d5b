"""`best_of_n` against brute force over rows; ties and keys that share 64 bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    chosen,
    prompt_groups,
    reward_of,
    sigmoid,
    tables,
)

from pipelines.config import BestOfN
from pipelines.select.candidates import count_prompts
from pipelines.select.rules import best_of_n


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


@settings(max_examples=200)
@given(tables(), st.integers(1, 2), st.sampled_from([0.5, 0.6, 0.9]), st.sampled_from([0.5, 1.0, 4.0]))
def test_min_probability(rows, keep, least, temperature):
    rule = BestOfN(keep=keep, min_candidates=1, min_probability=least)
    expected = set()
    for group in prompt_groups(rows):
        gap = reward_of(group[keep - 1]) - reward_of(group[keep]) if len(group) > keep else math.inf
        if sigmoid(gap / temperature) >= least:
            expected |= {row[4:] for row in group[:keep]}
    assert chosen(rows, best_of_n(candidates(rows), rule, temperature=temperature)) == expected


def test_a_probability_without_a_temperature_is_an_error():
    rows = [(1, 1, 0.5, 0, 0, 0, n, 0) for n in range(2)]
    with pytest.raises(ValueError, match="temperature"):
        best_of_n(candidates(rows), BestOfN(min_probability=0.7))
