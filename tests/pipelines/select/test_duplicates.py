"""Near-duplicates and greedy cover by signatures, against all pairs compared one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import best_order, candidates, chosen, prompt_groups, tables

from pipelines.config import BestOfN
from pipelines.score.minhash import VALUES, signatures_of
from pipelines.select import duplicates
from pipelines.select.duplicates import (
    BAND,
    DROPPED,
    MEMBER,
    band_hashes,
    compare_groups,
    count_groups,
    drop_alike,
    drop_covered,
    groups_of,
    needed_of,
    nodes_of,
    stays,
)
from pipelines.select.rules import best_of_n


@pytest.mark.parametrize(
    ("similarity", "needed"), [(0.6, 62), (0.7, 76), (0.8, 90), (0.9, 106), (0.99, 123), (1.0, 128)]
)
def test_a_pair_of_the_stated_similarity_has_as_many_equal_values_995_times_in_1000(similarity, needed):
    def reached(count):
        return sum(
            math.comb(VALUES, k) * similarity**k * (1 - similarity) ** (VALUES - k) for k in range(count, VALUES + 1)
        )

    assert needed_of(similarity) == needed
    assert reached(needed) >= 0.995 > (0 if needed == VALUES else reached(needed + 1))


@pytest.mark.parametrize(("shared", "only"), [(80, 10), (90, 5), (75, 15)])
def test_recall_at_exactly_the_stated_similarity(shared, only):
    """Texts of distinct words that have `shared` of them in common, and each `only` so many more."""
    rng, similarity, pairs = np.random.default_rng(4), shared / (shared + 2 * only), 400
    texts = []
    for number in range(pairs):
        words = rng.permutation([f"w{number}x{at}" for at in range(shared + 2 * only)])
        texts += [" ".join(words[: shared + only]), " ".join(np.append(words[:shared], words[shared + only :]))]
    signatures = signatures_of(texts, 1)
    equal = (signatures[::2] == signatures[1::2]).sum(axis=1)
    assert (equal >= needed_of(similarity)).mean() >= 0.99
    assert (signatures[:-2:2] == signatures[2::2]).sum(axis=1).max() < 5


@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.7, 0.8, 0.9, 1.0]), st.data())
@settings(max_examples=60)
def test_two_that_are_alike_share_a_band_wherever_they_differ(seed, similarity, data):
    rng, needed = np.random.default_rng(seed), needed_of(similarity)
    one = rng.integers(0, 2**16, VALUES).astype(np.uint16)
    other = one.copy()
    other[data.draw(st.permutations(range(VALUES)))[: VALUES - needed]] += 1
    first, second = band_hashes(np.stack([one, other]), needed)
    assert (first == second).any()
    assert len(set(first.tolist())) == VALUES - needed + 1
    away = one + rng.integers(2, 2**15, VALUES).astype(np.uint16)  # differs everywhere: a band may be a single value
    assert not np.isin(band_hashes(away[None], needed)[0], first).any()


def signatures_of_rows(rows, seed, kinds, flips):
    """Signatures of few kinds, each row's with some values changed, so that pairs are near the bound on both sides."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2**16, (kinds, VALUES)).astype(np.uint16)
    signatures = base[rng.integers(0, kinds, len(rows))]
    for signature in signatures:
        changed = rng.choice(VALUES, rng.integers(0, flips + 1), replace=False)
        signature[changed] = rng.integers(0, 3, len(changed))
    return signatures


def found_edges(table, nodes, signatures, similarity):
    needed = needed_of(similarity)
    hashes = band_hashes(signatures, needed)
    bands = np.zeros(hashes.size, dtype=BAND)
    bands["hash"], bands["place"] = hashes.ravel(), np.repeat(nodes["place"], hashes.shape[1])
    wanted = groups_of(bands)
    at = {tuple(place.tolist()): number for number, place in enumerate(nodes["place"])}
    numbers = [at[tuple(place.tolist())] for place in wanted["place"]]
    members = np.zeros(len(wanted), dtype=MEMBER)
    members["group"], members["node"], members["signature"] = wanted["group"], nodes[numbers], signatures[numbers]
    return compare_groups(members, needed)


def alike(one, other, similarity):
    return int((one == other).sum()) >= needed_of(similarity)


