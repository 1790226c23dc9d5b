"""Near-duplicates by MinHash signatures: finds similar texts and chooses which to keep. Pure functions.

Two texts are similar if their signatures have as many equal values, of 128, as 995 of 1000 pairs of the stated `similarity`
(`needed_of`). The values are divided into one band more than the number that may differ. So two similar texts agree in all
values of some band (the pigeonhole principle): texts without a common band need not be compared, and no pair is missed. Pairs
with a common band are compared value by value.

A `node` is the row that represents a text: a response, or the best response of a prompt. Nodes are ordered by reward, and
then in the fixed order of rows, so the least node of a set of similar texts is kept.

    nodes = nodes_of(candidates, "response", partition=0)
    edges = compare_groups(groups, nodes, signatures, needed_of(0.8))    # pairs of alike nodes
    drop_alike(edges)                                                  # nodes that go: all but the least of those connected
    drop_covered(edges)                                                # nodes that go: each that is like a better one that stays
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipelines.config import Diverse, NearDuplicates, Step
from pipelines.corpus.word_hashes import Hashes, splitmix
from pipelines.score.minhash import VALUES, Signatures
from pipelines.score.prompt_values import Positions
from pipelines.select.candidates import Candidates, Mask, first_within, group_sizes, worst_bits
from pipelines.select.summary import AlikeTexts

Structured = npt.NDArray[np.void]

PLACE = np.dtype([("file", "<i4"), ("unit", "<i4"), ("row", "<i4"), ("response", "<i4")])
NODE = np.dtype([("worst", "<u4"), ("hash", "<u8"), ("place", PLACE), ("partition", "<i4")])
"""Fields in the fixed order of rows, the best first; and the row's partition of the key space."""
BAND = np.dtype([("hash", "<u8"), ("place", PLACE)])
WANTED = np.dtype([("group", "<u8"), ("place", PLACE)])
"""A row that shares a band with others; rows that share a band are a group."""
MEMBER = np.dtype([("group", "<u8"), ("node", NODE), ("signature", "<u2", (VALUES,))])
EDGE = np.dtype([("better", NODE), ("worse", NODE), ("same", "?")])
"""Two similar nodes; `same` if their signatures are equal."""
DROPPED = np.dtype([("place", PLACE), ("kept", PLACE), ("partition", "<i4")])
"""A row that is dropped, and the row that is kept instead."""

RECALL = Fraction(995, 1000)
"""Least share of the pairs of exactly the stated similarity that count as alike."""
_PAIRS = 1 << 17  # compared at a time: 32 MB of signatures


def rule_of(step: Step) -> NearDuplicates | Diverse:
    """The `near_duplicates` or `diverse` of a step."""
    rule = step.near_duplicates or step.diverse
    if rule is None:
        raise ValueError(f"step {step!r} compares no texts")
    return rule


@lru_cache(maxsize=16)
def needed_of(similarity: float) -> int:
    """The number of equal values with which two texts count as similar: the largest that a share `RECALL` of the pairs of this
    similarity reach, where each value is equal with the probability `similarity`. Integer arithmetic, equal on all machines."""
    share = Fraction(str(similarity))
    equal, other = share.numerator, share.denominator - share.numerator
    wanted, tail = RECALL * share.denominator**VALUES, 0
    for needed in range(VALUES, 0, -1):
        tail += math.comb(VALUES, needed) * equal**needed * other ** (VALUES - needed)
        if tail >= wanted:
            return needed
    return 1


def nodes_of(candidates: Candidates, of: str, *, partition: int) -> Structured:
    """The nodes of some rows: all of them, or the best response of each prompt."""
    worst = worst_bits(candidates.reward)
    rows = candidates
    if of == "prompt":
        first, _ = first_within(candidates, worst)
        rows, worst = candidates.take(first), worst[first]
    nodes = np.zeros(len(rows), dtype=NODE)
    nodes["worst"], nodes["hash"], nodes["place"], nodes["partition"] = (
        worst,
        rows.response_hash,
        places_of(rows),
        partition,
    )
    return nodes


def places_of(candidates: Candidates) -> Structured:
    places = np.zeros(len(candidates), dtype=PLACE)
    for name in ("file", "unit", "row", "response"):
        places[name] = getattr(candidates, name)
    return places


