"""`select --explain`: numbers derived by hand, and the same rows kept as in the shards, for every prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import write_jsonl
from support.stubs import NamedFactory, StubFactory, save_named_model, stub_reward

from pipelines.commands.explain.explain_transform import explain, find_row, matching
from pipelines.commands.explain.lookup import ScoredPlace, read_texts
from pipelines.commands.explain.table import explanation_table, texts_of
from pipelines.commands.run import run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, InputError, RejectedError
from pipelines.plan import make_plans
from rm.conversations import from_prompt, prompt_key, response_hash

SMALL = [  # (prompt, response, reward, source): every reward is exact in float32
    ("p", "aa", 0.5, "a"),
    ("q", "eeeee", 0.75, "a"),
    ("p", "b", 1.0, "b"),
    ("p", "cccc", -1.0, "a"),
    ("q", "ffffff", 0.0, "b"),
    ("p", "ddd", 0.25, "b"),
]
P = [0, 2, 3, 5]  # lines of prompt p


def key_of(prompt: str) -> str:
    return prompt_key(from_prompt(prompt)).hex()


def rows_of(table) -> list[dict]:
    return [
        {"prompt": prompt, "response": text, "reward": reward, "source": source, "generator": text[0]}
        for prompt, text, reward, source in table
    ]


def write(root: Path, rows, files: int = 1) -> None:
    for number in range(files):
        write_jsonl(root / "in" / f"{number}.jsonl", rows[number::files])


def configured(root: Path, steps, *, out: str = "out", **changes) -> RunConfig:
    values = {
        "input": {"path": str(root / "in"), "rows_per_fragment": 4, **changes.pop("input", {})},
        "scores": {"path": str(root / "scores"), "column": "reward"},
        "select": steps,
        "output": {"path": str(root / out), **changes.pop("output", {})},
        **changes,
    }
    if any("pairs" in step for step in steps):
        values["output"]["shape"] = "preference"
    return RunConfig.model_validate(values)


@pytest.fixture
def make(tmp_path):
    def config(rows, steps, *, files: int = 1, **changes) -> RunConfig:
        write(tmp_path, rows, files)
        return configured(tmp_path, steps, **changes)

    return config


def explained(config, prompt: str):
    run_curation(config, scorer=None)
    return explain(config, key_of(prompt))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Explains prompt p of the corpus SMALL under any steps: it is scored once."""
    root, carry = tmp_path_factory.mktemp("small"), {"carry": ["generator"]}
    write(root, rows_of(SMALL))
    run_curation(configured(root, [], input=carry), scorer=None)
    return lambda steps: explain(configured(root, steps, out="none", input=carry), key_of("p"))


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


