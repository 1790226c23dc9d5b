"""`rank`, `prompt_z` and `corpus_z`, against brute force over rows, whether parts of them are evaluated before or at once."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates

from pipelines.config import Step
from pipelines.select.candidates import Candidates, Labels, zero_columns
from pipelines.select.columns import Needs, concatenate, pack, unpack
from pipelines.select.corpus_standards import measure, merge_moments, settle, with_standards
from pipelines.select.expressions import EarlyParts, combined, evaluate, numbers_of, where
from pipelines.select.rules import apply_rule

REWARDS = [0.1, 0.2, -0.0, 0.0, 1.0, -2.5, 3e38]
MARKS = [None, 0.1, 0.25, -7.0, 1e300]
rows_of_prompts = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(REWARDS), st.sampled_from(MARKS), st.sampled_from([None, 0.0, 1.0])),
    max_size=12,
)


def table(rows):
    return candidates(
        [(prompt, 7, reward, 0, 0, 0, at, 0) for at, (prompt, reward, _, _) in enumerate(rows)],
        labels={
            "mark": [None if row[2] is None else repr(row[2]) for row in rows],
            "ok": [{None: None, 0.0: "false", 1.0: "true"}[row[3]] for row in rows],
        },
    )


def taken(rows, name):
    """The values of what a function takes, None for null."""
    values = [float(np.float32(row[1])) for row in rows] if name.startswith("reward") else [row[2] for row in rows]
    if name == "reward + mark":
        values = [None if row[2] is None else float(np.float32(row[1])) + row[2] for row in rows]
    return [-value if name == "-mark" and value is not None else value for value in values]


def group_of(rows, values, at):
    return [value for row, value in zip(rows, values, strict=True) if row[0] == rows[at][0] and value is not None]


def ranks(rows, name):
    values = taken(rows, name)
    return [
        None if value is None else 1 + sum(other < value for other in group_of(rows, values, at))
        for at, value in enumerate(values)
    ]


def z_of(value, group):
    if value is None or not all(map(math.isfinite, group)):
        return None
    mean = math.fsum(group) / len(group) if max(map(abs, group)) < 1e300 else math.nan
    std = math.sqrt(math.fsum((one - mean) ** 2 for one in group) / len(group)) if math.isfinite(mean) else math.nan
    return 0.0 if len(set(group)) == 1 else (value - mean) / std


def through_the_shuffle(rows, step, *, parts):
    """The rows in the columns that travel, by way of files that hold some of them each, and in another order."""
    early = EarlyParts.of([step], [])
    needs = Needs(
        tokens=True,
        length=True,
        values=early.values,
        marks=early.names(conditions=True),
        computed=early.names(conditions=False),
    )
    packed = [pack(early.evaluate(rows.take(np.arange(len(rows))[part::parts])), needs) for part in range(parts)]
    whole = concatenate([unpack([part], needs) for part in packed[::-1]], needs)
    return whole.take(np.argsort(whole.row, kind="stable"))


@settings(max_examples=60, deadline=None)
@given(rows_of_prompts, st.sampled_from(["reward", "mark", "-mark", "reward + mark"]), st.integers(1, 3))
def test_ranks_are_what_brute_force_says(values, name, parts):
    rows, step = table(values), Step(reward=f"rank({name}) + 0 * coalesce(reward, 1)")
    expected = [math.nan if rank is None else rank for rank in ranks(values, name)]
    assert np.array_equal(combined(rows, step), np.float32(expected), equal_nan=True)
    assert np.array_equal(
        combined(through_the_shuffle(rows, step, parts=parts), step), np.float32(expected), equal_nan=True
    )
    described = numbers_of(rows, step)
    assert np.array_equal(described[f"rank({name})"], expected, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(rows_of_prompts, st.integers(1, 3))
def test_conditions_mix_ranks_with_what_is_known_before(values, parts):
    rows = table(values)
    step = Step(
        where="ok and rank(-reward) <= 2 or rank(mark) == 1 and mark in [0.1, -7] or mark is null and ok is null"
    )
    best, low = ranks([(p, -r, m, o) for p, r, m, o in values], "reward"), ranks(values, "mark")
    wanted = [
        (row[3] == 1 and top <= 2) or (rank == 1 and row[2] in (0.1, -7.0)) or (row[2] is None and row[3] is None)
        for row, top, rank in zip(values, best, low, strict=True)
    ]
    assert apply_rule(rows, step).row.tolist() == [at for at, true in enumerate(wanted) if true]
    moved = through_the_shuffle(rows, step, parts=parts)
    assert np.array_equal(evaluate(moved, step), evaluate(rows, step))
    assert not moved.labels  # texts stay behind


@settings(max_examples=60, deadline=None)
@given(rows_of_prompts, st.sampled_from([-1.0, 0.0, 0.5]))
def test_prompt_z_is_what_brute_force_says_and_what_min_z_compares(values, least):
    rows, step = table(values), Step(reward="prompt_z(reward)")
    known = taken(values, "reward")
    expected = [z_of(value, group_of(values, known, at)) for at, value in enumerate(known)]
    assert combined(rows, step) == pytest.approx(np.float32(expected), rel=1e-6, abs=1e-12)
    kept = apply_rule(rows, Step(where=f"prompt_z(reward) >= {least}")).row.tolist()
    assert kept == apply_rule(rows, Step(threshold={"min_z": least})).row.tolist()
    expected = [
        z_of(value, group_of(values, taken(values, "mark"), at)) for at, value in enumerate(taken(values, "mark"))
    ]
    scores = combined(rows, Step(reward="prompt_z(mark)"))
    assert [None if math.isnan(score) else score for score in scores.tolist()] == [
        None if one is None or math.isnan(one) else pytest.approx(one, rel=1e-6, abs=1e-12) for one in expected
    ]


@settings(max_examples=60, deadline=None)
@given(rows_of_prompts, st.randoms(use_true_random=False), st.integers(1, 4))
def test_corpus_z_counts_all_rows_exactly_in_any_order(values, dice, parts):
    rows, step = table(values), Step(where="corpus_z(reward) >= 0 and corpus_z(2 * mark) is not null")
    order = list(range(len(values)))
    dice.shuffle(order)
    measured = [measure(rows.take(np.array(order[part::parts], dtype=int)), [step]) for part in range(parts)]
    standards = settle(merge_moments(measured))
    assert standards == settle(measure(rows, [step]))
    known = [np.float32(value) for value in taken(values, "reward")]
    doubled = [None if value is None or value > 1e38 else 2 * value for value in taken(values, "mark")]
    group = [float(np.float32(value)) for value in doubled if value is not None]
    expected = [
        z_of(float(value), [float(one) for one in known]) >= 0 and z_of(other, group) is not None
        for value, other in zip(known, doubled, strict=True)
    ]
    assert evaluate(with_standards(rows, [step], standards), step).tolist() == [2 * true for true in expected]


def test_corpus_z_without_its_standards_is_an_error_of_the_caller():
    with pytest.raises(ValueError, match="needs the mean and deviation of the corpus"):
        where(table([(0, 0.1, None, None)]), Step(where="corpus_z(reward) > 0"))


def test_a_rank_after_a_combined_reward_reads_that_reward():
    rows = table([(0, 0.1, 0.25, 0.0), (0, 0.2, 0.1, 0.0), (0, 1.0, None, 1.0)])
    steps = [Step(reward="rank(mark) + (reward > 0.15)"), Step(where="reward > 0.15")]
    early = EarlyParts.of(steps, [])
    left = apply_rule(early.evaluate(rows), steps[0])
    assert left.reward.tolist() == [2.0, 2.0]
    assert len(apply_rule(left, steps[1])) == 2  # and not the one whose own reward is above


RANKED = [
    ("rank(reward) <= 3", "rank() OVER (PARTITION BY prompt ORDER BY reward) <= 3"),
    (
        "rank(-mark) == 1 or rank(reward + tokens / 4) > 9",
        "(mark IS NOT NULL AND rank() OVER (PARTITION BY prompt, mark IS NULL ORDER BY -mark) = 1) "
        "OR rank() OVER (PARTITION BY prompt ORDER BY reward::DOUBLE + tokens / 4.0::DOUBLE) > 9",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("text", "condition"), RANKED)
def test_duckdb_ranks_a_million_rows_alike(text, condition):
    duckdb = pytest.importorskip("duckdb")
    count, rng = 1_000_000, np.random.default_rng(3)
    prompt = rng.integers(0, 120_000, count).astype(np.uint64)
    reward, tokens = rng.integers(-40, 40, count).astype(np.float32) / 8, rng.integers(0, 9, count).astype(np.int32)
    marks, codes = ("0.25", "0.5", "-3"), rng.integers(-1, 3, count).astype(np.int32)
    rows = Candidates(
        **{**zero_columns(count), "key_high": prompt, "reward": reward, "raw": reward, "tokens": tokens},
        labels={"mark": Labels(codes, marks)},
    )
    scored = pa.table(
        {
            "place": np.arange(count),
            "prompt": prompt,
            "reward": reward,
            "tokens": tokens,
            "mark": pa.array([float(mark) for mark in marks]).take(pa.array(codes, mask=codes < 0)),
        }
    )
    connection = duckdb.connect(config={"threads": 1})
    connection.register("scored", scored)
    query = f"SELECT place FROM (SELECT place, {condition} AS kept FROM scored) WHERE kept ORDER BY place"
    kept = np.flatnonzero(where(rows, Step(where=text)))
    assert 0 < len(kept) < count
    assert np.array_equal(kept, connection.execute(query).fetchnumpy()["place"])
