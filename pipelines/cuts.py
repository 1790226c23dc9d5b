"""The global cut of `top`: the best rows, or tokens, of each stratum, exactly, by counting. Pure.

A row's order key has 48 bits, smaller is better: the reward's order-preserving bits, complemented, and 16 bits of the response
hash. Three passes of 16 bits each count the rows (and tokens) per value inside the bin that the pass before found; whatever lies
in the last bin together is listed and sorted by the whole tie rule. Counts are integers, so any order of merging gives the same
cut. A pass sends at most 65,536 bins of 24 bytes a stratum and worker (1.6 MB), whatever the number of rows; for 1e9 rows of
equal reward and different text the listed bin holds about 15,000.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.candidates import Candidates, Mask, worst_bits
from pipelines.config import Top

PASSES = 3
REWARD_PASSES = 2  # the first, which look at rewards alone
_BITS = 16

Stratum = str | None
Bins = dict[Stratum, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]
"""Stratum → (bins, rows, tokens), bins ascending."""
Tie = tuple[int, int, int, int, int]  # response hash, file, unit, row, response
Ties = dict[Stratum, list[tuple[Tie, int]]]
"""Stratum → (tie, tokens) of the rows that the passes could not tell apart."""


@dataclass(frozen=True)
class Boundary:
    """Where a stratum is cut, as far as it is known: keys below `prefix` are kept, those equal to it are open."""

    prefix: int = 0  # the leading 16 * `digits` bits of the key
    left: int = 0  # rows, or tokens, that the open ones still may take
    open: bool = True
    last: Tie | None = None  # of the open ones, the last that is kept


@dataclass(frozen=True)
class Cut:
    """The cuts of one `top`, by stratum; `digits` passes are behind it."""

    rule: Top
    digits: int = 0
    boundaries: dict[Stratum, Boundary] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """Whether no further pass is needed."""
        return self.digits > 0 and not any(boundary.open for boundary in self.boundaries.values())


def order_keys(candidates: Candidates) -> npt.NDArray[np.uint64]:
    """48 bits, smaller is better."""
    reward = worst_bits(candidates.reward).astype(np.uint64)
    return (reward << np.uint64(_BITS)) | (candidates.response_hash >> np.uint64(64 - _BITS))


def count_bins(candidates: Candidates, cut: Cut) -> Bins:
    """Rows and tokens by the next 16 bits of the key, for the open rows of each stratum."""
    found: Bins = {}
    if cut.decided or not len(candidates):
        return found
    shift = np.uint64(_BITS * (PASSES - cut.digits))
    keys = order_keys(candidates)
    digit = ((keys >> (shift - np.uint64(_BITS))) & np.uint64(0xFFFF)).astype(np.intp)
    for stratum, mask in _strata(candidates, cut.rule):
        boundary = cut.boundaries.get(stratum, Boundary())
        if not boundary.open:
            continue
        own = mask
        if cut.digits:
            inside = keys >> shift == np.uint64(boundary.prefix)
            own = inside if mask is None else inside & mask
        bins = digit if own is None else digit[own]
        tokens = candidates.tokens if own is None else candidates.tokens[own]
        rows = np.bincount(bins, minlength=1)
        used = np.flatnonzero(rows)
        by_tokens = cut.rule.tokens is not None  # float64 weights are exact below 2**53 tokens
        weights = np.bincount(bins, weights=tokens, minlength=1)[used].astype(np.int64) if by_tokens else rows[used]
        found[stratum] = (used, rows[used].astype(np.int64), weights)
    return found


def merge_bins(parts: Iterable[Bins]) -> Bins:
    collected: dict[Stratum, list[tuple[npt.NDArray[np.int64], ...]]] = {}
    for part in parts:
        for stratum, columns in part.items():
            collected.setdefault(stratum, []).append(columns)
    merged: Bins = {}
    for stratum, pieces in collected.items():
        bins, where = np.unique(np.concatenate([piece[0] for piece in pieces]), return_inverse=True)
        rows, tokens = np.zeros(len(bins), dtype=np.int64), np.zeros(len(bins), dtype=np.int64)
        np.add.at(rows, where, np.concatenate([piece[1] for piece in pieces]))
        np.add.at(tokens, where, np.concatenate([piece[2] for piece in pieces]))
        merged[stratum] = (bins, rows, tokens)
    return merged


def refine(cut: Cut, bins: Bins) -> Cut:
    """The cut after one more pass, whose merged counts are `bins`."""
    boundaries = dict(cut.boundaries)
    for stratum, (numbers, rows, tokens) in bins.items():
        boundary = boundaries.get(stratum, Boundary())
        left = boundary.left
        if not cut.digits:
            left = cut.rule.tokens if cut.rule.tokens is not None else cut.rule.target_rows(stratum, int(rows.sum()))
        sums = np.cumsum(tokens if cut.rule.tokens is not None else rows)
        at = int(np.searchsorted(sums, left, side="right"))  # the first bin that does not fit as a whole
        taken = int(sums[at - 1]) if at else 0
        complete = at == len(sums)
        number = int(numbers[at - 1]) + 1 if complete and at else int(numbers[at]) if not complete else 0
        boundaries[stratum] = Boundary(
            prefix=(boundary.prefix << _BITS) + number,
            left=left - taken,
            # rows left to take none: nothing of this bin is; tokens left over may still hold a row with none of them
            open=not complete and (left > taken or cut.rule.tokens is not None),
        )
    for stratum, boundary in boundaries.items():
        if stratum not in bins:  # decided before: its prefix grows by zeros
            boundaries[stratum] = replace(boundary, prefix=boundary.prefix << _BITS)
    return Cut(cut.rule, cut.digits + 1, boundaries)


def list_ties(candidates: Candidates, cut: Cut) -> Ties:
    """The rows that are still open after all passes."""
    found: Ties = {}
    if cut.decided or not len(candidates):
        return found
    keys = order_keys(candidates)
    for stratum, mask in _strata(candidates, cut.rule):
        boundary = cut.boundaries[stratum]
        if boundary.open:
            equal = keys == np.uint64(boundary.prefix)
            rows = candidates.take(equal if mask is None else equal & mask)
            ties = zip(*(column.tolist() for column in _tie_columns(rows)), strict=True)
            found[stratum] = list(zip(ties, rows.tokens.tolist(), strict=True))
    return found


def merge_ties(parts: Iterable[Ties]) -> Ties:
    merged: Ties = {}
    for part in parts:
        for stratum, ties in part.items():
            merged.setdefault(stratum, []).extend(ties)
    return merged


def settle(cut: Cut, ties: Ties) -> Cut:
    """The final cut: open rows are taken in the fixed order as long as they fit."""
    boundaries = dict(cut.boundaries)
    for stratum, rows in ties.items():
        boundary, last = boundaries[stratum], None
        left = boundary.left
        for tie, tokens in sorted(rows):
            left -= tokens if cut.rule.tokens is not None else 1
            if left < 0:
                break
            last = tie
        boundaries[stratum] = replace(boundary, open=False, last=last)
    return Cut(cut.rule, cut.digits, boundaries)


def keep(candidates: Candidates, cut: Cut) -> Mask:
    """Which rows a settled cut keeps."""
    kept = np.zeros(len(candidates), dtype=bool)
    if not len(candidates):
        return kept
    keys = order_keys(candidates)
    shift = np.uint64(_BITS * (PASSES - cut.digits))
    for stratum, mask in _strata(candidates, cut.rule):
        boundary = cut.boundaries[stratum]
        inside = (keys >> shift) < np.uint64(boundary.prefix)
        if boundary.last is not None:
            equal = np.flatnonzero((keys >> shift) == np.uint64(boundary.prefix))
            rows = candidates.take(equal)
            first = np.zeros(len(equal), dtype=bool)
            even = np.ones(len(equal), dtype=bool)
            for column, bound in zip(_tie_columns(rows), boundary.last, strict=True):
                first |= even & (column < bound)
                even &= column == bound
            inside[equal[first | even]] = True
        kept |= inside if mask is None else inside & mask
    return kept


@dataclass(frozen=True)
class Edge:
    """What a settled cut came to in one stratum: where it runs, and between how many."""

    rows: int = 0
    kept: int = 0
    lowest_kept: float = np.inf  # rewards; infinite where there is none
    highest_dropped: float = -np.inf

    def __add__(self, other: Edge) -> Edge:
        return Edge(
            self.rows + other.rows,
            self.kept + other.kept,
            min(self.lowest_kept, other.lowest_kept),
            max(self.highest_dropped, other.highest_dropped),
        )


Edges = dict[Stratum, Edge]


def measure_edges(candidates: Candidates, cut: Cut) -> Edges:
    """Of the rows that a settled cut was made for."""
    kept, found = keep(candidates, cut), Edges()
    if not len(candidates):
        return found
    reward = candidates.reward.astype(np.float64)
    for stratum, mask in _strata(candidates, cut.rule):
        own = np.ones(len(kept), dtype=bool) if mask is None else mask
        lowest = np.min(reward, where=own & kept, initial=np.inf)
        highest = np.max(reward, where=own & ~kept, initial=-np.inf)
        found[stratum] = Edge(int(own.sum()), int((own & kept).sum()), float(lowest), float(highest))
    return found


def merge_edges(parts: Iterable[Edges]) -> Edges:
    merged: Edges = {}
    for part in parts:
        for stratum, edge in part.items():
            merged[stratum] = merged.get(stratum, Edge()) + edge
    return merged


def strata_of(candidates: Candidates, rule: Top) -> list[Stratum]:
    """The stratum of each row."""
    if rule.per is None:
        return [None] * len(candidates)
    labels = candidates.labels[rule.per]
    return [labels.name_of(code) for code in labels.codes.tolist()]


def top(candidates: Candidates, rule: Top) -> Mask:
    """The cut over columns that are all here: what the passes of the graph come to."""
    cut = Cut(rule)
    for _ in range(PASSES):
        if not cut.decided:
            cut = refine(cut, merge_bins([count_bins(candidates, cut)]))
    return keep(candidates, settle(cut, list_ties(candidates, cut)))


def _tie_columns(candidates: Candidates) -> tuple[Any, ...]:
    c = candidates
    return c.response_hash, c.file, c.unit, c.row, c.response


def _strata(candidates: Candidates, rule: Top) -> list[tuple[Stratum, Mask | None]]:
    if rule.per is None:
        return [(None, None)]
    labels = candidates.labels[rule.per]
    return [
        (labels.name_of(int(code)), labels.codes == code) for code in np.flatnonzero(np.bincount(labels.codes + 1)) - 1
    ]
