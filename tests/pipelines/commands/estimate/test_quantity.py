"""Totals from samples, kept responses, times: against brute force, by hand, and intervals by simulation."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.commands.estimate.cost import billed_hours, forward_secs, wall_secs
from pipelines.commands.estimate.model_estimate import memory_bytes
from pipelines.commands.estimate.quantity import Quantity, product_of, total_of
from pipelines.commands.estimate.sampling_error import Block, sampled_total, t_quantile, whole_total
from pipelines.commands.estimate.selection_size import CandidateCounts, kept_responses
from pipelines.config import Step

ROWS = st.lists(st.tuples(st.integers(1, 500), st.integers(1, 200)), min_size=1, max_size=12)


def block(rows, drawn=None):
    pairs = [(float(x), float(y)) for x, y in (rows if drawn is None else drawn)]
    return Block(float(len(rows)), len(rows), float(sum(x for x, _ in rows)), pairs)


@given(st.lists(ROWS, min_size=1, max_size=5))
def test_a_corpus_that_is_drawn_whole_has_its_exact_total(blocks):
    found = whole_total([block(rows) for rows in blocks])
    assert found.basis == "exact"
    assert found.low == found.high == pytest.approx(sum(y for rows in blocks for _, y in rows))


@given(st.lists(ROWS, min_size=2, max_size=5), st.integers(1, 100))
def test_values_in_proportion_to_their_sizes_are_found_from_any_sample(blocks, factor):
    found = whole_total([block(rows, [(x, factor * x) for x, _ in rows[:1]]) for rows in blocks])
    assert found.value == pytest.approx(factor * sum(x for rows in blocks for x, _ in rows))
    assert found.high - found.low <= 1e-6 * found.value


def test_two_strata_by_hand():
    """Sizes of no use (all 1), so r = weighted mean: stratum A of 4 rows has 1 and 3 drawn, B of 2 rows is drawn whole."""
    rows = [block([(1, 0)] * 4, [(1, 1), (1, 3)]), block([(1, 0)] * 2, [(1, 10), (1, 20)])]
    found = whole_total(rows)
    assert found.value == pytest.approx(4 * 2 + 30)
    assert found.high - found.value == pytest.approx(1.959964 * math.sqrt(16 * (1 - 2 / 4) * 2 / 2), rel=1e-6)
    assert found.value - found.low == pytest.approx(found.high - found.value)


def test_two_stages_by_hand():
    """Three of an unknown number of blocks, measures 2, 3 and 5, totals 4, 6 and 12; the corpus measures 100."""
    blocks = [Block(m, 1, 0.0, [(0.0, y)]) for m, y in ((2.0, 4.0), (3.0, 6.0), (5.0, 12.0))]
    found = sampled_total(blocks, Quantity.exact(100))
    ratio = 22 / 10
    apart = (4 - 2 * ratio) ** 2 + (6 - 3 * ratio) ** 2 + (12 - 5 * ratio) ** 2
    half = 4.302653 * 10 * math.sqrt((1 - 10 / 100) * 3 * apart / 2)
    assert found.value == pytest.approx(220)
    assert found.high == pytest.approx(220 + half, rel=1e-6)
    assert found.low == pytest.approx(220 - half, rel=1e-6)
    assert found.basis == "sampled"
    wider = sampled_total(blocks, Quantity(100, 90, 110, "sampled"))
    assert wider.high == pytest.approx(220 + math.hypot(half, ratio * 10), rel=1e-6)


def test_one_block_of_many_is_a_guess_and_says_so_by_its_width():
    found = sampled_total([Block(10.0, 1, 0.0, [(0.0, 7.0)])], Quantity.exact(1000))
    assert (found.value, found.low, found.high) == (700, 350, 1400)


def corpus(draw, blocks, heavy):
    """Blocks of rows (x, y) that differ from block to block, as files of different models do; `heavy` with a few long rows."""
    made = []
    for _ in range(blocks):
        level = draw.uniform(0.5, 2.0)
        rows = []
        for _ in range(draw.randint(30, 60)):
            x = draw.lognormvariate(4, 1.0 if heavy else 0.4) * level
            rows.append((x, 0.25 * x * draw.uniform(0.7, 1.3) + 5))
        made.append(rows)
    return made


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("stages", ["whole", "sampled"])
def test_intervals_hold_the_truth_as_often_as_they_say(heavy, stages):
    draw = random.Random(1)
    rows = corpus(draw, 80, heavy)
    truth = sum(y for own in rows for _, y in own)
    measure = Quantity.exact(sum(map(len, rows)))
    held, widths = 0, []
    for _ in range(300):
        chosen = rows if stages == "whole" else draw.sample(rows, 20)
        blocks = [block(own, draw.sample(own, 10)) for own in chosen]
        found = whole_total(blocks) if stages == "whole" else sampled_total(blocks, measure)
        held += found.low <= truth <= found.high
        widths.append(found.high / found.low - 1)
    assert 0.90 <= held / 300 <= 0.99
    assert max(widths) < (0.1 if stages == "whole" else 1.2), "and are of use"


def test_students_t():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 1000: 1.962}
    for freedom, value in table.items():
        assert t_quantile(freedom) == pytest.approx(value, abs=0.006), freedom


def test_sums_and_products():
    total = total_of([Quantity(10, 7, 14, "sampled"), Quantity(20, 16, 23, "exact")])
    assert (total.value, total.low, total.high, total.basis) == (30, 25, 35, "sampled")
    product = product_of(Quantity(2, 1, 3, "measured"), Quantity(10, 9, 12, "assumed"))
    assert product == Quantity(20, 9, 36, "assumed")


def steps(*rules):
    return [Step.model_validate(rule) for rule in rules]


SIZES = {1: 5.0, 3: 10.0, 8: 2.0}  # prompts by responses: 17 prompts, 51 responses
GIVEN = CandidateCounts(51.0, 17.0, SIZES)
KEPT = [
    ([], 51, True),
    ([{"best_of_n": {"keep": 1}}], 12, True),
    ([{"best_of_n": {"keep": 2, "min_candidates": 1}}], 5 + 20 + 4, True),
    ([{"best_of_n": {"keep": 5, "min_candidates": 3}}], 30 + 10, True),
    ([{"best_of_n": {"keep": 1, "min_margin": 0.1}}], 12, False),
    ([{"random": {"keep": 4}}], 5 + 30 + 8, True),
    ([{"longest": {"keep": 1}}], 17, True),
    ([{"top": {"fraction": 0.3}}], 15, True),
    ([{"top": {"rows": 7}}], 7, True),
    ([{"top": {"rows": 1000}}], 51, True),
    ([{"top": {"tokens": 10}}], 51, False),
    ([{"threshold": {"min_reward": 0.0}}], 51, False),
    ([{"pairs": {}}], 12, False),
    ([{"drop_prompts": {"min_spread": 0.1}}, {"best_of_n": {}}], 12, False),
    ([{"length_correction": {}}, {"best_of_n": {}}], 12, True),
    ([{"best_of_n": {"keep": 1}}, {"top": {"fraction": 0.5}}], 6, True),
    ([{"top": {"fraction": 0.5}}, {"best_of_n": {"keep": 1}}], 17, False),
]


@pytest.mark.parametrize(("rules", "kept", "known"), KEPT)
def test_kept_by_hand(rules, kept, known):
    assert kept_responses(steps(*rules), GIVEN) == (kept, known)


@pytest.mark.parametrize(("rules", "kept"), [(rules, kept) for rules, kept, _ in KEPT])
def test_what_is_kept_of_prompts_of_unknown_sizes_is_a_bound(rules, kept):
    bound, known = kept_responses(steps(*rules), CandidateCounts(51.0, 17.0))
    assert not known
    assert 51 >= bound >= kept


def test_gpu_seconds_by_hand():
    tokens = Quantity(1e9, 0.9e9, 1.1e9, "sampled")
    found = forward_secs(tokens, parameters=500_000_000, peak_flops=100e12, utilisation=(0.1, 0.4))
    assert found.low == pytest.approx(0.9e9 * 1e9 / 100e12 / 0.4)
    assert found.high == pytest.approx(1.1e9 * 1e9 / 100e12 / 0.1)
    assert found.value == pytest.approx(1e9 * 1e9 / 100e12 / 0.2)
    assert found.basis == "assumed"
    wall = wall_secs(found, workers=4, start=(100, 400))
    assert wall.low == pytest.approx(found.low / 4 + 100)
    assert wall.high == pytest.approx(found.high / 4 + 400)
    assert billed_hours(found, workers=4, start=(100, 400)).high == pytest.approx((found.high + 1600) / 3600)


def test_memory_by_hand():
    weights, room = memory_bytes(parameters=7_000, dtype="bfloat16", tokens=100, hidden=8, intermediate=32)
    assert weights == 14_000
    assert room == 100 * (80 + 96) * 2 + 2**30
    assert memory_bytes(parameters=7_000, dtype="float32", tokens=0, hidden=8, intermediate=32) == (28_000, 2**30)
