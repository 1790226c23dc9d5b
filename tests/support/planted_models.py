"""Pairs with planted models: rewards whose agreement with the judges is known, and the cause of the agreement."""

from __future__ import annotations

import numpy as np
from support.evaluation_groups import group

VERDICTS = {
    "perfect": "better_than_length",
    "random": "not_better_than_chance",
    "longest": "not_better_than_length",
    "shortest": "worse",
    "lost_at_equal_length": "better_than_length",
}
"""Planted models, and their verdicts where judges prefer the longer response more often than not."""

LONGER_WINS = 0.6
_SHORT, _SIMILAR, _LONG = 20, 22, 60


def planted(count, *, longer_wins=LONGER_WINS):
    """Return groups of one pair each, and the rewards of every planted model, [count, 2].

    Every other pair is of similar length. `longer_wins` is the exact share of pairs, of either sort, in which the longer one is
    preferred. `lost_at_equal_length` is right in all pairs that differ in length, and in half of the others.
    """
    number = np.arange(count)
    similar = number % 2 == 0
    lengths = np.where(similar[:, None], [_SIMILAR, _SHORT], [_LONG, _SHORT])
    longer_is_better = (number // 2) % 50 < round(50 * longer_wins)
    turned = number % 3 == 0  # else the longer one always comes first
    lengths[turned] = lengths[turned][:, ::-1]
    winner = np.where(longer_is_better != turned, 0, 1)
    groups = [
        group(k, [(int(best), 1 - int(best))], lengths=[int(n) for n in pair])
        for k, (best, pair) in enumerate(zip(winner, lengths, strict=True))
    ]
    right = np.stack([winner == 0, winner == 1], axis=1).astype(float)
    agrees = ~similar | (number % 4 < 2)
    rewards = {
        "perfect": right,
        "random": np.where((number % 4 < 2)[:, None], right, 1 - right),
        "longest": lengths.astype(float),
        "shortest": -lengths.astype(float),
        "lost_at_equal_length": np.where(agrees[:, None], right, 1 - right),
    }
    return groups, rewards
