"""The gain over simple rules against the obvious way to get it, and the first screen that tells it."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pyarrow as pa
import pytest

from pipelines.report.gains import gains
from pipelines.report.observations import ROWS
from pipelines.report.pages.answer import answer, estimate_words
from pipelines.report.pages.glossary import _TERMS, glossary


def sample(prompts=60, responses=5, *, keep="gold", sure=1.0, seed=0, cut=None):
    """A sample of prompts; of each the response with the most gold (or length) is kept, `sure` so often, or all above `cut`."""
    rng = np.random.default_rng(seed)
    count = prompts * responses
    columns = {name: np.zeros(count) for name in ROWS.names}
    gold, length = rng.normal(size=count), rng.permutation(count) + 1
    by = {"gold": gold, "longest": length, "shortest": -length, "any": rng.random(count)}[keep].reshape(
        prompts, responses
    )
    best = np.where(rng.random(prompts) < sure, by.argmax(axis=1), rng.integers(responses, size=prompts))
    kept = np.zeros((prompts, responses), bool)
    kept[np.arange(prompts), best] = True
    columns |= {"gold": gold, "reward": gold * 2, "length": length, "key_low": np.arange(count) // responses}
    columns |= {"kept": kept.ravel() if cut is None else gold > cut, "source": [None] * count}
    return pa.table({name: pa.array(columns[name]).cast(ROWS.field(name).type) for name in ROWS.names})


def test_differences_and_intervals_are_those_of_a_bootstrap_by_hand():
    table = sample(sure=0.5)
    found = gains(table)
    gold, length, kept = (table[name].to_numpy().reshape(60, 5) for name in ("gold", "length", "kept"))
    rows = np.arange(60)
    rivals = {"longest": gold[rows, length.argmax(1)], "shortest": gold[rows, length.argmin(1)], "random": gold.mean(1)}
    chosen = gold[kept.astype(bool)]
    rng = np.random.default_rng(7)
    draws = rng.integers(60, size=(4000, 60))
    for name, values in rivals.items():
        gap = chosen - values
        told = found["gold"][f"over_{name}"]
        assert told["value"] == pytest.approx(gap.mean())
        low, high = np.percentile(gap[draws].mean(axis=1), [2.5, 97.5])
        assert (told["low"], told["high"]) == pytest.approx((low, high), abs=0.06)
        assert found["reward"][f"over_{name}"]["value"] == pytest.approx(2 * gap.mean(), rel=1e-5)
    assert (found["gold"]["prompts"], found["gold"]["responses"], found["gold"]["within_prompt"]) == (60, 60, True)


def test_a_selection_across_prompts_is_compared_across_prompts():
    table = sample(responses=1, prompts=200, cut=0.5)
    found = gains(table)["gold"]
    gold, length, kept = (table[name].to_numpy() for name in ("gold", "length", "kept"))
    count = int(kept.sum())
    longest = gold[np.argsort(-length)[:count]].mean()
    assert not found["within_prompt"]
    assert found["over_longest"]["value"] == pytest.approx(gold[kept.astype(bool)].mean() - longest)
    assert found["over_random"]["low"] > 0.5


def test_responses_without_gold_do_not_count():
    table = sample()
    gold = table["gold"].to_numpy().copy()
    gold[::3] = np.nan
    place = table.schema.get_field_index("gold")
    known = gains(table.set_column(place, ROWS.field("gold"), pa.array(gold, from_pandas=True)))["gold"]
    kept = table["kept"].to_numpy().astype(bool)
    assert known["kept"] == pytest.approx(np.nanmean(gold[kept]))
    assert known["random"] == pytest.approx(np.nanmean(gold))
    assert gains(table.set_column(place, ROWS.field("gold"), pa.nulls(300, pa.float64())))["gold"] is None
    assert gains(ROWS.empty_table()) == {"gold": None, "reward": None}


def test_where_no_longest_response_has_gold_its_difference_is_left_out():
    table = sample(prompts=20, responses=2, keep="shortest")
    kept = table["kept"].to_numpy().astype(bool)
    gold = np.where(kept, 0.7, np.nan)
    place = table.schema.get_field_index("gold")
    table = table.set_column(place, ROWS.field("gold"), pa.array(gold, from_pandas=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gains(table)["gold"]["over_longest"] == {"value": None, "low": None, "high": None}
    assert "the longest" not in first_screen(table)["gain"][0]
    rivals = {row[0]: row[1:] for row in first_screen(table)["rivals"]}
    assert rivals["taking the longest"][0] == "-"


def first_screen(table, *, gold="worth", drift=None, near=0.0, **counts):
    kept = int(np.sum(table["kept"].to_numpy()))
    manifest = {
        "fingerprint": "f" * 16,
        "model": {"name": "column judge", "column": "judge"},
        "inputs": [{"key": "a.jsonl", "content": "c"}],
        "counts": {
            "read": 300,
            "scored": 300,
            "kept": kept,
            "kept_prompts": 60,
            "size": 1000,
            "kept_size": 200,
            **counts,
        },
        "mean_reward": {"kept": 1.5, "dropped": 0.5},
        "rejected": {"empty_response": counts["read"] - 300} if "read" in counts else {},
        "warnings": [],
    }
    report = {"unit": "tokens", "gold": gold, "gains": gains(table), "whole": True, "overlap": {"longest": 0.25}}
    return answer(manifest, {**report, "margins": {"near_ties": {"below": 0.1, "share": near}}}, drift or {})


def test_the_first_screen_says_better_worse_or_neither_by_gold():
    (said,) = first_screen(sample())["gain"]
    assert re.match(
        r"By gold scores \(column worth\), the selection is better than a random choice of as many tokens \(\+1", said
    )
    (said,) = first_screen(sample(keep="any", prompts=40))["gain"]
    assert "not shown to be better or worse than a random choice of as many tokens (" in said
    (said,) = first_screen(sample(keep="longest", cut=-9.0))["gain"]
    assert "better than" not in said.replace("not shown to be better", "")
    rows = {row[0]: row[1:] for row in first_screen(sample())["rivals"]}
    assert rows["taking the longest"][2] == "25%"


def test_without_gold_the_verdict_stands_for_it():
    table = sample()
    place = table.schema.get_field_index("gold")
    screen = first_screen(table.set_column(place, ROWS.field("gold"), pa.nulls(300, pa.float64())), gold=None)
    assert "only a verdict on the reward model can show" in screen["gain"][0]
    assert len(screen["rivals"][0]) == len(screen["columns"]) == 3


def test_the_first_screen_warns_of_rejected_rows_near_ties_and_drift():
    assert first_screen(sample())["warnings"] == []
    drift = {"against": "0a", "rows": "new", "reward": {"shift": -4.0}, "rejected_shift": 0.2}
    rejected, near, shift, more = first_screen(sample(), drift=drift, near=0.4, read=310)["warnings"]
    assert rejected == "10 of 310 responses were rejected (3.23%): empty_response 10."
    assert "For 40% of the prompts the choice is a near-tie" in near
    assert "the new rows differs by -4.00 standard deviations from that of version 0a" in shift
    assert "20.0 percentage points higher" in more


def test_differences_are_told_to_two_digits_of_their_intervals():
    values = [
        (0.55, 0.463, 0.637),
        (0.6, 0.4874, 0.7),
        (-1234.5, -1300.0, -1100.0),
        (0.03, 0.0292, 0.0308),
        (1.0, 1.0, 1.0),
    ]
    told = [estimate_words(dict(zip(("value", "low", "high"), one, strict=True))) for one in values]
    assert [words.replace("\N{NO-BREAK SPACE}", " ") for words in told] == [
        "+0.55 [+0.46, +0.64]", "+0.60 [+0.49, +0.70]", "-1,234 [-1,300, -1,100]", "+0.0300 [+0.0292, +0.0308]", "+1",
    ]  # fmt: skip
    assert estimate_words({"value": None, "low": None, "high": None}) == "-"
    assert estimate_words({"value": 0.123456, "low": None, "high": None}) == "+0.123"


def test_the_first_screen_names_tool_model_and_data():
    words = first_screen(sample())["identity"]
    assert re.fullmatch(
        r"bestkept [\w.]+; rewards: column judge, fingerprint f{16}; data: 1 file, hash [0-9a-f]{16}\.", words
    )


def test_the_glossary_has_what_the_page_uses_and_nothing_else():
    page = "<style>ECE</style><p>The KL of best of n.</p><details>oracle</details><svg><title>AUC</title><text>gold</text></svg>"
    assert re.findall("<dt>([^<]*)", glossary(page)) == ["best of n", "gold", "KL"]
    assert glossary("<p>nothing</p>") == ""
    assert all(meaning.endswith((".", ";")) for _, _, meaning in _TERMS)
