"""Encoding, draws, and the collator by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_models import word_tokenizer
from support.training_groups import collator, encoded_group, row

from rm.engine.layout import Segment
from rm.preferences import Edge, Group, Label, Rejections
from rm.text.templates import Template
from rm.train.data import Draws, doubts_about, encode_groups, spread_rewards, term_shares

PROMPT = (("user", "what is it"),)


def template(max_length=8, too_long="truncate"):
    return Template(word_tokenizer(pair=True), "pair", max_length, too_long)


class TestEncoding:
    def test_sides_equal_after_truncation_are_rejected_and_their_group_shrinks(self):
        long = "one one one one one one"
        group = Group(PROMPT, (long + " good", long + " bad", "good"), (Edge(0, 1), Edge(2, 1, 0.8, 2.0, 0.5, 3)))
        rejected = Rejections()
        (got,) = encode_groups([group], template(), rejected)
        assert rejected == {"equal_after_truncation": 1}
        assert got.edges.tolist() == [[1, 0, 0.8, 2.0, 0.5, 3]]
        assert got.members == (1, 2)
        assert [encoded.response_tokens for encoded in got.responses] == [5, 1]
        assert encode_groups([Group(PROMPT, group.responses[:2], group.edges[:1])], template(), rejected) == [None]
        assert rejected == {"equal_after_truncation": 2}

    def test_a_response_that_cannot_be_encoded_takes_its_judgements_with_it(self):
        group = Group(
            PROMPT,
            ("good", "one one one one one one", "bad", "word"),
            (Edge(0, 1), Edge(2, 0), Edge(1, 2)),
            labels=(Label(1, 1.0), Label(2, 0.25, 3.0)),
        )
        rejected = Rejections()
        (got,) = encode_groups([group], template(too_long="reject"), rejected)
        assert rejected == {"too_long": 1}
        assert got.members == (0, 2)  # the last response has no judgement at all
        assert got.edges[:, :2].tolist() == [[1, 0]]
        assert got.labels.tolist() == [[1, 0.25, 3.0]]
        assert [encoded.ids for encoded in got.responses] == [
            template().encode(PROMPT, response).ids for response in ("good", "bad")
        ]

    def test_order_is_kept_and_labels_alone_are_enough(self):
        rejected = Rejections()
        groups = [
            Group(PROMPT, ("good",), labels=(Label(0, 1.0),)),
            Group(PROMPT, ("good", "bad")),
            Group(PROMPT, ("good", "bad"), (Edge(1, 0),)),
        ]
        first, second, third = encode_groups(groups, template(), rejected)
        assert (first.edges.shape, first.labels.tolist()) == ((0, 6), [[0, 1.0, 1.0]])
        assert second is None
        assert (third.labels.shape, third.edges[:, :2].tolist()) == ((0, 3), [[1, 0]])
        assert not rejected

    def test_spread_puts_rewards_back_in_their_places(self):
        got = spread_rewards(np.array([1.5, -2.0], dtype=np.float32), (3, 1), 5)
        np.testing.assert_array_equal(got, np.array([np.nan, -2.0, np.nan, 1.5, np.nan], dtype=np.float32))
        assert got.dtype == np.float32


def test_a_part_keeps_the_judgements_inside_it():
    whole = encoded_group(
        [row(5), row(6), row(7), row(8)],
        [(0, 1), (3, 1, 0.7, 2.0, 0.1, 4), (2, 3), (1, 3)],
        [(3, 1.0, 0.5), (0, 0.0)],
        members=(10, 11, 12, 13),
    )
    part = whole.select([3, 1])
    assert [encoded.ids for encoded in part.responses] == [[8], [6]]
    assert part.edges.tolist() == [[0, 1, 0.7, 2.0, 0.1, 4], [1, 0, 1, 1, 0, -1]]
    assert part.labels.tolist() == [[0, 1.0, 0.5]]
    assert part.members == (13, 11)
    assert whole.edges[1, :2].tolist() == [3, 1]  # the whole is as it was


class TestDraws:
    @given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(2, 5), st.integers(0, 3))
    def test_every_response_once_an_epoch_in_draws_of_about_equal_size(self, sizes, limit, epoch):
        groups = [
            encoded_group([row(100 * g + r) for r in range(size)], [(0, size - 1)]) for g, size in enumerate(sizes)
        ]
        draws = Draws(groups, responses_per_group=limit, seed=0)
        draws.epoch = epoch
        drawn = [draws[position] for position in range(len(draws))]
        seen = sorted(encoded.ids[0] for draw in drawn for encoded in draw.responses)
        assert seen == sorted(100 * g + r for g, size in enumerate(sizes) for r in range(size))
        for draw in drawn:
            owner = {encoded.ids[0] // 100 for encoded in draw.responses}
            assert len(owner) == 1
            assert sizes[owner.pop()] // 2 < len(draw.responses) + 1 or len(draw.responses) <= limit
            assert len(draw.responses) <= limit
        for g, size in enumerate(sizes):
            parts = [len(draw.responses) for draw in drawn if draw.responses[0].ids[0] // 100 == g]
            assert len(parts) == -(-size // limit)
            assert max(parts) - min(parts) <= 1

    def test_another_cut_each_epoch_and_the_same_for_the_same_seed_and_epoch(self):
        groups = [encoded_group([row(r) for r in range(12)], [(0, 1)]) for _ in range(2)]

        def cuts(seed, epoch):
            draws = Draws(groups, responses_per_group=4, seed=seed)
            draws.epoch = epoch
            return [draws[position].members for position in range(len(draws))]

        assert cuts(0, 0) == cuts(0, 0)
        assert cuts(0, 1) == cuts(0, 1)
        assert cuts(0, 0) != cuts(0, 1)
        assert cuts(0, 0) != cuts(1, 0)
        assert cuts(0, 0)[:3] != cuts(0, 0)[3:]  # nor are two groups cut alike
        draws = Draws(groups, responses_per_group=4, seed=0)
        assert draws[2].members == cuts(0, 0)[2]  # whatever was drawn before

    def test_a_group_within_the_limit_is_left_as_it_is(self):
        group = encoded_group([row(1), row(2), row(3)], [(0, 1)])
        for limit in (3, None):
            draws = Draws([group], responses_per_group=limit, seed=0)
            assert len(draws) == 1
            assert draws[0] is group


class TestCollator:
    def groups(self):
        return [
            encoded_group([row(5, 6), row(7)], [(0, 1)], [(1, 0.0, 3.0)]),
            encoded_group(
                [row(8), row(9, 9, 9), row(4)],
                [(2, 0, 0.75, 2.0, 0.5), (1, 2, 1.0, 4.0, 0.0, 0), (1, 0, 1.0, 6.0, 0.0, 0)],
                [(0, 1.0), (2, 0.5)],
            ),
            encoded_group([row(3)], [], [(0, 1.0)]),
            encoded_group([row(1), row(2)], [(1, 0, 1.0, 1.0, 0.0, 0), (0, 1, 1.0, 1.0, 0.0, 7)]),
        ]

    def test_padded_by_hand(self):
        batch = collator(pad=1).micro_batch(self.groups())
        assert batch.layout is None
        assert batch.token_type_ids is None
        assert batch.input_ids.tolist() == [
            *[[5, 6, 1], [7, 1, 1], [8, 1, 1], [9, 9, 9], [4, 1, 1], [3, 1, 1], [1, 1, 1], [2, 1, 1]]
        ]
        assert batch.lengths.tolist() == [2, 1, 1, 3, 1, 1, 1, 1]
        assert batch.edges.tolist() == [[0, 1], [4, 2], [3, 4], [3, 2], [7, 6], [6, 7]]
        assert batch.probabilities.tolist() == [1, 0.75, 1, 1, 1, 1]
        assert batch.margins.tolist() == [0, 0.5, 0, 0, 0, 0]
        # a group's comparisons share 1: row weights 2, 4 and 6 over three edges
        assert batch.weights.tolist() == pytest.approx([1, 2 / 3, 4 / 3, 2, 1 / 2, 1 / 2])
        assert batch.labelled.tolist() == [1, 2, 4, 5]
        assert batch.accepted.tolist() == [0, 1, 0.5, 1]
        assert batch.label_weights.tolist() == [3, 0.5, 0.5, 1]
        assert batch.weight == pytest.approx(1 + 4 + 1 + 5)

    def test_picks_are_weighed_by_stage_and_stages_are_apart(self):
        batch = collator(picks=True).micro_batch(self.groups())
        stages = batch.stages.tolist()
        assert stages[0] == stages[1] == -1
        assert stages[2] == stages[3] >= 0
        assert len({stages[2], stages[4], stages[5]}) == 3
        assert min(stages[4:]) >= 0
        # second group: a lone edge and one pick of two edges, each half of it; last group: two picks of one edge
        assert batch.weights.tolist() == pytest.approx([1, 2 / 2, 4 / 4, 6 / 4, 1 / 2, 1 / 2])

    def test_token_types_are_padded_with_zero(self):
        group = encoded_group([row(5, 6)._replace(types=[0, 1]), row(7)._replace(types=[1])], [(0, 1)])
        batch = collator(pad=9, causal=False).micro_batch([group])
        assert batch.input_ids.tolist() == [[5, 6], [7, 9]]
        assert batch.token_type_ids.tolist() == [[0, 1], [1, 0]]

    def test_packed_by_hand(self):
        groups = [encoded_group([row(5, 6, 7), row(5, 6, 8)], [(0, 1)]), encoded_group([row(5), row(4)], [(1, 0)])]
        batch = collator(packed=True, first_position=2).micro_batch(groups)
        assert batch.input_ids is None
        assert batch.layout.ids == [5, 6, 7, 8, 5, 4]
        assert batch.layout.positions == [2, 3, 4, 4, 2, 2]
        assert batch.layout.segments == (Segment(2, (1, 1)), Segment(0, (1, 1)))
        assert batch.layout.pooled == [2, 3, 4, 5]
        assert batch.edges.tolist() == [[0, 1], [3, 2]]
        whole = collator(packed=True, causal=False).micro_batch(groups).layout
        assert whole.pooled == [0, 3, 6, 7]

    def test_a_step_is_cut_into_whole_groups_under_the_budget(self):
        groups = [encoded_group([row(*range(1, 1 + n)), row(9)], [(0, 1)]) for n in (2, 5, 3)]
        padded = collator(tokens_per_batch=12).micro_batches(groups)
        assert [batch.input_ids.tolist() for batch in padded] == [
            [[1, 2, 3, 4, 5], [9, 0, 0, 0, 0]],
            [[1, 2, 3], [9, 0, 0], [1, 2, 0], [9, 0, 0]],
        ]
        packed = collator(tokens_per_batch=10, packed=True).micro_batches(groups)
        assert [len(batch.layout.ids) for batch in packed] == [10, 3]  # 6 and 4 tokens unpadded, then 3

    def test_the_groups_stay_as_they_were(self):
        groups = self.groups()
        collate = collator(picks=True)
        first, second = collate.micro_batch(groups), collate.micro_batch(groups)
        assert first.weights.tolist() == second.weights.tolist()
        assert first.edges.tolist() == second.edges.tolist()
        assert first.label_weights.tolist() == second.label_weights.tolist()


def test_term_shares_by_hand():
    stages = np.array([-1, 3, 3, 3, -1, 7.0])  # two lone edges, a pick of three, a pick of one: four terms
    assert term_shares(stages).tolist() == pytest.approx([1 / 4, 1 / 12, 1 / 12, 1 / 12, 1 / 4, 1 / 4])
    assert term_shares(np.array([0.0, 0.0])).tolist() == [0.5, 0.5]
    assert term_shares(np.array([-1.0, -1.0])).tolist() == [0.5, 0.5]
    assert term_shares(np.array([])).tolist() == []


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=12))
def test_term_shares_sum_to_one_and_each_term_has_the_same(stages):
    shares = term_shares(np.array(stages, dtype=float))
    terms = stages.count(-1) + len(set(stages) - {-1})
    assert shares.sum() == pytest.approx(1)
    for stage in set(stages) - {-1}:
        assert shares[[s == stage for s in stages]].sum() == pytest.approx(1 / terms)


def test_a_training_that_may_teach_little_is_doubted_in_a_line():
    prompt = (("user", "q"),)
    tied = Group(prompt, ("a", "b"), scores=(1.0, 1.0))
    judged = Group(prompt, ("a", "b"), (Edge(0, 1),), scores=(2.0, 1.0))
    assert list(doubts_about([tied, judged], steps=30)) == []
    ties, steps = doubts_about([tied, tied, judged], steps=29)
    assert ties.startswith("2 of 3 prompts have no two grades that differ")
    assert steps.startswith("the training has 29 optimiser steps, and with fewer than about 30")
