"""Property: whatever the layout of a preference row, the model reads what `apply_chat_template` makes of its whole messages."""

from __future__ import annotations

import json
from functools import cache

from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from support.preferences.cases import settings
from support.tiny_models import word_tokenizer
from support.tool_use import TOOL_TEMPLATE, TOOLS

from rm.preferences import Rejections, read_preference_rows
from rm.text.templates import Template
from rm.train.data import encode_groups

words = st.lists(st.sampled_from("what is the time of day good bad 2 3".split()), min_size=1, max_size=4).map(" ".join)
plain = words.map(lambda text: {"role": "assistant", "content": text})
reasoned = st.tuples(words, words).map(
    lambda pair: {"role": "assistant", "content": pair[0], "reasoning_content": pair[1]}
)


@st.composite
def calls(draw):
    """A call of a tool and its result."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": draw(st.integers(0, 9))}}}
    asking = {"role": "assistant", "content": draw(words), "tool_calls": [call]}
    return [asking, {"role": "tool", "content": draw(words)}]


alone = st.one_of(plain, reasoned).map(lambda message: [message])
answers = st.one_of(alone, st.tuples(calls(), alone).map(lambda parts: [*parts[0], *parts[1]]))


@st.composite
def conversations(draw):
    """Earlier turns and the user's last one."""
    turns = []
    for answer in draw(st.lists(answers, max_size=2)):
        turns += [{"role": "user", "content": draw(words)}, *answer]
    return [*turns, {"role": "user", "content": draw(words)}]


def as_hh(messages):
    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    return "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in messages)


def is_plain(messages):
    return all(message.keys() == {"role", "content"} and message["role"] != "tool" for message in messages)


def layouts(system, prompt, sides):
    """Rows of every layout that can hold this prompt and these two answers."""
    head = [] if system is None else [{"role": "system", "content": system}]
    whole = [[*head, *prompt, *side] for side in sides]
    front = [*head, *prompt]
    beside = {} if system is None else {"rules": system}
    yield {"prompt": front, "chosen": sides[0], "rejected": sides[1]}, {}
    yield {"prompt": front, "chosen": whole[0], "rejected": whole[1]}, {}
    yield {"chosen": whole[0], "rejected": whole[1]}, {}
    yield {"chosen": json.dumps(whole[0]), "rejected": json.dumps(whole[1])}, {}
    yield {"conversation_a": whole[0], "conversation_b": whole[1], "winner": "model_a"}, {}
    yield {"prompt": front, "responses": sides, "ranking": [1, 2]}, {}
    yield {"prompt": front, "responses": whole, "best": 0}, {}
    columns = {"columns": {"system": "rules"} if beside else {}}
    yield {"prompt": prompt, "chosen": sides[0], "rejected": sides[1], **beside}, columns
    last = {"prompt": prompt[-1]["content"], "earlier": prompt[:-1], "chosen": sides[0], "rejected": sides[1], **beside}
    yield last, {"columns": {"history": "earlier", **columns["columns"]}}
    if is_plain(front) and is_plain(sides[0] + sides[1]):
        yield {"chosen": as_hh(whole[0]), "rejected": as_hh(whole[1])}, {}
        texts = [side[0]["content"] for side in sides]
        yield {"prompt": f"{as_hh(front)}\n\nAssistant:", "chosen": texts[0], "rejected": texts[1]}, {}
        yield {"prompt": as_hh(front), "response_1": texts[0], "response_2": texts[1], "label": "1>2"}, {}


@cache
def template():
    tokenizer = word_tokenizer(pair=False)
    tokenizer.chat_template = TOOL_TEMPLATE
    return Template.of(tokenizer, causal=True, max_length=4000, too_long="reject")


@limits(max_examples=25)
@given(
    st.none() | words, conversations(), st.lists(answers, min_size=2, max_size=2, unique_by=json.dumps), st.booleans()
)
def test_what_the_model_reads_is_the_template_of_the_whole_messages(system, prompt, sides, with_tools):
    tools = TOOLS if with_tools else None
    head = [] if system is None else [{"role": "system", "content": system}]
    tokenizer = template().tokenizer
    wholes = [[*head, *prompt, *side] for side in sides]
    texts = [tokenizer.apply_chat_template(whole, tools=tools, tokenize=False) for whole in wholes]
    expected = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    for row, changes in layouts(system, prompt, sides):
        groups, rejections = read_preference_rows([{**row, **({"tools": tools} if tools else {})}], settings(**changes))
        assert rejections == {}, row
        rejected = Rejections()
        [encoded] = encode_groups(groups, template(), rejected)
        assert rejected == {}
        assert [read.ids for read in encoded.responses] == expected, row
        assert (encoded.edges[0, 0], encoded.edges[0, 1]) == (0, 1)
