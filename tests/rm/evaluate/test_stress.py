"""Stress tests with planted models: each fails what it should fail, and nothing else."""

from __future__ import annotations

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rm.conversations import prompt_key
from rm.evaluate import Bootstrap, perturbations, stress
from rm.messages import WHOLE, pack_messages
from rm.preferences import Edge, Group
from rm.preferences.similar import similar_prompts, words_of

TOPICS = ["apples", "bridges", "cellos", "deserts", "engines", "falcons", "glaciers", "harbours"]
TEXT = (
    "{0} are a wide field. Many people know {0} well. Few people have seen all {0}. I would begin with a book on {0}."
)


def groups():
    for number, topic in enumerate(TOPICS):
        prompt = f"please tell me {('briefly', 'slowly')[number % 2]} about {topic}"
        yield Group((("user", prompt),), ("no idea", TEXT.format(topic)), (Edge(1, 0),))


def reads_the_prompt(prompt, response):
    topic = (prompt[-1][1].split() or ["nothing"])[-1]
    sentences = [sentence for sentence in response.split(". ") if topic in sentence]
    in_order = all(a < b for a, b in pairwise(map(TEXT.format(topic).find, sentences)))
    return min(len(sentences), 4) + in_order - 0.001 * len(response)


PLANTED = {
    "length": lambda prompt, response: len(response),
    "brevity": lambda prompt, response: -len(response),
    "prompt": reads_the_prompt,
    "nothing": lambda prompt, response: 1.0,
}


def run(model, given_groups=None, *, prompts=100):
    data = list(groups()) if given_groups is None else given_groups

    def score(asked):
        return [[PLANTED[model](prompt, text) for text in responses] for prompt, responses in asked]

    rewards = score([(group.prompt, group.responses) for group in data])
    return stress(data, rewards, score, prompts=prompts, bootstrap=Bootstrap(100, 0))


def preferred(stressed):
    return {test.name: test.preferred.value for test in stressed.tests}


def test_a_model_of_length_fails_what_is_longer_and_does_not_read_the_prompt():
    stressed = run("length")
    values = preferred(stressed)
    assert {values.pop(name) < 1.0 for name in ("other_prompt", "similar_prompt")} == {True}
    assert values == {
        "truncated": 1.0,
        "shuffled": 0.5,
        "repeated": 0.0,
        "padded": 0.0,
        "list": 0.0,
        "emoji": 0.0,
    }
    assert stressed.without_prompt.value == 1.0
    assert stressed.groups == len(TOPICS)


def test_a_model_that_reads_the_prompt_passes_all():
    stressed = run("prompt")
    values = preferred(stressed)
    assert {values[name] for name in ("other_prompt", "similar_prompt", "truncated", "shuffled", "repeated")} == {1.0}
    assert values["padded"] == 1.0
    assert stressed.without_prompt.value < 0, "without a topic, the shorter one wins"


def test_equal_rewards_are_a_coin():
    stressed = run("nothing")
    assert set(preferred(stressed).values()) == {0.5}
    assert math.isnan(stressed.without_prompt.value), "what does not vary has no order"
    assert stressed.groups == 0


def test_the_opposite_of_length():
    values = preferred(run("brevity"))
    assert (values["truncated"], values["repeated"], values["padded"], values["emoji"]) == (0.0, 1.0, 1.0, 1.0)


def test_the_text_that_judges_prefer_is_tried():
    seen = []

    def score(asked):
        seen.append(asked)
        return [[0.0] * len(responses) for _, responses in asked]

    data = list(groups())
    stress(data, [[0.0, 1.0]] * len(data), score, prompts=3)
    asked, alone = seen
    keys = sorted(prompt_key(group.prompt) for group in data)[:3]
    assert [prompt_key(prompt) for prompt, _ in asked] == keys, "by the keys of prompts, whatever their order"
    assert all(responses[0] == TEXT.format(prompt[-1][1].split()[-1]) for prompt, responses in asked)
    assert [prompt for prompt, _ in alone] == [(("user", ""),)] * 3, "the prompt is left out"
    chosen = {prompt_key(group.prompt): group.responses for group in data}
    assert [responses for _, responses in alone] == [chosen[key] for key in keys]
    topics = [prompt[-1][1].split()[-1] for prompt, _ in asked]
    assert [responses[1] for _, responses in asked] == [TEXT.format(topic) for topic in [*topics[1:], topics[0]]]


