"""Verdicts of each step on the responses to one prompt, with the deciding numbers. Pure.

The rules and the settled cuts decide which rows are kept (`select.selection.apply_step`); this module adds the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipelines.config import BestOfN, DropPrompts, Pairs, Preferences, Step, Threshold, Top
from pipelines.config.prompt_rules import OnTopic
from pipelines.select.candidates import Candidates, first_of_texts, worst_bits
from pipelines.select.corpus_standards import Standards, with_standards
from pipelines.select.duplicates import Structured, kept_instead, rule_of, stays
from pipelines.select.expressions import numbers_of
from pipelines.select.length_correction import Curve
from pipelines.select.on_topic import Settled, behind_others
from pipelines.select.preference_rows import RowPairs, judge
from pipelines.select.prompt_limits import PromptValues, quantiles_of
from pipelines.select.rules import (
    draws,
    pair_targets,
    ranks_by,
    references,
    shortness,
    sigmoid,
    win_probabilities,
    z_scores,
)
from pipelines.select.selection import Selection, apply_step, top_of
from pipelines.select.top import CutEdge, CutEdges, Strata
from rm.relevance_gap import SettledGap

ResponsePlace = tuple[int, int, int, int]
"""File, unit, row, response."""
Cuts = Mapping[int, tuple[Settled, Any]]
"""Step number → the settled cut of a `top`, and its result over all prompts; for `on_topic`, its gap in both places."""
Verdict = dict[str, Any]
"""`rule`, `verdict` (kept, dropped, paired for the rejected side of a pair, or dropped before), and the numbers by name."""

Dropped = Mapping[int, Structured]
"""Step number → the rows that it drops because they are similar to others (`DROPPED`)."""

DROPPED_BEFORE = "dropped before"
NONE: Standards = {}
NOTHING_DROPPED: Dropped = {}


def verdicts(
    rows: Candidates,
    selection: Selection,
    *,
    curve: Curve | None,
    cuts: Cuts,
    standards: Standards = NONE,
    dropped: Dropped = NOTHING_DROPPED,
) -> dict[ResponsePlace, list[Verdict]]:
    """Return the verdicts on all scored responses to one prompt by place, one for each step in order.

    Raises `ValueError` if a step needs a curve, a cut or a temperature that is missing.
    """
    by_place: dict[ResponsePlace, list[Verdict]] = {place: [] for place in response_places(rows)}
    sides: dict[str, Any] = {"curve": curve, "cuts": cuts, "standards": standards, "dropped": dropped}
    for number, step, before, after in follow(rows, selection, **sides):
        kept, paired = set(response_places(after)), set(_rejected_places(after)) if step.makes_pairs else set()
        edges = cuts[number][1] if number in cuts else {}
        if step.compares_texts:
            named = _by_row(_alike(before, step, dropped[number], edges), len(before))
        else:
            named = _numbers(step, before, after, temperature=selection.temperature, edges=edges)
        numbers = dict(zip(response_places(before), named, strict=True))
        for place, decided in by_place.items():
            if place in numbers:
                verdict = "kept" if place in kept else "paired" if place in paired else "dropped"
                decided.append({"rule": step.name, "verdict": verdict, **numbers[place]})
            else:
                decided.append({"rule": step.name, "verdict": DROPPED_BEFORE})
    return by_place


def follow(
    rows: Candidates,
    selection: Selection,
    *,
    curve: Curve | None,
    cuts: Cuts,
    standards: Standards = NONE,
    dropped: Dropped = NOTHING_DROPPED,
) -> Iterator[tuple[int, Step, Candidates, Candidates]]:
    """Yield (number, step, rows before it, rows after it) for every step; each step gets the rows that the previous one kept."""
    for number, step in enumerate(selection.steps):
        if step.length_correction is not None:
            if curve is None:
                raise ValueError("length_correction needs the curve that was fitted, and none is given")
            after = curve.correct(rows)
        else:
            rows = with_standards(rows, [step], standards)
            cut = cuts[number][0] if number in cuts else None
            left = rows.take(stays(rows, rule_of(step).of, dropped[number])) if step.compares_texts else rows
            after = apply_step(left, step, cut=cut, temperature=selection.temperature)
        yield number, step, rows, after
        rows = after


def response_places(rows: Candidates) -> list[ResponsePlace]:
    columns = (rows.file, rows.unit, rows.row, rows.response)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _rejected_places(rows: Candidates) -> list[ResponsePlace]:
    columns = (rows.other_file, rows.other_unit, rows.other_row, rows.other_response)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _numbers(
    step: Step, rows: Candidates, after: Candidates, *, temperature: float | None, edges: CutEdges
) -> list[dict[str, Any]]:
    """Return the numbers that the step compares, for each of `rows`: the remaining rows of one prompt."""
    if step.best_of_n is not None:
        columns = _best_of_n(rows, step.best_of_n, step.best_of_n.temperature or temperature)
    elif step.threshold is not None:
        columns = _threshold(rows, step.threshold, step.threshold.temperature or temperature)
    elif step.top is not None:
        columns = _top(rows, step.top, edges)
    elif step.pairs is not None:
        columns = _pairs(rows, step, step.pairs, after)
    elif step.preferences is not None:
        columns = _preferences(rows, step.preferences, step.preferences.temperature or temperature)
    elif step.drop_prompts is not None:
        columns = _drop_prompts(rows, step.drop_prompts, edges)
    elif step.on_topic is not None:
        columns = _on_topic(rows, step.on_topic, edges)
    elif step.random is not None:
        ranks = ranks_by(rows, draws(rows, step.random))
        columns = {"rank": ranks, "of": len(rows), "keep": step.random.keep, "seed": step.random.seed}
    elif step.longest is not None:
        ranks = ranks_by(rows, shortness(rows))
        columns = {"characters": rows.length, "rank": ranks, "of": len(rows), "keep": step.longest.keep}
    elif step.decontaminate is not None:
        columns = {
            "files_hit": rows.values[step.decontaminate.number].astype(np.int64),
            "ngram": step.decontaminate.ngram,
        }
    elif step.where is not None or step.reward is not None:
        columns = numbers_of(rows, step)
    elif step.length_correction is not None:
        columns = {"characters": rows.length, "reward": rows.raw, "corrected": after.reward}
    else:
        raise ValueError(f"step {step.name} has no numbers to explain it")
    return _by_row(columns, len(rows))


def _alike(rows: Candidates, step: Step, dropped: Structured, edges: CutEdges) -> dict[str, Any]:
    """`like`: the place of the row that is kept instead."""
    instead = kept_instead(rows, rule_of(step).of, dropped)
    columns: dict[str, Any] = {
        "like": [None if place[0] < 0 else list(place) for place in instead.tolist()],
        "similarity": rule_of(step).similarity,
    }
    cut = top_of(step)
    return columns if cut is None else columns | _top(rows, cut, edges)


def _best_of_n(rows: Candidates, rule: BestOfN, temperature: float | None) -> dict[str, Any]:
    if rule.distinct:
        first = first_of_texts(rows)
        columns = _best_of_n(rows.take(first), rule.model_copy(update={"distinct": None}), temperature)
        ranks = np.full(len(rows), np.nan)  # NaN if a better row has the same text
        ranks[first] = columns["rank"]
        return columns | {"rank": [None if np.isnan(rank) else int(rank) for rank in ranks], "distinct": True}
    ordered = np.sort(rows.reward.astype(np.float64))[::-1]
    gap = float(ordered[rule.keep - 1] - ordered[rule.keep]) if len(rows) > rule.keep else None
    columns = {"rank": ranks_by(rows, worst_bits(rows.reward)), "of": len(rows), "keep": rule.keep}
    columns |= {"min_candidates": rule.min_candidates, "gap": gap, "min_margin": rule.min_margin}
    if rule.min_probability is not None and temperature is not None:
        probability = None if gap is None else sigmoid(np.array([gap / temperature]))[0]
        columns |= {"probability": probability, "min_probability": rule.min_probability, "temperature": temperature}
    return columns


def _threshold(rows: Candidates, rule: Threshold, temperature: float | None) -> dict[str, Any]:
    if rule.min_reward is not None:
        return {"reward": rows.reward, "min_reward": rule.min_reward}
    if rule.min_z is not None:
        return {"z": z_scores(rows), "min_z": rule.min_z}
    return {
        "reward": rows.reward,
        "reference": references(rows, rule),
        "probability": win_probabilities(rows, rule, temperature=temperature),
        "min_probability": rule.min_probability,
        "temperature": temperature,
    }


def _top(rows: Candidates, rule: Top, edges: CutEdges) -> dict[str, Any]:
    strata = Strata.of(rows, rule).at(np.arange(len(rows)))
    cut_edges = [edges.get(stratum, CutEdge()) for stratum in strata]
    columns: dict[str, Any] = {} if rule.per is None else {"stratum": strata}
    return columns | {
        "reward": rows.reward,
        "cut_reward": [edge.lowest_kept for edge in cut_edges],
        "next_reward": [edge.highest_dropped for edge in cut_edges],
        "kept_rows": [edge.kept for edge in cut_edges],
        "of": [edge.rows for edge in cut_edges],
    }


def _pairs(rows: Candidates, step: Step, rule: Pairs, after: Candidates) -> dict[str, Any]:
    reward = rows.reward.astype(np.float64)
    chosen = reward.max(initial=-np.inf) if rule.chosen is None else after.reward.max(initial=-np.inf)
    columns: dict[str, Any] = {} if rule.chosen is None else numbers_of(rows, step)
    columns |= {"rank": ranks_by(rows, worst_bits(rows.reward)), "of": len(rows)}
    columns |= {"gap": chosen - reward, "min_gap": rule.min_gap, "max_gap": rule.max_gap}
    if isinstance(rule.rejected, dict) and "sigma" in rule.rejected:
        columns["target"] = pair_targets(rows, rule.rejected["sigma"])
    return columns


def _preferences(rows: Candidates, rule: Preferences, temperature: float | None) -> dict[str, Any]:
    pairs = RowPairs.of(rows)
    margins, words = pairs.margins(rows.reward), np.full(len(rows), "unpaired", dtype=object)
    margin, flipped = np.full(len(rows), np.nan), np.zeros(len(rows), dtype=bool)
    for side, name in ((pairs.chosen, "chosen"), (pairs.rejected, "rejected")):
        words[side], margin[side] = name, margins
        flipped[side] = judge(margins, rule, temperature=temperature)[1]
    columns: dict[str, Any] = {"judged": words, "margin": margin, "keep": rule.keep, "min_margin": rule.min_margin}
    if rule.min_probability is not None and temperature is not None:
        columns |= {"probability": sigmoid(margin / temperature), "min_probability": rule.min_probability}
    if rule.drop is not None:
        columns["drop"] = str(rule.drop)
    return columns | ({"flipped": flipped} if rule.flip else {})


def _drop_prompts(rows: Candidates, rule: DropPrompts, edges: CutEdges) -> dict[str, Any]:
    reward = rows.reward.astype(np.float64)
    best, worst = reward.max(initial=-np.inf), reward.min(initial=np.inf)
    columns: dict[str, Any] = {"candidates": len(rows), "best": best, "spread": best - worst}
    if rule.min_worst_reward is not None:
        columns["worst"] = worst
    if rule.min_worst_tokens is not None:
        columns["worst_tokens"] = next(map(int, PromptValues.of(rows, rule).values["min_worst_tokens"]), None)
    return columns | rule.model_dump(exclude_none=True) | quantiles_of(edges)


def _on_topic(rows: Candidates, rule: OnTopic, settled: Any) -> dict[str, Any]:
    behind = behind_others(rows, rule.signal)
    gap = settled.gap if isinstance(settled, SettledGap) else rule.gap
    relevance = rows.values[rule.signal].astype(np.float64)
    return {rule.signal: relevance, "behind": np.where(np.isfinite(behind), behind, np.nan), "gap": gap}


def _by_row(columns: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Return columns, or single values for all rows, as one dict per row; a number that is not finite becomes None."""
    whole: dict[str, list[Any]] = {}
    for name, column in columns.items():
        values = column.tolist() if isinstance(column, np.ndarray) else column
        whole[name] = [_plain(value) for value in (values if isinstance(values, list) else [values] * count)]
    return [{name: values[at] for name, values in whole.items()} for at in range(count)]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
