"""Pairs: what makes one unusable, and prompts that a side repeats."""

from __future__ import annotations

import json

import pytest
from support.preferences.cases import CHAT, messages, settings
from support.preferences.pairs import HH, SHP

from rm.preferences import Edge, Group, read_preference_rows


def reasons(rows):
    return read_preference_rows(rows, settings())[1]


def test_pairs_that_cannot_be_used_are_counted_by_reason():
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert reasons([{**pair, "rejected": "a"}]) == {"equal_sides": 1}
    assert reasons([{**pair, "margin": "wide"}, {**pair, "margin": float("nan")}]) == {"bad_margin": 2}
    assert reasons([{**HH[0], "rejected": "\n\nHuman: other\n\nAssistant: No."}]) == {"prompts_differ": 1}
    assert reasons([{"chosen": "one thing", "rejected": "another"}]) == {"empty_prompt": 1}
    assert reasons([SHP[0], {**SHP[0], "labels": 2}, {**SHP[0], "labels": 0}]) == {"bad_label": 1, "below_min_gap": 1}


def test_a_conversation_that_goes_on_after_the_prompt_keeps_its_turns():
    row = {
        "prompt": messages("Hi"),
        "chosen": messages("Hi", "Hello", "Why?", "Because."),
        "rejected": messages("Hi", "Hello", "Why?", "No."),
    }
    (group,), _ = read_preference_rows([row], settings())
    assert (group.prompt, group.responses) == (CHAT, ("Because.", "No."))
    cut = {**row, "chosen": row["chosen"][1:], "rejected": row["rejected"][1:]}
    assert read_preference_rows([cut], settings())[0] == [group]


def test_sides_stored_as_json_text_are_messages():
    sides = {name: messages("Hi", "Hello", "Why?", name) for name in ("chosen", "rejected")}
    text = {name: json.dumps(side) for name, side in sides.items()}
    for more in ({}, {"prompt": json.dumps(sides["chosen"][:-1])}):
        (expected,), _ = read_preference_rows([{**sides, **more}], settings())
        assert expected.prompt == CHAT
        assert read_preference_rows([{**text, **more}], settings()) == ([expected], {})


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"


def test_a_prompt_that_is_a_transcript_is_turns_in_every_format():
    rows = [
        {"prompt": TRANSCRIPT, "chosen": " Because.", "rejected": " No."},
        {"prompt": TRANSCRIPT, "response_a": " Because.", "response_b": " No.", "winner": "A"},
        {"question": TRANSCRIPT, "responses": [" Because.", " No."], "best": 0},
        {"prompt": TRANSCRIPT.removesuffix("\n\nAssistant:"), "completion": "Because.", "label": True},
    ]
    for row in rows:
        (group,), _ = read_preference_rows([row], settings())
        assert group.prompt == CHAT
        name = "question" if "question" in row else "prompt"
        (group,), _ = read_preference_rows([{**row, name: f"Be brief.{TRANSCRIPT}"}], settings())
        assert group.prompt == (("system", "Be brief."), *CHAT)
        (group,), _ = read_preference_rows([{**row, name: "Who says\n\nHuman: Hi"}], settings())
        assert group.prompt == (("user", "Who says\n\nHuman: Hi"),)
    sides = {name: f"Be brief.{TRANSCRIPT} {name}" for name in ("chosen", "rejected")}
    (group,), _ = read_preference_rows([sides], settings())
    assert (group.prompt, group.responses) == ((("system", "Be brief."), *CHAT), ("chosen", "rejected"))


@pytest.mark.parametrize(
    "names",
    [
        ("chosen-rating", "rejected-rating"),
        ("chosen_score", "rejected_score"),
        ("rating_chosen", "rating_rejected"),
        ("chosenReward", "rejectedReward"),
        ("chosen_avg_rating", "rejected_avg_rating"),
    ],
)
def test_grades_of_both_sides_have_many_names(names):
    prompt = {"prompt": "Hi"}
    shapes = [
        {**prompt, "chosen": "a", "rejected": "b"},
        {**prompt, "chosen": messages("Hi", "a"), "rejected": messages("Hi", "b")},
        {"chosen": messages("Hi", "a"), "rejected": messages("Hi", "b")},
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
        {"chosen": "Hi a", "rejected": "Hi b"},
    ]
    for shape in shapes:
        rows = [{**shape, **dict(zip(names, grades, strict=True))} for grades in ((4.5, 4), (3, 3.0), (None, 2.0))]
        (group,), rejections = read_preference_rows(rows, settings(gap_use="margin"))
        assert group == Group((("user", "Hi"),), ("a", "b"), (Edge(0, 1, margin=0.5),), scores=(4.5, 4.0))
        assert rejections == {"below_min_gap": 1, "bad_score": 1}


def test_other_columns_of_both_sides_are_no_grades():
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "chosen-model": "x", "rejected-model": "y"}
    row |= {"chosen_rating": "high", "rejected_rating": "low", "chosen_length": 1, "rejected_length": 2}
    (group,), rejections = read_preference_rows([row], settings())
    assert (group.edges, group.scores, rejections) == ((Edge(0, 1),), (), {})
