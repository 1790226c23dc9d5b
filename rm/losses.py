"""The Bradley-Terry loss on groups. Knows neither text nor models: rewards and comparisons in, a scalar out."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def bradley_terry(
    rewards: torch.Tensor, edges: torch.Tensor, probabilities: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Weighted mean negative log-likelihood of comparisons under P(i > j) = sigmoid(r_i - r_j).

    `L = sum_e w_e * -[p_e log sigmoid(d_e) + (1 - p_e) log sigmoid(-d_e)] / sum_e w_e`, `d_e = r_i - r_j`
    (Bradley & Terry 1952; with p = 1 it is Ouyang et al. 2022, eq. 1).

    - `rewards` [R]: one forward per response, whatever the number of comparisons it takes part in
    - `edges` [E, 2]: indices (i, j) into `rewards`, "i is preferred to j"
    - `probabilities` [E] in [0, 1]: with which probability it is (1/2 is a tie)
    - `weights` [E] >= 0: 1 / (number of comparisons in the group), so that each group counts once

    Raises `ValueError` where there is no comparison at all.
    """
    if edges.shape[0] == 0:
        raise ValueError("bradley_terry needs at least one comparison; edges has shape [0, 2]")
    gaps = rewards[edges[:, 0]] - rewards[edges[:, 1]]  # [E]
    losses = -(probabilities * logsigmoid(gaps) + (1 - probabilities) * logsigmoid(-gaps))  # [E]
    return (weights * losses).sum() / weights.sum()
