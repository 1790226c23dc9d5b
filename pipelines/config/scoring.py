"""How a corpus goes through the model, beyond what decides a reward."""

from __future__ import annotations

from typing import Literal

from pipelines.config.base import Strict


class ScoreConfig(Strict):
    colocate: Literal["prompt"] | None = None
    """`prompt`: regroup the corpus by prompt before it is scored, where the responses to one prompt lie in different files or far
    apart in one; a causal model then reads each prompt once. The rewards are the same but for rounding. The text is shuffled and
    the input read twice, so it pays where prompts are long and the model large: `bestkept plan` tells by how much. Score files
    that are there are used either way."""
