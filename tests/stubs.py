"""A scorer without a model: rewards from a hash of the text. Picklable, so that Beam can carry it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from rm.conversations import Conversation, canonical_json
from rm.scorer import GroupScores


def stub_reward(prompt: Conversation, response: str) -> np.float32:
    """A reward in [-1, 1) that depends on prompt and response."""
    value = xxhash.xxh3_64_intdigest(canonical_json(prompt) + b"\0" + response.encode())
    return np.float32(value / 2**63 - 1)


@dataclass
class StubScorer:
    log: Path | None = None
    die_after: int | None = None  # kill the process, as -9 does, after so many fragments
    calls: int = 0

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[GroupScores]:
        self.calls += 1
        if self.die_after is not None and self.calls > self.die_after:
            os.kill(os.getpid(), 9)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{sum(len(responses) for _, responses in groups)}\n")
        scored = []
        for prompt, responses in groups:
            rewards = np.array([stub_reward(prompt, response) for response in responses], dtype=np.float32)
            reasons: list[Any] = [None] * len(responses)
            for position, response in enumerate(responses):
                if "UNSCORABLE" in response:
                    rewards[position], reasons[position] = np.nan, "nan_reward"
            words = np.array([len(response.split()) for response in responses], dtype=np.int32)
            flags = np.zeros(len(responses), dtype=bool)
            scored.append(GroupScores(rewards, reasons, np.ones_like(words), words, flags))
        return scored


@dataclass
class StubFactory:
    """Makes a `StubScorer` and notes every load and every call in `log`."""

    log: str | None = None
    die_after: int | None = None

    def __call__(self, plan: Any) -> StubScorer:
        path = None if self.log is None else Path(self.log)
        if path is not None:
            with path.open("a") as file:
                file.write("load\n")
        return StubScorer(path, self.die_after)


def scored_rows(log: Path) -> int:
    """Responses that scorers with this log have scored."""
    return sum(int(line) for line in log.read_text().split() if line != "load") if log.exists() else 0


def loads(log: Path) -> int:
    return log.read_text().split().count("load") if log.exists() else 0
