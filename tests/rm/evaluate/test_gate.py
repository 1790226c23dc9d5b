"""The model behind a relevance gate, against plain loops and values derived by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.evaluation_groups import group
from support.selection_tables import candidates

from pipelines.select.on_topic import behind_others, foreign_column, measure_distances
from rm import relevance_gap
from rm.conversations import response_hash
from rm.evaluate import Bootstrap, Relevance, evaluate, measure_relevance, stress
from rm.evaluate.comparisons import distances_behind
from rm.evaluate.gate import on_topic
from rm.preferences import Edge, Group
from rm.relevance_gap import settle_gap

FAST = Bootstrap(resamples=100)
COSINES = st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan])
GAPS = st.sampled_from([0.0, 0.25, 0.5])


def gated_of(groups, rewards, cosines, *, gap, **more):
    return evaluate(groups, rewards, bootstrap=FAST, relevance=Relevance(cosines, gap), **more).gated


def half(difference):
    return 0.5 + 0.5 * np.sign(difference)


@given(st.data())
def test_comparisons_equal_a_plain_loop(data):
    gap = data.draw(GAPS)
    groups, rewards, cosines, alone, rule, gated, decided, matched = [], [], [], [], [], [], [], []
    for number in range(data.draw(st.integers(1, 5))):
        lengths = data.draw(st.lists(st.integers(4, 7), min_size=2, max_size=2))
        winner = data.draw(st.integers(0, 1))
        groups.append(group(number, [(winner, 1 - winner)], lengths=lengths))
        rewards.append(data.draw(st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=2, max_size=2)))
        cosines.append(data.draw(st.lists(COSINES, min_size=2, max_size=2)))
        ahead, more, longer = (side[winner] - side[1 - winner] for side in (cosines[-1], rewards[-1], lengths))
        if math.isnan(more):
            continue
        by_gate = abs(ahead) > gap  # never with an unknown cosine
        alone.append(half(more))
        rule.append(half(ahead if by_gate else longer))
        gated.append(half(ahead if by_gate else more))
        decided.append(by_gate)
        if 0.8 <= lengths[0] / lengths[1] <= 1.25:
            matched.append(gated[-1])
    got = gated_of(groups, rewards, cosines, gap=gap)
    assert (got.gap, got.comparisons) == (gap, len(gated))
    assert got.unknown == sum(math.isnan(near) for pair in cosines for near in pair)
    expected = {
        "decided": decided,
        "accuracy": gated,
        "over_model": np.subtract(gated, alone),
        "over_rule": np.subtract(gated, rule),
        "nearer": [right for right, by_gate in zip(gated, decided, strict=True) if by_gate],
        "matched": matched,
    }
    for name, values in expected.items():
        value = getattr(got, name)
        value = value if isinstance(value, float) else value.value
        assert value == pytest.approx(np.mean(values) if len(values) else math.nan, nan_ok=True), name


def test_comparisons_by_hand():
    """The reward is right, wrong, wrong, equal; the gate decides the third, rightly, and the first, wrongly."""
    groups = [group(k, [(0, 1)], lengths=[10, 20]) for k in range(4)]
    rewards = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [2.0, 2.0]]
    cosines = [[0.1, 0.5], [0.5, 0.5], [0.9, 0.5], [0.5, 0.7]]  # 0.2 apart is not more than 0.2
    got = gated_of(groups, rewards, [np.float64(one) for one in cosines], gap=0.25)
    assert (got.decided, got.accuracy.value, got.nearer.value) == (0.5, (0 + 0 + 1 + 0.5) / 4, 0.5)
    assert got.over_model.value == (-1 + 0 + 1 + 0) / 4
    assert got.over_rule.value == 0.5 / 4  # the longer one is wrong where the gate is silent
    assert math.isnan(got.matched.value)
    assert got.best_of_all is None, "no gold scores"
    turned = gated_of([group(k, [(1, 0)], lengths=[10, 20]) for k in range(4)], rewards, cosines, gap=0.25)
    assert turned.accuracy.value == pytest.approx(1 - got.accuracy.value)


def test_without_relevance_there_is_no_gate_and_unknown_cosines_change_nothing():
    groups, rewards = [group(k, [(0, 1)], scores=[1.0, 0.0]) for k in range(4)], [[1.0, 0.0]] * 3 + [[0.0, 1.0]]
    assert evaluate(groups, rewards, bootstrap=FAST).gated is None
    alone = evaluate(groups, rewards, bootstrap=FAST).accuracy.overall
    unknown = gated_of(groups, rewards, [[math.nan, 0.5], [math.nan] * 2] * 2, gap=0.0)
    assert (unknown.accuracy, unknown.decided) == (alone.model, 0.0)
    assert unknown.over_model == (0.0, 0.0, 0.0)


def test_comparisons_are_gated_as_the_step_on_topic_gates_the_whole_group():
    """The first response is 0.3 nearer than both others; the second most relevant one is the reference, so none is dropped."""
    groups = [group(k, [(0, 1)], responses=3) for k in range(2)]
    got = gated_of(groups, [[0.0, 1.0, 0.5]] * 2, [[0.9, 0.6, 0.6]] * 2, gap=0.25)
    assert (got.decided, got.accuracy.value) == (0.0, 0.0)
    foreign = gated_of(groups, [[0.0, 1.0, 0.5]] * 2, [[0.9, 0.2, 0.6]] * 2, gap=0.25)
    assert (foreign.decided, foreign.accuracy.value) == (1.0, 1.0)
    unscored = gated_of(groups, [[0.0, 1.0, math.nan]] * 2, [[0.9, 0.6, 0.6]] * 2, gap=0.25)
    assert (unscored.decided, unscored.accuracy.value) == (1.0, 1.0), "a selection has scored responses only"


@given(st.data())
def test_comparisons_within_groups_equal_the_step(data):
    gap = data.draw(GAPS)
    groups, rewards, cosines, expected = [], [], [], []
    for number in range(data.draw(st.integers(1, 3))):
        k = data.draw(st.integers(2, 5))
        edges = [(i, j) for i in range(k) for j in range(k) if i < j]
        groups.append(group(number, edges, responses=k))
        rewards.append(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k)))
        cosines.append(data.draw(st.lists(COSINES, min_size=k, max_size=k)))
        table = candidates([(1, 0, 0.0, n, 0, 0, n, 0) for n in range(k)])
        behind = behind_others(table.with_values({"near": np.array(cosines[-1], dtype=np.float32)}), "near")
        for i, j in edges:
            known = math.isfinite(cosines[-1][i]) and math.isfinite(cosines[-1][j])
            kept = int(behind[i] <= gap) - int(behind[j] <= gap) if known else 0
            expected.append((kept != 0, half(kept or rewards[-1][i] - rewards[-1][j])))
    got = gated_of(groups, rewards, cosines, gap=gap)
    assert (got.decided, got.accuracy.value) == pytest.approx(tuple(np.mean(expected, axis=0)))


@given(st.lists(st.lists(COSINES | st.floats(-1, 1, width=32), min_size=1, max_size=6), min_size=1, max_size=4), GAPS)
def test_distances_within_a_prompt_are_those_of_the_step_on_topic(prompts, gap):
    rows = [(1, at, 0.0, n, at, 0, n, 0) for at, values in enumerate(prompts) for n in range(len(values))]
    values = np.array([value for one in prompts for value in one], dtype=np.float32)
    table = candidates(rows).with_values({"near": values})
    order, starts = table.prompts
    expected = behind_others(table, "near")
    for members in np.split(order, starts[1:]):
        cosines = table.values["near"][members].astype(np.float64)
        np.testing.assert_array_equal(distances_behind(cosines), expected[members])
        kept = expected[members] <= gap
        assert on_topic(cosines, gap=gap).tolist() == (kept | ~kept.any()).tolist()


@given(st.data())
def test_the_best_of_all_equals_a_plain_loop(data):
    gap = data.draw(GAPS)
    groups, rewards, cosines, best, alone = [], [], [], [], []
    for number in range(data.draw(st.integers(1, 4))):
        k = data.draw(st.integers(2, 5))
        scores = data.draw(st.lists(st.sampled_from([0.0, 1.0, 2.0, None]), min_size=k, max_size=k))
        groups.append(group(number, responses=k, scores=scores))
        rewards.append(data.draw(st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=k, max_size=k)))
        cosines.append(data.draw(st.lists(COSINES, min_size=k, max_size=k)))
        pool = [
            (reward, score, near)
            for reward, score, near in zip(rewards[-1], scores, cosines[-1], strict=True)
            if score is not None and not math.isnan(reward)
        ]
        if len(pool) < 2:
            continue
        known = sorted((near for *_, near in pool if not math.isnan(near)), reverse=True)
        reference = known[1 if len(known) > 2 else 0] if known else math.nan
        kept = [row for row in pool if reference - row[2] <= gap] or pool
        for choice, rows in ((best, kept), (alone, pool)):
            choice.append(np.mean([score for reward, score, _ in rows if reward == max(r for r, *_ in rows)]))
    got = gated_of(groups, rewards, cosines, gap=gap)
    if best:
        assert got.best_of_all.value == pytest.approx(np.mean(best))
        assert got.best_over_model.value == pytest.approx(np.mean(best) - np.mean(alone))
    else:
        assert got.best_of_all is got.best_over_model is None


def test_the_best_of_all_by_hand():
    """The reward prefers the third response, which lies 0.3 behind the second most relevant one, and then the second."""
    groups = [group(k, responses=3, scores=[0.0, 3.0, 1.0]) for k in range(2)]
    near = [np.array([0.9, 0.6, 0.3], dtype=np.float32)] * 2
    got = gated_of(groups, [[0.0, 1.0, 2.0]] * 2, near, gap=0.25)
    assert (got.best_of_all.value, got.best_over_model.value) == (3.0, 2.0)
    wide = gated_of(groups, [[0.0, 1.0, 2.0]] * 2, near, gap=0.35)
    assert (wide.best_of_all.value, wide.best_over_model.value) == (1.0, 0.0)


TOPICS = [f"{kind} {thing}" for kind in ("red", "blue") for thing in ("apples", "bridges", "cellos")]


def stressed_data():
    prompts = [(("user", f"tell me about {topic}"),) for topic in TOPICS]
    texts = [f"{topic} " * (1 + k) for k, topic in enumerate(TOPICS)]
    return [Group(prompt, ("no", text), (Edge(1, 0),)) for prompt, text in zip(prompts, texts, strict=True)]


def of_texts(value):
    asked_for = []

    def score(asked):
        asked_for.extend(asked)
        return [np.array([value(prompt, text) for text in texts], dtype=np.float32) for prompt, texts in asked]

    return score, asked_for


def shared_words(prompt, text):
    """1 for a text about all of the topic, 0.5 for one word of it."""
    return sum(word in text.split() for word in prompt[-1][1].split()[-2:]) / 2


def by_hash(_, text):
    return response_hash(text) % 7


def run(reward, near, *, gap):
    data = stressed_data()
    score, _ = of_texts(reward)
    rewards = score([(group.prompt, group.responses) for group in data])
    stressed = stress(data, rewards, score, prompts=99, bootstrap=FAST)
    cosines, asked = of_texts(near)

    def measure(groups):
        return cosines(groups), [[math.nan] * len(texts) for _, texts in groups]

    relevance = measure_relevance(data, rewards, stressed, measure, gap=gap, max_touched=0.01)
    return data, asked, evaluate(data, rewards, bootstrap=FAST, stressed=stressed, relevance=relevance)


def test_responses_to_other_prompts_lose_behind_the_gate():
    """A model of brevity prefers every other text to the longest one; a similar prompt has one word of the topic."""
    data, asked, evaluation = run(lambda _, text: -len(text), shared_words, gap=0.4)
    alone = {test.name: test.preferred.value for test in evaluation.stress.tests}
    gated = evaluation.gated
    assert alone["other_prompt"] < 1
    assert (gated.other_prompt.preferred.value, gated.other_prompt.prompts) == (1.0, len(TOPICS))
    assert (gated.similar_prompt.preferred.value, gated.similar_prompt.name) == (1.0, "similar_prompt")
    assert len(asked) == 2 * len(data)
    assert all(len(texts) <= 3 for _, texts in asked[len(data) :]), "changed texts are not embedded"
    _, _, silent = run(lambda _, text: -len(text), shared_words, gap=1.0)
    assert silent.gated.other_prompt.preferred.value == alone["other_prompt"]
    _, _, turned = run(lambda _, text: -len(text), lambda *at: -shared_words(*at), gap=0.4)
    assert turned.gated.other_prompt.preferred.value == 0.0


@pytest.mark.parametrize("gap", [0.0, 0.3, 0.5])
def test_stress_tests_equal_a_plain_loop(gap):
    def near(prompt, text):
        value = response_hash(f"{prompt} {text}") % 5
        return math.nan if value == 4 else value / 4

    def reward(_, text):
        value = response_hash(text) % 4
        return math.nan if value == 3 else value % 3

    data, _, evaluation = run(reward, near, gap=gap)
    by_prompt = {duel.prompt: duel for duel in evaluation.stress.duels}
    assert len(by_prompt) == len(data)
    for name in ("other_prompt", "similar_prompt"):
        won = []
        for prompt, duel in by_prompt.items():
            own, other = duel.texts["own"], duel.texts[name]
            more, ahead = (value(prompt, own) - value(prompt, other) for value in (reward, near))
            if not math.isnan(more):
                won.append(half(ahead if abs(ahead) > gap else more))
        test = getattr(evaluation.gated, name)
        alone = evaluation.stress.test(name)
        assert (test.prompts, test.preferred.value) == (len(won), pytest.approx(np.mean(won)))
        assert test.prompts == alone.prompts


@given(st.data())
def test_the_gap_is_the_one_that_the_step_settles(data):
    """On a corpus of the responses that have a reward."""
    groups, rewards, cosines, foreign, rows, near, far = [], [], [], [], [], [], []
    for number in range(data.draw(st.integers(1, 8))):
        k = data.draw(st.integers(1, 5))
        groups.append(group(number, responses=k))
        rewards.append(data.draw(st.lists(st.sampled_from([0.0, math.nan]), min_size=k, max_size=k)))
        cosines.append(data.draw(st.lists(COSINES, min_size=k, max_size=k)))
        foreign.append(data.draw(st.lists(COSINES, min_size=k, max_size=k)))
        for n in range(k):
            if not math.isnan(rewards[-1][n]):
                rows.append((number, 0, 0.0, n, 0, 0, number, n))
                near.append(cosines[-1][n])
                far.append(foreign[-1][n])
    values = {"near": np.array(near, dtype=np.float32), foreign_column("near"): np.array(far, dtype=np.float32)}
    most = data.draw(st.sampled_from([0.01, 0.2, 0.5]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relevance_gap, "_FEWEST", 1)
        settled = settle_gap(measure_distances(candidates(rows).with_values(values), "near"), most)
        relevance = measure_relevance(groups, rewards, None, lambda _: (cosines, foreign), gap="auto", max_touched=most)
    if not settled.measured:
        assert relevance is None
    else:
        assert (relevance.gap, relevance.caught, relevance.max_touched) == (settled.gap, settled.caught, most)


def test_a_gap_by_hand():
    """Of 100 responses one is 0.75 behind, and 49 are 0.25 behind; two of three responses to other prompts are 0.5 behind."""
    groups, rewards = [group(k, [(0, 1)]) for k in range(50)], [[0.0, 1.0]] * 50
    cosines = [[0.875, 0.125], *[[0.875, 0.625]] * 49]
    foreign = [[0.375, 0.375], [0.75, math.nan], *[[math.nan] * 2] * 48]

    def settle(gap, most):
        return measure_relevance(groups, rewards, None, lambda _: (cosines, foreign), gap=gap, max_touched=most)

    settled = settle("auto", 0.01)
    assert (settled.gap, settled.max_touched, settled.caught) == (0.25, 0.01, 2 / 3)
    gated = evaluate(groups, rewards, bootstrap=FAST, relevance=settled).gated
    assert (gated.gap, gated.max_touched, gated.caught) == (0.25, 0.01, 2 / 3)
    assert (gated.decided, gated.accuracy.value) == (1 / 50, 1 / 50), "only the first pair is decided, and rightly"
    assert settle("auto", 0.005).gap == 0.75
    given = settle(0.6, 0.01)
    assert (given.gap, given.max_touched, given.caught) == (0.6, None, 0.0)


def test_no_text_is_shown_or_stored():
    _, _, evaluation = run(by_hash, shared_words, gap=0.2)
    assert "apples" not in repr(evaluation)
    assert "apples" not in str(evaluation.to_json())
    assert evaluation.stress.to_json().keys() == {"tests", "without_prompt", "groups"}
