"""Preferences whose messages hold calls, results and reasoning: the model reads them whole, on every kind of row."""

from __future__ import annotations

import pytest
from support.tiny_models import word_tokenizer
from support.tool_use import TOOL_TEMPLATE, trajectory

from pipelines.config.train import PreferencesConfig
from rm.conversations import UnusableError, from_messages, to_messages
from rm.preferences import ReadSettings, Rejections, read_preference_rows
from rm.preferences.readers.pairs import split_pair
from rm.text.templates import Template
from rm.train.data import encode_groups

SETTINGS = ReadSettings(**PreferencesConfig(path="x").reading_options())
ASK = {"role": "user", "content": "what is 2"}
GOOD, BAD = trajectory(2, 1), trajectory(2, 2)
THOUGHT = [{"role": "assistant", "content": "4", "reasoning_content": why} for why in ("two and two", "a guess")]
REPLY = {"role": "assistant", "content": "good"}
ROWS = {
    "explicit": {"prompt": [ASK], "chosen": GOOD, "rejected": BAD},
    "explicit with text": {"prompt": "what is 2", "chosen": GOOD, "rejected": "bad"},
    "whole conversations": {"chosen": [ASK, *GOOD], "rejected": [ASK, *BAD]},
    "the prompt repeated": {"prompt": [ASK], "chosen": [ASK, *GOOD], "rejected": [ASK, *BAD]},
    "reasoning alone": {"prompt": [ASK], "chosen": THOUGHT[:1], "rejected": THOUGHT[1:]},
    "a call in the prompt": {"prompt": [ASK, *GOOD, ASK], "chosen": [REPLY], "rejected": THOUGHT[1:]},
    "ranking": {"prompt": [ASK], "responses": [GOOD, BAD, THOUGHT[:1]], "ranking": [1, 2, 3]},
    "label": {"prompt": [ASK], "completion": GOOD, "label": True},
}


def sides(row):
    if "responses" in row or "completion" in row:
        return row.get("responses") or [row["completion"]]
    return [
        [{"role": "assistant", "content": side}] if isinstance(side, str) else side
        for side in (row["chosen"], row["rejected"])
    ]


@pytest.mark.parametrize("name", ROWS)
def test_the_model_reads_the_whole_messages(name):
    row = ROWS[name]
    groups, rejections = read_preference_rows([row], SETTINGS)
    assert rejections == {}
    tokenizer = word_tokenizer(pair=False)
    tokenizer.chat_template = TOOL_TEMPLATE
    template = Template.of(tokenizer, causal=True, max_length=500, too_long="reject")
    rejected = Rejections()
    [encoded] = encode_groups(groups, template, rejected)
    assert rejected == {}
    prompt = row.get("prompt", [])
    prompt = [ASK] if isinstance(prompt, str) else prompt
    wholes = [side if side[0]["role"] == "user" else [*prompt, *side] for side in sides(row)]
    assert [to_messages(groups[0].prompt, response) for response in groups[0].responses] == wholes
    for read, whole in zip(encoded.responses, wholes, strict=True):
        text = tokenizer.apply_chat_template(whole, tokenize=False)
        assert read.ids == tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def test_conversations_part_where_the_assistant_goes_another_way():
    start = [ASK, GOOD[0], GOOD[1]]
    first, second = split_pair(from_messages([*start, REPLY]), from_messages([*start, *THOUGHT[1:]]))
    assert to_messages(first[0]) == to_messages(second[0]) == start
    first, second = split_pair(from_messages([*start, REPLY]), from_messages([ASK, GOOD[0], BAD[1], REPLY]))
    assert to_messages(first[0]) == to_messages(second[0]) == [ASK]
    assert to_messages((), first[1]) == [GOOD[0], GOOD[1], REPLY]
    one, other = [[ASK, reply, ASK, REPLY] for reply in THOUGHT]
    assert [to_messages(side[0]) for side in split_pair(from_messages(one), from_messages(other))] == [
        one[:3],
        other[:3],
    ]
    for bad in ([ASK, GOOD[0], GOOD[1]], [REPLY]):
        with pytest.raises(UnusableError):
            split_pair(from_messages([ASK, REPLY]), from_messages(bad))


def test_what_cannot_be_carried_rejects_the_row_by_name():
    bad = {"prompt": [ASK], "chosen": [{**REPLY, "reasoning_content": 3}], "rejected": [REPLY]}
    groups, rejections = read_preference_rows([ROWS["explicit"], bad], SETTINGS)
    assert len(groups) == 1
    assert rejections == {"bad_reasoning_content": 1}
