"""The stub's rewards, and a log of which fragments were scored, one line a call. Without torch."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from rm.conversations import Conversation, canonical_json


@dataclass
class Scores:
    """The fields of `rm.scorer.GroupScores`, which comes with torch."""

    rewards: Any
    reasons: list[str | None]
    prompt_tokens: Any
    response_tokens: Any
    truncated: Any


@dataclass
class LoggingScorer:
    log: str
    signal_in_score: str | None = None

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[Scores]:
        digest = xxhash.xxh3_64_hexdigest(
            repr([(canonical_json(prompt), list(texts)) for prompt, texts in groups]).encode()
        )
        _append(self.log, digest)
        if self.signal_in_score is not None:
            number = getattr(signal, f"SIG{self.signal_in_score}")
            threading.Timer(0.3, os.kill, (os.getpid(), number)).start()
            _busy_in_c()
        return [_scores(prompt, texts) for prompt, texts in groups]


@dataclass
class LoggingFactory:
    """Makes `LoggingScorer`s; a load is a line `load`."""

    log: str
    signal_in_score: str | None = None

    def __call__(self, plan: Any) -> LoggingScorer:
        _append(self.log, "load")
        return LoggingScorer(self.log, self.signal_in_score)


def _append(path: str, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def _scores(prompt: Conversation, texts: Sequence[str]) -> Scores:
    start = canonical_json(prompt) + b"\0"
    rewards = [xxhash.xxh3_64_intdigest(start + text.encode()) / 2**63 - 1 for text in texts]
    reasons = ["nan_reward" if "UNSCORABLE" in text else None for text in texts]
    known = [reward if reason is None else np.nan for reward, reason in zip(rewards, reasons, strict=True)]
    words = np.array([len(text.split()) for text in texts], dtype=np.int32)
    flags = np.zeros(len(texts), dtype=bool)
    return Scores(np.array(known, dtype=np.float32), reasons, np.ones_like(words), words, flags)


def _busy_in_c() -> None:
    """Minutes inside one call of C code that heeds no signal and lets other threads run, as a forward of a large model is."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1_000_000_000)
