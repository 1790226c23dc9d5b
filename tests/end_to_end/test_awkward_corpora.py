"""Awkward corpora through the whole graph, each against the same selection in plain Python, row by row."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from support.corpora import write_jsonl

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.corpus import fragments
from pipelines.errors import RejectedError
from rm.conversations import canonical_json, prompt_key, response_hash


def row(prompt, response, reward, source="a"):
    return {"prompt": prompt, "response": response, "reward": reward, "source": source}


@pytest.fixture
def select(tmp_path):
    """Runs a selection from the column `reward`: (manifest, rows of the output)."""

    def run(rows, steps, *, name="out", **changes):
        root = tmp_path / "in"
        if not root.exists():
            for number in range(2):
                write_jsonl(root / f"{number}.jsonl", rows[number::2])
        config = RunConfig.model_validate(
            {
                "input": {"path": str(root), "rows_per_fragment": max(3, len(rows) // 10), **changes.pop("input", {})},
                "scores": {"path": str(tmp_path / "scores"), "column": "reward"},
                "select": steps,
                "output": {
                    "path": str(tmp_path / name),
                    "shape": "preference" if any("pairs" in step for step in steps) else "messages",
                    **changes.pop("output", {}),
                },
                **changes,
            }
        )
        manifest = run_curation(config, scorer=None).manifest
        return manifest, pq.read_table(tmp_path / name / "data").to_pylist()

    return run


def value(entry) -> float:
    return float(np.float32(entry["reward"]))


def order(entry):
    return (-value(entry), response_hash(entry["response"]))


def groups(rows, key="prompt"):
    found = defaultdict(list)
    for entry in rows:
        found[entry[key]].append(entry)
    return [sorted(group, key=order) for group in found.values()]


def spread(group) -> float:
    return value(group[0]) - value(group[-1])


def best_of_n(rows, rule):
    kept = []
    for group in groups(rows):
        keep, lead = rule.get("keep", 1), math.inf
        if len(group) > keep:
            lead = value(group[keep - 1]) - value(group[keep])
        if len(group) >= rule.get("min_candidates", 2) and lead >= rule.get("min_margin", 0.0):
            kept += group[:keep]
    return kept


def threshold(rows, rule):
    if "min_reward" in rule:
        return [entry for entry in rows if value(entry) >= rule["min_reward"]]
    kept = []
    for group in groups(rows):
        mean = sum(map(value, group)) / len(group)
        scale = math.sqrt(sum((value(entry) - mean) ** 2 for entry in group) / len(group))
        same = len(set(map(value, group))) == 1
        kept += [entry for entry in group if (0.0 if same else (value(entry) - mean) / scale) >= rule["min_z"]]
    return kept


def top(rows, rule):
    kept = []
    for stratum in groups(rows, rule["per"]) if "per" in rule else [sorted(rows, key=order)]:
        wanted = rule.get("rows", 0)
        if "fraction" in rule:
            wanted = int(Fraction(str(rule["fraction"])) * len(stratum))
        wanted = max(wanted, rule.get("min_rows", 0))
        kept += stratum[: rule.get("quotas", {}).get(stratum[0]["source"], wanted) if stratum else 0]
    return kept


def drop_prompts(rows, rule):
    return [
        entry
        for group in groups(rows)
        if spread(group) >= rule.get("min_spread", 0) and spread(group) <= rule.get("max_spread", math.inf)
        for entry in group
    ]


def longest(rows, rule):
    by_length = [sorted(group, key=lambda entry: (-len(entry["response"]), order(entry)[1])) for group in groups(rows)]
    return [entry for group in by_length for entry in group[: rule.get("keep", 1)]]


def pairs(rows, rule):
    """The chosen ones; the rejected are checked where they matter."""
    return [group[0] for group in groups(rows) if spread(group) > 0 and spread(group) >= rule.get("min_gap", 0)]


PLAIN = {
    "best_of_n": best_of_n,
    "threshold": threshold,
    "top": top,
    "drop_prompts": drop_prompts,
    "longest": longest,
    "pairs": pairs,
}


def plainly(rows, steps):
    for step in steps:
        ((name, rule),) = step.items()
        rows = PLAIN[name](rows, rule or {})
    return rows


def check(select, rows, steps, **changes):
    """Equal to plain Python in rows, rewards (their bits, so that -0.0 stays so) and counts."""
    manifest, found = select(rows, steps, **changes)
    expected = plainly(rows, steps)
    if any("pairs" in step for step in steps):
        got = [(entry["chosen"][0]["content"], entry["chosen_reward"]) for entry in found]
    else:
        got = [(entry["messages"][-1]["content"], entry["reward"]) for entry in found]
    wanted = sorted((entry["response"], np.float32(entry["reward"]).tobytes()) for entry in expected)
    assert sorted((text, np.float32(reward).tobytes()) for text, reward in got) == wanted
    assert (manifest["counts"]["kept"], manifest["counts"]["scored"]) == (len(expected), len(rows))
    assert manifest["counts"]["kept_prompts"] == len(groups(expected))
    if expected:
        mean = float(sum(Fraction(value(entry)) for entry in expected) / len(expected))
        assert manifest["mean_reward"]["kept"] == mean
    else:
        assert manifest["mean_reward"]["kept"] is None
    return manifest, expected


LARGEST = float(np.finfo(np.float32).max)
EQUAL = [row(f"p{n % 4}", f"r{n}" + "x" * (n % 3), 0.5, "abc"[n % 3]) for n in range(14)]
LONE = [row(f"p{n}", f"r{n}", n / 4, "ab"[n % 2]) for n in range(5)]
GIANT = [row("p", f"r{n}" + "x" * (n % 5), ((n * 37) % 101) / 8, "abc"[n % 3]) for n in range(400)]
EXTREME = [
    row(f"p{n % 3}", f"r{n}" + "x" * (n % 4), reward, "ab"[n % 2])
    for n, reward in enumerate(
        [3.4e38, -3.4e38, -0.0, 0.0, 1e-45, -1e-45, 1.1754944e-38, LARGEST, -LARGEST, 0.0, -0.0, 3e-39, 1.0]
    )
]
CORPORA = {"equal": EQUAL, "lone": LONE, "giant": GIANT, "extreme": EXTREME}
SELECTIONS = {
    "best": [{"best_of_n": {"keep": 2, "min_candidates": 1}}],
    "margin": [{"best_of_n": {"min_margin": 1e-45}}],
    "threshold": [{"threshold": {"min_reward": 0.0}}],
    "z": [{"threshold": {"min_z": 0.0}}],
    "top-half": [{"top": {"fraction": 0.5}}, {"best_of_n": {"min_candidates": 1}}, {"top": {"fraction": 0.5}}],
    "quota": [{"top": {"rows": 1, "per": "source", "quotas": {"a": 10_000, "none": 5}, "min_rows": 2}}],
    "spread": [{"drop_prompts": {"min_spread": 1e-40}}],
    "alike": [{"drop_prompts": {"max_spread": 0.0}}, {"longest": {"keep": 2}}],
    "pairs": [{"pairs": {"min_gap": 0.0}}],
}


# rules that look at one prompt at a time meet three corpora at once; rewards of the fourth would hide theirs in the means
TOGETHER = [
    {**entry, "prompt": f"{name} {entry['prompt']}"} for name in ("equal", "lone", "giant") for entry in CORPORA[name]
]
ACROSS_PROMPTS = ("top-half", "quota")


@pytest.mark.parametrize(
    ("corpus", "steps"),
    [
        pytest.param(corpus, steps, marks=[] if steps in ACROSS_PROMPTS or corpus == "extreme" else pytest.mark.slow)
        for corpus in CORPORA
        for steps in SELECTIONS
    ],
)
def test_awkward_corpora(select, corpus, steps):
    check(select, CORPORA[corpus], SELECTIONS[steps])


@pytest.mark.parametrize("steps", [name for name in SELECTIONS if name not in ACROSS_PROMPTS])
def test_awkward_corpora_in_one(select, steps):
    check(select, TOGETHER, SELECTIONS[steps])


def test_the_awkward_cases_are_what_they_are_called():
    assert plainly(LONE, [{"best_of_n": {}}]) == []
    assert plainly(EQUAL, SELECTIONS["pairs"]) == plainly(EQUAL, SELECTIONS["spread"]) == []
    assert len(plainly(EQUAL, SELECTIONS["z"])) == len(EQUAL)
    sources = [entry["source"] for entry in plainly(GIANT, SELECTIONS["quota"])]
    assert (sources.count("a"), sources.count("b"), len(sources)) == (134, 2, 138)
    assert 0 < len(plainly(EXTREME, SELECTIONS["margin"])) <= 3


def test_fewer_candidates_than_asked_for_leave_an_empty_data_set(select):
    manifest, expected = check(select, LONE, [{"best_of_n": {}}])
    assert (expected, manifest["counts"]["prompts"], manifest["steps"][0]["rows"]) == ([], 5, 0)


@pytest.mark.parametrize(
    ("fraction", "late"),
    [
        *[(0.0, False), (0.07, False), (0.08, False), (5e-324, True), (1.0, True)],
        *[pytest.param(f, late, marks=pytest.mark.slow) for f, late in [(0.0, True), (5e-324, False), (1.0, False)]],
        *[pytest.param(fraction, True, marks=pytest.mark.slow) for fraction in (0.07, 0.08)],
    ],
)
def test_smallest_and_largest_fractions(select, fraction, late):
    """0.08 of 13 responses is one, 0.07 is none; of the best of three prompts, all three or none."""
    _, expected = check(
        select, EXTREME, [*([{"best_of_n": {"min_candidates": 1}}] if late else []), {"top": {"fraction": fraction}}]
    )
    assert len(expected) == {0.08: 0 if late else 1, 1.0: 3 if late else 13}.get(fraction, 0)


def test_signs_of_zero_are_ties_and_kept_as_they_are(select):
    rows = [row("p", f"r{n}", -0.0 if n % 2 else 0.0) for n in range(9)]
    _, expected = check(select, rows, [{"best_of_n": {"keep": 4}}])
    signs = {math.copysign(1, value(entry)) for entry in expected}
    assert signs == {-1.0, 1.0}
    assert expected == sorted(rows, key=lambda entry: response_hash(entry["response"]))[:4]


def test_what_float32_cannot_hold_is_rejected_and_not_the_best(select):
    rows = [row("p", "too large", 1e39), row("p", "nan", math.nan), row("p", "infinite", -math.inf), row("p", "r", 0.5)]
    manifest, found = select(rows, [{"best_of_n": {"min_candidates": 1}}], limits={"max_rejected_fraction": 1.0})
    assert manifest["rejected"] == {"nan_literal": 2, "no_reward": 1}  # NaN and Infinity are no JSON
    assert [entry["messages"][-1]["content"] for entry in found] == ["r"]


KEYED = {
    "best": [{"best_of_n": {"keep": 2}}],
    "z-longest": [{"threshold": {"min_z": 0.0}}, {"longest": {}}],
    "top-best-top": [{"top": {"rows": 15}}, {"best_of_n": {}}, {"top": {"rows": 3}}],
    "pairs": [{"pairs": {}}],
}


@pytest.mark.parametrize(
    ("half", "name"),
    [
        pytest.param(half, name, marks=[] if name in fast else pytest.mark.slow, id=f"{('first', 'last')[half]}-{name}")
        for half, fast in enumerate([("best", "z-longest"), ("top-best-top", "pairs")])
        for name in KEYED
    ],
)
def test_keys_that_share_64_bits_are_prompts_of_their_own(tmp_path, select, monkeypatch, half, name):
    def key(turns):
        own = xxhash.xxh3_64_digest(canonical_json(turns))
        return bytes(8) + own if half == 0 else own + bytes(8)

    monkeypatch.setattr(fragments, "prompt_key", key)
    rows = [row(f"p{n % 5}", f"r{n}" + "x" * (n % 3), ((n * 7) % 11) / 4) for n in range(23)]
    manifest, expected = check(select, rows, KEYED[name])
    assert manifest["counts"]["prompts"] == (None if name == "top-best-top" else 5)
    ids = {entry["prompt_id"] for entry in pq.read_table(tmp_path / "out" / "data").to_pylist()}
    assert len(ids) == len(groups(expected)) >= 3
    assert all(one[:16] == "0" * 16 if half == 0 else one[16:] == "0" * 16 for one in ids)


REJECTED = [row(f"p{n % 2}", f"r{n}", None) for n in range(6)]


def test_all_rejected_is_an_error(select):
    with pytest.raises(RejectedError, match=r"6 of 6 responses were rejected \(100\.0000%: no_reward 6"):
        select(REJECTED, [{"pairs": {}}])


@pytest.mark.parametrize("kind", ["threshold", "pairs", "random", "longest"])
def test_all_rejected_is_an_empty_data_set_where_the_limits_allow_it(select, kind):
    steps = [{kind: {"min_z": 0.0} if kind == "threshold" else {}}]
    manifest, found = select(REJECTED, steps, limits={"max_rejected_fraction": 1.0})
    assert (found, manifest["counts"]["kept"], manifest["counts"]["rejected_total"]) == ([], 0, 6)
    assert manifest["mean_reward"] == {"kept": None, "dropped": None}


def test_a_file_of_no_rows_is_an_empty_data_set(tmp_path, select):
    schema = pa.schema([(name, pa.string()) for name in ("prompt", "response", "source")] + [("reward", pa.float32())])
    (tmp_path / "in").mkdir()
    pq.write_table(schema.empty_table(), tmp_path / "in" / "a.parquet")
    steps = [{"length_correction": {}}, {"top": {"fraction": 0.5}}, {"best_of_n": {}}, {"top": {"rows": 1}}]
    manifest, found = select([], steps)
    assert (found, manifest["counts"]["read"], manifest["counts"]["kept"]) == ([], 0, 0)
    assert [step["rows"] for step in manifest["steps"]] == [0, 0, 0, 0]


def test_steps_after_nothing_is_left_are_listed_with_nothing(select):
    steps = [{"threshold": {"min_reward": 0.0}}, {"top": {"rows": 0}}, {"best_of_n": {}}, {"top": {"rows": 3}}]
    manifest, _ = check(select, LONE, steps)
    assert manifest["steps"] == [
        {"rule": "threshold", "rows": 5, "prompts": None, "size": sum(len(one["response"]) for one in LONE)},
        {"rule": "top", "rows": 0, "prompts": None, "size": 0},
        {"rule": "best_of_n", "rows": 0, "prompts": 0, "size": 0},
        {"rule": "top", "rows": 0, "prompts": 0, "size": 0},
    ]


def test_ranks_and_margins_at_the_ends_of_float32(select):
    rows = [row("p", f"r{n}", reward) for n, reward in enumerate([3.0e38, 1e-45, -3.0e38])]
    _, found = select(rows, [], output={"add": ["rank", "margin"]})
    by_rank = sorted(found, key=lambda entry: entry["rank"])
    assert [entry["rank"] for entry in by_rank] == [1, 2, 3]
    gaps = [float(np.float32(above["reward"] - below["reward"])) for above, below in pairwise(by_rank)]
    assert [entry["margin"] for entry in by_rank] == [*gaps, None]


def test_normal_forms_of_a_prompt_compete_and_those_of_a_response_do_not_merge(select):
    composed, apart = "caf\u00e9", "cafe\u0301"
    rows = [row(prompt, f"r{n}", n / 2) for n, prompt in enumerate([composed, apart] * 3)]
    rows += [row("other", composed, 0.25), row("other", apart, 0.25)]
    manifest, found = select(rows, [{"best_of_n": {"keep": 2}}])
    assert (manifest["counts"]["prompts"], manifest["counts"]["kept"]) == (2, 4)
    texts = [(entry["messages"][0]["content"], entry["messages"][-1]["content"]) for entry in found]
    assert sorted(texts) == sorted([(apart, "r5"), (composed, "r4"), ("other", composed), ("other", apart)])
    assert len({entry["prompt_id"] for entry in found}) == 2
    assert prompt_key([("user", composed)]) == prompt_key([("user", apart)])
