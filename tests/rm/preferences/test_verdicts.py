"""Two responses and a verdict: the columns, the values that leave no doubt, and the question where they leave one."""

from __future__ import annotations

import pytest
from support.preferences.cases import messages, settings, user

from rm.preferences import Edge, Group, PreferenceError, detect_format, read_preference_rows

WINS = (Edge(0, 1), Edge(1, 0), Edge(0, 1, 0.5))


def judged(names, column, values, **more):
    """Rows with a response in each of two columns, one row for each verdict."""
    return [{"prompt": f"q{n}", names[0]: "x", names[1]: "y", column: value, **more} for n, value in enumerate(values)]


def edges(rows, **changes):
    groups, rejections = read_preference_rows(rows, settings(**changes))
    assert not rejections
    assert [(group.prompt, group.responses) for group in groups] == [
        (user(f"q{n}"), ("x", "y")) for n in range(len(rows))
    ]
    return [group.edges for group in groups]


@pytest.mark.parametrize(
    ("names", "column", "values"),
    [
        (("response_a", "response_b"), "winner", ["model_a", "model_b", "tie"]),
        (("response_a", "response_b"), "winner", ["A", "B", "both_bad"]),
        (("answer_a", "answer_b"), "winner", ["model_a", "model_b", "tie (bothbad)"]),
        (("response_A", "response_B"), "label", ["A>B", "B>A", "A=B"]),
        (("response_A", "response_B"), "label", ["A>>B", "A<B", "A=B"]),
        (("response 1", "response 2"), "verdict", ["[[A]]", "[[B]]", "Tie"]),
        (("output_1", "output_2"), "preferred_output", ["output_1", "output_2", "tie"]),
        (("answer1_body", "answer2_body"), "better", ["Answer 1", "answer2", "neither"]),
        (("first_response", "second_response"), "preference", ["first", "second", "draw"]),
        (("output_1", "output_2"), "label", [1, 2, "tie"]),
        (("output_1", "output_2"), "label", [1.0, 2.0]),
        (("output_1", "output_2"), "label", ["1", "2"]),
        (("completion_a", "completion_b"), "choice", [1, 2]),
        (("response_0", "response_1"), "better_response_id", [0, 1]),
    ],
)
def test_values_that_leave_no_doubt_are_read(names, column, values):
    rows = judged(names, column, values)
    assert {detect_format(row) for row in rows} == {"verdicts"}
    assert edges(rows) == [(edge,) for edge in WINS[: len(values)]]


def test_the_name_of_a_model_is_the_side_that_has_it():
    models = [("gpt-4", "vicuna"), ("vicuna", "gpt-4"), ("gpt-4", "bard")]
    rows = judged(("response_a", "response_b"), "winner", ["gpt-4", "gpt-4", "tie"])
    rows = [{**row, "model_a": first, "model_b": second} for row, (first, second) in zip(rows, models, strict=True)]
    assert edges(rows) == [(edge,) for edge in WINS]


def test_columns_that_mark_the_winner_with_one():
    rows = judged(("response_a", "response_b"), "id", [7, 8, 9])
    marks = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    rows = [{**row, **dict(zip(names, mark, strict=True))} for row, mark in zip(rows, marks, strict=True)]
    assert edges(rows) == [(edge,) for edge in WINS]


def test_verdicts_of_several_judges_are_votes():
    rows = judged(("response_a", "response_b"), "votes", [["A", "A", "tie"], ["B", "tie", "B"]])
    with pytest.raises(PreferenceError):
        read_preference_rows(rows, settings())
    assert edges(rows, columns={"winner": "votes"}) == [(Edge(0, 1, 0.75),), (Edge(1, 0, 0.75),)]


