"""`drop_prompts` against brute force over rows, and its quantiles also against DuckDB."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.selection_tables import (
    candidates,
    chosen,
    prompt_groups,
    reward_of,
    tables,
)

from pipelines.config import DropPrompts
from pipelines.select.candidates import Candidates, zero_columns
from pipelines.select.prompt_limits import Quantiles, as_rows, close, quantiles_of, within_limits
from pipelines.select.top import REWARD_PASSES, Cut, count_bins, measure_edges, merge_bins, merge_edges, refine

values = st.sampled_from([0.0, 0.5, 0.75])
shares = st.sampled_from([{"quantile": q} for q in (0.01, 0.25, 0.3, 0.5, 0.9)])
numbers = st.one_of(st.none(), values, shares)
limits = st.fixed_dictionaries(
    {
        "min_best": numbers,
        "min_spread": numbers,
        "max_spread": numbers,
        "min_worst_reward": numbers,
        "min_worst_tokens": st.one_of(st.none(), st.sampled_from([1, 2]), shares),
        "min_candidates": st.integers(1, 3),
    }
)


def cut_of(parts, rule):
    """The cut over all parts, as the passes of the graph come to it."""
    cut, tables_ = Cut(Quantiles(rule)), [as_rows(part, rule) for part in parts]
    for _ in range(REWARD_PASSES):
        if not cut.decided:
            cut = refine(cut, merge_bins([count_bins(table, cut) for table in tables_]))
    return close(cut)


def parts_of(rows, tokens, count):
    """The rows in parts of whole prompts."""
    split = [[at for at, row in enumerate(rows) if hash(row[:2]) % count == part] for part in range(count)]
    return [
        candidates([rows[at] for at in part]).with_columns(
            values={"response_tokens": np.array([tokens[at] for at in part], dtype=np.int32)}
        )
        for part in split
    ]


def quantile(values, share):
    """The smallest value that so large a share of the values does not exceed."""
    return sorted(values)[math.ceil(Fraction(str(share)) * len(values)) - 1]


@settings(max_examples=150)
@given(tables(), limits, st.integers(1, 3), st.randoms())
def test_limits_and_quantiles(rows, limits, count, shuffle):
    rule = DropPrompts(**limits)
    tokens_of = {row[4:]: (row[3] * 7 + row[6]) % 4 for row in rows}
    groups = [group for group in prompt_groups(rows) if len(group) >= rule.min_candidates]
    known = {
        "min_best": [reward_of(group[0]) for group in groups],
        "min_worst_reward": [reward_of(group[-1]) for group in groups],
        "min_worst_tokens": [tokens_of[group[-1][4:]] for group in groups],
    }
    known["min_spread"] = [b - w for b, w in zip(known["min_best"], known["min_worst_reward"], strict=True)]
    known["max_spread"] = known["min_spread"]
    expected = set()
    for at, group in enumerate(groups):
        inside = True
        for name, column in known.items():
            limit, value = getattr(rule, name), column[at]
            if isinstance(limit, dict):
                limit, value = (
                    np.float32(quantile(column, limit["quantile"])),
                    np.float32(value),
                )  # quantiles are of float32
            if limit is not None:
                inside &= bool(value <= limit) if name == "max_spread" else bool(value >= limit)
        expected |= {row[4:] for row in group} if inside else set()
    for parts in (count, 1):
        split = parts_of(rows, [tokens_of[row[4:]] for row in rows], parts)
        cut = cut_of(split, rule) if rule.quantiles else None
        kept = {
            place
            for part in split
            for place in chosen(
                list(zip(*(getattr(part, name).tolist() for name in _ROW), strict=True)),
                within_limits(part, rule, cut=cut),
            )
        }
        assert kept == expected
        if cut is not None:
            edges = merge_edges(measure_edges(as_rows(part, rule), cut) for part in split)
            found = quantiles_of(edges)
            assert found == {
                name: pytest.approx(float(np.float32(quantile(known[name], share))))
                for name, share in rule.quantiles.items()
                if groups
            }
        shuffle.shuffle(rows)


_ROW = ("key_high", "key_low", "reward", "response_hash", "file", "unit", "row", "response")


def test_a_quantile_without_its_cut_is_an_error():
    rule = DropPrompts(min_best={"quantile": 0.5})
    with pytest.raises(ValueError, match="needs the cut of its quantiles"):
        within_limits(candidates([(1, 1, 0.5, 0, 0, 0, 0, 0)]), rule)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({}, "expected at least one of min_best, .*, min_worst_reward, min_worst_tokens and min_candidates"),
        ({"min_best": {"quantil": 0.5}}, "expected a number, or a share of the prompts: {quantile: 0.5}"),
        ({"min_best": {"quantile": 1.5}}, "quantile is 1.5; expected a number between 0 and 1"),
        ({"min_best": {"quantile": True}}, "expected a number, or a share"),
        ({"min_best": "good"}, "valid number"),
        ({"max_spread": -1}, "greater than or equal to 0"),
        ({"min_worst_tokens": float("inf")}, "finite number"),
    ],
)
def test_settings_that_mean_nothing(settings_, message):
    with pytest.raises(ValueError, match=message):
        DropPrompts(**settings_)


@pytest.mark.slow
def test_a_million_rows_give_what_duckdb_gives():
    duckdb = pytest.importorskip("duckdb")
    import pyarrow as pa

    count, rng = 1_000_000, np.random.default_rng(7)
    prompt = rng.integers(0, 250_000, count).astype(np.uint64)
    reward = np.round(rng.normal(size=count), 2).astype(np.float32)
    tokens = rng.integers(1, 400, count).astype(np.int32)
    columns = {**zero_columns(count), "key_high": prompt, "reward": reward, "raw": reward}
    columns |= {"row": np.arange(count, dtype=np.int32), "response_hash": rng.permutation(count).astype(np.uint64)}
    every = Candidates(**columns, values={"response_tokens": tokens})
    rule = DropPrompts(
        min_worst_reward={"quantile": 0.5},
        min_worst_tokens={"quantile": 0.25},
        max_spread={"quantile": 0.6},
        min_candidates=2,
    )
    parts = [every.take(prompt % 3 == part) for part in range(3)]
    cut = cut_of(parts, rule)
    kept = np.concatenate([part.row[within_limits(part, rule, cut=cut)] for part in parts])
    read = {name: columns[name] for name in ("key_high", "reward", "row", "response_hash")} | {"tokens": tokens}
    expected = (
        duckdb.from_arrow(pa.table(read))
        .query(
            "rows",
            """
        with prompts as (
          select key_high, min(reward) as worst, max(reward) - min(reward) as spread,
            first(tokens order by reward, response_hash desc) as worst_tokens
          from rows group by key_high having count(*) >= 2
        ), limits as (
          select quantile_disc(worst, 0.5) as worst, quantile_disc(worst_tokens, 0.25) as worst_tokens,
            quantile_disc(spread, 0.6) as spread
          from prompts
        )
        select row from rows join prompts using (key_high), limits
        where prompts.worst >= limits.worst and prompts.worst_tokens >= limits.worst_tokens
          and prompts.spread <= limits.spread
        """,
        )
        .to_arrow_table()["row"]
    )
    assert 10_000 < len(kept) == len(expected)
    assert np.array_equal(np.sort(kept), np.sort(expected.to_numpy()))
