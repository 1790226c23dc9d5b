"""The held-out part of a training: groups beside their encoded forms, and the evaluation of the trained model on them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from rm.conversations import Conversation, UnusableError
from rm.embedder import Embedder, cosines_of
from rm.evaluate import (
    UNSETTLED,
    Evaluation,
    Relevance,
    ScoreGroups,
    Stress,
    evaluate,
    measure_relevance,
    store_centring,
    store_offset,
    store_temperature,
    store_trained_prompts,
    stress,
)
from rm.preferences import Group, Rejections
from rm.text.templates import Template
from rm.train.data import EncodedGroup, encode_groups, spread_rewards
from rm.train.settings import TrainSettings

log = logging.getLogger(__name__)

Predict = Callable[[Sequence[EncodedGroup]], list[np.ndarray]]
"""Groups → their rewards [K] by the current model; every rank computes a part of them."""


@dataclass
class EncodedData:
    """Groups beside their encoded forms, in the same order."""

    groups: list[Group]
    encoded: list[EncodedGroup]

    @classmethod
    def of(cls, groups: Sequence[Group], template: Template, rejected: Rejections) -> EncodedData:
        """Encode groups; those without a usable judgement are left out, and counted in `rejected`."""
        pairs = zip(groups, encode_groups(groups, template, rejected), strict=True)
        kept = [(group, encoded) for group, encoded in pairs if encoded is not None]
        return cls([group for group, _ in kept], [encoded for _, encoded in kept])

    def spread(self, rewards: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the rewards of the encoded responses over all those of their groups, NaN for the others."""
        return [
            spread_rewards(values, encoded.members, len(group.responses))
            for values, group, encoded in zip(rewards, self.groups, self.encoded, strict=True)
        ]


def describe_saved(
    settings: TrainSettings,
    fit: Sequence[Group],
    offset: float | None,
    heldout: EncodedData,
    rewards: Sequence[np.ndarray],
    *,
    stressed: Stress | None,
) -> Evaluation | None:
    """Store temperature, verdict, offset and a sample of the prompts `fit` beside the model's weights; return the evaluation of
    its held-out rewards."""
    store_trained_prompts(settings.output_path, fit)
    if offset is not None:
        store_offset(settings.output_path, offset)
    if settings.centring:
        store_centring(settings.output_path, settings.centring)
    if not heldout.groups:
        return None
    relevance, spread = None, heldout.spread(rewards)
    if settings.relevance is not None:
        relevance = _measure_relevance(heldout.groups, spread, stressed, **settings.relevance)
    evaluation = evaluate(heldout.groups, spread, stressed=stressed, relevance=relevance)
    if evaluation.calibration is not None:
        data = settings.heldout_path or settings.sources[0][0]
        store_temperature(
            settings.output_path,
            evaluation.calibration,
            data=data,
            fitted_on="held-out prompts of training",
            verdict=evaluation.verdict,
            groups=heldout.groups,
            stressed=stressed,
        )
    return evaluation


def _measure_relevance(
    groups: Sequence[Group],
    rewards: Sequence[np.ndarray],
    stressed: Stress | None,
    path: str,
    *,
    gap: float | Literal["auto"],
    max_touched: float,
    **reading: Any,
) -> Relevance | None:
    embedder = Embedder.open(path, **reading)
    relevance = measure_relevance(
        groups, rewards, stressed, lambda asked: cosines_of(embedder.score(asked)), gap=gap, max_touched=max_touched
    )
    if relevance is None:
        log.warning(UNSETTLED)
    return relevance


def stress_heldout(
    settings: TrainSettings,
    heldout: EncodedData,
    rewards: Sequence[np.ndarray],
    *,
    template: Template,
    predict: Predict,
) -> Stress | None:
    """Run the stress tests on the held-out prompts; every rank must call this. None if there are none."""
    if not heldout.groups or not settings.stress_prompts:
        return None
    score = _scoring(template, predict)
    return stress(heldout.groups, heldout.spread(rewards), score, prompts=settings.stress_prompts)


def _scoring(template: Template, predict: Predict) -> ScoreGroups:
    def score(groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[np.ndarray]:
        encoded = [_encode(template, prompt, responses) for prompt, responses in groups]
        rewards = iter(predict([group for group in encoded if group.responses]))
        return [
            spread_rewards(next(rewards) if group.responses else np.empty(0), group.members, len(responses))
            for group, (_, responses) in zip(encoded, groups, strict=True)
        ]

    return score


def _encode(template: Template, prompt: Conversation, responses: Sequence[str]) -> EncodedGroup:
    """Encode responses without judgements; those that cannot be encoded are left out."""
    rows = enumerate(template.encode_group(prompt, responses))
    usable = [(index, row) for index, row in rows if not isinstance(row, UnusableError)]
    members = tuple(index for index, _ in usable)
    return EncodedGroup([row for _, row in usable], np.empty((0, 6)), np.empty((0, 3)), members)
