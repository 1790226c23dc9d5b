"""The global cut of `top`: the best rows, or tokens, of each stratum, exactly, by counting. Pure.

A row's order key has 48 bits, smaller is better: the reward's order-preserving bits, complemented, and 16 bits of the response
hash. Three passes of 16 bits each count the rows (and tokens) per value inside the bin found by the previous pass; rows in the
last bin are listed and sorted by the whole tie rule. Counts are integers, so any order of merging gives the same cut. A pass
sends at most 65,536 bins of 24 bytes a stratum and worker (1.6 MB), whatever the number of rows; for 1e9 rows of
equal reward and different text the listed bin holds about 15,000.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.select.candidates import Candidates, Mask, worst_bits

PASSES = 3
REWARD_PASSES = 2  # the first passes, which look at rewards alone
_BITS = 16
_DENSE = 64 << _BITS  # bins that are counted in an array, 32 MB
_NO_KEY = 1 << 63

Stratum = str | None
Bins = dict[Stratum, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]]
"""Stratum → (bins, rows, tokens), bins ascending."""
Tie = tuple[int, int, int, int, int]  # response hash, file, unit, row, response
Ties = dict[Stratum, list[tuple[Tie, int]]]
"""Stratum → (tie, tokens) of the rows that the passes could not tell apart."""


@dataclass(frozen=True)
class Boundary:
    """The cut of a stratum, so far: keys below `prefix` are kept, keys equal to it are undecided."""

    prefix: int = 0  # the leading 16 * `digits` bits of the key
    left: int = 0  # rows, or tokens, that open rows may still take
    open: bool = True
    last: Tie | None = None  # the last open row that is kept


class CutRule(Protocol):
    """A rule that keeps a number of rows of each stratum, such as `Top`."""

    @property
    def per(self) -> str | None: ...

    @property
    def tokens(self) -> int | None: ...

    def target_rows(self, stratum: str | None, available: int) -> int: ...


@dataclass(frozen=True)
class Cut:
    """The cuts of one rule, by stratum; `digits` is the number of passes made."""

    rule: CutRule
    digits: int = 0
    boundaries: dict[Stratum, Boundary] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        """True if no further pass is needed."""
        return self.digits > 0 and not any(boundary.open for boundary in self.boundaries.values())


@dataclass(frozen=True)
class Strata:
    """The stratum of each row, as a code."""

    names: tuple[Stratum, ...]  # by code
    codes: npt.NDArray[np.int32] | None  # of each row; None if there is one stratum

    @classmethod
    def of(cls, candidates: Candidates, rule: CutRule) -> Strata:
        if rule.per is None:
            return cls((None,), None)
        labels = candidates.labels[rule.per]
        return cls((None, *labels.values), labels.codes + np.int32(1))

    @property
    def present(self) -> list[int]:
        """Codes that a row has."""
        return [0] if self.codes is None else np.flatnonzero(np.bincount(self.codes)).tolist()

    def spread(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Values by code → by row."""
        return values[:1] if self.codes is None else values[self.codes]

    def at(self, rows: npt.NDArray[np.intp]) -> list[Stratum]:
        """The strata of some rows."""
        codes = [0] * len(rows) if self.codes is None else self.codes[rows].tolist()
        return [self.names[code] for code in codes]


def _digits(candidates: Candidates, count: int) -> npt.NDArray[np.uint64] | npt.NDArray[np.uint32]:
    """The leading `count` digits of each row's key; hashes are read only for digits after those of the reward."""
    worst = worst_bits(candidates.reward)
    if count <= REWARD_PASSES:
        return worst >> np.uint32(_BITS * (REWARD_PASSES - count)) if count else np.zeros_like(worst)
    return (worst.astype(np.uint64) << np.uint64(_BITS)) | (candidates.response_hash >> np.uint64(64 - _BITS))


def _open_rows(candidates: Candidates, cut: Cut, strata: Strata) -> npt.NDArray[np.intp]:
    """Positions of the rows that the cut so far leaves open."""
    boundaries = [cut.boundaries.get(name, Boundary()) for name in strata.names]
    prefixes = np.array([boundary.prefix if boundary.open else _NO_KEY for boundary in boundaries], dtype=np.uint64)
    return np.flatnonzero(_digits(candidates, cut.digits) == strata.spread(prefixes))


def count_bins(candidates: Candidates, cut: Cut) -> Bins:
    """Rows and tokens by the next 16 bits of the key, for the open rows of each stratum."""
    if cut.decided or not len(candidates):
        return {}
    strata = Strata.of(candidates, cut.rule)
    part = candidates
    if cut.digits:
        part = candidates.take(_open_rows(candidates, cut, strata))
        strata = Strata.of(part, cut.rule)
    bins_of: Bins = {}
    if not len(part):
        return bins_of
    bins = (_digits(part, cut.digits + 1) & 0xFFFF).astype(np.int64)
    if strata.codes is not None:
        bins |= strata.codes.astype(np.int64) << _BITS
    by_tokens = cut.rule.tokens is not None
    used, counts, tokens = _tally(bins, part.tokens if by_tokens else None, most=len(strata.names) << _BITS)
    stratum, digit = used >> _BITS, used & 0xFFFF
    starts = np.flatnonzero(np.diff(stratum, prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(used)), strict=True):
        bins_of[strata.names[stratum[start]]] = (digit[start:end], counts[start:end], tokens[start:end])
    return bins_of


