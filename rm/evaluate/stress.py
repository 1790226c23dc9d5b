"""Stress tests: rewards of responses that are clearly worse, or no better, than those of the data.

They need no labels. A model that has learnt length, form or politeness instead of the prompt can agree with judges, whose
preferences correlate with these, and fails here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rm.conversations import Conversation, prompt_key
from rm.evaluate import perturbations
from rm.evaluate.bootstrap import Bootstrap, Estimate, Figures, Floats, average_ranks, clustered_means, pearson
from rm.evaluate.comparisons import accepted_shares
from rm.messages import WHOLE
from rm.preferences import Group
from rm.preferences.similar import similar_prompts

OTHER_PROMPT, SIMILAR_PROMPT = "other_prompt", "similar_prompt"
CHANGES: Mapping[str, Callable[[str], str | None]] = {
    "truncated": perturbations.truncated,
    "shuffled": perturbations.shuffled,
    "repeated": perturbations.repeated,
    "padded": perturbations.padded,
    "list": perturbations.as_list,
    "emoji": perturbations.with_emoji,
    "plain": perturbations.without_marks,
}
_MOST_RESPONSES = 16  # of a group, that are scored without its prompt
_NO_PROMPT: Conversation = (("user", ""),)

ScoreGroups = Callable[[Sequence[tuple[Conversation, Sequence[str]]]], Sequence[ArrayLike]]
"""Groups → the rewards of each group's responses [K], NaN where one could not be scored."""


@dataclass(frozen=True)
class StressTest(Figures):
    """The share of prompts whose unchanged response has a higher reward than another text; equal rewards count half.

    `name` is `other_prompt` or `similar_prompt`, for a response to such a prompt, or a change of the response (`CHANGES`).
    """

    name: str
    prompts: int
    preferred: Estimate


class Duel(NamedTuple):
    """A prompt's own response, and responses to other prompts, with their rewards."""

    prompt: Conversation
    texts: Mapping[str, str]  # `own` first, then those of `other_prompt` and `similar_prompt` that differ from it
    rewards: Floats  # of these texts


@dataclass(frozen=True)
class Stress(Figures):
    """The stress tests, and the dependence of the rewards on the prompt.

    `without_prompt` is Spearman's rank correlation, within a group, of the rewards with those of the same responses to an empty
    prompt: 1 if the prompt does not matter at all.
    """

    tests: tuple[StressTest, ...]
    without_prompt: Estimate
    groups: int  # number of groups in `without_prompt`
    duels: tuple[Duel, ...] = field(default=(), repr=False, compare=False)  # text, so it is neither shown nor stored

    def test(self, name: str) -> StressTest | None:
        """Return the test of this name; None if no response could be changed in this way."""
        return next((test for test in self.tests if test.name == name), None)


def stress(
    groups: Sequence[Group],
    rewards: Sequence[ArrayLike],
    score: ScoreGroups,
    *,
    prompts: int,
    bootstrap: Bootstrap | None = None,
) -> Stress | None:
    """Run the tests on at most so many prompts, one response each; None with fewer than two prompts.

    Prompts are drawn by their keys, independently of their order. The response is the one that judges prefer. `rewards` [K]
    are those of each group.
    """
    drawn = _draw(groups, prompts)
    if len(drawn) < 2:
        return None
    bootstrap = bootstrap or Bootstrap()
    chosen = [groups[index] for index in drawn]
    own = [_preferred_response(group) for group in chosen]
    similar = similar_prompts([group.prompt for group in chosen])
    others = [_other_texts(place, own, similar[place]) for place in range(len(chosen))]
    asked = [(group.prompt, [text, *texts.values()]) for group, text, texts in zip(chosen, own, others, strict=True)]
    table = [
        dict(zip(("own", *texts), np.asarray(values, dtype=np.float64), strict=True))
        for texts, values in zip(others, score(asked), strict=True)
    ]
    tests = (_test(name, table, bootstrap) for name in (OTHER_PROMPT, SIMILAR_PROMPT, *CHANGES))
    correlations = _without_prompt(groups, drawn, rewards, score)
    duels = (_duel(prompt, texts, row) for (prompt, texts), row in zip(asked, table, strict=True))
    return Stress(
        tuple(test for test in tests if test.prompts), _mean(correlations, bootstrap), len(correlations), tuple(duels)
    )


