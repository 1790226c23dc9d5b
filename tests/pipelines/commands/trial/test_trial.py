"""`bestkept trial`: planted selections with a tiny student, no prompt on both sides, equal tokens, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml
from support.corpora import write_jsonl
from support.tiny_models import WORDS, save_language_model

from pipelines.commands.trial import arms
from pipelines.commands.trial import trial as command
from pipelines.commands.trial.arms import read_arms, read_references
from pipelines.commands.trial.trial import TrialOptions, compare, estimate
from pipelines.config import RunConfig
from pipelines.config.trial import TrialSizes
from pipelines.finish.claim import read_manifest
from pipelines.plan import make_plans, with_absolute_paths
from pipelines.report import trial as words
from rm.conversations import prompt_key

GOOD, BAD = WORDS[:12], WORDS[40:52]
SMALL = TrialSizes(
    seeds=2, steps=10, tokens_per_step=50, max_length=64, references=20, answer_tokens=4, rank=8, learning_rate=2e-2
)


def rows(prompts=100):
    """Four responses a prompt: one of good words, two of bad ones, and one that is long, of both; `gold` and three judges."""
    random = np.random.default_rng(0)

    def text(vocabulary, length):
        return " ".join(random.choice(vocabulary, length))

    made = []
    for number in range(prompts):
        prompt = f"what is {WORDS[number % 50]} {number}"
        for kind, response in (
            ("good", text(GOOD, 6)),
            ("bad", text(BAD, 6)),
            ("bad", text(BAD, 5)),
            ("long", text(GOOD + BAD, 14)),
        ):
            judged = {"gold": float(kind == "good") + random.random() / 10, "wrong": float(kind == "bad")}
            made.append({"prompt": prompt, "response": response, **judged})
    return made


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("student"))


@pytest.fixture
def curated(tmp_path, bestkept):
    """(column of rewards, settings) → configuration file of a run that has ended."""
    path = write_jsonl(tmp_path / "corpus.jsonl", rows())

    def make(column="gold", **changes):
        values = {
            "input": {"path": str(path), "carry": ["gold"]},
            "scores": {"column": column},
            "output": {"path": str(tmp_path / "out")},
            "report": {"gold": "gold", "samples": 0},
        }
        for section, content in changes.items():
            values[section] = {**values.get(section, {}), **content} if isinstance(content, dict) else content
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(values))
        code, _, err = bestkept("select", file)
        assert code == 0, err
        return file

    return make


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(command, "QUICK", SMALL)


def config_of(file):
    return with_absolute_paths(RunConfig.model_validate(yaml.safe_load(file.read_text())))


@pytest.mark.slow
def test_planted_selections_win_and_lose(curated, student, small, tmp_path, bestkept):
    """Where rewards are those of the gold column, references of good words become more probable than by other sets; where they
    are the opposite, less. What is written stands in report and card."""
    file, out = curated(), tmp_path / "out"
    code, printed, err = bestkept("trial", out, file, "--student", student, "--quick", "--json")
    assert code == 0, err
    good = json.loads(printed)
    assert json.loads((out / "trial.json").read_bytes()) == good
    assert good["steps"] == 10
    assert good["references"] == {"kind": "gold", "prompts": 20}
    for name in ("random", "longest"):
        assert good["likelihood"]["differences"][name]["low"] > 0
    assert "selection is better than random responses, better than the longest" in good["sentence"]
    report, card = (out / "report.html").read_text(), (out / "README.md").read_text()
    assert good["sentence"].split(":")[0] in report
    assert card.count("| trial | As training data for ") == 1

    assert bestkept("select", file, "limits.verify=true")[0] == 0  # writes the card again, and finds the same
    assert (out / "README.md").read_text() == card
    (out / "trial.json").unlink()  # may go at any time
    assert bestkept("select", file, "limits.verify=true")[0] == 0
    assert "| trial |" not in (out / "README.md").read_text()

    shutil.rmtree(out)
    bad = json.loads(bestkept("trial", out, curated("wrong"), "--student", student, "--quick", "--json")[1])
    assert bad["likelihood"]["differences"]["random"]["high"] < 0
    assert "selection is worse than random responses" in bad["sentence"]


@pytest.mark.slow
def test_a_judge_rewards_the_students_answers(curated, student, small, tmp_path, bestkept, causal):
    code, printed, err = bestkept(
        "trial", tmp_path / "out", curated(), "--student", student, "--quick", "--seeds", 1, "--judge", causal, "--json"
    )
    assert code == 0, err
    judge = json.loads(printed)["judge"]
    assert set(judge["arms"]) == {"selection", "random", "longest"}
    assert judge["selected"] is False
    assert 0 < judge["prompts"] <= 20


def test_no_prompt_of_a_reference_is_trained_on_and_arms_differ_by_seed(curated, tmp_path):
    config = config_of(curated())
    plan, manifest = make_plans(config).whole, read_manifest(str(tmp_path / "out"))
    references = read_references(config, plan, reference=None, most=8, scratch=tmp_path)
    assert (references.kind, len(references.examples)) == ("gold", 8)
    made = rows()
    by_text = {(row["prompt"], row["response"]): row for row in made}
    best = {
        prompt: max((row for row in made if row["prompt"] == prompt), key=lambda row: row["gold"])
        for prompt, _ in by_text
    }
    for example in references.examples:
        assert best[example.prompt[0][1]]["response"] == example.response
    arms = read_arms(config, manifest, references, seeds=2, scratch=tmp_path)
    for name, parts in arms.items():
        for part in parts:
            assert len(part) == 92
            assert not {example.key for example in part} & references.keys
            assert all(prompt_key(example.prompt) == example.key for example in part)
            kept = [by_text[example.prompt[0][1], example.response] for example in part]
            if name == "selection":
                assert all(row["gold"] >= 1 for row in kept)
            if name == "longest":
                assert all(len(row["response"].split()) == 14 for row in kept)
    # all arms have their prompts in one order for a seed, and random ones other responses for another
    orders = [[[example.key for example in arms[name][seed]] for name in arms] for seed in (0, 1)]
    assert all(order == orders[seed][0] for seed in (0, 1) for order in orders[seed])
    assert orders[0][0] != orders[1][0]
    texts = [{(example.key, example.response) for example in arms["random"][seed]} for seed in (0, 1)]
    assert not texts[0] & texts[1]
    assert set(arms["selection"][0]) == set(arms["selection"][1])


@pytest.mark.slow
def test_references_come_from_a_file_or_the_test_split(curated, tmp_path):
    given = [{"prompt": f"what is {WORDS[n]} {n}", "responses": ["good", "a good"]} for n in range(20)]
    file = curated(output={"test_fraction": 0.3})
    config = config_of(file)
    plan, manifest = make_plans(config).whole, read_manifest(str(tmp_path / "out"))
    path = write_jsonl(tmp_path / "given.jsonl", given)
    references = read_references(config, plan, reference=str(path), most=12, scratch=tmp_path)
    assert (references.kind, len(references.examples), len(references.keys)) == ("file", 24, 12)
    arms = read_arms(config, manifest, references, seeds=1, scratch=tmp_path)
    assert all(not {example.key for example in parts[0]} & references.keys for parts in arms.values())
    whole = {example.key for example in arms["random"][0]}
    assert {example.key for example in arms["selection"][0]} < whole  # without those of the test split

    config = config.model_copy(update={"report": config.report.model_copy(update={"gold": None})})
    for folder in ("selection", "random", "longest"):
        shutil.rmtree(tmp_path / folder)
    tested = read_references(config, plan, reference=None, most=5, scratch=tmp_path)
    assert (tested.kind, len(tested.keys)) == ("test", 5)
    arms = read_arms(config, manifest, tested, seeds=1, scratch=tmp_path)
    assert not {example.key for example in arms["longest"][0]} & tested.keys


@pytest.mark.slow
def test_what_cannot_be_tried_is_refused(curated, student, tmp_path, bestkept, monkeypatch, encoder):
    file, out = curated(), tmp_path / "out"

    def refused(*given, code):
        got, _, err = bestkept("trial", *given)
        assert got == code, err
        return err.strip().splitlines()[-1]

    assert "has no manifest.json" in refused(tmp_path / "nowhere", file, code=3)
    assert "was not made with this configuration: select differ" in refused(
        out, file, "select=[{longest: {keep: 1}}]", code=2
    )
    assert "give --reference FILE, name a column of true worth" in refused(
        out, file, "report.gold=null", "--student", student, code=2
    )
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    line = refused(out, file, "--student", student, "--reference", tmp_path / "one.jsonl", code=3)
    assert "has 1 prompts with a reference response, and a trial needs two or more" in line
    assert "is not a causal language model" in refused(out, file, "--student", encoder, "--quick", code=7)
    line = refused(out, file, "--student", student, code=3)
    assert "and a step takes 4,096; the trial needs a larger selection, or --quick" in line
    assert not (out / "trial.json").exists()
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'bestkept[lora]'" in refused(out, file, code=2)


TRIED = {
    "preferences": {
        "input": {"format": "preferences"},
        "output": {"shape": "preference"},
        "select": [{"preferences": {}}],
    },
    "signals": {
        "signals": {"x": {"model": {"path": "other"}}},
        "report": {"gold": "gold"},
        "select": [{"where": "x > 0"}, {"best_of_n": {}}],
    },
    "outputs": {
        "model": {"path": "m", "outputs": {"a": 0, "b": 1}},
        "select": [{"reward": "a - b"}, {"best_of_n": {}}],
    },
}


@pytest.mark.parametrize("kind", TRIED)
def test_every_kind_of_selection_can_be_tried(kind, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(arms, "run_curation", lambda config, scorer: tried.append(config))
    changes = TRIED[kind]
    values = {
        "input": {"path": str(tmp_path / "a.jsonl"), "carry": ["gold"], **changes.get("input", {})},
        "model": changes.get("model", {"path": "m"}),
        "output": {"path": str(tmp_path / "out"), **changes.get("output", {})},
        **{name: value for name, value in changes.items() if name not in ("input", "model", "output")},
    }
    if kind == "preferences":
        del values["input"]["carry"]
    config = RunConfig.model_validate(values)
    manifest = {"counts": {"kept": 4, "kept_prompts": 2}}
    arms.read_arms(config, manifest, arms.References("file", []), seeds=1, scratch=tmp_path)
    if kind == "signals":
        arms._selected(config, [{"best_of_n": {}}], tmp_path / "gold", column="gold")
    assert len(tried) == 3 + (kind == "signals"), "all are valid configurations"


def test_the_judge_is_known_by_its_place(tmp_path, monkeypatch):
    directory = tmp_path / "reward"
    directory.mkdir()
    monkeypatch.chdir(tmp_path)
    values = {"input": {"path": "in"}, "model": {"path": str(directory)}, "output": {"path": "out"}}
    assert command._is_one_of("./reward", RunConfig.model_validate(values))
    signals = {"signals": {"x": {"model": {"path": "owner/judge"}}}, "select": [{"where": "x > 0"}]}
    assert command._is_one_of("owner/judge", RunConfig.model_validate({**values, **signals}))
    assert not command._is_one_of("owner/other", RunConfig.model_validate({**values, **signals}))


def test_differences_are_paired_by_seed_and_prompt():
    random = np.random.default_rng(1)
    noise = random.normal(size=(3, 200)) * 5  # of prompts: the same in each set
    values = {"selection": noise + 0.1, "random": noise, "longest": noise + 0.2 + random.normal(size=(3, 200)) * 0.1}
    values["random"] = values["random"].copy()
    values["random"][1, 7] = np.nan
    figures = compare(values)
    assert figures["prompts"] == 199
    assert figures["differences"]["random"] == pytest.approx({"value": 0.1, "low": 0.1, "high": 0.1})
    longest = figures["differences"]["longest"]
    assert longest["value"] == pytest.approx(-0.1, abs=0.02)
    assert longest["low"] < longest["value"] < longest["high"] < 0
    # seeds that disagree widen the interval beyond that of prompts
    split = np.concatenate([np.full((1, 200), 1.0), np.full((2, 200), -1.0)])
    assert estimate(split)["low"] < -0.9 < 0.9 < estimate(split)["high"]
    assert estimate(np.ones((2, 1))) == {"value": 1.0, "low": None, "high": None}


def test_the_result_in_words():
    def difference(value, low, high):
        return {"value": value, "low": low, "high": high}

    trial = {
        "format": 1,
        "student": {"name": "small"},
        "references": {"kind": "test", "prompts": 30},
        "steps": 5,
        "steps_asked": 20,
        "likelihood": {"differences": {"random": difference(0.02, 0.01, 0.03), "longest": difference(-0.1, -0.2, 0.1)}},
        "judge": {"name": "judge", "selected": True, "differences": dict.fromkeys(words.CONTROLS, difference(1, 0, 2))},
    }
    assert words.sentence(trial) == (
        "As training data for small the selection is better than random responses, not shown to differ from the longest: after "
        "a fine-tune on it, a token of 30 held-out references (the test split) is more probable by +2.0 [+1.0, +3.0] % against "
        "random responses and -9.5 [-18.1, +10.5] % against the longest, at equal tokens and steps; the rewards of its answers "
        "by judge differ by +1.000 [+0.000, +2.000] against random responses and +1.000 [+0.000, +2.000] against the longest."
    )
    warnings = list(words.warnings(trial))
    assert [text.split(":")[0].split(",")[0] for text in warnings] == [
        "The references were kept by the same selection",
        "The judge is a model that made the selection",
        "The smallest set suffices for 5 of 20 steps",
    ]
    assert words.label(difference(-1, -2, -0.5)) == "worse than"
    unknown = dict.fromkeys(words.CONTROLS, difference(None, None, None))
    assert "by - [-, -] against random responses" in words.sentence(
        {**trial, "judge": {**trial["judge"], "differences": unknown}}
    )
    assert TrialOptions(seeds=7, quick=True).sizes.seeds == 7
    assert TrialOptions().sizes.steps == 100
