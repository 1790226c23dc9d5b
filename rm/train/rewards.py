"""Computes the rewards of groups without gradients, their agreement with judgements, and checks for collapse."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rm.engine.layout import cut_rows, plan_groups
from rm.train.data import Collator, EncodedGroup
from rm.train.loss_network import GroupNetwork
from rm.train.settings import TrainingError


def predict(network: GroupNetwork, groups: Sequence[EncodedGroup], collator: Collator) -> list[np.ndarray]:
    """Compute the rewards of each group's responses, float32 [K].

    Groups larger than the token budget are divided, as there are no comparisons to keep together.
    """
    budget = collator.tokens_per_batch
    pieces = [
        (index, rows)
        for index, group in enumerate(groups)
        for rows in cut_rows([len(row.ids) for row in group.responses], prefix=0, tokens_per_batch=budget)
    ]
    lengths = [[len(groups[index].responses[row].ids) for row in rows] for index, rows in pieces]
    rewards = [np.empty(len(group.responses), dtype=np.float32) for group in groups]
    for batch in plan_groups(lengths, tokens_per_batch=budget, padded=not collator.packed):
        chosen = [pieces[position] for position in batch]
        with torch.inference_mode():
            flat = network(collator.micro_batch([groups[index].select(rows) for index, rows in chosen])).cpu().numpy()
        cuts = np.cumsum([len(rows) for _, rows in chosen])[:-1]
        for (index, rows), values in zip(chosen, np.split(flat, cuts), strict=True):
            rewards[index][rows] = values
    return rewards


def judgement_accuracy(rewards: Sequence[np.ndarray], groups: Sequence[EncodedGroup]) -> float:
    """Return the share of judgements that the rewards agree with: comparisons, and accepted against rejected in a group.

    Equal rewards count half; ties are left out. NaN if there are none.
    """
    right = total = 0.0
    for values, group in zip(rewards, groups, strict=True):
        i, j = group.edges[:, 0].astype(int), group.edges[:, 1].astype(int)
        stated_order = np.sign(group.edges[:, 2] - 0.5)
        reward_order = np.sign(values[i] - values[j])
        agreement, decided = [reward_order * stated_order], [stated_order != 0]
        accepted, labelled = group.labels[:, 1], values[group.labels[:, 0].astype(int)]
        above = np.subtract.outer(labelled, labelled)[np.greater.outer(accepted, accepted)]
        agreement.append(np.sign(above))
        decided.append(np.ones(len(above), dtype=bool))
        points = (1 + np.concatenate(agreement)) / 2
        counted = np.concatenate(decided)
        right += float(points[counted].sum())
        total += int(counted.sum())
    return right / total if total else math.nan


def is_flat(rewards: np.ndarray) -> bool:
    """Return whether all rewards are equal up to rounding."""
    return bool(np.ptp(rewards) < 1e-6 * max(1.0, float(np.abs(rewards).max())))


def refuse_collapse(rewards: Sequence[np.ndarray]) -> None:
    """Raise `TrainingError` if rewards are not finite, or all are equal."""
    values = np.concatenate(rewards)
    if not np.isfinite(values).all():
        raise TrainingError("training diverged: rewards are not finite; lower train.learning_rate")
    if len(values) > 2 and is_flat(values):
        raise TrainingError(
            f"training collapsed: every response has the reward {values[0]:.6g}; lower train.learning_rate, or check "
            "that chosen and rejected differ"
        )