def _tally(
    bins: npt.NDArray[np.int64], tokens: npt.NDArray[np.int32] | None, *, most: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(bins that hold a row, ascending; their rows; their tokens, or rows again); all bins are below `most`."""
    names = None
    if most > _DENSE:
        names, bins = np.unique(bins, return_inverse=True)
    rows = np.bincount(bins)
    held = np.flatnonzero(rows)  # float64 weights are exact below 2**53 tokens
    weights = rows if tokens is None else np.bincount(bins, weights=tokens).astype(np.int64)
    return held if names is None else names[held], rows[held], weights[held]


def merge_bins(parts: Iterable[Bins]) -> Bins:
    collected: dict[Stratum, list[tuple[npt.NDArray[np.int64], ...]]] = {}
    for part in parts:
        for stratum, columns in part.items():
            collected.setdefault(stratum, []).append(columns)
    merged: Bins = {}
    for stratum, pieces in collected.items():
        bins, positions = np.unique(np.concatenate([piece[0] for piece in pieces]), return_inverse=True)
        rows, tokens = np.zeros(len(bins), dtype=np.int64), np.zeros(len(bins), dtype=np.int64)
        np.add.at(rows, positions, np.concatenate([piece[1] for piece in pieces]))
        np.add.at(tokens, positions, np.concatenate([piece[2] for piece in pieces]))
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
            # with no rows left to take, none of this bin is taken; with no tokens left, a row without tokens still fits
            open=not complete and (left > taken or cut.rule.tokens is not None),
        )
    for stratum, boundary in boundaries.items():
        if stratum not in bins:  # decided before: its prefix grows by zeros
            boundaries[stratum] = replace(boundary, prefix=boundary.prefix << _BITS)
    return Cut(cut.rule, cut.digits + 1, boundaries)


def list_ties(candidates: Candidates, cut: Cut) -> Ties:
    """The rows that are still open after all passes."""
    ties: Ties = {}
    if cut.decided or not len(candidates):
        return ties
    strata = Strata.of(candidates, cut.rule)
    at = _open_rows(candidates, cut, strata)
    rows = candidates.take(at)
    for name, tie, tokens in zip(strata.at(at), _ties(rows), rows.tokens.tolist(), strict=True):
        ties.setdefault(name, []).append((tie, tokens))
    return ties


def merge_ties(parts: Iterable[Ties]) -> Ties:
    merged: Ties = {}
    for part in parts:
        for stratum, ties in part.items():
            merged.setdefault(stratum, []).extend(ties)
    return merged


def settle(cut: Cut, ties: Ties) -> Cut:
    """The final cut: undecided rows are kept in the fixed order while they fit."""
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
    """The mask of the rows that a settled cut keeps."""
    if not len(candidates):
        return np.zeros(0, dtype=bool)
    strata = Strata.of(candidates, cut.rule)
    bounds = np.zeros(len(strata.names), dtype=np.uint64)
    last = {strata.names[code]: cut.boundaries[strata.names[code]].last for code in strata.present}
    for code in strata.present:
        bounds[code] = cut.boundaries[strata.names[code]].prefix
    digits, row_bounds = _digits(candidates, cut.digits), strata.spread(bounds)
    kept: Mask = digits < row_bounds
    if any(tie is not None for tie in last.values()):
        equal = np.flatnonzero(digits == row_bounds)
        for at, name, tie in zip(equal.tolist(), strata.at(equal), _ties(candidates.take(equal)), strict=True):
            bound = last[name]
            kept[at] = bound is not None and tie <= bound
    return kept


@dataclass(frozen=True)
class CutEdge:
    """The result of a settled cut in one stratum: its rows, those kept, and the rewards on both sides of the cut."""

    rows: int = 0
    kept: int = 0
    lowest_kept: float = np.inf  # rewards; infinite where there is none
    highest_dropped: float = -np.inf

    def __add__(self, other: CutEdge) -> CutEdge:
        return CutEdge(
            self.rows + other.rows,
            self.kept + other.kept,
            min(self.lowest_kept, other.lowest_kept),
            max(self.highest_dropped, other.highest_dropped),
        )


CutEdges = dict[Stratum, CutEdge]


def measure_edges(candidates: Candidates, cut: Cut) -> CutEdges:
    """The edges of a settled cut in each stratum of `candidates`, which are rows that the cut was made for."""
    kept, edges = keep(candidates, cut), CutEdges()
    if not len(candidates):
        return edges
    reward, strata = candidates.reward.astype(np.float64), Strata.of(candidates, cut.rule)
    for code in strata.present:
        in_stratum = np.ones(len(kept), dtype=bool) if strata.codes is None else strata.codes == code
        lowest = np.min(reward, where=in_stratum & kept, initial=np.inf)
        highest = np.max(reward, where=in_stratum & ~kept, initial=-np.inf)
        edges[strata.names[code]] = CutEdge(
            int(in_stratum.sum()), int((in_stratum & kept).sum()), float(lowest), float(highest)
        )
    return edges


def merge_edges(parts: Iterable[CutEdges]) -> CutEdges:
    merged: CutEdges = {}
    for part in parts:
        for stratum, edge in part.items():
            merged[stratum] = merged.get(stratum, CutEdge()) + edge
    return merged


def _ties(candidates: Candidates) -> Iterator[Tie]:
    c = candidates
    columns = (c.response_hash, c.file, c.unit, c.row, c.response)
    return zip(*(column.tolist() for column in columns), strict=True)
