"""Selection rules: pure functions on columns, no Beam, no files.

Columns contain only scored responses. A rule returns a boolean mask of the responses that it keeps, aligned with its input.
These rules look at one prompt at a time, so all responses to a prompt must be present; `top` looks at all prompts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.config import BestOfN, Longest, Pairs, Random, Step, Threshold
from pipelines.score.prompt_values import standardised_within
from pipelines.select.candidates import (
    Candidates,
    Mask,
    best_first,
    first_of_texts,
    first_within,
    group_ranks,
    group_sizes,
    hash_rows,
    order_within,
    worst_bits,
)
from pipelines.select.expressions import where, with_combined
from pipelines.select.on_topic import Settled, on_topic
from pipelines.select.preference_rows import preference_rows
from pipelines.select.prompt_limits import within_limits
from pipelines.select.top import Cut


def apply_rule(
    candidates: Candidates, step: Step, *, temperature: float | None = None, cut: Settled | None = None
) -> Candidates:
    """The rows that a per-prompt step keeps.

    Raises `ValueError` for any other step, and if the temperature or the cut that it needs is missing.
    """
    if step.pairs is not None:
        eligible = where(candidates, step) if step.pairs.chosen is not None else None
        return pairs(candidates, step.pairs, eligible=eligible)
    if step.preferences is not None:
        return preference_rows(candidates, step.preferences, temperature=temperature)
    if step.reward is not None:
        return with_combined(candidates, step)
    if step.best_of_n is not None:
        mask = best_of_n(candidates, step.best_of_n, temperature=step.best_of_n.temperature or temperature)
    elif step.threshold is not None:
        mask = threshold(candidates, step.threshold, temperature=step.threshold.temperature or temperature)
    elif step.drop_prompts is not None:
        mask = within_limits(candidates, step.drop_prompts, cut=cut if isinstance(cut, Cut) else None)
    elif step.on_topic is not None:
        mask = on_topic(candidates, step.on_topic, None if isinstance(cut, Cut) else cut)
    elif step.random is not None:
        mask = random(candidates, step.random)
    elif step.longest is not None:
        mask = longest(candidates, step.longest)
    elif step.condition is not None:
        mask = where(candidates, step)
    else:
        raise ValueError(f"step {step!r} has no rule that looks at one prompt at a time")
    return candidates.take(mask)


def threshold(candidates: Candidates, rule: Threshold, *, temperature: float | None = None) -> Mask:
    """Responses above a reward, above a win probability against their prompt's reference, or above a z-score."""
    if rule.min_reward is not None:
        above: Mask = candidates.reward >= rule.min_reward
        return above
    if rule.min_z is not None:
        standing: Mask = z_scores(candidates) >= rule.min_z
        return standing
    likely: Mask = win_probabilities(candidates, rule, temperature=temperature) >= rule.min_probability
    return likely


def references(candidates: Candidates, rule: Threshold) -> npt.NDArray[np.float64]:
    """The reward that each response is compared with, -inf if its prompt has no reference."""
    column, _, value = (rule.reference or "").partition("=")
    order, starts = candidates.prompts
    rewards = np.full(len(order), -np.inf)
    if len(order):
        marked = candidates.labels[column].equal(value or "true")[order]
        reward = candidates.reward[order].astype(np.float64)
        best = np.maximum.reduceat(np.where(marked, reward, -np.inf), starts)
        rewards[order] = np.repeat(best, group_sizes(starts, len(order)))
    return rewards


def win_probabilities(candidates: Candidates, rule: Threshold, *, temperature: float | None) -> npt.NDArray[np.float64]:
    """The probability that each response is preferred to its reference: 0 if there is none."""
    reference, reward = references(candidates, rule), candidates.reward.astype(np.float64)
    gap = np.where(np.isneginf(reference), -np.inf, reward - np.where(np.isneginf(reference), 0.0, reference))
    return sigmoid(gap / _require(temperature)) if len(gap) else gap


def z_scores(candidates: Candidates) -> npt.NDArray[np.float64]:
    """(r - mean) / standard deviation within the prompt; 0 if all of its rewards are equal."""
    return standardised_within(candidates.reward.astype(np.float64), candidates.prompts)


