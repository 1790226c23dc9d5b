"""`decontaminate` through the whole graph: planted leaks go and are counted, others stay; explanation, change of the tests."""

from __future__ import annotations

import json
import random

import pyarrow.parquet as pq
import pytest
from support.corpora import write_jsonl

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.errors import ConflictError, InputError
from rm.conversations import from_prompt, prompt_key

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("an", "el", "is", "or", "um")]


def sentence(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def configured(root, steps, out="out", **changes) -> RunConfig:
    values = {
        "input": {"path": str(root / "in"), "rows_per_fragment": 7},
        "scores": {"path": str(root / "scores"), "column": "reward"},
        "select": steps,
        "output": {"path": str(root / out)},
    }
    return RunConfig.model_validate(values | changes)


@pytest.fixture
def planted(tmp_path):
    """Rows, each third of which holds 13 words or more of a test prompt, in another case and with other stops."""
    rng = random.Random(2)
    tests = [[sentence(rng, 30) for _ in range(20)] for _ in range(2)]
    for name, prompts in zip(("gsm", "mmlu"), tests, strict=True):
        write_jsonl(tmp_path / "tests" / f"{name}.jsonl", [{"question": prompt} for prompt in prompts])
    rows = []
    for number in range(60):
        prompt, response, leak = sentence(rng, 25), sentence(rng, 40), None
        if number % 3 == 0:
            leak = number % 2
            words = rng.choice(tests[leak]).split()
            at = rng.randrange(len(words) - 13)
            shared = ", ".join(words[at : at + 13]).upper() + "!"
            prompt, response = (f"{prompt} {shared}", response) if number % 4 < 2 else (prompt, f"{shared} {response}")
        rows.append({"prompt": prompt, "response": response, "reward": number / 10, "leak": leak})
    for part in range(2):
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", rows[part::2])
    return rows


def kept(root, out="out"):
    return {row["messages"][-1]["content"] for row in pq.read_table(root / out / "data").to_pylist()}


@pytest.mark.parametrize("late", [False, True])
def test_all_planted_leaks_go_and_nothing_else(tmp_path, planted, late):
    rule = {"decontaminate": {"against": [str(tmp_path / "tests" / "*.jsonl")]}}
    steps = [{"best_of_n": {"min_candidates": 1}}, rule] if late else [rule]
    manifest = run_curation(configured(tmp_path, steps), scorer=None).manifest
    clean = {row["response"] for row in planted if row["leak"] is None}
    assert kept(tmp_path) == clean
    assert manifest["steps"][-1]["rows"] == len(clean) == 40
    (measure,) = manifest["measures"]
    assert [(file["name"], file["prompts"], file["hits"]) for file in measure["files"]] == [
        (f"{name}.jsonl", 20, sum(row["leak"] == number for row in planted))
        for number, name in enumerate(("gsm", "mmlu"))
    ]
    assert str(tmp_path) not in json.dumps(manifest)
    assert "responses share 13 words with gsm.jsonl (20 prompts)" in (tmp_path / "out" / "report.html").read_text()
    leaking = next(row for row in planted if row["leak"] == 0)
    (row,) = explain(configured(tmp_path, steps), prompt_key(from_prompt(leaking["prompt"])).hex())["rows"]
    verdict = row["steps"][-1]
    assert (verdict["verdict"], verdict["files_hit"], verdict["of"]) == ("dropped", 1, "gsm.jsonl")
    assert ", ".join(verdict["words"].split()).upper() in leaking["prompt"] + leaking["response"]


def test_other_tests_are_another_selection_and_measure_anew(tmp_path, planted):
    steps = [{"decontaminate": {"against": [str(tmp_path / "tests" / "gsm.jsonl")]}}]
    first = run_curation(configured(tmp_path, steps), scorer=None).manifest
    write_jsonl(tmp_path / "tests" / "gsm.jsonl", [{"question": planted[1]["prompt"]}])
    with pytest.raises(ConflictError):
        run_curation(configured(tmp_path, steps), scorer=None)
    second = run_curation(configured(tmp_path, steps, out="again"), scorer=None).manifest
    assert kept(tmp_path, "again") == {row["response"] for row in planted if row is not planted[1]}
    assert first["measures"][0]["fingerprint"] != second["measures"][0]["fingerprint"]


def test_a_test_prompt_that_cannot_be_read_is_an_error(tmp_path, planted):
    with (tmp_path / "tests" / "gsm.jsonl").open("a") as file:
        file.write('{"question": "broken\n')
    rule = {"decontaminate": {"against": [str(tmp_path / "tests" / "*.jsonl")]}}
    with pytest.raises(InputError, match=r"gsm\.jsonl has a row that cannot be read \(bad_json\)"):
        run_curation(configured(tmp_path, [rule]), scorer=None)


def test_the_same_step_twice_is_explained_by_its_own_words(tmp_path, planted):
    gsm, mmlu = (
        {"decontaminate": {"against": [str(tmp_path / "tests" / f"{name}.jsonl")]}} for name in ("gsm", "mmlu")
    )
    leaking = next(row for row in planted if row["leak"] == 1)
    config = configured(tmp_path, [gsm, gsm, mmlu])
    run_curation(config, scorer=None)
    (row,) = explain(config, prompt_key(from_prompt(leaking["prompt"])).hex())["rows"]
    assert (row["steps"][-1]["verdict"], row["steps"][-1]["of"]) == ("dropped", "mmlu.jsonl")
