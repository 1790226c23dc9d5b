"""Transcripts in one text: what is one, and what only quotes one."""

from __future__ import annotations

import pytest

from rm.transcripts import open_turns, turns_in


def turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n\nHuman: a\n\nAssistant:", turns("a")),
        ("\n\nHuman: a\n\nAssistant: ", turns("a")),
        ("Human: a\n\nAssistant:", turns("a")),
        ("\n\nHuman: a", turns("a")),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nd\n\nAssistant:", turns("a", "b", "c\n\nd")),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c", turns("a", "b", "c")),
        ("Human: a\n\nAssistant: b\n\nHuman: c", turns("a", "b", "c")),
        ("Be brief.\n\nHuman: a\n\nAssistant:", turns("a", system="Be brief.")),
        ("\n\nSystem: Be brief.\n\nHuman: a\n\nAssistant:", turns("a", system="Be brief.")),
        ("System: Be brief.\n\nHuman: a", turns("a", system="Be brief.")),
        ("\n\nHuman: a\n\nAssistant: b", turns("a", "b")),  # the reader of prompts says that it ends with the assistant
    ],
)
def test_prompts_that_are_transcripts(text, expected):
    assert open_turns(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "",
        "Human: what is the species like?",
        "Human nature: explain",
        "Summarise this.\n\nHuman: a\n\nAssistant: b",
        "Summarise this.\n\nHuman: a\n\nAssistant: b\n\nHuman: c",
        "Who says this?\n\nHuman: a",
        "Assistant: a\n\nHuman: b\n\nAssistant: c",
        "I saw\n\nAssistant: a\n\nHuman: b",
        "\n\nAssistant:",
        "a line\nHuman: a\nAssistant:",
    ],
)
def test_prompts_that_are_no_transcripts(text):
    assert open_turns(text) is None


def test_the_turns_of_a_whole_transcript():
    assert turns_in("Be brief.\n\nHuman: a\n\nAssistant: b") == turns("a", "b", system="Be brief.")
    assert turns_in("\n\nHuman: a\n\nAssistant:") == turns("a", "")
    assert turns_in("I saw\n\nAssistant: a") is None
