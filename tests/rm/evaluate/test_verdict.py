"""The verdict: planted models, and the interval of the difference to the better of two rules."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.evaluation_groups import group
from support.planted_models import VERDICTS, planted

from rm.evaluate import Bootstrap, calibrate, evaluate, store_temperature
from rm.evaluate.bootstrap import resample
from rm.evaluate.verdict import hash_preferences

FAST = Bootstrap(resamples=400)


@pytest.mark.parametrize("count", [200, 2000])
@pytest.mark.parametrize("name", VERDICTS)
def test_planted_models_get_their_verdicts(name, count):
    groups, rewards = planted(count)
    verdict = evaluate(groups, rewards[name], bootstrap=FAST).verdict
    assert (verdict.verdict, verdict.all.rule, verdict.all.comparisons) == (VERDICTS[name], "longer", count)
    if name in ("perfect", "random", "lost_at_equal_length"):
        holds_chance = verdict.length_matched.accuracy.low <= 0.5 <= verdict.length_matched.accuracy.high
        assert holds_chance == (name != "perfect")
    assert verdict.length_matched.comparisons == count // 2


@pytest.mark.parametrize("count", [200, 2000])
def test_where_the_shorter_one_wins_it_is_the_baseline(count):
    groups, rewards = planted(count, longer_wins=0.4)
    names = ("perfect", "shortest", "longest")
    verdicts = {name: evaluate(groups, rewards[name], bootstrap=FAST).verdict for name in names}
    assert {verdict.all.rule for verdict in verdicts.values()} == {"shorter"}
    assert verdicts["shortest"].verdict == "not_better_than_length"
    assert verdicts["longest"].verdict == "worse"
    assert verdicts["shortest"].all.over_length == (0.0, 0.0, 0.0)
    assert verdicts["perfect"].all.length.value == pytest.approx(0.6)


def test_a_model_above_chance_and_below_length_is_worse():
    groups, rewards = planted(2000, longer_wins=0.9)
    verdict = evaluate(groups, rewards["lost_at_equal_length"], bootstrap=FAST).verdict
    assert verdict.all.accuracy.low > 0.5
    assert verdict.verdict == "worse"


@pytest.mark.parametrize(("prompts", "verdict"), [(2, "unknown"), (5, "unknown"), (6, "better_than_length")])
def test_few_prompts_are_no_verdict_however_right(prompts, verdict):
    """A coin is right on five of five in 3 % of cases, and as often wrong on all."""
    groups = [group(f"prompt {number}", [(0, 1)]) for number in range(prompts)]
    found = evaluate(groups, [[1.0, 0.0]] * prompts, lengths=[[4, 4]] * prompts, bootstrap=FAST).verdict
    assert found.verdict == verdict


def test_one_prompt_is_no_verdict():
    assert evaluate([group("a", [(0, 1)])], [[1.0, 0.0]], bootstrap=FAST).verdict.verdict == "unknown"
    assert evaluate([group("a", [(0, 1)])], [[np.nan, 0.0]], bootstrap=FAST).verdict.verdict == "unknown"


def test_the_least_of_two_by_hand():
    columns = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    resampled = resample(columns, range(4), bootstrap=Bootstrap(2000))
    least = resampled.least((0, 1))
    assert least.value == 0.5
    assert least.low == np.percentile(resampled.draws, 2.5, axis=0).min()
    assert least.high == np.percentile(resampled.draws, 98.75, axis=0).min()


@pytest.mark.parametrize("longer_wins", [0.5, 0.6])
def test_choosing_the_better_rule_does_not_make_a_model_look_better_or_worse(longer_wins):
    """A model that is exactly as good as the better rule: few of a hundred intervals lie wholly above or wholly below 0."""
    rng = np.random.default_rng(0)
    above = below = 0
    for seed in range(100):
        model, longer = rng.random((2, 150)) < longer_wins
        columns = np.stack([model, longer, 1 - longer], axis=1).astype(float)
        against = np.stack([columns[:, 0] - columns[:, 1], columns[:, 0] - columns[:, 2]], axis=1)
        got = resample(against, range(150), bootstrap=Bootstrap(200, seed)).least((0, 1))
        above, below = above + (got.low > 0), below + (got.high < 0)
    assert above <= 6  # 2.5 expected at most
    assert below <= 6


def test_rows_by_kind_have_intervals_that_hold_together():
    rng = np.random.default_rng(1)
    groups = [group(k, [(0, 1)], source=f"s{k % 20}", lengths=[10, 20]) for k in range(600)]
    got = evaluate(groups, rng.normal(size=(600, 2)), bootstrap=Bootstrap(2000)).accuracy
    alone = evaluate(groups[::20], rng.normal(size=(30, 2)), bootstrap=Bootstrap(2000)).accuracy.overall
    assert len(got.by_source) == 20
    widths = [row.model.high - row.model.low for row in got.by_source]
    assert np.mean(widths) > 1.3 * (alone.model.high - alone.model.low)  # 3.02 standard errors instead of 1.96
    assert sum(row.model.low > 0.5 or row.model.high < 0.5 for row in got.by_source) == 0


def test_the_verdict_stays_beside_the_weights_without_place_or_time(tmp_path):
    groups, rewards = planted(200)
    verdict = evaluate(groups, rewards["longest"], bootstrap=FAST).verdict
    known_by = {"data": "/secret/place/pairs.jsonl", "fitted_on": "all rows", "verdict": verdict, "groups": groups}
    path = store_temperature(tmp_path, calibrate(groups, rewards["longest"]), **known_by)
    stored = json.loads(path.read_text())["evaluation"]
    assert stored["verdict"] == "not_better_than_length"
    assert stored["all"] == verdict.all.to_json()
    assert (stored["data"], stored["part"]) == ("pairs.jsonl", "all rows")
    assert stored["data_hash"] == hash_preferences(groups[::-1]) != hash_preferences(groups[1:])
    before = path.read_bytes()
    store_temperature(tmp_path, calibrate(groups, rewards["longest"]), **known_by)
    assert path.read_bytes() == before