def test_conversations_of_an_arena():
    row = {"conversation_a": messages("Hi", "x"), "conversation_b": messages("Hi", "y"), "winner": "model_b"}
    differing = {**row, "conversation_b": messages("Ho", "y")}
    groups, rejections = read_preference_rows([row, differing, {**row, "winner": None}], settings())
    assert groups == [Group(user("Hi"), ("x", "y"), (Edge(1, 0),))]
    assert rejections == {"prompts_differ": 1, "no_votes": 1}


@pytest.mark.parametrize(
    ("values", "ways"),
    [
        ([0, 1, 2], ["{first: 1, second: 2, tie: 0}", "{first: 0, second: 1, tie: 2}"]),
        ([0, 1, 0], ["{first: 0, second: 1}", "{first: 1, second: 0}"]),
        ([1, 1, 1], ["{first: 1, second: 2}", "{first: 1, second: 0}", "{first: 0, second: 1}"]),
        ([True, False], ["{first: true, second: false}", "{first: false, second: true}"]),
    ],
)
def test_numbers_that_leave_a_doubt_are_a_question_and_each_answer_decides(values, ways):
    rows = judged(("response 1", "response 2"), "label", values)
    with pytest.raises(PreferenceError, match="a verdict in the column label") as asked:
        read_preference_rows(rows, settings())
    columns = "'data.columns={responses: [response 1, response 2], winner: label}'"
    assert asked.value.settings == [f"{columns} 'data.winner={way}'" for way in ways]


def test_the_user_says_what_values_mean():
    rows = judged(("response 1", "response 2"), "label", [0, 1, 2])
    assert edges(rows, winner={"first": [0], "second": [1], "tie": [2]}) == [(edge,) for edge in WINS]
    assert edges(rows, winner={"first": [2], "second": [1], "tie": [0]}) == [(WINS[2],), (WINS[1],), (WINS[0],)]
    rows = judged(("left text", "right text"), "who", ["links", "rechts", "egal"])
    read = {"sides": ("left text", "right text"), "columns": {"winner": "who"}}
    assert edges(rows, **read, winner={"first": ["links"], "second": ["rechts"], "tie": ["egal", "x"]}) == [
        (edge,) for edge in WINS
    ]
    with pytest.raises(PreferenceError, match="VALUE") as refused:
        read_preference_rows(rows, settings(**read))
    assert "links" not in str(refused.value)
    _, rejections = read_preference_rows(rows, settings(**read, winner={"first": ["links"], "second": ["rechts"]}))
    assert rejections == {"bad_verdict": 1}


def test_several_columns_with_a_verdict_are_a_question():
    rows = judged(("response_0", "response_1"), "better_response_id", [0, 1], safer_response_id=1)
    with pytest.raises(PreferenceError, match="several columns that may say which one is better") as asked:
        read_preference_rows(rows, settings())
    assert asked.value.settings == [
        f"'data.columns={{responses: [response_0, response_1], winner: {name}}}'"
        for name in ("better_response_id", "safer_response_id")
    ]
    assert edges(rows, columns={"winner": "safer_response_id"}) == [(WINS[1],), (WINS[1],)]


def test_two_responses_without_a_known_verdict_are_told_what_to_name():
    rows = judged(("response_a", "response_b"), "who", ["A", "B"])
    with pytest.raises(
        PreferenceError, match=r"data\.columns=\{responses: \[response_a, response_b\], winner: COLUMN\}"
    ):
        read_preference_rows(rows, settings())
    with pytest.raises(PreferenceError, match=r"data\.columns\.responses is 'z', and the rows have no such column"):
        read_preference_rows(rows, settings(sides=("response_a", "z")))
    with pytest.raises(PreferenceError, match=r"data\.winner is for verdicts"):
        read_preference_rows(
            [{"prompt": "q", "chosen": "a", "rejected": "b"}], settings(winner={"first": [1], "second": [2]})
        )


def test_more_than_two_responses_are_no_pair():
    rows = judged(("response_1", "response_2"), "winner", ["1", "2"], response_3="z")
    with pytest.raises(PreferenceError, match="fit no known format"):
        read_preference_rows(rows, settings())
