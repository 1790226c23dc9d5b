"""`near_duplicates` and `diverse` through the whole graph: planted copies, any partitions and file order, explanations."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.corpora import TIMED, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.select import selection as selection_module
from rm.conversations import from_prompt, prompt_key

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdklmnrst"]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def altered(rng: random.Random, text: str, kind: int) -> str:
    """The text with few words swapped or replaced, other case and punctuation, or a sentence more."""
    words = text.split()
    if kind == 0:
        at = rng.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]
    elif kind == 1:
        return text.upper().replace(" ", ",  ") + "!"
    else:
        words += sentence(rng, 4).split()
    return " ".join(words)


def planted(prompts: int = 20, seed: int = 1):
    """Rows of distinct long prompts, and copies of every second one, which are altered and have other rewards."""
    rng = random.Random(seed)
    rows = []
    for number in range(prompts):
        prompt = sentence(rng, 80)
        texts = [prompt] + [altered(rng, prompt, kind) for kind in range(3) if number % 2]
        for copy, text in enumerate(texts):
            for k in range(2):
                response = sentence(rng, 60)
                reward = rng.randrange(1000) / 100
                rows.append(
                    {"prompt": text, "response": response, "reward": reward, "of": number, "copy": copy, "k": k}
                )
    rng.shuffle(rows)
    return rows


def configured(root: Path, steps, out="out", **changes) -> RunConfig:
    values = {
        "input": {"path": str(root / "in"), "rows_per_fragment": 7},
        "scores": {"path": str(root / "scores"), "column": "reward"},
        "select": steps,
        "output": {"path": str(root / out)},
    }
    return RunConfig.model_validate(values | changes)


def kept(root: Path, out="out"):
    return {row["messages"][-1]["content"] for row in pq.read_table(root / out / "data").to_pylist()}


def outputs(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name not in TIMED}


@pytest.fixture
def rows(tmp_path):
    rows = planted()
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
    return rows


def best_copies(rows):
    """The texts of all responses to the best copy of each prompt."""
    best = {}
    for row in sorted(rows, key=lambda row: row["reward"]):
        best[row["of"]] = row["copy"]
    return {row["response"] for row in rows if best[row["of"]] == row["copy"]}


def test_of_prompts_that_are_nearly_the_same_the_best_stays(tmp_path, rows):
    manifest = run_curation(configured(tmp_path, [{"near_duplicates": {}}]), scorer=None).manifest
    assert kept(tmp_path) == best_copies(rows)
    assert manifest["steps"] == [
        {"rule": "near_duplicates", "rows": 40, "prompts": 20, "size": sum(map(len, best_copies(rows)))}
    ]
    counts = {"groups": 10, "largest": 4, "dropped": 30}
    assert manifest["alike"] == [{"step": 0, "rule": "near_duplicates", "of": "prompt", "similarity": 0.8, **counts}]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "at a similarity of 0.8, 10 groups of similar prompts, the largest of 4;" in page
    assert "30 prompts are dropped" in page
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"][0]["secs"] > 0
    (measure,) = manifest["measures"]
    assert (measure["kind"], measure["of"], measure["words"]) == ("minhash", "prompt", 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        [{"near_duplicates": {"of": "prompt", "similarity": 0.75}}, {"best_of_n": {"distinct": True}}],
        [{"best_of_n": {"min_candidates": 1}}, {"near_duplicates": {}}, {"where": "reward > 1"}, {"top": {"rows": 15}}],
        [{"diverse": {"rows": 12, "of": "prompt", "similarity": 0.6}}, {"random": {}}],
        [{"top": {"rows": 60}}, {"near_duplicates": {"of": "response"}}, {"diverse": {"rows": 9}}],
    ],
)
def test_partitions_and_the_order_of_files_do_not_matter(tmp_path, rows, monkeypatch, steps):
    run_curation(configured(tmp_path, steps), scorer=None)
    first = outputs(tmp_path / "out")
    for partitions in (1, 64):
        monkeypatch.setattr(selection_module, "PARTITIONS", partitions)
        run_curation(configured(tmp_path, steps, out=f"out{partitions}"), scorer=None)
        assert outputs(tmp_path / f"out{partitions}") == first
    paths = [str(tmp_path / "in" / f"{number}.jsonl") for number in (2, 0, 1)]
    changed = {"input": {"path": paths, "rows_per_fragment": 7}}
    run_curation(configured(tmp_path, steps, out="turned", **changed), scorer=None)
    assert kept(tmp_path, "turned") == kept(tmp_path)


@pytest.mark.slow
def test_the_best_that_are_not_alike(tmp_path, rows):
    steps = [{"best_of_n": {"min_candidates": 1}}, {"diverse": {"rows": 12, "of": "prompt", "similarity": 0.6}}]
    manifest = run_curation(configured(tmp_path, steps), scorer=None).manifest
    best = {}
    for row in sorted(rows, key=lambda row: row["reward"]):
        best[row["of"]] = row
    expected = sorted(best.values(), key=lambda row: -row["reward"])
    worst = expected[11]["reward"]
    assert {row["response"] for row in expected if row["reward"] > worst} <= kept(tmp_path)
    assert manifest["steps"][1]["rows"] == manifest["steps"][1]["prompts"] == 12
    run_curation(configured(tmp_path, [*steps[:1], {"diverse": {"rows": 99, "of": "prompt"}}], out="all"), scorer=None)
    assert kept(tmp_path, "all") == {row["response"] for row in best.values()}


def test_an_explanation_names_the_row_that_is_kept_instead(tmp_path, rows):
    steps = [{"near_duplicates": {}}, {"best_of_n": {"distinct": True}}]
    run_curation(configured(tmp_path, steps), scorer=None)
    number = 1  # has copies
    best = max((row for row in rows if row["of"] == number), key=lambda row: row["reward"])
    stays = explain(configured(tmp_path, steps), prompt_key(from_prompt(best["prompt"])).hex())
    assert [row["steps"][0]["verdict"] for row in stays["rows"]] == ["kept", "kept"]
    assert sorted(row["steps"][1]["rank"] for row in stays["rows"]) == [1, 2]
    other = next(row for row in rows if row["of"] == number and row["copy"] != best["copy"])
    goes = explain(configured(tmp_path, steps), prompt_key(from_prompt(other["prompt"])).hex())
    for row in goes["rows"]:
        assert row["steps"][0]["verdict"] == "dropped"
        assert row["steps"][0]["similarity"] == 0.8
        place = row["steps"][0]["like"]
    again = explain(configured(tmp_path, steps), place, with_text=True)
    assert again["prompt"][0]["content"] == best["prompt"]
    assert best["response"] in [row["text"] for row in again["rows"] if row["kept"]]


def test_an_explanation_of_diverse_names_what_is_like_it_and_the_cut(tmp_path, rows):
    steps = [{"diverse": {"rows": 8, "of": "prompt"}}]
    manifest = run_curation(configured(tmp_path, steps), scorer=None).manifest
    assert manifest["alike"][0] | {"rule": "", "largest": 0} == {
        "step": 0, "rule": "", "of": "prompt", "similarity": 0.7, "groups": 10, "largest": 0, "dropped": 30,
    }  # fmt: skip
    staying = kept(tmp_path)
    best = max((row for row in rows if row["of"] == 1), key=lambda row: row["reward"])
    other = next(row for row in rows if row["of"] == 1 and row["copy"] != best["copy"])
    for row in explain(configured(tmp_path, steps), prompt_key(from_prompt(other["prompt"])).hex())["rows"]:
        (step,) = row["steps"]
        assert (step["rule"], step["verdict"], step["similarity"]) == ("diverse", "dropped", 0.7)
        again = explain(configured(tmp_path, steps), step["like"])
    for row in again["rows"]:
        (step,) = row["steps"]
        assert step["like"] is None
        assert step["verdict"] == ("kept" if row["reward"] >= step["cut_reward"] else "dropped")
        assert step["kept_rows"] == len(staying) == 8
        assert step["of"] == 40


@pytest.mark.slow
def test_workers_of_a_machine_make_the_same_signatures_and_output(tmp_path, rows, configure):
    steps = [{"near_duplicates": {"of": "prompt"}}, {"diverse": {"rows": 9}}]
    for name, workers in (("one", 1), ("two", 2)):
        config = configure(
            tmp_path,
            tmp_path / "in",
            input={"rows_per_fragment": 7},
            select=steps,
            output={"path": str(tmp_path / name)},
            scores={"path": str(tmp_path / f"{name}-scores")},
            runner={"workers": workers},
        )
        run_curation(config, scorer=StubFactory())
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    scores = [
        {p.name: p.read_bytes() for p in (tmp_path / f"{name}-scores").glob("*/*.parquet")} for name in ("one", "two")
    ]
    assert scores[0] == scores[1]
    assert len({path.parent.name for path in (tmp_path / "two-scores").glob("*/*.parquet")}) == 3


@pytest.mark.parametrize("of", ["prompt", "response"])
def test_a_fragment_without_a_usable_text_is_no_fault(tmp_path, rows, of):
    (tmp_path / "in" / "9.jsonl").write_text(
        '{"broken\n' if of == "prompt" else '{"prompt": "p", "response": "", "reward": 1}\n'
    )
    limits = {"max_rejected_fraction": 0.5}
    manifest = run_curation(
        configured(tmp_path, [{"near_duplicates": {"of": of}}], limits=limits), scorer=None
    ).manifest
    assert manifest["counts"]["read"] == manifest["counts"]["scored"] + sum(manifest["rejected"].values())
    assert manifest["counts"]["kept"] > 0