def band_hashes(signatures: Signatures, needed: int) -> Hashes:
    """The hash of each band of each signature [N, bands]; those of different bands differ."""
    bands = np.array_split(np.arange(VALUES), VALUES - needed + 1)
    factors = splitmix(np.arange(1, VALUES + 1, dtype=np.uint64)) | np.uint64(1)
    hashes = np.empty((len(signatures), len(bands)), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for number, positions in enumerate(bands):
            terms = (signatures[:, positions].astype(np.uint64) + np.uint64(1)) * factors[positions]
            hashes[:, number] = splitmix(terms.sum(axis=1, dtype=np.uint64) + np.uint64(number))
    return hashes


def groups_of(bands: Structured) -> Structured:
    """The rows that share the hash of a band with another row, by group. Bands with exactly the same rows are one group."""
    order = np.argsort(bands["hash"], kind="stable")
    bands = bands[order]
    starts, sizes = _runs(bands["hash"])
    several = np.repeat(sizes > 1, sizes)
    bands, sizes = bands[several], sizes[sizes > 1]
    if not len(bands):
        return np.zeros(0, dtype=WANTED)
    starts = np.cumsum(sizes) - sizes
    with np.errstate(over="ignore"):
        names = np.add.reduceat(splitmix(hash_places(bands["place"])), starts)  # whatever their order
    wanted = np.zeros(len(bands), dtype=WANTED)
    wanted["group"], wanted["place"] = np.repeat(names, sizes), bands["place"]
    return unique(wanted)


def hash_places(places: Structured) -> Hashes:
    halves = np.ascontiguousarray(places).view(np.dtype("<u8")).reshape(-1, 2)
    with np.errstate(over="ignore"):
        hashes: Hashes = splitmix(halves[:, 0] + np.uint64(1)) + halves[:, 1] * np.uint64(0x9E3779B97F4A7C15)
    return hashes


def compare_groups(members: Structured, needed: int) -> Structured:
    """The edges between the members of each group (`MEMBER`): of those with equal signatures from the least to every other;
    and between the least ones of each signature, where these are alike."""
    with np.errstate(over="ignore"):
        mixed = members["signature"].astype(np.uint64) + np.uint64(1)
        prints = splitmix((mixed * (splitmix(np.arange(VALUES, dtype=np.uint64)) | np.uint64(1))).sum(axis=1))
    members = members[np.lexsort((*node_order(members["node"]), prints, members["group"]))]
    signatures = np.ascontiguousarray(members["signature"])
    first = np.ones(len(members), dtype=bool)  # of its group and signature
    first[1:] = (members["group"][1:] != members["group"][:-1]) | (signatures[1:] != signatures[:-1]).any(axis=1)
    leaders = np.flatnonzero(first)
    leader_of = np.repeat(leaders, np.diff(leaders, append=len(members)))
    edges = [_edges(members, leader_of[~first], np.flatnonzero(~first), same=True)]
    for left, right in _pairs(members["group"][leaders]):
        one, other = leaders[left], leaders[right]
        alike = np.count_nonzero(signatures[one] == signatures[other], axis=1) >= needed
        edges.append(_edges(members, one[alike], other[alike], same=False))
    return np.concatenate(edges)


def _edges(members: Structured, one: Positions, other: Positions, *, same: bool) -> Structured:
    edges = np.zeros(len(one), dtype=EDGE)
    left, right = members["node"][one], members["node"][other]
    swapped = _is_less(right, left)
    edges["better"], edges["worse"], edges["same"] = (
        np.where(swapped, right, left),
        np.where(swapped, left, right),
        same,
    )
    return edges


def _pairs(groups: npt.NDArray[np.uint64]) -> Iterator[tuple[Positions, Positions]]:
    """Positions of all pairs within runs of equal values, in parts of bounded size."""
    starts, sizes = _runs(groups)
    for size in np.unique(sizes[sizes > 1]).tolist():
        of_size = starts[sizes == size]
        for row in range(size - 1):  # the pairs of the members at this position with all that follow
            step = max(1, _PAIRS // (size - 1 - row))
            for first in range(0, len(of_size), step):
                heads = of_size[first : first + step] + row
                for start in range(row + 1, size, _PAIRS):
                    others = np.arange(start - row, min(size, start + _PAIRS) - row)
                    yield np.repeat(heads, len(others)), (heads[:, None] + others).ravel()


def _runs(values: npt.NDArray[np.uint64]) -> tuple[Positions, Positions]:
    """(where each run of equal values starts, its length)"""
    first = np.ones(len(values), dtype=bool)
    first[1:] = values[1:] != values[:-1]
    starts = np.flatnonzero(first)
    return starts, group_sizes(starts, len(values))


def node_order(nodes: Structured) -> list[npt.NDArray[np.generic]]:
    """The fields by which nodes are ordered, as `np.lexsort` takes them."""
    place = nodes["place"]
    return [place["response"], place["row"], place["unit"], place["file"], nodes["hash"], nodes["worst"]]


def _is_less(one: Structured, other: Structured) -> Mask:
    less, equal = np.zeros(len(one), dtype=bool), np.ones(len(one), dtype=bool)
    for left, right in zip(reversed(node_order(one)), reversed(node_order(other)), strict=True):
        less |= equal & (left < right)
        equal &= left == right
    return less


def unique(rows: Structured) -> Structured:
    """Each row once, in any fixed order."""
    packed = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.dtype.itemsize)))
    return np.unique(packed).view(rows.dtype)


