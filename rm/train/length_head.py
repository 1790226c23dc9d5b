"""The length head: a second row of the reward head, which absorbs in training the effect of length, and is not saved.

After Chen et al. 2024 ("ODIN", arXiv 2402.07319): the preference loss is on the sum of two rewards, q of quality and l of length,
and with n the number of response tokens

    correlation * (|pearson(q, n)| - pearson(l, n)) + orthogonality * |cos(W_q, W_l)|

is added to it. The correlations are over all responses of an optimiser step, whatever its micro-batches and ranks. Unlike in
the paper, the weights of the heads are normalised only for the last term, not for the rewards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from rm.checkpoint.reward_model import head_name

_CONSTANT = 1e-9  # variance by the mean of squares, below which nothing varies but rounding


@dataclass(frozen=True, kw_only=True)
class LengthHeadSettings:
    """The settings; `pipelines.config.train.LengthHeadConfig` documents them."""

    correlation: float
    orthogonality: float


def add_length_head(model: Any) -> str:
    """Add a second row to a reward model's head, drawn like a new first row; return the head's name."""
    name = head_name(model).removesuffix(".weight")
    head = model.get_submodule(name)
    row = nn.init.normal_(torch.empty_like(head.weight), std=1 / math.sqrt(head.in_features + 1))
    _replace(head, torch.cat([head.weight.data, row]), None if head.bias is None else head.bias.data.repeat(2))
    return name


def drop_length_head(model: Any, name: str) -> None:
    """Remove the second row of the head of this name."""
    head = model.get_submodule(name)
    _replace(head, head.weight.data[:1].clone(), None if head.bias is None else head.bias.data[:1].clone())


def _replace(head: Any, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    head.weight = nn.Parameter(weight, requires_grad=head.weight.requires_grad)
    if bias is not None:
        head.bias = nn.Parameter(bias, requires_grad=head.bias.requires_grad)
    head.out_features = len(weight)


@dataclass(frozen=True)
class LengthSums:
    """Sums of products of the columns (1, q, l, n) over responses, float64 [4, 4]; those of a step are the sum of its parts'."""

    products: torch.Tensor

    @classmethod
    def of(cls, heads: torch.Tensor, tokens: torch.Tensor) -> LengthSums:
        """Return the sums of rewards `heads` [R, 2] and numbers of response tokens [R]."""
        columns = torch.column_stack([heads.detach(), tokens.to(heads.device)]).double()
        columns = torch.column_stack([torch.ones_like(columns[:, 0]), columns])
        return cls(columns.T @ columns)

    def total_rewards(self, heads: torch.Tensor) -> torch.Tensor:
        """Return the rewards [R] for the judgements: q + l, with l minus its mean over the step, so that q has their level."""
        mean = self.products[0, 2] / self.products[0, 0]
        return heads[:, 0] + (heads[:, 1] - mean.to(heads.dtype))

    def penalty(self, heads: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return these responses' part of |pearson(q, n)| - pearson(l, n) of the step.

        The parts' values add up to the step's, and so do their gradients: each reward moves the correlation of all.
        """
        tokens = tokens.to(heads.device)
        quality, by_quality = self._pearson(1, heads[:, 0], tokens)
        length, by_length = self._pearson(2, heads[:, 1], tokens)
        value = (quality.abs() - length) * len(heads) / self.products[0, 0]
        change = (quality.sign() * by_quality * heads[:, 0].double() - by_length * heads[:, 1].double()).sum()
        return (value + change - change.detach()).float()

    def _pearson(self, column: int, rewards: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the correlation of a column of rewards with n, and its derivative by each of these `rewards` [R]."""
        count, means = self.products[0, 0], self.products[0] / self.products[0, 0]
        covariances = self.products / count - torch.outer(means, means)
        own, others = covariances[column, column], covariances[3, 3]
        constant = (own <= _CONSTANT * self.products[column, column] / count) | (
            others <= _CONSTANT * self.products[3, 3] / count
        )
        spread = (own * others).sqrt()
        correlation = covariances[column, 3] / spread
        away, longer = rewards.detach().double() - means[column], tokens.double() - means[3]
        slopes = (longer / spread - correlation * away / own) / count
        return torch.where(constant, 0.0, correlation), torch.where(constant, 0.0, slopes)


def orthogonality(weight: torch.Tensor) -> torch.Tensor:
    """Return |cos| of the two rows of a head's weight [2, H]."""
    return cosine_similarity(weight[0], weight[1], dim=0).abs()
