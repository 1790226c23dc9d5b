"""Rows of preferences as prompts with ranked responses, one at a time."""

from __future__ import annotations

import json

import pytest

from pipelines.config.train import PreferencesConfig
from rm.conversations import UnusableError
from rm.preferences import PreferenceError, ReadSettings, read_ranked, settle_ranking

HH = "\n\nHuman: hi\n\nAssistant: "


def settings(**changes):
    return ReadSettings(**PreferencesConfig.model_validate({"path": "-", **changes}).reading_options())


ROWS = {
    "hh": ({"chosen": HH + "good", "rejected": HH + "bad"}, ["good", "bad"]),
    "prompt_chosen_rejected": ({"prompt": "hi", "chosen": "good", "rejected": "bad"}, ["good", "bad"]),
    "ranking": ({"prompt": "hi", "responses": ["c", "a", "b"], "ranking": [3, 1, 2]}, ["a", "b", "c"]),
    "scored_list": ({"prompt": "hi", "responses": ["c", "a", "b"], "scores": [1, 9.5, 4]}, ["a", "b", "c"]),
    "choice": ({"prompt": "hi", "responses": ["c", "a", "b"], "best": 1}, ["a", "c", "b"]),
    "verdicts": ({"prompt": "hi", "response_a": "x", "response_b": "y", "winner": "b"}, ["y", "x"]),
    "numbered verdicts": ({"prompt": "hi", "response_1": "x", "response_2": "y", "preference": 2}, ["y", "x"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_kind_of_judgement_gives_an_order(name):
    row, ranked = ROWS[name]
    more = [{**row, "preference": 1}] if "preference" in row else []
    settled = settle_ranking([row, *more], settings())
    prompt, responses, order = read_ranked(row, json.dumps(json.loads(settled), sort_keys=True))
    assert (prompt[-1][1], responses) == ("hi", ranked)
    if "responses" in row:
        assert [row["responses"][at] for at in order] == ranked


def test_what_has_no_grade_is_no_side_of_a_pair():
    row = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [5, None, 1]}
    settled = settle_ranking([row], settings())
    assert read_ranked(row, settled)[1] == ["a", "c", None]
    with pytest.raises(UnusableError, match="tied"):
        read_ranked({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, settled)


def test_a_row_without_an_order_has_a_reason():
    tie = {"prompt": "hi", "response_a": "x", "response_b": "y", "winner": "tie"}
    settled = settle_ranking([{**tie, "winner": "a"}, tie], settings())
    for row, reason in (
        (tie, "tied"),
        ({**tie, "winner": "c"}, "bad_verdict"),
        ({**tie, "response_b": "x", "winner": "a"}, "equal_sides"),
        ({**tie, "response_b": None, "winner": "a"}, "null_response"),
    ):
        with pytest.raises(UnusableError) as caught:
            read_ranked(row, settled)
        assert caught.value.reason == reason


def test_a_repeated_prompt_is_taken_off_as_the_first_rows_say():
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"What is {n}? One.", "rejected": f"What is {n}? Two."} for n in range(20)
    ]
    settled = settle_ranking(rows, settings())
    assert read_ranked(rows[3], settled)[1] == ["One.", "Two."]
    assert read_ranked(rows[3], settle_ranking(rows, settings(repeated_prompt="keep")))[1][0] == "What is 3? One."


def test_rows_of_one_response_are_refused():
    row = {"prompt": "hi", "response": "x", "label": True}
    with pytest.raises(PreferenceError, match="with one response per row"):
        settle_ranking([row], settings())
