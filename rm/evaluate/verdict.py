"""The verdict on a model: whether it orders responses significantly better than chance, and than their length alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rm.conversations import prompt_key, response_hash
from rm.evaluate.accuracy import AccuracyRow
from rm.evaluate.bootstrap import Estimate, Figures
from rm.preferences import Group

BETTER, AS_LENGTH, AS_CHANCE, WORSE, UNKNOWN = (
    "better_than_length",
    "not_better_than_length",
    "not_better_than_chance",
    "worse",
    "unknown",
)


@dataclass(frozen=True)
class Part(Figures):
    """Accuracy on some comparisons, and that of the best rule without a model on the same comparisons."""

    comparisons: int
    accuracy: Estimate
    rule: str  # longer | shorter | nearer or longer
    length: Estimate
    over_length: Estimate  # accuracy - length, paired


@dataclass(frozen=True)
class Verdict(Figures):
    """The verdict, and its figures; intervals are 95 % intervals from resampled prompts.

    `verdict` is one of

    - `better_than_length`: above chance, and above the best rule of length or relevance (so above all of them);
    - `not_better_than_length`: above chance, and the interval of the difference to length holds 0;
    - `not_better_than_chance`: the interval of the accuracy holds 1/2;
    - `worse`: below chance, or above it and below length;
    - `unknown`: fewer than six prompts have a comparison.

    `length_matched` is for pairs of similar length: a model that is `better_than_length` overall and no better than chance on
    these owes its lead to pairs that differ in length.
    """

    verdict: str
    prompts: int
    all: Part
    length_matched: Part

    @classmethod
    def of(cls, row: AccuracyRow) -> Verdict:
        """Return the verdict of a row of the accuracy table."""
        whole = Part(row.comparisons, row.model, row.rule, row.length, row.difference)
        matched = (row.matched_comparisons, row.matched, row.matched_rule, row.matched_length, row.matched_difference)
        verdict = UNKNOWN if row.prompts < _FEWEST else _judge(whole)
        return cls(verdict, row.prompts, whole, Part(*matched))


_FEWEST = 6  # prompts: with fewer, a coin gets all right, or all wrong, in more than 5 % of cases: 2 / 2**6 is less


def _judge(part: Part) -> str:
    if math.isnan(part.accuracy.low):
        return UNKNOWN
    if part.accuracy.high < 0.5:
        return WORSE
    if part.accuracy.low <= 0.5:
        return AS_CHANCE
    if part.over_length.high < 0.0:
        return WORSE
    return BETTER if part.over_length.low > 0.0 else AS_LENGTH


def hash_preferences(groups: Sequence[Group]) -> str:
    """Return a hash of prompts, responses and judgements, whatever the order of the groups."""
    digests = []
    for group in groups:
        digest = hashlib.sha256(prompt_key(group.prompt))
        for response in group.responses:
            digest.update(response_hash(response).to_bytes(8, "big"))
        digest.update(repr((group.edges, group.labels, group.scores)).encode())
        digests.append(digest.digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:32]
