"""Responses to other prompts in training: which join, against which they lose, and how much that weighs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.corpora import write_jsonl
from support.training_groups import run_settings

from rm.evaluate import stress
from rm.preferences import Edge, Group, Label
from rm.text.templates import Encoded
from rm.train import train
from rm.train.data import Collator, Draws, encode_groups
from rm.train.foreign import ForeignResponses, ForeignSettings

NOUNS = "owl car tree lamp road fish".split()


class WordTemplate:
    """Encodes each character of prompt and response as a token."""

    def encode_group(self, prompt, responses):
        text = "".join(content for _, content in prompt)
        return [Encoded([ord(c) for c in text + "|" + r], None, len(text) + 1, len(r), False) for r in responses]


def group(noun, *, edges=((0, 1),), labels=(), responses=3):
    texts = tuple(f"{noun} {grade}" for grade in ("good", "fair", "bad", "worst")[:responses])
    prompt = (("user", f"a {noun} and {'wood' if NOUNS.index(noun) % 2 else 'stone'}"),)
    return Group(prompt, texts, tuple(Edge(*edge) for edge in edges), labels=tuple(Label(*one) for one in labels))


def joined(groups, *, index=0, epoch=0, picks=False, parts=None, **settings):
    values = {"per_group": 2, "similar": 0.0, "weight": 0.5, "ties": False, **settings}
    encoded = encode_groups(groups, WordTemplate(), {})
    foreign = ForeignResponses(groups, encoded, WordTemplate(), settings=ForeignSettings(**values), seed=7, picks=picks)
    draws = Draws(encoded, responses_per_group=parts, seed=7, foreign=foreign.join)
    draws.epoch = epoch
    return encoded, draws.draw(index)


def texts(drawn):
    return ["".join(map(chr, row.ids)).partition("|")[2] for row in drawn.responses]


def test_each_own_response_beats_each_foreign_one():
    encoded, drawn = joined([group(noun) for noun in NOUNS], per_group=3)
    own, foreign = texts(drawn)[:2], texts(drawn)[2:]
    assert own == ["owl good", "owl fair"], "those that a judgement names"
    assert len(foreign) == 3
    assert all(text.split()[0] in NOUNS[1:] and text.split()[1] in ("good", "fair") for text in foreign)
    pairs = [(int(i), int(j), p) for i, j, p in drawn.edges[:, :3]]
    assert pairs == [(0, 1, 1.0), *((i, j, 1.0) for i in range(2) for j in (2, 3, 4))]
    prompt = "a owl and stone|"
    assert all("".join(map(chr, row.ids)).startswith(prompt) for row in drawn.responses)
    assert drawn.members == (0, 1, -1, -1, -1)
    assert encoded[0].edges.shape == (1, 6), "the group itself stays as it is"


def test_draws_are_anew_each_epoch_and_the_same_each_time():
    groups = [group(noun) for noun in NOUNS]
    first = [texts(joined(groups, epoch=epoch)[1]) for epoch in range(6)]
    assert first == [texts(joined(groups, epoch=epoch)[1]) for epoch in range(6)]
    assert len({tuple(one) for one in first}) > 2
    assert len({tuple(texts(joined(groups, index=1, epoch=epoch)[1])) for epoch in range(6)}) > 2


def test_similar_prompts_are_those_that_share_words():
    groups = [group(noun) for noun in NOUNS]
    for epoch in range(8):
        nouns = {text.split()[0] for text in texts(joined(groups, epoch=epoch, similar=1.0)[1])[2:]}
        assert nouns <= {"tree", "road"}, "prompts on stone"


def test_ties_among_foreign_responses():
    _, drawn = joined([group(noun) for noun in NOUNS], per_group=3, ties=True)
    ties = [(int(i), int(j)) for i, j, p in drawn.edges[:, :3] if p == 0.5]
    assert ties == list(itertools.combinations((2, 3, 4), 2))


def test_where_there_is_no_other_prompt_or_no_other_text_nothing_joins():
    _, drawn = joined([group("owl")])
    assert texts(drawn) == ["owl good", "owl fair"]
    same = Group((("user", "else"),), ("owl good", "owl fair"), (Edge(0, 1),))
    _, drawn = joined([group("owl"), same], per_group=4)
    assert texts(drawn) == ["owl good", "owl fair"], "a foreign response that is an own one says nothing"


KIND = st.sampled_from(["pairs", "picks", "labels", "both"])


@given(KIND, st.integers(1, 4), st.sampled_from([0.25, 0.5, 1.0, 3.0]), st.booleans())
def test_weights_by_hand(kind, per_group, weight, ties):
    edges = {
        "pairs": [(0, 1), (1, 2), (0, 2, 0.5)],
        "picks": [(0, 1, 1, 1, 0, 0), (0, 2, 1, 1, 0, 0), (1, 2, 1, 1, 0, 1)],
    }
    labels = [(0, 1.0), (2, 0.0)] if kind in ("labels", "both") else []
    own = edges.get(kind, edges["pairs"] if kind == "both" else [])
    groups = [group(noun, edges=own, labels=labels) for noun in NOUNS]
    picks = kind == "picks"
    _, drawn = joined(groups, per_group=per_group, weight=weight, ties=ties, picks=picks)
    collator = Collator(packed=False, causal=True, pad=0, first_position=0, tokens_per_batch=9999, picks=picks)
    batch = collator.micro_batch([drawn])
    sums = batch.weights.numpy().astype(np.float64)
    kinds = (bool(own), bool(labels))
    assert sums[: len(own)].sum() == pytest.approx(kinds[0] / (1 + weight), rel=1e-5)
    assert float(batch.label_weights.sum()) == pytest.approx(kinds[1] / (1 + weight), rel=1e-5)
    assert sums[len(own) :].sum() == pytest.approx(sum(kinds) * weight / (1 + weight), rel=1e-5)
    assert len(np.unique(sums[len(own) :].round(7))) == 1, "all foreign comparisons weigh the same"


def test_parts_of_a_large_group_each_have_foreign_responses():
    groups = [group(noun, edges=[(0, 1), (2, 3), (0, 3), (1, 2)], responses=4) for noun in NOUNS]
    _, drawn = joined(groups, parts=2)
    assert len(drawn.responses) == 4
    assert {text.split()[0] for text in texts(drawn)[:2]} == {"owl"}


@pytest.mark.slow
def test_a_model_learns_to_read_the_prompt(tmp_path, encoder):
    from support.corpora import READ_ROWS
    from support.tiny_models import WORDS
    from support.training_groups import READING

    from rm.preferences import ReadSettings, read_preferences
    from rm.scorer import Scorer

    nouns = WORDS[:40]
    rows = [
        {"prompt": f"what is {noun}", "chosen": f"good {noun} answer", "rejected": f"bad {noun} answer"}
        for noun in nouns
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)

    def reads(name, **changes):
        out = tmp_path / name
        train(run_settings(data, encoder, out, epochs=30, learning_rate=2e-3, heldout_fraction=0.0, **changes))
        scorer = Scorer.load(
            out, dtype="float32", max_length=48, too_long="truncate", tokens_per_batch=999, device="cpu"
        )
        groups = read_preferences(str(data), ReadSettings(**READING), read_rows=READ_ROWS)[0]
        rewards = [one.rewards for one in scorer.score([(one.prompt, one.responses) for one in groups])]
        stressed = stress(groups, rewards, lambda asked: [one.rewards for one in scorer.score(asked)], prompts=40)
        return stressed.test("other_prompt").preferred.value

    foreign = {"per_group": 2, "similar": 0.0, "weight": 1.0, "ties": True}
    plain, taught = reads("plain"), reads("taught", foreign=foreign)
    assert taught > plain + 0.2, (plain, taught)
    assert taught > 0.85
