"""The split into train and test: the side of a prompt depends only on its hash. No Beam.

So all responses to a prompt, and both sides of a pair, are on one side; a prompt stays on its side when the corpus grows or
shrinks; and of two fractions with the same seed, the test prompts of the smaller are among those of the larger. This is separate
from `shards`, which counts rows and never sees a prompt.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import numpy as np

from pipelines.config import RunConfig
from pipelines.corpus.word_hashes import splitmix
from pipelines.select.candidates import GOLDEN, Candidates, Mask

TRAIN, TEST = "train", "test"


class Split(NamedTuple):
    """The settings of a split; without a fraction, all kept responses are `train`."""

    test_fraction: float | None = None  # the share of prompts that are test, in expectation
    seed: int = 0

    @classmethod
    def of(cls, config: RunConfig) -> Split:
        """Return the split that `output` configures."""
        return cls(config.output.test_fraction, config.output.split_seed)

    @property
    def names(self) -> tuple[str, ...]:
        return (TRAIN,) if self.test_fraction is None else (TRAIN, TEST)

    def parts(self, rows: Candidates) -> list[Candidates]:
        """The rows of each split, in the order of `names`; rows keep their order."""
        if self.test_fraction is None:
            return [rows]
        test = is_test(rows, self.test_fraction, seed=self.seed)
        return [rows.take(~test), rows.take(test)]


def is_test(rows: Candidates, fraction: float, *, seed: int) -> Mask:
    """Return a mask of the test prompts; `fraction`, between 0 and 1, is read as its decimal notation."""
    with np.errstate(over="ignore"):
        low = splitmix(rows.key_low + GOLDEN * np.uint64(seed + 1))
    below = np.uint64(int(Fraction(str(fraction)) * 2**64))
    mask: Mask = splitmix(rows.key_high ^ low) < below
    return mask
