"""The rules of `select` that compare texts with each other, by signatures of their words."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.config.base import PathText, Strict

WORDS_VERSION = 1
"""Increased by hand whenever the same text gives other hashes of its words, or another signature."""

Similarity = Annotated[float, Field(ge=0.6, le=1.0)]


class NearDuplicates(Strict):
    """Of texts that are nearly the same, keep the one with the best reward, over the whole corpus."""

    of: Literal["prompt", "response"] = "prompt"
    """The texts that are compared. Of prompts, all responses to the dropped ones go."""
    similarity: Similarity = 0.8
    """Jaccard similarity of the shingles of two texts. Of pairs with just this similarity 99 in 100 count as alike, and of more
    similar ones more. It is estimated from signatures, so that some pairs below it also count: at 0.8, half of those with 0.7,
    and one in 100 of those with 0.6."""
    keep: Literal["best"] = "best"
    """The one that is kept: that with the highest reward, or of prompts that whose best response has it."""
    words: int = Field(default=3, ge=1, le=20)
    """Words in a shingle. With more, two texts must be alike in longer pieces."""

    @property
    def measure(self) -> dict[str, Any]:
        return signature_settings(self.of, self.words)


class Diverse(Strict):
    """The best responses that are not alike: from the best downwards, each that is not similar to one that is kept already."""

    rows: int = Field(ge=0)
    """Number of responses kept, where there are as many."""
    of: Literal["prompt", "response"] = "response"
    """The texts that are compared. Responses to one prompt never stand in each other's way where prompts are."""
    similarity: Similarity = 0.7
    """As in `near_duplicates`."""
    words: int = Field(default=2, ge=1, le=20)
    """Words in a shingle."""

    @property
    def measure(self) -> dict[str, Any]:
        return signature_settings(self.of, self.words)


class Decontaminate(Strict):
    """Drop what shares a run of words with test prompts, in the prompt or in the response."""

    against: list[PathText] = Field(min_length=1, examples=[["tests/*.jsonl"]])
    """Files of test prompts, as `input.path` takes files; at most 64."""
    ngram: int = Field(default=13, ge=3, le=50)
    """Words in a row that are a hit. Test prompts of fewer words are not looked for, and a warning counts them."""
    column: str | None = None
    """The column of the prompts in these files; unset, the first of `prompt`, `question`, `problem`, `instruction` and others."""

    @property
    def number(self) -> str:
        """The name of the number of test files that a row shares words with, as expressions know it."""
        settings = json.dumps(self.model_dump(), sort_keys=True)
        return f"leaks_{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    @property
    def measure(self) -> dict[str, Any]:
        return {"kind": "ngrams", "name": self.number, "version": WORDS_VERSION, **self.model_dump()}


def signature_settings(of: str, words: int) -> dict[str, Any]:
    """The settings of the signatures of prompts or responses, as a plan holds them; they name the side files."""
    return {"kind": "minhash", "of": of, "words": words, "version": WORDS_VERSION}
