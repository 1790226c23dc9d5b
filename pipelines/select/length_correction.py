"""Length correction: reward minus a LOWESS fit of reward on length (Cleveland 1979; Huang et al. 2024). Pure.

The curve is fitted on a sample of fixed size: the responses with the smallest hashes. So it does not depend on the order of the
files, costs the same for any corpus, and samples of parts can be merged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.select.candidates import Candidates, hash_rows

SAMPLE = 4096
_KNOTS = 129  # the curve is evaluated here, and is linear between


@dataclass(frozen=True)
class HashSample:
    """A random sample of responses: those with the smallest hashes, smallest first; at most `SAMPLE`."""

    chance: npt.NDArray[np.uint64]
    length: npt.NDArray[np.int32]
    tokens: npt.NDArray[np.int32]
    reward: npt.NDArray[np.float32]

    @classmethod
    def of(cls, candidates: Candidates) -> HashSample:
        chance = hash_rows(candidates)
        chosen = np.arange(len(chance))
        if len(chance) > SAMPLE:
            bound = min(2**64 - 1, 2**65 * SAMPLE // len(chance))  # about twice as many are below
            likely = np.flatnonzero(chance <= np.uint64(bound))
            chosen = likely if len(likely) >= SAMPLE else chosen
        c = candidates
        return merge_samples([cls(chance[chosen], c.length[chosen], c.tokens[chosen], c.reward[chosen])])

    def __len__(self) -> int:
        return len(self.chance)


def merge_samples(parts: Iterable[HashSample]) -> HashSample:
    """The sample of all rows that the parts are samples of."""
    whole = [*parts]
    if not whole:
        return HashSample(np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    names = ("chance", "length", "tokens", "reward")
    columns = {name: np.concatenate([getattr(part, name) for part in whole]) for name in names}
    chance = columns["chance"]
    order = np.argsort(chance)[: SAMPLE + 1]
    if np.any(np.diff(chance[order]) == 0):  # the same response to the same prompt
        order = np.lexsort((columns["reward"], columns["tokens"], columns["length"], chance))
    return HashSample(**{name: column[order[:SAMPLE]] for name, column in columns.items()})


@dataclass(frozen=True)
class Curve:
    """A piecewise linear function of length; constant outside the lengths it was fitted on."""

    lengths: tuple[float, ...]
    rewards: tuple[float, ...]

    def __call__(self, lengths: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        return np.interp(lengths.astype(np.float64), self.lengths, self.rewards)

    def correct(self, candidates: Candidates) -> Candidates:
        """The same rows with `reward` less the curve; `raw` stays."""
        corrected = (candidates.reward.astype(np.float64) - self(candidates.length)).astype(np.float32)
        return candidates.with_columns(reward=corrected)

    def to_json(self) -> dict[str, Any]:
        """A few points of the curve, for the report."""
        chosen = np.unique(np.linspace(0, len(self.lengths) - 1, 9).round().astype(int))
        return {"length": [self.lengths[at] for at in chosen], "reward": [self.rewards[at] for at in chosen]}


def fit(sample: HashSample, *, span: float) -> Curve:
    """LOWESS without robustness steps: at each knot a line, weighted by the tricube of the distance, through the nearest
    `span` of the sample. If all lengths are equal, it is the mean."""
    if not len(sample):
        return Curve((0.0,), (0.0,))
    order = np.lexsort((sample.reward, sample.length))
    x, y = sample.length[order].astype(np.float64), sample.reward[order].astype(np.float64)
    knots = np.unique(np.quantile(x, np.linspace(0.0, 1.0, _KNOTS)))
    nearest = min(len(x), max(2, int(np.ceil(span * len(x)))))
    return Curve(tuple(knots.tolist()), tuple(_at(knot, x, y, nearest) for knot in knots))


def _at(knot: float, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], nearest: int) -> float:
    distance = np.abs(x - knot)
    width = float(np.partition(distance, nearest - 1)[nearest - 1])
    scaled = distance / width if width > 0 else np.where(distance > 0, 1.0, 0.0)
    weight = (1.0 - np.clip(scaled, 0.0, 1.0) ** 3) ** 3
    total = float(weight.sum())
    if total <= 0.0:  # everything in reach lies on the rim
        return float(y[distance <= width].mean())
    mean_x, mean_y = float(weight @ x) / total, float(weight @ y) / total
    spread = float(weight @ (x - mean_x) ** 2)
    slope = float(weight @ ((x - mean_x) * (y - mean_y))) / spread if spread > 1e-12 * total else 0.0
    return mean_y + slope * (knot - mean_x)
