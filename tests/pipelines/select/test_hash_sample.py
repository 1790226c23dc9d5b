"""The sample that report and length correction are made on: the smallest hashes, whatever the order and the parts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import candidates

from pipelines.select import length_correction
from pipelines.select.length_correction import HashSample, merge_samples

rows = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 7, 2**63, 2**64 - 1]),
        st.integers(0, 3),
        st.integers(0, 3),
        st.sampled_from([0.5, -1.0]),
    ),
    max_size=20,
)


def plain(values, most):
    return sorted(values)[:most]


def columns(sample):
    names = ("chance", "length", "tokens", "reward")
    return list(zip(*(getattr(sample, name).tolist() for name in names), strict=True))


@settings(max_examples=300)
@given(rows, st.integers(1, 8), st.lists(st.integers(0, 20), max_size=2))
def test_the_smallest_hashes_in_any_split(values, most, cuts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_correction, "SAMPLE", most)
        patch.setattr(length_correction, "hash_rows", lambda c: c.response_hash)

        def sample(part):
            table = candidates([(0, 0, reward, chance, 0, 0, n, 0) for n, (chance, _, _, reward) in enumerate(part)])
            sizes = {name: np.array([row[at] for row in part], np.int32) for at, name in ((1, "length"), (2, "tokens"))}
            return HashSample.of(table.with_columns(**sizes))

        expected = plain(values, most)
        assert columns(sample(values)) == expected
        edges = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
        parts = [sample(values[start:end]) for start, end in itertools.pairwise(edges)]
        assert columns(merge_samples(parts[::-1])) == expected


@pytest.mark.parametrize("first", [0, 2**64 - 10_000], ids=["all-low", "all-high"])
def test_hashes_need_not_be_spread_evenly(monkeypatch, first):
    """All of them, or none, below the bound that chance suggests."""
    chance = np.random.default_rng(0).permutation(np.arange(10_000, dtype=np.uint64)) + np.uint64(first)
    monkeypatch.setattr(length_correction, "hash_rows", lambda _: chance)
    found = HashSample.of(candidates([(0, 0, 0.5, 0, 0, 0, 0, 0)] * len(chance)))
    assert found.chance.tolist() == np.sort(chance)[: length_correction.SAMPLE].tolist()
