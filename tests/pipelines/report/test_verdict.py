"""The verdict in words."""

from __future__ import annotations

import pytest
from support.planted_models import VERDICTS, planted

from pipelines.report.stress import advice
from pipelines.report.verdict import words_of
from rm.evaluate import Bootstrap, evaluate

FIRST_WORDS = {
    "perfect": "Better than chance and than length: of 200 comparisons it orders 100.0 [100.0, 100.0] % as judged, +40.0 [",
    "random": "Not shown to be better than chance",
    "longest": "Not shown to be better than length: of 200 comparisons it orders 60.0 [",
    "shortest": "Worse than chance: of 200 comparisons it orders 40.0 [",
    "lost_at_equal_length": "Better than chance and than length: of 200 comparisons it orders 7",
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_sentence_begins_with_the_verdict_and_names_the_baseline(name):
    groups, rewards = planted(200)
    words = words_of(evaluate(groups, rewards[name], bootstrap=Bootstrap(400)).verdict.to_json())
    assert words["verdict"] == VERDICTS[name]
    assert words["sentence"].startswith(FIRST_WORDS[name])
    assert "points against taking the longer response (60.0 [" in words["sentence"]
    assert "; of 100 pairs of similar length it orders " in words["sentence"]
    warned = any("not shown to be better than chance" in warning for warning in words["warnings"])
    assert warned == (name != "perfect")  # of 100 pairs, 60 % right is no proof either


def stress_of(**shares):
    tests = [
        {"name": name, "prompts": 50, "preferred": {"value": share, "low": share - 0.05, "high": share + 0.05}}
        for name, share in shares.items()
    ]
    return {"tests": tests}


def test_each_symptom_names_the_setting_that_acts_on_it_unless_that_is_used():
    foreign = "it hardly reads the prompt: train.foreign={per_group: 2, similar: 0.5, weight: 0.5}"
    length = "it rewards length as such: train.length_balance=true, or train.length_head={}"
    sound = stress_of(other_prompt=0.97, similar_prompt=0.9, repeated=0.8, padded=0.5)
    assert list(advice(sound, used=())) == []
    assert list(advice(None, used=())) == []
    assert list(advice(stress_of(similar_prompt=0.6, repeated=0.1), used=())) == [foreign, length]
    assert list(advice(stress_of(other_prompt=0.6, padded=0.1), used=("foreign",))) == [length]
    both = ("foreign", "length_balance", "length_head")
    assert list(advice(stress_of(other_prompt=0.6, padded=0.1), used=both)) == []
    assert list(advice(stress_of(padded=0.1), used=("length_balance",))) == [
        "it rewards length as such: train.length_head={}"
    ]