def _draw(groups: Sequence[Group], prompts: int) -> list[int]:
    """The first group with a plain text for each prompt, for the prompts with the smallest keys."""
    first: dict[bytes, int] = {}
    for index, group in enumerate(groups):
        if any(_is_plain(text) for text in group.responses):
            first.setdefault(prompt_key(group.prompt), index)
    return [first[key] for key in sorted(first)[:prompts]]


def _is_plain(text: str) -> bool:
    return not text.startswith(WHOLE)


def _preferred_response(group: Group) -> str:
    """The text that judges prefer most often, or grade highest; of equal ones the first."""
    points = np.zeros(len(group.responses))
    for edge in group.edges:
        points[edge.preferred] += edge.probability - 0.5
        points[edge.other] -= edge.probability - 0.5
    for response, share in accepted_shares(group).items():
        points[response] += share
    for index, score in enumerate(group.scores):
        points[index] = -math.inf if score is None else score
    plain = [index for index, text in enumerate(group.responses) if _is_plain(text)]
    return group.responses[max(plain, key=lambda index: points[index])]


def _other_texts(place: int, own: Sequence[str], similar: Sequence[int]) -> dict[str, str]:
    """The texts that a prompt's response is compared with, by name, except texts equal to it."""
    texts: dict[str, str | None] = {OTHER_PROMPT: own[(place + 1) % len(own)]}
    texts[SIMILAR_PROMPT] = own[similar[0]] if similar else None
    texts |= {name: change(own[place]) for name, change in CHANGES.items()}
    return {name: text for name, text in texts.items() if text is not None and text != own[place]}


def _test(name: str, table: Sequence[Mapping[str, float]], bootstrap: Bootstrap) -> StressTest:
    gaps = np.array([rewards["own"] - rewards[name] for rewards in table if name in rewards])
    return stress_test(name, gaps[np.isfinite(gaps)], bootstrap)


def stress_test(name: str, gaps: Floats, bootstrap: Bootstrap) -> StressTest:
    """Return the test whose prompts prefer their responses by these gaps: 0 counts half."""
    return StressTest(name, len(gaps), _mean(0.5 + 0.5 * np.sign(gaps), bootstrap))


def _duel(prompt: Conversation, texts: Sequence[str], rewards: Mapping[str, float]) -> Duel:
    """Return the duel of a prompt's texts, in the order of their rewards."""
    foreign = {
        name: text for (name, text) in zip(rewards, texts, strict=True) if name in ("own", OTHER_PROMPT, SIMILAR_PROMPT)
    }
    return Duel(prompt, foreign, np.array([rewards[name] for name in foreign], dtype=np.float64))


def _mean(values: Floats, bootstrap: Bootstrap) -> Estimate:
    return clustered_means(values.reshape(-1, 1), np.arange(len(values)), bootstrap=bootstrap)[0]


def _without_prompt(
    groups: Sequence[Group], drawn: Sequence[int], rewards: Sequence[ArrayLike], score: ScoreGroups
) -> Floats:
    """The rank correlation, in each group with several responses, of its rewards with those without its prompt."""
    several = [index for index in drawn if len(groups[index].responses) > 1]
    alone = score([(_NO_PROMPT, groups[index].responses[:_MOST_RESPONSES]) for index in several])
    correlations = []
    for index, other in zip(several, alone, strict=True):
        pair = np.column_stack([np.asarray(rewards[index])[:_MOST_RESPONSES], np.asarray(other)]).astype(np.float64)
        known = pair[np.isfinite(pair).all(axis=1)]
        correlations.append(pearson(*(average_ranks(column) for column in known.T)))
    values = np.array(correlations, dtype=np.float64)
    return values[np.isfinite(values)]
