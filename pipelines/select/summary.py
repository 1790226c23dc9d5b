"""Mergeable summaries: counts and exact sums, which do not depend on the order of merging; and the facts of a fragment."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipelines.score.exact_sum import ExactSum
from pipelines.score.score_files import ScoreFile
from pipelines.select.length_correction import HashSample, merge_samples
from rm.relevance_gap import SettledGap


class FragmentFacts(NamedTuple):
    """The facts of one fragment for the manifest and the planning of shards; ordered by its place within a file."""

    unit: int
    fragment: int
    content_hash: str
    rows: int
    responses: int
    scored: int
    text_bytes: int
    message_keys: Sequence[str] = ()

    @classmethod
    def of(cls, descriptor: ScoreFile) -> FragmentFacts:
        """The facts in the footer of a score file."""
        return cls(*(getattr(descriptor.footer, name) for name in cls._fields))

    def to_bytes(self) -> bytes:
        return json.dumps(self if self.message_keys else self[:-1]).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FragmentFacts:
        return cls(*json.loads(data))


class StepSum(NamedTuple):
    """The rows that a step kept, summed."""

    rule: str
    rows: int
    prompts: int | None  # None if the step works before prompts come together
    size: int  # tokens; characters where there is no tokenizer


class AlikeTexts(NamedTuple):
    """The groups of similar texts of which a step kept one, summed."""

    groups: int = 0
    largest: int = 0  # texts of the largest group, the kept one included
    dropped: int = 0


StepCounts = dict[int, StepSum]
"""By number of the step."""


@dataclass
class SelectionSummary:
    """The effect of a selection on a part of the responses."""

    candidates: int = 0
    prompts: int | None = 0  # None if they are not counted, since a cut comes before the shuffle by prompt
    steps: StepCounts = field(default_factory=dict)
    kept: ExactSum = field(default_factory=ExactSum)
    everything: ExactSum = field(default_factory=ExactSum)
    kept_prompts: int = 0
    size: int = 0  # tokens of all candidates; characters where there is no tokenizer
    kept_size: int = 0
    # the rewards of as many responses of each prompt as were kept, but the longest ones
    longest: ExactSum = field(default_factory=ExactSum)
    sample: HashSample = field(default_factory=lambda: merge_samples([]))
    # candidates that share words with a test file, by `decontaminate` and the number of the file
    hits: Counter[tuple[str, int]] = field(default_factory=Counter)
    gaps: dict[int, SettledGap] = field(default_factory=dict)  # of `on_topic`, by number of the step
    # by number of the step that compares texts, each of which settles them in one place
    alike: dict[int, AlikeTexts] = field(default_factory=dict)

    @property
    def dropped(self) -> ExactSum:
        return self.everything - self.kept

    def __add__(self, other: SelectionSummary) -> SelectionSummary:
        steps = dict(self.steps)
        for number, step in other.steps.items():
            before = steps.get(number, StepSum(step.rule, 0, 0, 0))
            prompts = _both(before.prompts, step.prompts)
            steps[number] = StepSum(step.rule, before.rows + step.rows, prompts, before.size + step.size)
        return SelectionSummary(
            candidates=self.candidates + other.candidates,
            prompts=_both(self.prompts, other.prompts),
            steps=steps,
            kept=self.kept + other.kept,
            everything=self.everything + other.everything,
            kept_prompts=self.kept_prompts + other.kept_prompts,
            size=self.size + other.size,
            kept_size=self.kept_size + other.kept_size,
            longest=self.longest + other.longest,
            sample=merge_samples([self.sample, other.sample]),
            hits=self.hits + other.hits,
            gaps={**self.gaps, **other.gaps},
            alike=self.alike | other.alike,
        )

    def random_mean(self) -> float | None:
        """Mean reward of a random choice of as many responses as were kept: the first ones of the sample, up to that share."""
        sizes = self.sample.tokens.astype(np.int64)
        if not self.size or not len(sizes):
            return None
        fits = int(np.count_nonzero(np.cumsum(sizes) * self.size <= self.kept_size * int(sizes.sum())))
        return ExactSum.of(self.sample.reward[:fits]).mean()


def _both(left: int | None, right: int | None) -> int | None:
    return None if left is None or right is None else left + right


def merge_summaries(summaries: Iterable[SelectionSummary]) -> SelectionSummary:
    total = SelectionSummary()
    for summary in summaries:
        total = total + summary
    return total
