"""Lists and lone responses: what makes a row unusable, and equal responses."""

from __future__ import annotations

from support.preferences.cases import settings, user
from support.preferences.lists import NECTAR, REWARDBENCH2, qa_row, rewardbench2_row

from rm.preferences import Edge, Group, read_preference_rows


def reasons(rows):
    return read_preference_rows(rows, settings())[1]


def test_lists_that_cannot_be_used_are_counted_by_reason():
    scored = {"prompt": "q", "response": "a", "score": 1.0}
    bad = [{**scored, "score": value} for value in (None, float("nan"), float("inf"), "7", "", [1])]
    assert reasons([scored, *bad]) == {"bad_score": 6}
    label = {"prompt": "q", "completion": "a", "label": True}
    assert reasons([label, *({**label, "label": value} for value in (None, 2, -1, "yes"))]) == {"bad_label": 4}
    ranked = {"prompt": "q", "responses": ["a", "b"], "ranking": [1, 2]}
    bad = [{**ranked, "ranking": value} for value in (None, [1], [1, None], [1, float("nan")], "12")]
    assert reasons([ranked, *bad]) == {"bad_ranking": 5}
    assert reasons([ranked, {**ranked, "responses": ["a"], "ranking": [1]}]) == {"too_few_responses": 1}
    best = {"prompt": "q", "responses": ["a", "b"], "best": 0}
    assert reasons([best, *({**best, "best": value} for value in (2, -1, None, 0.5, "a"))]) == {"bad_choice": 5}
    grades = {"prompt": "q", "responses": ["a", "b"], "scores": [1.0, 2.0]}
    bad = [{**grades, "scores": value} for value in ([1.0], [None, None], [1.0, float("nan")], None)]
    assert reasons([grades, *bad]) == {"bad_score": 4}
    assert reasons([qa_row("q", [1, 1]), qa_row("q", [1, 1, 1, 1, 1, 3]), qa_row("q", None)]) == {"bad_preference": 3}
    both = rewardbench2_row("1", "q", ["a", "b"], ["b"], "Math")
    assert reasons([REWARDBENCH2[0], both]) == {"equal_sides": 1}
    assert reasons([*NECTAR, {**NECTAR[0], "answers": ["b", "a"]}, {**NECTAR[0], "answers": None}]) == {"wrong_type": 2}


def test_equal_responses_in_a_list_are_one_and_what_was_between_them_is_counted():
    rows = [{"prompt": "q", "responses": ["a", "b", "a", "c"], "ranking": [1, 2, 1, 3]}]
    groups, rejections = read_preference_rows(rows, settings())
    edges = (Edge(0, 1), Edge(0, 2), Edge(0, 1), Edge(0, 2), Edge(1, 2))
    assert groups == [Group(user("q"), ("a", "b", "c"), edges)]
    assert rejections == {"equal_responses": 1}
    rows = [{"prompt": "q", "responses": ["a", "b", "a"], "scores": [1.0, 4.0, 2.0]}]
    groups, rejections = read_preference_rows(rows, settings())
    assert groups == [Group(user("q"), ("a", "b"), (Edge(1, 0),), scores=(1.5, 4.0))]
    assert rejections == {"equal_responses": 1}
    rows = [{"prompt": "q", "responses": ["a", "a"], "best": 0}]
    assert read_preference_rows(rows, settings()) == ([], {"equal_sides": 1})


def test_a_response_that_repeats_the_prompt_loses_it_once():
    whole = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (group,), rejections = read_preference_rows([{"prompt": whole[:1], "completion": whole, "label": True}], settings())
    assert (group.prompt, group.responses, rejections) == ((("user", "q"),), ("a",), {})
    other = [whole[0], {"role": "assistant", "content": "b"}]
    row = {"prompt": whole[:1], "responses": [whole, other], "best": 0}
    assert read_preference_rows([row], settings())[0][0].responses == ("a", "b")
