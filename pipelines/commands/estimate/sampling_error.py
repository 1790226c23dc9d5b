"""Estimates of a corpus's totals from sampled blocks of rows, with the intervals of their sampling error. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.commands.estimate.quantity import Quantity

_NORMAL = 1.959963985  # the 97.5 % quantile
_ONE_BLOCK = 2.0  # the assumed error, as a factor, of a single block of a large corpus


class Block(NamedTuple):
    """Consecutive rows of a corpus, all of them read: a cluster of the sample."""

    measure: float  # its share of the corpus, in rows or in bytes of the stored file
    rows: int
    size: float  # sum over all rows of a known value that correlates with the wanted one: length of text
    pairs: Sequence[tuple[float, float]]  # (known value, wanted value) of rows drawn at random from it


def block_totals(blocks: Sequence[Block]) -> list[tuple[float, float]]:
    """Return (total of the wanted value, its variance) of each block: generalised regression estimator (Särndal et al. 1992).

    With the ratio r = Σy / Σx over all drawn rows, weighted by how many each stands for, and residuals e = y − r x, a block
    of N rows of which n are drawn has r X + N mean(e), with the variance N² (1 − n/N) s²(e) / n.
    """
    weights = [block.rows / len(block.pairs) if block.pairs else 0.0 for block in blocks]
    size = sum(w * x for w, block in zip(weights, blocks, strict=True) for x, _ in block.pairs)
    wanted = sum(w * y for w, block in zip(weights, blocks, strict=True) for _, y in block.pairs)
    ratio = wanted / size if size else 0.0
    pooled = _variance([y - ratio * x for block in blocks for x, y in block.pairs])
    totals = []
    for block in blocks:
        residuals = [y - ratio * x for x, y in block.pairs]
        drawn = len(residuals)
        if not drawn:
            totals.append((ratio * block.size, block.rows**2 * pooled))
            continue
        spread = _variance(residuals) if drawn > 1 else pooled
        total = ratio * block.size + block.rows * sum(residuals) / drawn
        totals.append((total, block.rows**2 * max(0.0, 1 - drawn / block.rows) * spread / drawn))
    return totals


def whole_total(blocks: Sequence[Block]) -> Quantity:
    """Return the corpus total if the blocks are the whole corpus: a stratified sample."""
    totals = block_totals(blocks)
    drawn = all(len(block.pairs) == block.rows for block in blocks)
    value, variance = sum(total for total, _ in totals), sum(variance for _, variance in totals)
    return Quantity.exact(value) if drawn else _interval(value, variance, freedom=None)


def sampled_total(blocks: Sequence[Block], measure: Quantity) -> Quantity:
    """Return the corpus total from some blocks of a corpus of this `measure`: two stages, ratio to size (Cochran 1977, 11.30).

    With the blocks' totals Y and measures m, R = ΣY / Σm, n of N blocks, f = n / N:
    Var(R) = (1 − f) n Σ(Y − R m)² / (n − 1) / (Σm)² + f ΣVar(Y) / (Σm)²; the total is R times the measure.
    """
    totals, count = block_totals(blocks), len(blocks)
    sampled = sum(block.measure for block in blocks)
    if not sampled:
        return Quantity(0.0, 0.0, 0.0, "sampled")
    ratio = sum(total for total, _ in totals) / sampled
    value = ratio * measure.value
    if count == 1:
        return Quantity(value, value / _ONE_BLOCK, value * _ONE_BLOCK, "sampled")
    share = min(1.0, sampled / measure.value) if measure.value else 1.0
    squares = sum((total - ratio * block.measure) ** 2 for (total, _), block in zip(totals, blocks, strict=True))
    variance = (1 - share) * count * squares / (count - 1) + share * sum(variance for _, variance in totals)
    by_ratio = _interval(value, variance * (measure.value / sampled) ** 2, freedom=count - 1)
    below = math.hypot(value - by_ratio.low, ratio * (measure.value - measure.low))
    above = math.hypot(by_ratio.high - value, ratio * (measure.high - measure.value))
    return Quantity(value, max(0.0, value - below), value + above, "sampled")


def _interval(value: float, variance: float, *, freedom: int | None) -> Quantity:
    half = (_NORMAL if freedom is None else t_quantile(freedom)) * math.sqrt(max(0.0, variance))
    return Quantity(value, max(0.0, value - half), value + half, "sampled")


def _variance(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish-Fisher (Abramowitz & Stegun
    26.7.5), accurate to 0.005."""
    if freedom == 1:
        return 12.706204736
    if freedom == 2:
        return 4.302652730
    z, n = _NORMAL, float(freedom)
    terms = (
        (z**3 + z) / 4 / n,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96 / n**2,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 / n**3,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160 / n**4,
    )
    return z + sum(terms)