def drop_alike(edges: Iterable[Structured]) -> Structured:
    """All nodes that edges connect, directly or through others, except the least of each component."""
    nodes, better, worse, _ = _numbered(edges)
    labels = np.arange(len(nodes))
    while (labels[better] != labels[worse]).any():
        one, other = labels[better], labels[worse]
        np.minimum.at(labels, one, other)
        np.minimum.at(labels, other, one)
        while (labels[labels] != labels).any():
            labels = labels[labels]
    return _dropped(nodes, labels)


def drop_covered(edges: Iterable[Structured]) -> Structured:
    """The nodes that have an edge to a better node that stays, decided from the best downwards: a greedy cover."""
    nodes, better, worse, same = _numbered(edges)
    kept_by = np.arange(len(nodes))
    undecided = np.ones(len(nodes), dtype=bool)
    kept_by[worse[same]], undecided[worse[same]] = better[same], False  # equal signatures: similar to the same nodes
    better, worse = better[~same], worse[~same]
    while undecided.any():
        open_ends = undecided[better] & undecided[worse]
        blocked = np.zeros(len(nodes), dtype=bool)
        blocked[worse[open_ends]] = True
        stays = undecided & ~blocked
        covered = open_ends & stays[better]
        np.minimum.at(kept_by, worse[covered], better[covered])
        undecided &= ~stays
        undecided[worse[covered]] = False
    return _dropped(nodes, kept_by[kept_by])  # if the twin is dropped as well, the row kept instead of it


def _numbered(edges: Iterable[Structured]) -> tuple[Structured, Positions, Positions, Mask]:
    """(nodes in their order, numbers of the better nodes of all edges, of the worse ones, whether these are the same)"""
    distinct = [np.zeros(0, dtype=EDGE)]
    for part in edges:
        distinct.append(unique(part))
    every = unique(np.concatenate(distinct))
    nodes = np.concatenate([every["better"], every["worse"]])
    order = np.lexsort(node_order(nodes))
    nodes = nodes[order]
    new = np.ones(len(nodes), dtype=bool)
    new[1:] = _is_less(nodes[:-1], nodes[1:])
    numbers = np.empty(len(nodes), dtype=np.intp)
    numbers[order] = np.cumsum(new) - 1
    return nodes[new], numbers[: len(every)], numbers[len(every) :], every["same"]


def _dropped(nodes: Structured, kept_by: Positions) -> Structured:
    gone = np.flatnonzero(kept_by != np.arange(len(nodes)))
    dropped = np.zeros(len(gone), dtype=DROPPED)
    dropped["place"], dropped["kept"] = nodes["place"][gone], nodes["place"][kept_by[gone]]
    dropped["partition"] = nodes["partition"][gone]
    return dropped


def count_groups(dropped: Structured) -> AlikeTexts:
    """The groups of similar texts, of each of which one is kept."""
    if not len(dropped):
        return AlikeTexts()
    _, counts = np.unique(_as_bytes(dropped["kept"]), return_counts=True)
    return AlikeTexts(len(counts), int(counts.max()) + 1, len(dropped))


def stays(candidates: Candidates, of: str, dropped: Structured) -> Mask:
    """The mask of the rows that stay; of prompts, with the best response all go."""
    return kept_instead(candidates, of, dropped)["file"] < 0


def kept_instead(candidates: Candidates, of: str, dropped: Structured) -> Structured:
    """For each row the place (`PLACE`) of the row that is kept instead; file -1 if the row itself is kept."""
    instead = np.zeros(len(candidates), dtype=PLACE)
    instead["file"] = -1
    if not len(candidates) or not len(dropped):
        return instead
    first, sizes = (
        (np.arange(len(candidates)), None)
        if of == "response"
        else first_within(candidates, worst_bits(candidates.reward))
    )
    known = _as_bytes(dropped["place"])
    order = np.argsort(known)
    wanted = _as_bytes(places_of(candidates)[first])
    at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    hit = known[order[at]] == wanted
    answer = np.zeros(len(first), dtype=PLACE)
    answer["file"] = -1
    answer[hit] = dropped["kept"][order[at[hit]]]
    if sizes is None:
        return answer
    instead[candidates.prompts[0]] = np.repeat(answer, sizes)
    return instead


def _as_bytes(places: Structured) -> npt.NDArray[np.void]:
    return np.ascontiguousarray(places).view(np.dtype((np.void, PLACE.itemsize)))
