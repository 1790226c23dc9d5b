"""Small tables of candidates, with many ties and shared keys; steps and cuts over tables in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from pipelines.config import Step, Top
from pipelines.select.candidates import Candidates, Labels, Mask, count_prompts, zero_columns
from pipelines.select.rules import apply_rule
from pipelines.select.top import PASSES, Cut, count_bins, keep, list_ties, merge_bins, refine, settle

_ROW = ("key_high", "key_low", "reward", "response_hash", "file", "unit", "row", "response")
_KINDS = (np.uint64, np.uint64, np.float32, np.uint64, np.int32, np.int32, np.int32, np.int32)


def candidates(rows: Any, *, labels: dict[str, list[str | None]] | None = None, **columns: Any) -> Candidates:
    """rows: (high, low, reward, response hash, file, unit, row, response); further columns by name"""
    values = list(zip(*rows, strict=True)) or [()] * 8
    known = {name: np.array(column, dtype=kind) for name, kind, column in zip(_ROW, _KINDS, values, strict=True)}
    more = {name: np.array(column, dtype=np.int32) for name, column in columns.items()}
    return Candidates(
        **{**zero_columns(len(rows)), **known, "raw": known["reward"], **more},
        labels={name: coded(column) for name, column in (labels or {}).items()},
    )


def coded(values: list[str | None]) -> Labels:
    names = tuple(sorted({value for value in values if value is not None}))
    return Labels(np.array([-1 if v is None else names.index(v) for v in values], dtype=np.int32), names)


# few distinct values, so that ties and groups of several happen all the time
rewards = st.sampled_from([-1.0, -0.0, 0.0, 1e-45, 0.5, 0.75, 3.0e38])
places = st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3), st.integers(0, 1))
keys = st.tuples(st.sampled_from([0, 1, 2**64 - 1]), st.sampled_from([0, 2**63, 7]))


@st.composite
def tables(draw, max_size: int = 24):  # type: ignore[no-untyped-def]
    at = draw(st.lists(places, unique=True, max_size=max_size))
    return [(*draw(keys), draw(rewards), draw(st.integers(0, 2)), *place) for place in at]


def chosen(rows: Any, mask: Any) -> set[Any]:
    return {row[4:] for row, keep in zip(rows, mask, strict=True) if keep}


def kept_places(kept: Candidates) -> set[tuple[int, ...]]:
    return set(zip(*(getattr(kept, name).tolist() for name in _ROW[4:]), strict=True))


def best_order(row: Any) -> Any:
    """The fixed order, as a sort key of one row."""
    return (-float(np.float32(row[2])) + 0.0, *row[3:])


def prompt_groups(rows: Any) -> list[list[Any]]:
    """The rows of each prompt, best first."""
    groups = defaultdict(list)
    for row in rows:
        groups[row[:2]].append(row)
    return [sorted(group, key=best_order) for group in groups.values()]


def reward_of(row: Any) -> float:
    return float(np.float32(row[2]))


def sigmoid(gap: float) -> float:
    return 1 / (1 + math.exp(-gap)) if gap > -700 else 0.0


def small_lengths(rows: Any) -> list[int]:
    """A length of 0, 1 or 2 for each row."""
    return [(row[3] * 7 + row[6]) % 3 for row in rows]


def apply_steps(table: Candidates, steps: Sequence[Step]) -> tuple[Candidates, list[tuple[str, int, int]]]:
    """What per-prompt steps keep, each of what the one before kept; and (rule, rows, prompts) after each."""
    counts = []
    for step in steps:
        table = apply_rule(table, step)
        counts.append((step.name, len(table), count_prompts(table)))
    return table, counts


def top(table: Candidates, rule: Top) -> Mask:
    """The cut over columns that are all here: what the passes of the graph come to."""
    cut = Cut(rule)
    for _ in range(PASSES):
        if not cut.decided:
            cut = refine(cut, merge_bins([count_bins(table, cut)]))
    return keep(table, settle(cut, list_ties(table, cut)))
