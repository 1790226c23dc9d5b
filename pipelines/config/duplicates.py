"""The rules of `select` that compare texts with each other, by signatures of their words."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.config.base import PathText, Strict

WORDS_VERSION = 1
"""Increased by hand whenever the same text yields different word hashes or a different signature."""

Similarity = Annotated[float, Field(ge=0.6, le=1.0)]


class NearDuplicates(Strict):
    """Keep only the text with the best reward among nearly identical texts, over the whole corpus."""

    of: Literal["prompt", "response"] = "prompt"
    """The texts to compare. With `prompt`, all responses to a dropped prompt are dropped."""
    similarity: Similarity = 0.8
    """Jaccard similarity of the shingles of two texts above which they count as alike. It is estimated from signatures: of
    pairs with exactly this similarity, 995 in 1,000 count, of more similar ones more, and of less similar ones some: at 0.8,
    half of those with 0.7, and one in 100 of those with 0.6."""
    keep: Literal["best"] = "best"
    """The text to keep: the one with the highest reward; of prompts, the one whose best response has it."""
    words: int = Field(default=3, ge=1, le=20)
    """Words in a shingle. With more, two texts must agree in longer passages to count as alike."""

    @property
    def measure(self) -> dict[str, Any]:
        return signature_settings(self.of, self.words)


class Diverse(Strict):
    """The best dissimilar responses: from the best downwards, each response that is not similar to one already kept."""

    rows: int = Field(ge=0)
    """Number of responses kept, if there are that many."""
    of: Literal["prompt", "response"] = "response"
    """The texts to compare. With `prompt`, responses to the same prompt do not exclude each other."""
    similarity: Similarity = 0.7
    """As in `near_duplicates`."""
    words: int = Field(default=2, ge=1, le=20)
    """Words in a shingle."""

    @property
    def measure(self) -> dict[str, Any]:
        return signature_settings(self.of, self.words)


class Decontaminate(Strict):
    """Drop responses that share a run of words with test prompts, in the prompt or in the response."""

    against: list[PathText] = Field(min_length=1, examples=[["tests/*.jsonl"]])
    """Files of test prompts, in any form that `input.path` accepts; at most 64."""
    ngram: int = Field(default=13, ge=3, le=50)
    """Number of consecutive words that make a hit. Shorter test prompts are not searched for; a warning counts them."""
    column: str | None = None
    """The column with the prompts in these files; if unset, the first of `prompt`, `question`, `problem`, `instruction` and
    others."""

    @property
    def number(self) -> str:
        """The name by which expressions refer to the number of test files that a row shares words with."""
        settings = json.dumps(self.model_dump(), sort_keys=True)
        return f"leaks_{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    @property
    def measure(self) -> dict[str, Any]:
        return {"kind": "ngrams", "name": self.number, "version": WORDS_VERSION, **self.model_dump()}


def signature_settings(of: str, words: int) -> dict[str, Any]:
    """The settings of the signatures of prompts or responses, as a plan records them; they name the side files."""
    return {"kind": "minhash", "of": of, "words": words, "version": WORDS_VERSION}
