"""The sizes of `bestkept trial`, whose settings are command-line options."""

from __future__ import annotations

from typing import NamedTuple


class TrialSizes(NamedTuple):
    """The size of each fine-tune, and of the measurements."""

    seeds: int
    steps: int
    tokens_per_step: int  # of responses
    max_length: int  # tokens
    references: int  # prompts held out, at most
    answer_tokens: int  # of a sampled answer, at most
    rank: int = 16  # of the adapters
    learning_rate: float = 5e-4


STUDENT = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHOLE = TrialSizes(seeds=3, steps=100, tokens_per_step=4096, max_length=1024, references=200, answer_tokens=256)
QUICK = TrialSizes(seeds=2, steps=20, tokens_per_step=512, max_length=256, references=64, answer_tokens=64)
HELDOUT = 0.2
"""Maximum share of the prompts held out for references, if none are given."""
