"""Losses on groups: rewards and judgements in, a scalar out, without text or models.

Every loss takes `rewards` [R], one for each response whatever its number of judgements, and is a weighted mean
`sum_t w_t loss_t / sum_t w_t` over its terms (comparisons, picks or labels). A weight of 1 / (number of terms in the
group) makes each group count once; multiplied by the size of the preference it gives scaled Bradley-Terry
(Wang et al. 2024, "HelpSteer2-Preference", eq. 3).
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus


def bradley_terry(
    rewards: torch.Tensor,
    edges: torch.Tensor,
    probabilities: torch.Tensor,
    weights: torch.Tensor,
    margins: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the negative log-likelihood of comparisons under P(i > j) = sigmoid(r_i - r_j).

    `loss_e = -[p_e log sigmoid(d_e - m_e) + (1 - p_e) log sigmoid(m_e - d_e)]`, `d_e = r_i - r_j` (Bradley & Terry 1952;
    with p = 1, m = 0 it is Ouyang et al. 2022, eq. 1; the margin is Touvron et al. 2023, eq. 2).

    - `edges` [E, 2]: indices (i, j) into `rewards`, "i is preferred to j"
    - `probabilities` [E] in [0, 1]: that it is (1/2 is a tie)
    - `weights` [E] >= 0
    - `margins` [E]: by how much r_i should exceed r_j; None is 0

    Raises `ValueError` if there are no comparisons.
    """
    return _mean(_edge_losses(_gaps(rewards, edges, margins), probabilities), weights)


def plackett_luce(
    rewards: torch.Tensor,
    edges: torch.Tensor,
    probabilities: torch.Tensor,
    weights: torch.Tensor,
    margins: torch.Tensor | None,
    stages: torch.Tensor,
) -> torch.Tensor:
    """Return the negative log-likelihood of picks: at each stage one response is chosen from itself and those it beats.

    `loss_s = -log[exp(r_i) / (exp(r_i) + sum_j exp(r_j + m_ij))] = softplus(log sum_j exp(m_ij - (r_i - r_j)))`
    (Plackett 1975; Luce 1959). A strict ranking of N is N - 1 stages, a choice of the best is one (top-1). Edges with
    the stage -1 are judgements by themselves (ties, votes): for them it is Bradley-Terry, as for a stage of one edge.

    `stages` [E]: equal numbers are one pick; their `probabilities` are 1. The weight of a stage is the sum of its
    edges' weights. The other arguments are those of `bradley_terry`. Raises `ValueError` if there are no edges.
    """
    gaps = _gaps(rewards, edges, margins)
    alone = stages < 0
    _, stage = torch.unique(stages[~alone], return_inverse=True)  # [S edges] → 0 .. stages - 1
    count = int(stage.max()) + 1 if len(stage) else 0
    picks = softplus(_segment_logsumexp(-gaps[~alone], stage, count))  # [stages]
    pick_weights = weights.new_zeros(count).index_add(0, stage, weights[~alone])
    terms = torch.cat([picks, _edge_losses(gaps[alone], probabilities[alone])])
    return _mean(terms, torch.cat([pick_weights, weights[alone]]))


def accept_reject(
    rewards: torch.Tensor, offset: torch.Tensor, labelled: torch.Tensor, accepted: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the binary cross-entropy of labels of single responses under P(accepted) = sigmoid(r + b).

    `loss_l = -[a_l log sigmoid(r + b) + (1 - a_l) log sigmoid(-r - b)]`. The learned `offset` b leaves the zero of rewards
    free, so that labels and comparisons can share one model.

    - `labelled` [L]: indices into `rewards`; `accepted` [L] in [0, 1]; `weights` [L] >= 0

    Raises `ValueError` if there are no labels.
    """
    losses = binary_cross_entropy_with_logits(rewards[labelled] + offset, accepted, reduction="none")
    return _mean(losses, weights)


def centring_penalty(rewards: torch.Tensor, edges: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of `(r_i + r_j)^2` over comparisons (Eisenstein et al. 2023, eq. 2, before its coefficient).

    Comparisons determine rewards only up to an offset per prompt; this term pulls the offsets to zero. Shapes are those of
    `bradley_terry`.
    """
    return _mean((rewards[edges[:, 0]] + rewards[edges[:, 1]]) ** 2, weights)


def smooth(probabilities: torch.Tensor, amount: float) -> torch.Tensor:
    """Pull probabilities towards 1/2: `(1 - amount) p + amount (1 - p)`; p = 1 becomes 1 - amount."""
    return (1 - amount) * probabilities + amount * (1 - probabilities)


def _gaps(rewards: torch.Tensor, edges: torch.Tensor, margins: torch.Tensor | None) -> torch.Tensor:
    gaps = rewards[edges[:, 0]] - rewards[edges[:, 1]]  # [E]
    return gaps if margins is None else gaps - margins


def _edge_losses(gaps: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities * softplus(-gaps) + (1 - probabilities) * softplus(gaps)


def _segment_logsumexp(values: torch.Tensor, segment: torch.Tensor, count: int) -> torch.Tensor:
    """Return the log-sum-exp [count] of the values [V] of each segment [V] in 0 .. count - 1; no segment is empty."""
    top = values.new_full((count,), -torch.inf).scatter_reduce(0, segment, values.detach(), "amax")
    sums = values.new_zeros(count).index_add(0, segment, (values - top[segment]).exp())
    return sums.log() + top


def _mean(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if len(losses) == 0:
        raise ValueError("the loss needs at least one judgement; it got none")
    return (weights * losses).sum() / weights.sum()
