"""What is observed of a corpus: the same in whatever parts it is seen, and right against the obvious way."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report import observations
from pipelines.report.observations import EXTREMES, OTHERS, ROWS, Observations, merge_observations

rewards = st.sampled_from([-2.0, -0.5, 0.0, 0.5, 0.75, 3.0])
keys = st.sampled_from([1, 2, 2**64 - 1])
sources = st.sampled_from([None, "a", "b", "c"])


@st.composite
def corpora(draw, least=0):
    places = draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 9)), unique=True, min_size=least, max_size=40
        )
    )
    return [
        {
            "key_high": draw(keys),
            "key_low": draw(keys),
            "response_hash": draw(st.integers(0, 3)),
            "file": file,
            "unit": unit,
            "row": row,
            "response": 0,
            "reward": draw(rewards),
            "size": draw(st.integers(1, 9)),
            "length": draw(st.integers(1, 9)),
            "kept": draw(st.booleans()),
            "source": draw(sources),
            "gold": None,
            "spread": None,
        }
        for file, unit, row in places
    ]


def table(rows) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=ROWS)


def in_pieces(rows, random) -> Observations:
    rows, pieces = list(rows), []
    random.shuffle(rows)
    while rows:
        cut = random.randint(1, len(rows))
        pieces.append(Observations.of(table(rows[:cut]), graded=True))
        rows = rows[cut:]
    while len(pieces) > 1:
        pieces = [merge_observations(pieces[:2]), *pieces[2:]]
        random.shuffle(pieces)
    return pieces[0] if pieces else Observations()


def same(one: Observations, other: Observations) -> bool:
    return (
        (one.sides, one.lengths, one.counts(), one.sizes(), one.histogram.edges.tolist())
        == (other.sides, other.lengths, other.counts(), other.sizes(), other.histogram.edges.tolist())
        and one.sample.equals(other.sample)
        and one.graded.equals(other.graded)
        and one.extremes.equals(other.extremes)
    )


@given(corpora(), st.randoms(use_true_random=False))
def test_parts_in_any_order_are_the_whole(rows, random):
    assert same(in_pieces(rows, random), Observations.of(table(rows), graded=True))


@given(corpora(least=8), st.randoms(use_true_random=False))
def test_parts_are_the_whole_where_samples_and_sources_are_cut(rows, random):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observations, "SAMPLE_ROWS", 5)
        patch.setattr(observations, "GRADED_ROWS", 9)
        patch.setattr(observations, "_PER_PROMPT", 2)
        patch.setattr(observations, "EXTREMES", 2)
        patch.setattr(observations, "SOURCES", 2)
        merged, whole = in_pieces(rows, random), Observations.of(table(rows), graded=True)
        assert same(merged, whole)
        named = {source for source, _ in whole.sides} - {None, OTHERS}
        assert len(named) <= 2
        assert (OTHERS in {source for source, _ in whole.sides}) == (len({row["source"] for row in rows} - {None}) > 2)
        counts = Counter((row["key_high"], row["key_low"]) for row in rows)
        capped = {key: min(2, count) for key, count in counts.items()}
        for sample, most in ((whole.sample, 5), (whole.graded, 9)):
            sampled = Counter(zip(sample["key_high"].to_pylist(), sample["key_low"].to_pylist(), strict=True))
            assert all(capped[key] == count for key, count in sampled.items()), (
                "prompts are whole, up to the most of one"
            )
            total = sum(sampled.values())
            assert total == sum(capped.values()) or total >= most
            assert total - [*sampled.values()][-1] < most, "the last prompt is the one that fills it"
        assert whole.graded.slice(0, whole.sample.num_rows).equals(whole.sample)
        assert Observations.of(table(rows)).graded.num_rows == 0, "only where gold is read"


@given(corpora())
def test_counts_are_those_of_the_rows(rows):
    found = Observations.of(table(rows))
    expected: dict[tuple[str | None, bool], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in rows:
        for at, value in enumerate((1, row["size"], row["length"])):
            expected[row["source"], row["kept"]][at] += value
    assert set(found.sides) == set(expected)
    assert found.counts() == {side: count for side, (count, _, _) in expected.items()}
    assert found.sizes() == {side: size for side, (_, size, _) in expected.items()}
    assert found.lengths == {side: length for side, (_, _, length) in expected.items()}


@given(corpora())
def test_extremes_are_the_highest_and_lowest_of_each_side(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observations, "EXTREMES", 3)
        found = Observations.of(table(rows)).extremes.to_pylist()

    def order(row):
        return tuple(row[name] for name in ("response_hash", "file", "unit", "row", "response"))

    expected = []
    for kept in (True, False):
        side = [row for row in rows if row["kept"] == kept]
        for sign in (1, -1):
            expected += sorted(side, key=lambda row, sign=sign: (sign * row["reward"], order(row)))[:3]
    assert sorted(map(order, found)) == sorted(set(map(order, expected)))


def test_a_large_part_is_sampled_like_small_ones():
    count = 8 * observations.SAMPLE_ROWS
    random = np.random.default_rng(0)
    rows = pa.table(
        {
            "key_high": random.integers(0, count // 8, count).astype(np.uint64) * np.uint64(2**40),
            "key_low": np.zeros(count, np.uint64),
            "response_hash": random.integers(0, 2**63, count).astype(np.uint64),
            "reward": random.normal(size=count).astype(np.float32),
            "row": np.arange(count, dtype=np.int32),
            "size": np.ones(count, np.int32),
            "length": np.ones(count, np.int32),
            "kept": random.random(count) < 0.1,
            "gold": pa.nulls(count, pa.float64()),
            "spread": pa.nulls(count, pa.float32()),
            "source": pa.nulls(count, pa.string()),
            **{name: np.zeros(count, np.int32) for name in ("file", "unit", "response")},
        }
    ).select(ROWS.names)
    whole = Observations.of(rows)
    parts = merge_observations(Observations.of(rows.slice(start, 2048)) for start in range(0, count, 2048))
    assert same(whole, parts)
    assert observations.SAMPLE_ROWS <= whole.sample.num_rows < observations.SAMPLE_ROWS + 64
    assert whole.extremes.num_rows == 4 * EXTREMES