def _moments(
    reward: npt.NDArray[np.float64], starts: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each row's mean and standard deviation of its prompt, for rows in the fixed order: sums of floats depend on it."""
    sizes = group_sizes(starts, len(reward))
    mean = np.repeat(np.add.reduceat(reward, starts) / sizes, sizes)
    return mean, np.repeat(np.sqrt(np.add.reduceat((reward - mean) ** 2, starts) / sizes), sizes)


def best_of_n(candidates: Candidates, rule: BestOfN, *, temperature: float | None = None) -> Mask:
    """The `keep` best responses of each prompt.

    Prompts with fewer than `min_candidates` responses are dropped whole. So are prompts whose last kept response leads the
    best dropped one by less than `min_margin`, or is preferred to it with less than `min_probability` (if no response is
    dropped, neither applies).
    """
    kept = np.zeros(len(candidates), dtype=bool)
    if not len(candidates):
        return kept
    if rule.distinct:
        first = first_of_texts(candidates)
        plain = rule.model_copy(update={"distinct": None})
        kept[first] = best_of_n(candidates.take(first), plain, temperature=temperature)
        return kept
    if rule.keep == 1 and rule.min_margin == 0 and rule.min_probability is None:
        first, sizes = first_within(candidates, worst_bits(candidates.reward))
        kept[first[sizes >= rule.min_candidates]] = True
        return kept
    order, starts = best_first(candidates)
    sizes = group_sizes(starts, len(order))
    usable = sizes >= rule.min_candidates
    contested = usable & (sizes > rule.keep)
    last_kept = order[starts[contested] + rule.keep - 1]
    runner_up = order[starts[contested] + rule.keep]
    margin = candidates.reward[last_kept].astype(np.float64) - candidates.reward[runner_up]
    unclear = margin < rule.min_margin
    if rule.min_probability is not None:
        unclear |= sigmoid(margin / _require(temperature)) < rule.min_probability
    usable[np.flatnonzero(contested)[unclear]] = False
    kept[order[np.repeat(usable, sizes) & (group_ranks(starts, len(order)) < rule.keep)]] = True
    return kept


def pairs(candidates: Candidates, rule: Pairs, *, eligible: Mask | None = None) -> Candidates:
    """The best response of each prompt as chosen, with one of a lower reward as its `other_...`; prompts without one are dropped.

    With `eligible`, the best eligible response is chosen. In a prompt with several pairs, it occurs in each.
    """
    if not len(candidates):
        return candidates
    order, starts = best_first(candidates)
    sizes, most = group_sizes(starts, len(order)), rule.pairs_per_prompt or 1
    reward = candidates.reward[order].astype(np.float64)
    chosen_at = starts
    if eligible is not None:  # the first of these in the prompt; one past the end where there is none
        at = np.where(eligible[order], np.arange(len(order)), len(order))
        chosen_at = np.minimum.reduceat(at, starts)
    has_chosen = np.repeat(chosen_at < len(order), sizes)
    best = np.repeat(np.minimum(chosen_at, len(order) - 1), sizes)
    gap = reward[best] - reward
    fits = (gap > 0) & (gap >= rule.min_gap) & (gap <= (np.inf if rule.max_gap is None else rule.max_gap)) & has_chosen
    if isinstance(rule.rejected, dict) and "rank" in rule.rejected:
        ranks = group_ranks(starts, len(order)) + 1
        fits &= (ranks >= rule.rejected["rank"]) & (ranks < rule.rejected["rank"] + most)
    fitting = np.flatnonzero(fits)
    preference = _preference(candidates, rule, order, starts)[fitting]
    fitting = fitting[np.lexsort((preference, best[fitting]))]
    fitting = _first_texts(candidates.response_hash[order[fitting]], fitting, best[fitting], most)
    return candidates.take(order[best[fitting]]).paired_with(candidates.take(order[fitting]))


def _preference(
    candidates: Candidates, rule: Pairs, order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """Integers in the order in which a prompt's responses, given best first, are preferred as rejected ones."""
    place = np.arange(len(order))
    if rule.rejected == "worst":
        return -place
    if rule.rejected == "random":
        by = np.lexsort((place, hash_rows(candidates, rule.seed)[order]))
    elif isinstance(rule.rejected, dict) and "sigma" in rule.rejected:
        reward = candidates.reward[order].astype(np.float64)
        by = np.lexsort((place, reward, np.abs(reward - pair_targets(candidates, rule.rejected["sigma"])[order])))
    else:
        return place
    place[by] = np.arange(len(order))
    return place


def pair_targets(candidates: Candidates, sigma: float) -> npt.NDArray[np.float64]:
    """For each row, the mean of its prompt's rewards and `sigma` times their standard deviation."""
    order, starts = best_first(candidates)
    targets = np.empty(len(order))
    if len(order):
        mean, scale = _moments(candidates.reward[order].astype(np.float64), starts)
        targets[order] = mean + sigma * scale
    return targets


def _first_texts(
    hashes: npt.NDArray[np.uint64], rows: npt.NDArray[np.intp], group: npt.NDArray[np.intp], most: int
) -> npt.NDArray[np.intp]:
    """The first `most` of each group's consecutive rows, without rows that repeat an earlier text."""
    if most > 1 and len(rows):
        by_text = np.lexsort((np.arange(len(rows)), hashes, group))
        same = (np.diff(group[by_text]) == 0) & (hashes[by_text][1:] == hashes[by_text][:-1])
        distinct = np.sort(by_text[np.append(True, ~same)])
        rows, group = rows[distinct], group[distinct]
    starts = np.flatnonzero(np.append(np.ones(min(1, len(rows)), dtype=bool), np.diff(group) != 0))
    return rows[group_ranks(starts, len(rows)) < most]


def random(candidates: Candidates, rule: Random) -> Mask:
    """`keep` responses of each prompt by a hash of prompt, response and seed."""
    return _first_of(candidates, draws(candidates, rule), keep=rule.keep)


def draws(candidates: Candidates, rule: Random) -> npt.NDArray[np.uint32]:
    """The values that `random` orders by, smallest first."""
    return (hash_rows(candidates, rule.seed) >> np.uint64(32)).astype(np.uint32)


def longest(candidates: Candidates, rule: Longest) -> Mask:
    """The `keep` longest responses of each prompt; between equal lengths the fixed order."""
    return _first_of(candidates, shortness(candidates), keep=rule.keep)


def shortness(candidates: Candidates) -> npt.NDArray[np.uint32]:
    """The values that `longest` orders by, smallest first."""
    return ~candidates.length.astype(np.uint32)


def ranks_by(candidates: Candidates, values: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Each response's rank within its prompt, from 1: the smallest of `values` first, then the fixed order."""
    order, starts = order_within(candidates, values)
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = group_ranks(starts, len(order)) + 1
    return ranks


def add_ranks(candidates: Candidates) -> Candidates:
    """The same rows with `rank` and `margin` within their prompts."""
    order, starts = best_first(candidates)
    rank, margin = np.empty(len(order), dtype=np.int32), np.full(len(order), np.nan, dtype=np.float32)
    rank[order] = group_ranks(starts, len(order)) + 1
    inner = np.ones(len(order), dtype=bool)
    inner[np.append(starts[1:], len(order))[: len(starts)] - 1] = False
    ahead = np.flatnonzero(inner)
    reward = candidates.reward[order].astype(np.float64)
    margin[order[ahead]] = reward[ahead] - reward[ahead + 1]
    return candidates.with_columns(rank=rank, margin=margin)


def add_rivals(kept: Candidates, whole: Candidates) -> Candidates:
    """The kept rows with `rival`: for the n-th best of a prompt, the reward of the n-th longest of all its responses."""
    if not len(kept):
        return kept
    order, starts = kept.prompts
    if len(starts) == len(order):  # one of each prompt
        longest, _ = first_within(whole, ~whole.length.astype(np.uint32))
        groups = np.arange(len(longest))
    else:
        order, starts = best_first(kept)
        longest, groups = order_within(whole, ~whole.length.astype(np.uint32))
    whole_heads, kept_heads = longest[groups], order[starts]  # both sorted by key
    at = np.searchsorted(whole.key_high[whole_heads], kept.key_high[kept_heads])
    while (wrong := whole.key_low[whole_heads[at]] != kept.key_low[kept_heads]).any():  # keys that share 64 bits
        at = at + wrong
    rank = group_ranks(starts, len(order))
    rival = np.empty(len(order), dtype=np.float32)
    rival[order] = whole.raw[longest[np.repeat(groups[at], group_sizes(starts, len(order))) + rank]]
    return kept.with_columns(rival=rival)


def sigmoid(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-values))


def _first_of(candidates: Candidates, values: npt.NDArray[np.uint32], *, keep: int) -> Mask:
    kept = np.zeros(len(candidates), dtype=bool)
    if keep == 1:
        kept[first_within(candidates, values)[0]] = True
        return kept
    order, starts = order_within(candidates, values)
    kept[order[group_ranks(starts, len(order)) < keep]] = True
    return kept


def _require(temperature: float | None) -> float:
    if temperature is None:
        raise ValueError("a probability needs a temperature, and none is known")
    return temperature
