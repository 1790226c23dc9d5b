"""Numbers of `bestkept plan`: totals from samples with their intervals, kept responses, time, memory and money. Pure.

Everything that is not known exactly is a `Quantity` with the ends of its range and with what it rests on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.config import Step

_NORMAL = 1.959963985  # the 97.5 % quantile
SHUFFLE_BYTES = 48  # a row, in a selection that needs whole prompts; see `pipelines.selection`
_ONE_BLOCK = 2.0  # how far off, as a factor, a single block of a large corpus may be


@dataclass(frozen=True)
class Quantity:
    """A number, the range that it lies in, and what it rests on: exact, sampled (a 95 % interval), measured, assumed, or
    at_most."""

    value: float
    low: float
    high: float
    basis: str

    @classmethod
    def exact(cls, value: float) -> Quantity:
        return cls(value, value, value, "exact")

    def times(self, factor: float) -> Quantity:
        return Quantity(self.value * factor, self.low * factor, self.high * factor, self.basis)

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "low": self.low, "high": self.high, "basis": self.basis}


_ORDER = ("exact", "measured", "sampled", "assumed", "at_most")


def weakest(*bases: str) -> str:
    """What a number rests on that is made of several."""
    return max(bases, key=_ORDER.index)


def total_of(quantities: Sequence[Quantity]) -> Quantity:
    """The sum of independent quantities: half-widths add as the root of their squares, each side by itself."""
    value = sum(each.value for each in quantities)
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in quantities))
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in quantities))
    return Quantity(value, value - below, value + above, weakest("exact", *(each.basis for each in quantities)))


def product_of(left: Quantity, right: Quantity) -> Quantity:
    """Ends times ends: no narrower than the truth, whatever the two have to do with one another. Both are positive."""
    return Quantity(
        left.value * right.value, left.low * right.low, left.high * right.high, weakest(left.basis, right.basis)
    )


class Block(NamedTuple):
    """Consecutive rows of a corpus, all of them read: a cluster of the sample."""

    measure: float  # its part of the corpus: rows, or bytes of the stored file
    rows: int
    size: float  # sum over all rows of what is known of each and goes with the wanted value: length of text
    pairs: Sequence[tuple[float, float]]  # (that, the wanted value) of rows drawn at random from it


def block_totals(blocks: Sequence[Block]) -> list[tuple[float, float]]:
    """(total of the wanted value, its variance) of each block, by the generalised regression estimator (Särndal et al. 1992).

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
    """The corpus total where its blocks are all there are: a stratified sample."""
    totals = block_totals(blocks)
    drawn = all(len(block.pairs) == block.rows for block in blocks)
    value, variance = sum(total for total, _ in totals), sum(variance for _, variance in totals)
    return Quantity.exact(value) if drawn else _interval(value, variance, freedom=None)


def sampled_total(blocks: Sequence[Block], measure: Quantity) -> Quantity:
    """The corpus total from some blocks of a corpus of this `measure`: two stages, ratio to size (Cochran 1977, 11.30).

    With the blocks' totals Y and measures m, R = ΣY / Σm, n of N blocks, f = n / N:
    Var(R) = (1 − f) n Σ(Y − R m)² / (n − 1) / (Σm)² + f ΣVar(Y) / (Σm)²; the total is R times the measure.
    """
    totals, count = block_totals(blocks), len(blocks)
    own = sum(block.measure for block in blocks)
    if not own:
        return Quantity(0.0, 0.0, 0.0, "sampled")
    ratio = sum(total for total, _ in totals) / own
    value = ratio * measure.value
    if count == 1:
        return Quantity(value, value / _ONE_BLOCK, value * _ONE_BLOCK, "sampled")
    share = min(1.0, own / measure.value) if measure.value else 1.0
    apart = sum((total - ratio * block.measure) ** 2 for (total, _), block in zip(totals, blocks, strict=True))
    variance = (1 - share) * count * apart / (count - 1) + share * sum(variance for _, variance in totals)
    by_ratio = _interval(value, variance * (measure.value / own) ** 2, freedom=count - 1)
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
    """The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish-Fisher (Abramowitz & Stegun
    26.7.5), right to 0.005."""
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