def slow_nodes(rows, of):
    """The rows that stand for texts, the best first, and the rows that go with each."""
    if of == "response":
        return [(row, [row]) for row in sorted(rows, key=best_order)]
    return sorted(((group[0], group) for group in prompt_groups(rows)), key=lambda one: best_order(one[0]))


CASES = (
    tables(max_size=20),
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.sampled_from([0, 6, 30, 44]),
    st.sampled_from(["prompt", "response"]),
)


def dropped_by(rows, seed, kinds, flips, of, resolve):
    table = candidates(rows)
    nodes = nodes_of(table, of, partition=5)
    assert (nodes["partition"] == 5).all()
    signature = dict(zip((row[4:] for row in rows), signatures_of_rows(rows, seed, kinds, flips), strict=True))
    ordered = np.array([signature[tuple(place.tolist())] for place in nodes["place"]], dtype=np.uint16).reshape(
        -1, VALUES
    )
    edges = found_edges(table, nodes, ordered, 0.8)
    dropped = resolve([edges[: len(edges) // 2], edges[len(edges) // 3 :]])
    kept = chosen(rows, stays(table, of, dropped))
    named = [tuple(place.tolist()) for place in dropped["kept"]]
    assert kept.issuperset(named), "what is named as kept in the stead of others stays"
    largest = max(map(named.count, named), default=-1) + 1
    assert count_groups(dropped) == (len({*named}), largest, len(named))
    return kept, slow_nodes(rows, of), signature


@given(*CASES)
@settings(max_examples=80)
def test_of_connected_ones_the_best_stays(rows, seed, kinds, flips, of):
    kept, nodes, signature = dropped_by(rows, seed, kinds, flips, of, drop_alike)
    label = list(range(len(nodes)))
    for _ in nodes:
        for one in range(len(nodes)):
            for other in range(len(nodes)):
                if alike(signature[nodes[one][0][4:]], signature[nodes[other][0][4:]], 0.8):
                    label[one] = min(label[one], label[other])
    assert kept == {row[4:] for at, (_, group) in enumerate(nodes) if label[at] == at for row in group}


@given(*CASES)
@settings(max_examples=80)
def test_a_greedy_cover_from_the_best_downwards(rows, seed, kinds, flips, of):
    kept, nodes, signature = dropped_by(rows, seed, kinds, flips, of, drop_covered)
    staying = []
    for row, group in nodes:
        if not any(alike(signature[row[4:]], signature[other[4:]], 0.8) for other, _ in staying):
            staying.append((row, group))
    assert kept == {row[4:] for _, group in staying for row in group}


def test_groups_are_compared_in_parts(monkeypatch):
    rows = [(n, 0, float(n), n, 0, 0, n, 0) for n in range(40)]
    signatures = signatures_of_rows(rows, 3, 2, 25)
    table = candidates(rows)
    nodes = nodes_of(table, "response", partition=0)
    whole = duplicates.unique(found_edges(table, nodes, signatures, 0.8))
    monkeypatch.setattr(duplicates, "_PAIRS", 7)
    assert len(whole) > 30
    assert (duplicates.unique(found_edges(table, nodes, signatures, 0.8)) == whole).all()


def test_nothing_is_dropped_where_there_is_nothing():
    nothing = candidates([])
    assert not len(nodes_of(nothing, "prompt", partition=0))
    for resolve in (drop_alike, drop_covered):
        dropped = resolve([])
        assert dropped.dtype == DROPPED
        assert len(dropped) == len(stays(nothing, "prompt", dropped)) == 0


@given(tables(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([0.0, 0.3, 1.0]))
def test_the_same_text_is_one_candidate_where_asked(rows, keep, least, margin):
    rule = BestOfN(keep=keep, min_candidates=least, min_margin=margin, distinct=True)
    expected = set()
    for group in prompt_groups(rows):
        texts: dict[int, object] = {}
        for row in group:
            texts.setdefault(row[3], row)
        distinct = list(texts.values())
        gap = distinct[keep - 1][2] - distinct[keep][2] if len(distinct) > keep else np.inf  # type: ignore[index]
        if len(distinct) >= least and gap >= margin:
            expected |= {row[4:] for row in distinct[:keep]}  # type: ignore[index]
    assert chosen(rows, best_of_n(candidates(rows), rule)) == expected
