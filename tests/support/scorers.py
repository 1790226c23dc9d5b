"""Scorers of tiny models on the CPU, and texts for them."""

from __future__ import annotations

import random

from support.tiny_models import WORDS

from rm.scorer import Scorer


def load(directory, *, tokens_per_batch: int = 256, max_length: int = 64, too_long: str = "truncate") -> Scorer:
    return Scorer.load(
        directory,
        dtype="float32",
        max_length=max_length,
        too_long=too_long,
        tokens_per_batch=tokens_per_batch,
        device="cpu",
    )


def some_groups(count: int = 9) -> list:
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [((("user", text(1, 12)),), [text(1, 30) for _ in range(rng.randint(1, 4))]) for _ in range(count)]
