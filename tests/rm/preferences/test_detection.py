"""Formats told from columns, columns of any name, and what is no preference."""

from __future__ import annotations

import pytest
from support.preferences.cases import settings, user
from support.preferences.pairs import HH

from rm.preferences import PreferenceError, detect_format, read_preference_rows


@pytest.mark.parametrize(
    ("columns", "rows", "name"),
    [
        ({"prompt": "ask", "response": "say", "score": "votes"}, [{"ask": "q", "say": "a", "votes": 3}], "scores"),
        ({"chosen": "good", "rejected": "bad"}, [{"query": "q", "good": "a", "bad": "b"}], "prompt_chosen_rejected"),
        ({"responses": "all", "best": "pick"}, [{"prompt": "q", "all": ["a", "b"], "pick": 0}], "choice"),
        ({"label": "ok"}, [{"prompt": "q", "response": "a", "ok": 1, "score": 2.0}], "labels"),
        ({"score": "score"}, [{"prompt": "q", "response": "a", "label": 1, "score": 2.0}], "scores"),
        (
            {"source": "from", "subset": "part"},
            [{"prompt": "q", "chosen": "a", "rejected": "b", "from": "x", "part": "y"}],
            "prompt_chosen_rejected",
        ),
    ],
)
def test_columns_of_any_name(columns, rows, name):
    assert detect_format(rows[0], columns) == name
    (group,), rejections = read_preference_rows(rows, settings(columns=columns))
    assert (group.prompt, group.responses[0], not rejections) == (user("q"), "a", True)
    assert (group.source, group.subset) == (("x", "y") if "source" in columns else (None, None))


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"prompt": "x", "chosen": "y"}], {}, "columns chosen, prompt, which fit no known format"),
        ([{"prompt": "x", "response": "y", "label": 1, "score": 2}], {}, "fit the formats labels, scores"),
        ([{"prompt": "x"}], {"format": "xml"}, r"data\.format is 'xml'; expected auto or one of rewardbench2"),
        (
            [{"prompt": "x", "chosen": "a", "rejected": "b"}],
            {"format": "shp"},
            "is shp, and the rows have no column history",
        ),
        ([{"prompt": "x", "response": "y", "score": 1}], {"columns": {"score": "win"}}, r"columns\.score is 'win'"),
        (HH, {"columns": {"label": "chosen"}}, "the format hh of the rows takes only"),
        (HH, {"format": "hh", "columns": {"label": "chosen"}}, "names label, for which the format hh has no place"),
        (HH, {"min_gap": 1.0}, "min_gap and data.gap_use act on scores, and the format hh has none"),
        ([], {}, "no rows"),
        ([], {"format": "hh"}, "no rows"),
    ],
)
def test_what_cannot_be_told_is_an_error_with_the_remedy_and_without_row_text(rows, changes, message):
    with pytest.raises(PreferenceError, match=message) as caught:
        read_preference_rows(rows, settings(**changes))
    assert "Because" not in str(caught.value)


def test_the_first_row_that_is_whole_tells_the_format():
    rows = [{"chosen": None, "rejected": None}, HH[0]]
    groups, rejections = read_preference_rows(rows, settings())
    assert (len(groups), rejections) == (1, {"null_prompt": 1})


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(
        PreferenceError, match=r"data\.columns\.score is 'win', and the rows have no such column.*win_rate"
    ):
        detect_format({"prompt": "p", "response": "r", "win_rate": 0.5}, {"score": "win"})


def test_two_prompts_that_differ_are_a_question_and_each_answer_decides():
    rows = [{"prompt": "a", "question": "a", "chosen": "c", "rejected": "d"}] * 2
    assert read_preference_rows(rows, settings())[0][0].prompt == (("user", "a"),)
    rows = [rows[0], {**rows[0], "question": "b"}]
    with pytest.raises(PreferenceError, match="each of which may hold the prompt") as asked:
        read_preference_rows(rows, settings())
    assert asked.value.settings == ["'data.columns={prompt: prompt}'", "'data.columns={prompt: question}'"]
    prompts = [group.prompt for group in read_preference_rows(rows, settings(columns={"prompt": "question"}))[0]]
    assert prompts == [(("user", "a"),), (("user", "b"),)]


@pytest.mark.parametrize(
    ("row", "message", "ways"),
    [
        (
            {"prompt": "p", "response": "r", "id": 3, "ok": True, "n_tokens": 7, "win_rate": 0.5},
            "as `bestkept run` scores them",
            ["'data.columns={label: ok}'", "'data.columns={score: win_rate}'"],
        ),
        ({"prompt": "p", "response": "r"}, "a corpus without judgements is input of `bestkept run`", []),
        ({"messages": [{"role": "user", "content": "p"}]}, "a corpus without judgements", []),
        ({"Chosen": "a b", "Rejected": "a c"}, "did you mean", ["'data.columns={chosen: Chosen, rejected: Rejected}'"]),
        (
            {"prompt": "p", "response": "r", "label": 1, "score": 2},
            "choose one: data.format=labels or data.format=scores",
            ["data.format=labels", "data.format=scores"],
        ),
    ],
)
def test_what_is_no_preference_is_told_what_to_say(row, message, ways):
    with pytest.raises(PreferenceError, match=message) as refused:
        read_preference_rows([row], settings())
    assert refused.value.settings == ways
