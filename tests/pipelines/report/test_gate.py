"""The model behind a relevance gate, in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.evaluation_groups import group

from pipelines.commands import train
from pipelines.report.gate import advice, rows, title, words
from rm.evaluate import Bootstrap, Relevance, StressTest, evaluate
from rm.evaluate.bootstrap import Estimate
from rm.train import TrainResult

RUN = "bestkept run, with signals.relevance and select=[{on_topic: {signal: relevance, gap: 0.2}}, ...]"
LINE = f"it is better behind the relevance gate: {RUN}"
APART = f"responses to other prompts lose more often behind the relevance gate: {RUN}"


def evaluation_of(*, nearer_is_better):
    """Of 40 pairs the reward is wrong in every fourth one; there alone the cosines differ."""
    groups = [group(k, [(0, 1)], scores=[2.0, 1.0]) for k in range(40)]
    rewards = [[0.0, 1.0] if k % 4 == 0 else [1.0, 0.0] for k in range(40)]
    near = [0.75, 0.25] if nearer_is_better else [0.5, 0.5]
    relevance = Relevance([near if k % 4 == 0 else [0.5, 0.5] for k in range(40)], 0.2)
    return evaluate(groups, rewards, bootstrap=Bootstrap(200), relevance=relevance)


def test_the_figures_are_compared_with_those_of_the_model_alone():
    evaluation = evaluation_of(nearer_is_better=True).to_json()
    assert title(evaluation["gated"]) == "behind the relevance gate (gap 0.2; it decides 25.0 % of comparisons)"
    table = list(rows(evaluation))
    assert [row[0] for row in table] == [
        "accuracy, %",
        "accuracy where the gate decides, %",
        "accuracy over the nearer or longer response",
        "accuracy, lengths matched, %",
        "gold score of the best of all",
    ]
    assert table[0][1].startswith("75.0 [")
    assert table[0][2] == "100.0 [100.0, 100.0]"
    assert table[0][3].startswith("+25.0 [+")
    assert table[1][1:] == ("", "100.0 [100.0, 100.0]", "")
    assert table[2][3].startswith("+37.5 [+"), "lengths are equal, and count half"
    assert table[4][1:3] == ("1.750", "2.000 [2.000, 2.000]")
    assert table[4][3].startswith("+0.250 [+")


def test_a_test_behind_the_gate_is_beside_that_of_the_model_alone():
    evaluation = evaluation_of(nearer_is_better=True).to_json()
    test = StressTest("similar_prompt", 50, Estimate(0.6, 0.5, 0.7))
    gated = replace(test, preferred=Estimate(0.99, 0.97, 1.0)).to_json()
    evaluation["stress"] = {"tests": [test.to_json()]}
    evaluation["gated"]["similar_prompt"] = gated
    line = ("preferred to a response to a similar prompt, %", "60.0 [50.0, 70.0]", "99.0 [97.0, 100.0]", "")
    assert line in list(rows(evaluation))
    told = words(evaluation["gated"])
    assert "points against the model alone; the gate, with a gap of 0.2, decides 25.0 % of comparisons" in told
    assert told.endswith(", and a response to a similar prompt loses in 99.0 [97.0, 100.0] %")


def test_unknown_cosines_are_told():
    """An embedding model that failed is not a gate without effect."""
    gated = evaluation_of(nearer_is_better=True).to_json()["gated"]
    assert "no cosine" not in title(gated) + words(gated)
    gated["unknown"] = 1200
    assert title(gated).endswith("of comparisons; 1,200 responses have no cosine)")
    assert words(gated).endswith("; 1,200 responses have no cosine")
    gated["unknown"] = 1
    assert title(gated).endswith("; 1 response has no cosine)")


def test_without_comparisons_there_are_no_figures():
    groups, rewards = [group(k, [(0, 1)]) for k in range(4)], [[float("nan"), 0.0]] * 4
    evaluation = evaluate(groups, rewards, bootstrap=Bootstrap(200), relevance=Relevance([[0.5, 0.1]] * 4, 0.2))
    gated = evaluation.to_json()["gated"]
    assert words(gated) == "no comparison could be scored"
    assert title(gated) == "behind the relevance gate (gap 0.2)"


@pytest.mark.parametrize(("nearer_is_better", "lines"), [(True, [LINE]), (False, [])])
def test_the_gate_is_advised_where_the_model_is_better_behind_it(nearer_is_better, lines, monkeypatch, capsys):
    heldout = evaluation_of(nearer_is_better=nearer_is_better)
    assert list(advice(heldout.to_json())) == lines
    assert list(advice(None)) == []
    counts = {"groups": 9, "judgements": {}, "origins": {}, "rejected": {}, "notes": [], "steps": 1, "offset": None}
    speed = {"train_loss": 0.5, "learning_rate": 1e-4, "judgements_per_sec": 1.0, "tokens_per_sec": 1.0}
    result = TrainResult(output_path="out", **counts, **speed, precision="float32", packed=False, heldout=heldout)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(train, "train_model", lambda *_: result)
    train.run_training(
        train.TrainConfig.model_validate({"data": {"path": "d"}, "model": {"path": "m"}, "output": {"path": "out"}})
    )
    out = capsys.readouterr().out
    assert "behind the relevance gate" in out
    assert (LINE in out) == bool(lines)


def estimate(low, high):
    return {"value": (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("over_model", "alone", "gated", "best", "lines"),
    [
        ((0.01, 0.05), None, None, None, [LINE]),
        ((0.0, 0.05), None, None, None, []),
        ((-0.01, 0.05), (0.4, 0.6), (0.7, 0.9), None, [APART]),
        ((-0.01, 0.05), (0.4, 0.7), (0.7, 0.9), None, []),
        ((-0.05, -0.01), (0.4, 0.6), (0.7, 0.9), None, []),
        ((None, None), (0.4, 0.6), (0.7, 0.9), None, [APART]),
        ((None, None), (0.4, 0.6), (None, None), None, []),
        ((0.01, 0.05), None, None, (-0.3, -0.1), []),
        ((-0.01, 0.05), (0.4, 0.6), (0.7, 0.9), (-0.3, -0.1), []),
        ((-0.01, 0.05), None, None, (0.1, 0.3), [LINE]),
        ((-0.05, -0.01), None, None, (0.1, 0.3), []),
        ((0.01, 0.05), None, None, (None, None), [LINE]),
    ],
)
def test_the_gate_is_advised_by_what_is_shown(over_model, alone, gated, best, lines):
    evaluation = evaluation_of(nearer_is_better=False).to_json()
    evaluation["gated"]["over_model"] = {"low": over_model[0], "high": over_model[1]}
    evaluation["gated"]["best_over_model"] = best and {"low": best[0], "high": best[1]}
    if alone is not None:
        test = {"name": "similar_prompt", "prompts": 50}
        evaluation["stress"] = {"tests": [{**test, "preferred": estimate(*alone)}]}
        evaluation["gated"]["similar_prompt"] = {**test, "preferred": {"low": gated[0], "high": gated[1]}}
    assert list(advice(evaluation)) == lines


@pytest.mark.parametrize(("most", "setting"), [(0.01, ""), (0.05, ", max_touched: 0.05")])
def test_a_settled_gap_is_told_and_the_step_settles_its_own(most, setting):
    evaluation = evaluation_of(nearer_is_better=True).to_json()
    assert not [row for row in rows(evaluation) if "beyond the gap" in row[0]], "no response to another prompt is known"
    evaluation["gated"] |= {"gap": 421 / 1024, "max_touched": most, "caught": 0.875}
    assert title(evaluation["gated"]).startswith(
        "behind the relevance gate (gap 0.411, settled on these data; it decides"
    )
    assert ("responses to other prompts beyond the gap, %", "", "87.5", "") in list(rows(evaluation))
    [line] = advice(evaluation)
    assert line.endswith(f"select=[{{on_topic: {{signal: relevance{setting}}}}}, ...]")


def test_the_gap_advised_is_not_rounded():
    evaluation = evaluation_of(nearer_is_better=True).to_json()
    evaluation["gated"]["gap"] = 0.123456789
    [line] = advice(evaluation)
    assert "gap: 0.123456789}" in line
