"""Rows in the schemas of well-known data sets: read right as preferences or as a corpus, or refused with the way to read them."""

from __future__ import annotations

import pytest
from support.preferences.cases import settings, user
from support.preferences.schemas import OPENASSISTANT, PKU_SAFERLHF, SCHEMAS, SHAREGPT_TOOLS, TOOLS, WILDCHAT

from pipelines.config import Columns
from pipelines.corpus.columns.detection import detect
from pipelines.corpus.columns.row_mapping import parse_row
from pipelines.errors import InputError
from rm.conversations import to_messages, tools_in
from rm.preferences import Edge, Group, Label, PreferenceError, detect_format, read_preference_rows, reading_notes
from rm.preferences.detection import resolve_format

SIDES = ("first", "second")
PAIR = Group(user("Why?"), ("Because.", "No."), (Edge(0, 1),))
# The groups of formats that have a case of their own are compared in test_formats.py.
READ = {
    "UltraFeedback": ("ultrafeedback", None),
    "UltraFeedback binarized": ("ultrafeedback_binarized", None),
    "Nectar": ("nectar", None),
    "HelpSteer3": ("helpsteer3", None),
    "SHP": ("shp", None),
    "Tulu preference mix": (
        "prompt_chosen_rejected",
        [Group(*list(vars(PAIR).values())[:3], source="ai2-adapt-dev/ultrafeedback_cleaned")],
    ),
    "LMSYS arena": (
        "verdicts",
        [
            Group(user("model_a?"), SIDES, (Edge(0, 1),)),
            Group(user("model_b?"), SIDES, (Edge(1, 0),)),
            Group(user("tie?"), SIDES, (Edge(0, 1, 0.5),)),
            Group(user("tie (bothbad)?"), SIDES, (Edge(0, 1, 0.5),)),
        ],
    ),
    "arena 55k": (
        "verdicts",
        [
            Group(user("Why?"), SIDES, (Edge(0, 1),)),
            Group(user("How?"), SIDES, (Edge(1, 0),)),
            Group(user("When?"), SIDES, (Edge(0, 1, 0.5),)),
        ],
    ),
    "KTO": (
        "labels",
        [Group(user("Why?"), ("Because.", "No."), labels=(Label(0, 1.0), Label(1, 0.0)), scores=(1.0, 0.0))],
    ),
}


def corpus(rows):
    return detect(list(rows[0]), rows=rows, format="auto", columns=Columns(), where="f")


@pytest.mark.parametrize("name", READ)
def test_a_schema_is_read_as_preferences(name):
    format, expected = READ[name]
    rows = SCHEMAS[name]
    assert {detect_format(row) for row in rows} == {format}
    groups, rejections = read_preference_rows(rows, settings())
    assert groups
    assert expected is None or groups == expected
    assert rejections.keys() <= {"below_min_gap", "prompts_differ"}  # an unordered pair, two different histories


def test_every_schema_is_looked_at():
    assert {*READ, "WildChat", "ShareGPT with tools", "PKU-SafeRLHF", "OpenAssistant, flat"} == {*SCHEMAS}


def test_what_a_schema_holds_beside_prompt_and_judgements_is_named():
    beside = {
        "Tulu preference mix": ["columns with text or lists that are not read: id"],
        "LMSYS arena": ["columns with text or lists that are not read: question_id, model_a, model_b, judge, language"],
        "SHP": ["columns with text or lists that are not read: post_id, c_root_id_A, c_root_id_B"],
        "UltraFeedback": [
            "columns with text or lists that are not read: models, correct_answers, incorrect_answers",
            "the field completions.custom_system_prompt holds text and is not read",
        ],
        "KTO": [],
    }
    for name, notes in beside.items():
        rows = SCHEMAS[name]
        assert reading_notes(rows, resolve_format(rows, settings()), settings()) == notes


def test_better_and_safer_are_two_verdicts_and_the_user_chooses():
    with pytest.raises(PreferenceError) as asked:
        read_preference_rows(PKU_SAFERLHF, settings())
    assert asked.value.settings == [
        f"'data.columns={{responses: [response_0, response_1], winner: {name}}}'"
        for name in ("better_response_id", "safer_response_id")
    ]
    sides = ("response_0", "response_1")
    for name, edge in (("better_response_id", Edge(1, 0)), ("safer_response_id", Edge(0, 1))):
        (group,), _ = read_preference_rows(PKU_SAFERLHF, settings(sides=sides, columns={"winner": name}))
        assert group == Group(user("Why?"), SIDES, (edge,))


def test_messages_of_a_tree_are_refused_with_what_to_make_of_them():
    with pytest.raises(PreferenceError, match=r"one message of a tree.*join them into rows \{prompt: .*ranking"):
        read_preference_rows(OPENASSISTANT, settings())
    with pytest.raises(InputError, match=r"one message of a tree.*input\.columns=\{messages: COLUMN\}"):
        corpus(OPENASSISTANT)


def test_conversations_are_a_corpus():
    detection = corpus(WILDCHAT)
    assert parse_row(WILDCHAT[0], detection.mapping)[:3] == (user("Hi"), ["Hello"], [None])
    with pytest.raises(PreferenceError, match="fit no known format"):
        read_preference_rows(WILDCHAT, settings())
    detection = corpus(SHAREGPT_TOOLS)
    prompt, responses, *_ = parse_row(SHAREGPT_TOOLS[0], detection.mapping)
    assert (tools_in(prompt), responses) == (TOOLS, ["It is 4."])
    call, result = to_messages(prompt)[1:]
    assert call["tool_calls"][0]["function"] == {"name": "add", "arguments": {"x": 2}}
    assert result == {"role": "tool", "content": "4"}
    assert any("the column system holds text and is not read" in note for note in detection.notes)