class Candidates(NamedTuple):
    """What a step of the selection is given."""

    responses: float
    prompts: float
    sizes: Mapping[int, float] | None = (
        None  # prompts by how many responses they have; None: not known, and all is at most
    )


def kept_responses(steps: Sequence[Step], given: Candidates) -> tuple[float, bool]:
    """(responses that the steps keep, whether that is exact rather than at most), if nothing is rejected.

    What depends on rewards beyond their order is taken to drop nothing: a bound.
    """
    known = given.sizes is not None
    for step in steps:
        best, top = step.best_of_n, step.top
        rule = best or step.random or step.longest
        if rule is not None:
            given = _best(given, rule.keep, least=1 if best is None else best.min_candidates)
            known = known and (best is None or not (best.min_margin or best.min_probability))
        elif top is not None:
            plain = top.per is None and top.tokens is None
            amount = float(top.target_rows(None, int(given.responses))) if plain else given.responses
            given, known = Candidates(amount, min(given.prompts, amount)), known and plain
        elif step.pairs is not None:
            given, known = _best(given, 1, least=2), False
        elif step.length_correction is None:
            known = False
        known = known and (given.sizes is not None or step is steps[-1])
    return given.responses, known


def _best(given: Candidates, keep: int, *, least: int) -> Candidates:
    """At most `keep` of each prompt that has at least `least` responses."""
    if given.sizes is None:
        kept = min(given.responses, given.prompts * keep)
        return Candidates(kept, min(given.prompts, kept))
    sizes: dict[int, float] = {}
    for size, prompts in given.sizes.items():
        if size >= least:
            sizes[min(size, keep)] = sizes.get(min(size, keep), 0.0) + prompts
    return Candidates(sum(size * prompts for size, prompts in sizes.items()), sum(sizes.values()), sizes)


def forward_secs(
    computed_tokens: Quantity, *, parameters: int, peak_flops: float, utilisation: tuple[float, float]
) -> Quantity:
    """Seconds of one GPU: 2 x parameters x tokens / (peak x utilisation), parameters without embeddings, attention not counted.

    The range is that of the utilisation, from low to high, times that of the tokens; the value is at their geometric mean.
    """
    low, high = utilisation
    flops = 2.0 * parameters / peak_flops
    return Quantity(
        computed_tokens.value * flops / math.sqrt(low * high),
        computed_tokens.low * flops / high,
        computed_tokens.high * flops / low,
        "assumed",
    )


_CONTEXT_BYTES = 2**30  # of the driver and its libraries
_BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}


def memory_bytes(*, parameters: int, dtype: str, tokens: int, hidden: int, intermediate: int) -> tuple[int, int]:
    """(weights, room beside them) of a forward without gradients: parameters x bytes of the type; and one layer's hidden states
    (10 x hidden) and feed-forward (3 x intermediate) of every token at once, with 1 GiB for the driver."""
    each = _BYTES_OF[dtype]
    return parameters * each, tokens * (10 * hidden + 3 * intermediate) * each + _CONTEXT_BYTES


def wall_secs(work: Quantity, *, workers: int, start: tuple[float, float]) -> Quantity:
    """Time of `work` seconds spread evenly over workers that take between `start` seconds to be there."""
    low, high = start
    return Quantity(
        work.value / workers + math.sqrt(low * high), work.low / workers + low, work.high / workers + high, work.basis
    )


def billed_hours(work: Quantity, *, workers: int, start: tuple[float, float]) -> Quantity:
    """Worker hours that are paid for: the work, and each worker's start."""
    return wall_secs(work, workers=workers, start=start).times(workers / 3600)


def as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping with its quantities as plain values, at any depth."""

    def plain(value: Any) -> Any:
        if isinstance(value, Quantity):
            return value.to_json()
        if isinstance(value, Mapping):
            return as_json(value)
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in values.items()}
