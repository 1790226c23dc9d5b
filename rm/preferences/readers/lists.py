"""Readers of rankings, choices and scores of many responses in a row, and of labels and scores of one response a row."""

from __future__ import annotations

from itertools import count, takewhile

from rm.conversations import UnusableError, from_response
from rm.preferences.edges import choice_edges, ranking_edges, tiers_of, verdict_edges
from rm.preferences.groups import Edge, Group, Label
from rm.preferences.row_values import (
    RESPONSES,
    PreferenceRow,
    ReadSettings,
    read_integer,
    read_list,
    read_number,
    read_prompt,
    read_records,
    read_responses,
)


def ranking(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read `responses` and `ranking`, a list of ranks: 1 is best, equal ranks are ties."""
    responses = read_responses(row.get("responses"), after=read_prompt(row))
    ranks = [read_number(rank, reason="bad_ranking") for rank in read_list(row.get("ranking"), reason="bad_ranking")]
    if len(ranks) != len(responses):
        raise UnusableError("bad_ranking")
    return Group(read_prompt(row), _require_two(responses), ranking_edges(tiers_of(ranks)))


def choice(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read `responses` and `best`, the index (from 0) of the chosen one."""
    responses = _require_two(read_responses(row.get("responses"), after=read_prompt(row)))
    best = read_integer(row.get("best"), range(len(responses)), reason="bad_choice")
    return Group(read_prompt(row), responses, choice_edges(best, len(responses)))


def scored_list(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read `responses` and `scores`, higher is better; null for a response without one."""
    responses = read_responses(row.get("responses"), after=read_prompt(row))
    scores = _read_scores(read_list(row.get("scores"), reason="bad_score"))
    if len(scores) != len(responses):
        raise UnusableError("bad_score")
    return Group(read_prompt(row), responses, scores=scores)


def ultrafeedback(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read UltraFeedback (Cui et al. 2024): `completions` graded by a model.

    The score is `overall_score`; `columns.score: fine-grained_score` takes the mean of the four aspects instead.
    """
    name = settings.columns.get("score", "overall_score")
    completions = read_records(row.get("completions"))
    scores = _read_scores([completion.get(name) for completion in completions])
    return Group(
        read_prompt(row), read_responses([completion.get("response") for completion in completions]), scores=scores
    )


def nectar(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read Nectar (Zhu et al. 2023): seven `answers` ranked by a model, the prompt an HH transcript without its last turn."""
    answers = read_records(row.get("answers"))
    ranks = [read_number(answer.get("rank"), reason="bad_ranking") for answer in answers]
    responses = _require_two(read_responses([answer.get("answer") for answer in answers]))
    return Group(read_prompt(row), responses, ranking_edges(tiers_of(ranks)))


def qa_feedback(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read QA-Feedback (Wu et al. 2023, FineGrainedRLHF): `prediction 1..n` and a verdict on each pair of them, in order.

    A verdict is 1 (the first of the pair), 2 (the second) or 0 (a tie).
    """
    names = takewhile(lambda name: name in row, (f"prediction {n}" for n in count(1)))
    responses = _require_two(read_responses([row[name] for name in names]))
    preferences = read_list(row.get("preference"), reason="bad_preference")
    verdicts = [read_integer(verdict, (0, 1, 2), reason="bad_preference") for verdict in preferences]
    if len(verdicts) != len(responses) * (len(responses) - 1) // 2:
        raise UnusableError("bad_preference")
    return Group(read_prompt(row), responses, verdict_edges(verdicts, len(responses)))


def rewardbench2(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read RewardBench 2 (Malik et al. 2025): every `chosen` beats every `rejected`; gold scores 1 and 0.

    Each chosen response is one pick from itself and all rejected ones. Chosen responses are not compared: in the subset
    Ties they are equally right, and its scoring pairs the items `ref:N` and `tied:N`, kept separate by `Group.item`.
    """
    chosen, rejected = read_responses(row.get("chosen")), read_responses(row.get("rejected"))
    if set(chosen) & set(rejected):
        raise UnusableError("equal_sides")
    edges = [Edge(good, len(chosen) + bad, stage=good) for good in range(len(chosen)) for bad in range(len(rejected))]
    scores = (1.0,) * len(chosen) + (0.0,) * len(rejected)
    return Group(read_prompt(row), chosen + rejected, tuple(edges), scores=scores)


def labelled_response(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read one response with `label`: accepted or not (TRL's unpaired preference), or the probability of it.

    The label is the response's gold score as well.
    """
    accepted = read_number(row.get("label"), reason="bad_label")
    if not 0.0 <= accepted <= 1.0:
        raise UnusableError("bad_label")
    return Group(read_prompt(row), (_read_response(row),), labels=(Label(0, accepted),), scores=(accepted,))


def scored_response(row: PreferenceRow, settings: ReadSettings) -> Group:
    """Read one response with `score`, higher is better; rows of one prompt are compared after merging."""
    return Group(read_prompt(row), (_read_response(row),), scores=(read_number(row.get("score"), reason="bad_score"),))


def _read_response(row: PreferenceRow) -> str:
    value = next((row[name] for name in RESPONSES if name in row), None)
    return from_response(value, after=read_prompt(row), several=True)


def _require_two(responses: tuple[str, ...]) -> tuple[str, ...]:
    if len(responses) < 2:
        raise UnusableError("too_few_responses")
    return responses


def _read_scores(values: object) -> tuple[float | None, ...]:
    scores = tuple(None if value is None else read_number(value, reason="bad_score") for value in read_list(values))
    if all(score is None for score in scores):
        raise UnusableError("bad_score")
    return scores