Z = [
    gap / 0.54296875**0.5 for gap in (0.3125, 0.8125, -1.1875, 0.0625)
]  # from the mean 0.1875; the root of the variance
TARGET = 0.1875 - 2 * 0.54296875**0.5
BY_HAND = {
    "best_of_n": (
        {"best_of_n": {"keep": 2, "min_margin": 0.25}},
        ["kept", "kept", "dropped", "dropped"],
        [{"rank": r, "of": 4, "keep": 2, "min_candidates": 2, "gap": 0.25, "min_margin": 0.25} for r in (2, 1, 4, 3)],
    ),
    "margin": (
        {"best_of_n": {"min_margin": 0.75}},
        ["dropped"] * 4,
        [{"rank": r, "of": 4, "keep": 1, "min_candidates": 2, "gap": 0.5, "min_margin": 0.75} for r in (2, 1, 4, 3)],
    ),
    "probability": (
        {"best_of_n": {"min_probability": 0.7, "temperature": 0.5}},
        ["dropped", "kept", "dropped", "dropped"],
        [{"gap": 0.5, "probability": 0.7310586, "min_probability": 0.7, "temperature": 0.5}] * 4,
    ),
    "candidates": (
        {"best_of_n": {"keep": 5, "min_candidates": 5}},
        ["dropped"] * 4,
        [{"of": 4, "min_candidates": 5, "gap": None}] * 4,
    ),
    "threshold": (
        {"threshold": {"min_reward": 0.5}},
        ["kept", "kept", "dropped", "dropped"],
        [{"reward": reward, "min_reward": 0.5} for reward in (0.5, 1.0, -1.0, 0.25)],
    ),
    "z": (
        {"threshold": {"min_z": 0.4}},
        ["kept", "kept", "dropped", "dropped"],
        [{"z": pytest.approx(z, abs=1e-6), "min_z": 0.4} for z in Z],
    ),
    "reference": (
        {"threshold": {"reference": "generator=a", "min_probability": 0.6, "temperature": 0.5}},
        ["dropped", "kept", "dropped", "dropped"],
        [
            {"reward": r, "reference": 0.5, "probability": pytest.approx(p, abs=1e-6), "min_probability": 0.6}
            for r, p in ((0.5, 0.5), (1.0, 0.7310586), (-1.0, 0.0474259), (0.25, 0.3775407))
        ],
    ),
    "no-reference": (
        {"threshold": {"reference": "generator=e", "temperature": 0.5}},
        ["dropped"] * 4,
        [{"reference": None, "probability": 0.0}] * 4,
    ),
    "top": (
        {"top": {"rows": 3}},
        ["kept", "kept", "dropped", "dropped"],
        [
            {"reward": reward, "cut_reward": 0.5, "next_reward": 0.25, "kept_rows": 3, "of": 6}
            for reward in (0.5, 1.0, -1.0, 0.25)
        ],
    ),
    "per": (
        {"top": {"fraction": 0.5, "per": "source"}},
        ["dropped", "kept", "dropped", "dropped"],
        [
            {"stratum": name, "reward": reward, "cut_reward": cut, "next_reward": below, "kept_rows": 1, "of": 3}
            for name, reward, cut, below in (
                ("a", 0.5, 0.75, 0.5),
                ("b", 1.0, 1.0, 0.25),
                ("a", -1.0, 0.75, 0.5),
                ("b", 0.25, 1.0, 0.25),
            )
        ],
    ),
    "all": (
        {"top": {"fraction": 1}},
        ["kept"] * 4,
        [{"cut_reward": -1.0, "next_reward": None, "kept_rows": 6, "of": 6}] * 4,
    ),
    "pairs": (
        {"pairs": {"min_gap": 0.6, "max_gap": 1.0}},
        ["dropped", "kept", "dropped", "paired"],
        [
            {"rank": rank, "of": 4, "gap": gap, "min_gap": 0.6, "max_gap": 1.0}
            for rank, gap in ((2, 0.5), (1, 0.0), (4, 2.0), (3, 0.75))
        ],
    ),
    "chosen pairs": (
        {"pairs": {"chosen": {"where": "reward < 0.75"}, "rejected": {"sigma": -2}}},
        ["kept", "dropped", "paired", "dropped"],
        [
            {"true": fits, "rank": rank, "of": 4, "gap": gap, "min_gap": 0.0, "max_gap": None, "target": TARGET}
            for fits, rank, gap in ((True, 2, 0.0), (False, 1, -0.5), (True, 4, 1.5), (True, 3, 0.25))
        ],
    ),
    "drop_prompts": (
        {"drop_prompts": {"min_best": 0.5, "max_spread": 1.5}},
        ["dropped"] * 4,
        [{"candidates": 4, "best": 1.0, "spread": 2.0, "min_best": 0.5, "max_spread": 1.5, "min_candidates": 1}] * 4,
    ),
    "longest": (
        {"longest": {"keep": 2}},
        ["dropped", "dropped", "kept", "kept"],
        [{"characters": n, "rank": rank, "of": 4, "keep": 2} for n, rank in ((2, 3), (1, 4), (4, 1), (3, 2))],
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_each_rule_by_hand(small, name):
    step, words, numbers = BY_HAND[name]
    found = small([step])
    assert (found["prompt_id"], found["prompts"], len(found["steps"])) == (key_of("p"), 2, 1)
    assert [row["place"] for row in found["rows"]] == [f"line {line + 1}" for line in P]
    assert [row["reward"] for row in found["rows"]] == [SMALL[line][2] for line in P]
    assert {row["tokens"] for row in found["rows"]} == {None}
    verdicts = [row["steps"][0] for row in found["rows"]]
    assert [verdict["verdict"] for verdict in verdicts] == words
    assert [row["kept"] for row in found["rows"]] == [word == "kept" for word in words]
    for verdict, expected in zip(verdicts, numbers, strict=True):
        assert verdict["rule"] == next(iter(step))
        for number, value in expected.items():
            assert verdict[number] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value), number


def test_random_by_its_hash(small):
    """splitmix64 of the response's hash, the prompt's and the seed: its upper half, the smallest first."""
    mask, low = 2**64 - 1, int(key_of("p")[16:], 16)

    def draw(text: str) -> int:
        z = response_hash(text) ^ ((low + 0x9E3779B97F4A7C15 * 4) & mask)
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return (z ^ (z >> 31)) >> 32

    found = small([{"random": {"keep": 2, "seed": 3}}])
    texts = [SMALL[line][1] for line in P]
    ranks = [sorted(texts, key=draw).index(text) + 1 for text in texts]
    steps = [row["steps"][0] for row in found["rows"]]
    assert [(step["rank"], step["keep"], step["seed"], step["of"]) for step in steps] == [(r, 2, 3, 4) for r in ranks]
    assert [step["verdict"] for step in steps] == ["kept" if rank <= 2 else "dropped" for rank in ranks]


def test_length_correction_of_equal_lengths_is_the_mean(make):
    rows = rows_of([(p, f"{n}", reward, None) for n, (p, _, reward, _) in enumerate(SMALL)])  # mean 0.25
    found = explained(make(rows, [{"length_correction": None}, {"threshold": {"min_reward": 0.2}}]), "p")
    first, second = ([row["steps"][number] for row in found["rows"]] for number in (0, 1))
    assert [(step["reward"], step["corrected"]) for step in first] == [(0.5, 0.25), (1, 0.75), (-1, -1.25), (0.25, 0)]
    assert {(step["verdict"], step["characters"]) for step in first} == {("kept", 1)}
    assert [step["reward"] for step in second] == [0.25, 0.75, -1.25, 0.0]
    assert [step["verdict"] for step in second] == ["kept", "kept", "dropped", "dropped"]


def test_a_step_sees_what_is_left_and_what_is_dropped_stays_so(small):
    steps = [{"threshold": {"min_reward": 0.25}}, {"best_of_n": {"keep": 2}}, {"top": {"rows": 1}}]
    found = small(steps)
    assert [[step["verdict"] for step in row["steps"]] for row in found["rows"]] == [
        ["kept", "kept", "dropped"],
        ["kept", "kept", "kept"],
        ["dropped", "dropped before", "dropped before"],
        ["kept", "dropped", "dropped before"],
    ]
    assert found["rows"][0]["steps"][1] | {"rank": 2, "of": 3, "gap": 0.25} == found["rows"][0]["steps"][1]
    assert found["rows"][2]["steps"][1] == {"rule": "best_of_n", "verdict": "dropped before"}


def test_rejected_rows_have_their_reason(make):
    rows = [*rows_of(SMALL), {**rows_of(SMALL)[0], "response": ""}, {**rows_of(SMALL)[0], "reward": None}]
    rows += [{**rows_of(SMALL)[0], "prompt": "only rejected", "response": ""}]
    config = make(rows, [{"best_of_n": {}}], limits={"max_rejected_fraction": 0.5})
    found = explained(config, "p")
    assert [row["rejected"] for row in found["rows"]] == [None] * 4 + ["empty_response", "no_reward"]
    assert found["rows"][4] == {
        "file": "0.jsonl",
        "place": "line 7",
        "response_index": 0,
        "reward": None,
        "tokens": None,
        "rejected": "empty_response",
        "kept": False,
        "steps": [{"rule": "best_of_n", "verdict": "dropped before"}],
    }
    assert [row["rejected"] for row in explain(config, key_of("only rejected"))["rows"]] == ["empty_response"]
    limits = config.limits.model_copy(update={"max_rejected_fraction": 0.1})
    with pytest.raises(RejectedError, match="3 of 9 responses were rejected"):
        explain(config.model_copy(update={"limits": limits}), key_of("p"))


def mixed_corpus() -> list[dict]:
    """Five prompts of one to six responses, with ties in reward, length and text, in three sources."""
    rows = []
    for p in range(5):
        for k in range(p + 1 + p % 2):
            reward, text = ((3 * p + 5 * k) % 7 - 3) / 4, f"{p}{k}" + "x" * ((p * k) % 4)
            row = {"prompt": f"p{p}", "response": text, "reward": reward, "source": "abc"[(p + k) % 3]}
            rows.append({**row, "generator": f"g{k % 3}"})
    return [*rows, {**rows[-1], "source": "a"}, {**rows[3], "prompt": "p4"}]


SELECTIONS = {
    "nothing": [],
    "best": [{"best_of_n": {"keep": 2, "min_margin": 0.25}}],
    "cuts": [
        {"threshold": {"min_reward": -0.5}},
        {"top": {"fraction": 0.8, "per": "source", "min_rows": 2}},
        {"best_of_n": {"keep": 3, "min_candidates": 1}},
        {"top": {"rows": 6}},
        {"drop_prompts": {"min_candidates": 2}},
    ],
    "length": [{"length_correction": {}}, {"top": {"fraction": 0.6}}, {"longest": {"keep": 2}}, {"top": {"rows": 5}}],
    "reference": [{"threshold": {"reference": "generator=g1", "temperature": 1}}, {"random": {"keep": 2}}],
    "z": [{"threshold": {"min_z": -0.5}}, {"top": {"fraction": 0.5}}],
    "pairs": [{"top": {"rows": 14}}, {"pairs": {"rejected": "random", "min_gap": 0.5}}],
}


LONE, ODD, MOST = "p0", "p3", "p4"  # of one response, five, and seven with equal texts


@pytest.mark.parametrize("prompts", [[LONE, ODD, MOST], pytest.param(["p1", "p2"], marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", SELECTIONS)
def test_what_is_explained_as_kept_is_what_the_shards_hold(make, tmp_path, name, prompts):
    rows, steps = mixed_corpus(), SELECTIONS[name]
    config = make(rows, steps, files=3, input={"carry": ["generator"]})
    run_curation(config, scorer=None)
    shards = pq.read_table(tmp_path / "out" / "data").to_pylist()
    lines = [(f"{at % 3}.jsonl", f"line {at // 3 + 1}") for at in range(len(rows))]
    for prompt in prompts:
        found = explain(config, key_of(prompt))
        own = [lines.index((row["file"], row["place"])) for row in found["rows"]]
        assert sorted(own) == [at for at, row in enumerate(rows) if row["prompt"] == prompt]
        kept = [rows[at] for at, row in zip(own, found["rows"], strict=True) if row["kept"]]
        held = [row for row in shards if row["prompt_id"] == key_of(prompt)]
        if name == "pairs":
            paired = [
                rows[at] for at, row in zip(own, found["rows"], strict=True) if row["steps"][-1]["verdict"] == "paired"
            ]
            assert [row["rejected"][0]["content"] for row in held] == [row["response"] for row in paired]
            assert [row["chosen"][0]["content"] for row in held] == [row["response"] for row in kept]
        else:
            expected = sorted((row["response"], row["reward"]) for row in kept)
            assert sorted((row["messages"][-1]["content"], row["reward"]) for row in held) == expected
        for row in found["rows"]:
            words = [step["verdict"] for step in row["steps"]]
            assert row["kept"] == (set(words) <= {"kept"})
            assert words == sorted(words, key=["kept", "paired", "dropped", "dropped before"].index)
            assert sum(word in ("dropped", "paired") for word in words) == (not row["kept"])
    assert len(shards) > 1


def test_tokens_are_counted_where_a_model_has_scored(tmp_path, make_config):
    rows = [{"prompt": f"p{n % 2}", "response": "word " * (n + 1)} for n in range(6)]
    config = make_config(write_jsonl(tmp_path / "a.jsonl", rows), select=[{"top": {"tokens": 12}}])
    run_curation(config, scorer=StubFactory())
    rewards = [float(stub_reward(from_prompt(row["prompt"]), row["response"])) for row in rows]
    budget, kept = 12, []
    for at in sorted(range(6), key=lambda at: -rewards[at]):  # a stub's prompt has one token
        budget -= at + 2
        if budget < 0:
            break
        kept.append(at)
    dropped = [at for at in range(6) if at not in kept]
    found = explain(config, key_of("p1"))
    assert [(row["tokens"], row["kept"]) for row in found["rows"]] == [(n + 2, n in kept) for n in (1, 3, 5)]
    cut, below = min(rewards[at] for at in kept), max(rewards[at] for at in dropped)
    assert {(row["steps"][0]["cut_reward"], row["steps"][0]["next_reward"]) for row in found["rows"]} == {(cut, below)}


def test_an_ensemble(tmp_path, make):
    models = [{"path": str(save_named_model(tmp_path / "models" / name))} for name in ("anna", "bo")]
    rows = [{"prompt": f"p{n % 3}", "response": f"answer {n}"} for n in range(12)]
    steps = [{"top": {"fraction": 0.7}}, {"best_of_n": {"keep": 2}}]
    config = make(rows, steps, model=models, scores={"path": str(tmp_path / "scores")})
    with pytest.raises(InputError, match="not scored yet"):
        explain(config, key_of("p1"))
    (tmp_path / "log").touch()
    run_scoring(config, scorer=NamedFactory(str(tmp_path / "log")))
    before = contents(tmp_path)
    first = explain(config, key_of("p0"))
    assert contents(tmp_path) == before, "the combined scores are not left behind"
    run_curation(config, scorer=None)
    assert explain(config, key_of("p0")) == first
    before = contents(tmp_path)
    held = pq.read_table(tmp_path / "out" / "data").to_pylist()
    for prompt, found in (("p0", first), *((prompt, explain(config, key_of(prompt)[:12])) for prompt in ("p1", "p2"))):
        own = {row["reward"] for row in held if row["prompt_id"] == key_of(prompt)}
        assert {row["reward"] for row in found["rows"] if row["kept"]} == own
        assert len(found["rows"]) == 4
    assert contents(tmp_path) == before


def test_nothing_is_written_and_the_answer_is_always_the_same(make, tmp_path):
    config = make(mixed_corpus(), [{"top": {"rows": 12}}, {"best_of_n": {"keep": 3}}], files=3)
    with pytest.raises(InputError, match=r"not scored yet.*bestkept select"):
        explain(config, key_of("p3"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
    run_curation(config, scorer=None)
    before = contents(tmp_path)
    first = explain(config, key_of("p3"))
    assert explain(config, key_of("p3")) == first
    assert list(first["rows"][0]) == [
        "file",
        "place",
        "response_index",
        "reward",
        "tokens",
        "rejected",
        "kept",
        "steps",
    ]
    order = [(row["file"], int(row["place"].split()[1])) for row in first["rows"]]
    assert order == sorted(order)
    assert contents(tmp_path) == before


def test_another_selection_is_explained_from_the_same_scores(make, tmp_path):
    config = make(rows_of(SMALL), [])
    run_curation(config, scorer=None)
    other = make(rows_of(SMALL), [{"best_of_n": {}}], out="other")
    assert [row["kept"] for row in explain(other, key_of("p"))["rows"]] == [False, True, False, False]
    assert not (tmp_path / "other").exists()


def test_unknown_and_ambiguous_ids_and_an_empty_key(make):
    prompts = ["question 40414", "question 59192", "question 3"]
    rows = [{"prompt": p, "response": f"{p} {n}", "reward": n} for p in prompts for n in range(2)]
    config = make(rows, [{"best_of_n": {}}])
    run_curation(config, scorer=None)
    shared = key_of(prompts[0])[:8]
    assert key_of(prompts[1]).startswith(shared), "two prompts whose ids begin alike, found by search"
    with pytest.raises(InputError, match=f"'{shared}' fits 2 of 3 prompts") as ambiguous:
        explain(config, shared)
    for line, prompt in ((1, prompts[0]), (3, prompts[1])):
        assert f"{key_of(prompt)} (0.jsonl:line {line})" in str(ambiguous.value)
    assert explain(config, key_of(prompts[1])[:17])["prompt_id"] == key_of(prompts[1])
    wrong = key_of(prompts[0])[:-1] + ("0" if key_of(prompts[0])[-1] != "0" else "1")
    with pytest.raises(InputError, match=f"none of the 3 scored prompts has the id '{wrong}'"):
        explain(config, wrong)
    for text in (shared[:7], key_of(prompts[0]) + "0", shared.upper() + "Z"):
        with pytest.raises(InputError, match=f"no prompt begins with '{text}'"):
            explain(config, text)
    for empty in ("", " \n"):
        with pytest.raises(ConfigError, match="is empty; give a prompt_id"):
            explain(config, empty)
    with pytest.raises(ConfigError, match="--temp_location=x is for a runner"):
        explain(config, shared, ["--temp_location=x"])


halves = st.one_of(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1))


@given(st.lists(st.tuples(halves, halves), min_size=1, max_size=6), st.integers(8, 32), st.data())
def test_a_prefix_fits_the_keys_that_begin_with_it(keys, length, data):
    """Keys that share a half, or all but their last digit, too; at any length of the prefix."""
    keys += [(high, low ^ 1) for high, low in keys] + [(high ^ 1, low) for high, low in keys]
    digits = [f"{high:016x}{low:016x}" for high, low in keys]
    prefix = data.draw(st.sampled_from(digits))[:length]
    high, low = (np.array(half, dtype=np.uint64) for half in zip(*keys, strict=True))
    assert matching(high, low, prefix).tolist() == [one.startswith(prefix) for one in digits]


def test_the_command(make, bestkept, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    rows = [{**row, "response": f"SECRET {row['response']}"} for row in rows_of(SMALL)]
    config = make(rows, [{"best_of_n": {}}, {"top": {"rows": 1}}])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))
    assert bestkept("select", path, "--explain", key_of("p"))[0] == 3
    assert bestkept("select", path)[0] == 0
    code, out, err = bestkept("select", path, "--explain", key_of("p")[:9])
    assert (code, "2 of" in out, f"{key_of('p')}: 1 of 4 responses kept" in out) == (0, False, True)
    assert "best_of_n dropped: rank 2, of 4, keep 1" in out
    code, text, errors = bestkept(
        "select", path, f"--explain={key_of('p')}", "--json", "select=[{best_of_n: {keep: 3}}]"
    )
    assert code == 0
    found = json.loads(text)
    assert text.count("\n") == 1
    assert [row["kept"] for row in found["rows"]] == [True, True, False, True]
    assert "SECRET" not in out + err + text + errors
    code, out, err = bestkept("select", path, "--explain", "p", "--text")
    assert (code, "\nuser: p\n" in out, "0.jsonl line 3, response 0: kept\nSECRET b\n" in out) == (0, True, True)
    code, out, err = bestkept("select", path, "--explain", "0.jsonl:1", "--text", "--json")
    texts = [row["text"] for row in json.loads(out)["rows"]]
    assert (code, texts) == (0, [f"SECRET {SMALL[line][1]}" for line in P])
    for words, status, message in (
        (["--explain", "0" * 32], 3, "none of the 2 scored prompts has the id"),
        (["--explain", "abc"], 3, "no prompt begins with 'abc', nor does a later message of one, in the 1 file"),
        (["--explain", ""], 2, "--explain '' is empty"),
        (["--text"], 2, "--text has no effect without --explain"),
        (["--explain", key_of("p"), "--num_workers=3"], 2, "--num_workers=3"),
    ):
        code, out, err = bestkept("select", path, *words)
        assert (code, message in err.strip().splitlines()[-1], out) == (status, True, ""), err
        assert "Traceback" not in err


def test_names_of_files_are_not_markup():
    step = {"rule": "top", "verdict": "kept", "cut_reward": 0.5, "next_reward": None}
    row = {"file": "[red]a.jsonl", "place": "line 1", "response_index": 0, "reward": 0.5, "tokens": None}
    row |= {"rejected": None, "kept": True, "steps": [step]}
    table = explanation_table({"prompt_id": "ab", "steps": [{"top": {"rows": 1}}], "rows": [row]})
    cells = [str(next(iter(column.cells))) for column in table.columns]
    assert cells == ["[red]a.jsonl line 1", "0.5", "top kept: cut_reward 0.5, next_reward -", "yes"]


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is  it\nraining?"}]


DROPPING = [
    {"threshold": {"min_reward": 0.25}},
    {"best_of_n": {"keep": 1, "min_candidates": 1}},
    {"drop_prompts": {"min_best": 0.6}},
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A scored corpus of several files, with rows that cannot be read."""
    root = tmp_path_factory.mktemp("corpus")
    rows = [{"prompt": "How do I fly?", "response": f"{n}", "reward": n} for n in range(3)]
    rows += [{"prompt": TALK, "response": "no", "reward": 0.5}, {"prompt": "Who?", "response": "", "reward": 0}]
    write_jsonl(root / "in" / "a" / "x.jsonl", rows)
    write_jsonl(root / "in" / "b" / "x.jsonl", [{"prompt": "How to swim?", "response": "so", "reward": 0.75}])
    write_jsonl(root / "in" / "d.jsonl", [{"prompt": "What?", "response": text, "reward": 0} for text in ("a", "")])
    odd = {"prompt": [{"role": "?", "content": "Odd one"}], "response": "r", "reward": 1}
    lines = ['{"prompt": "Lost", "response": "cut', json.dumps(odd), json.dumps(rows[0])]
    (root / "in" / "c.jsonl").write_text("\n\n".join(lines) + "\n")
    config = configured(root, DROPPING, limits={"max_rejected_fraction": 0.5})
    run_curation(config, scorer=None)
    return config


@pytest.fixture(scope="module")
def row_groups(tmp_path_factory):
    """A Parquet file of three row groups, not scored."""
    root = tmp_path_factory.mktemp("row_groups")
    (root / "in").mkdir()
    table = pa.Table.from_pylist([{"prompt": f"parquet {n}", "response": "r", "reward": n / 4} for n in range(7)])
    pq.write_table(table, root / "in" / "d.parquet", row_group_size=3)
    return configured(root, DROPPING)


@pytest.mark.parametrize(
    ("key", "prompt"),
    [
        ("How do", "How do I fly?"),
        ("  how do I fly?".replace("how", "How"), "How do I fly?"),
        ("Is it raining", TALK),
        ("Be brief", TALK),
        ("a/x.jsonl:1", "How do I fly?"),
        ("a/x.jsonl:line 4", TALK),
        ("b/x.jsonl:1", "How to swim?"),
        ("c.jsonl:3", "How do I fly?"),
    ],
)
def test_a_prompt_by_place_and_by_text(corpus, key, prompt):
    assert find_row(key, make_plans(corpus).whole, skip_bad_files=False).key == prompt_key(from_prompt(prompt)).hex()


@pytest.mark.parametrize(("row", "prompt"), [("1", 0), ("3", 2), ("row 4", 3), ("7", 6)])
def test_a_row_of_a_row_group(row_groups, row, prompt):
    found = find_row(f"in/d.parquet:{row}", make_plans(row_groups).whole, skip_bad_files=False)
    assert found.key == key_of(f"parquet {prompt}")


def test_a_row_after_the_last_row_group(row_groups):
    with pytest.raises(InputError, match="has no row 8: 7 rows, counted from 1"):
        explain(row_groups, "d.parquet:8")


def test_a_whole_path_is_a_file_too(corpus):
    path = Path(corpus.input.paths[0]) / "b" / "x.jsonl"
    assert explain(corpus, f"{path}:1")["prompt_id"] == key_of("How to swim?")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "How",
            f"'How' begins 2 prompts: {key_of('How do I fly?')} (a/x.jsonl:line 1), {key_of('How to swim?')} (b/x.jsonl:line 1)",
        ),
        ("x.jsonl:1", "'x.jsonl' names several input files; the 2 are a/x.jsonl, b/x.jsonl"),
        ("y.jsonl:1", "no input file is named 'y.jsonl'; the 4 are a/x.jsonl, b/x.jsonl, c.jsonl, d.jsonl"),
        ("a/x.jsonl:0", "rows are counted from 1"),
        ("a/x.jsonl:6", "has no row 6: 5 rows, counted from 1 without blank lines"),
        ("a/x.jsonl:line 1 after byte 7", "has no row 1: no part begins there"),
        ("a/x.jsonl:row 1 of the unit at 7", "has no row 1: no part begins there"),
        ("ratio 3:4", "no prompt begins with 'ratio 3:4'"),
        ("ow do", "no prompt begins with 'ow do', nor does a later message of one, in the 4 files"),
    ],
)
def test_what_names_no_prompt_or_several(corpus, key, message):
    with pytest.raises(InputError) as raised:
        explain(corpus, key)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("key", "reason", "text"),
    [("c.jsonl:1", "bad_json", "null"), ("c.jsonl:2", "bad_role", "Odd one"), ("Odd", "bad_role", "Odd one")],
)
def test_a_row_without_a_usable_prompt(corpus, key, reason, text):
    plain, explained = explain(corpus, key), explain(corpus, key, with_text=True)
    assert (plain["prompt_id"], [row["rejected"] for row in plain["rows"]]) == (None, [reason])
    assert "Odd one" not in json.dumps(plain)
    assert text in json.dumps(explained["rows"][0]["text"])
    table = explanation_table(plain)
    assert table.title == f"a row without a usable prompt: none of 1 responses kept: 1 rejected ({reason})"


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("Who?", "1 rejected (empty_response)"),
        ("What", "1 dropped by step 1 (threshold), 1 rejected (empty_response)"),
        ("Be brief", "1 dropped by step 3 (drop_prompts)"),
    ],
)
def test_a_prompt_that_was_dropped_whole_says_by_what(corpus, key, end):
    explained = explain(corpus, key)
    assert (
        explanation_table(explained).title
        == f"prompt {explained['prompt_id']}: none of {len(explained['rows'])} responses kept: {end}"
    )


def test_texts_are_those_that_were_scored(corpus):
    explained = explain(corpus, "How do I fly?", with_text=True)
    assert explained["prompt"] == [{"role": "user", "content": "How do I fly?"}]
    assert [row["text"] for row in explained["rows"]] == ["0", "1", "2", "0"]
    assert "text" not in explain(corpus, "How do I fly?")["rows"][0]
    plan = make_plans(corpus).whole
    place = ScoredPlace(0, 0, 1, 0, response_hash("1"))
    assert read_texts(plan, [place], prompt_id=explained["prompt_id"]).responses == ["1"]
    for changed in (
        place._replace(response_hash=1),
        place._replace(row=3),
        place._replace(unit=9),
        place._replace(row=99),
    ):
        with pytest.raises(InputError, match="has changed since it was scored"):
            read_texts(plan, [changed], prompt_id=explained["prompt_id"])


def test_many_prompts_end_the_search(tmp_path, make):
    config = make([{"prompt": f"Q{n}", "response": "r", "reward": n} for n in range(30)], [])
    with pytest.raises(InputError, match=r"'Q' begins more than 10 prompts: .*, \.\.\.; give one of these ids"):
        explain(config, "Q")


def test_text_on_a_terminal_does_not_steer_it(corpus):
    explained = explain(corpus, "How to", with_text=True)
    explained["rows"][0]["text"] = "a\x1b[2Jb"
    assert "\x1b" not in "".join(str(text) for text in texts_of(explained))