def test_the_order_of_groups_changes_nothing():
    data = list(groups())
    assert run("length", data[::-1], prompts=5) == run("length", data, prompts=5)


def test_what_cannot_be_tried_is_left_out():
    call = pack_messages([{"role": "assistant", "content": "x", "name": "y"}])
    assert call.startswith(WHOLE)
    odd = Group((("user", "call it"),), (call,))
    assert run("length", [odd, odd]) is None
    assert run("length", [next(groups()), odd]) is None, "one prompt has no other"
    assert run("length", prompts=0) is None
    unscored = stress(
        list(groups()), [[math.nan] * 2] * 8, lambda asked: [[math.nan] * len(r) for _, r in asked], prompts=9
    )
    assert unscored.tests == ()


def test_changes_by_hand():
    text = "One two three. Four five six! Seven eight?"
    assert perturbations.truncated(text) == "One two three. Four"
    assert perturbations.truncated("a b c") is None
    assert perturbations.as_list("A b. C d.") == "**Answer**\n\n- A b.\n- C d."
    assert perturbations.as_list("A b.") is None
    assert perturbations.with_emoji("A b. C d.") == "A b. 😊 C d. 😊"
    assert perturbations.without_marks("# Head\n\n- **a** `b`\n2. c") == "Head\n\na b\nc"
    assert perturbations.without_marks("plain * text 2. here") is None
    assert perturbations.sentences_of("  1. one\n12. two. Yes!") == ["1. one", "12. two.", "Yes!"]
    assert perturbations.sentences_of("今天很好。明天呢？好！") == ["今天很好。", "明天呢？", "好！"]
    changed = perturbations.shuffled(text)
    assert changed != text
    assert sorted(perturbations.sentences_of(changed)) == sorted(perturbations.sentences_of(text))
    assert perturbations.shuffled(text) == changed
    assert perturbations.shuffled("A b. C d.") is None


@given(st.text(max_size=60))
def test_a_change_gives_another_text_or_none(text):
    for change in (
        perturbations.truncated,
        perturbations.shuffled,
        perturbations.without_marks,
        perturbations.repeated,
    ):
        changed = change(text)
        assert changed is None or changed != text


WORDS = st.sampled_from("a b c d e f g h".split())


@given(st.lists(st.lists(WORDS, min_size=1, max_size=5), min_size=1, max_size=12))
def test_similar_prompts_are_those_of_all_pairs(prompts):
    conversations = [(("user", " ".join(words)),) for words in prompts]
    sets = [words_of(prompt) for prompt in conversations]
    weight = {w: math.log(len(sets) / sum(w in other for other in sets)) for w in set().union(*sets)}
    norms = [math.sqrt(math.fsum(weight[w] ** 2 for w in words)) for words in sets]
    for index, nearest in enumerate(similar_prompts(conversations, count=3)):
        cosine = {
            other: math.fsum(weight[w] ** 2 for w in sets[index] & sets[other]) / norms[other]
            for other in range(len(sets))
            if prompt_key(conversations[other]) != prompt_key(conversations[index])
            and any(weight[w] for w in sets[index] & sets[other])
        }
        assert [cosine[other] for other in nearest] == sorted(cosine.values(), reverse=True)[:3]


def test_common_words_do_not_decide():
    prompts = [
        (("user", f"please tell me about {topic} {n}"),) for n, topic in enumerate(["owls", "cars", "owls", "cars"])
    ]
    assert similar_prompts(prompts) == [[2], [3], [0], [1]]
    assert similar_prompts(prompts[::-1]) == [[2], [3], [0], [1]]
