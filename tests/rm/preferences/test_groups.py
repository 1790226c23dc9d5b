"""Groups: merging, equal responses, and the split into training and held-out prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rm.preferences import (
    Edge,
    Group,
    Label,
    heldout_split,
    merge,
)
from rm.preferences.groups import ALONE, collapse

PROMPT = (("user", "Why?"),)


def test_merge_pools_responses_and_repoints_every_edge():
    other = (("user", "How?"),)
    groups = [
        Group(PROMPT, ("a", "b"), (Edge(0, 1, 1.0),), "human"),
        Group(other, ("a", "b"), (Edge(0, 1, 1.0),), "human"),
        Group(PROMPT, ("c", "a"), (Edge(0, 1, 0.75),), "human"),
        Group(PROMPT, ("b", "c"), (Edge(1, 0, 0.5),), "human"),
        Group(PROMPT, ("a", "d"), (Edge(0, 1, 1.0),), "model"),
    ]
    assert merge(groups) == [
        Group(PROMPT, ("a", "b", "c"), (Edge(0, 1, 1.0), Edge(2, 0, 0.75), Edge(2, 1, 0.5)), "human"),
        Group(other, ("a", "b"), (Edge(0, 1, 1.0),), "human"),
        Group(PROMPT, ("a", "d"), (Edge(0, 1, 1.0),), "model"),
    ]


def test_merge_numbers_stages_anew_and_keeps_labels_and_mean_scores():
    groups = [
        Group(PROMPT, ("a", "b", "c"), (Edge(0, 1, stage=0), Edge(0, 2, stage=0), Edge(1, 2, stage=1)), scores=(1.0, None, 3.0)),
        Group(PROMPT, ("c", "b"), (Edge(0, 1, 0.5),), labels=(Label(1, 1.0, 2.0),), scores=(6.0, None)),
        Group(PROMPT, ("c", "d"), (Edge(1, 0, 0.75, 2.0, 0.5, 0),), labels=(Label(0, 0.0), Label(1, 0.25))),
    ]  # fmt: skip
    edges = (
        Edge(0, 1, stage=0),
        Edge(0, 2, stage=0),
        Edge(1, 2, stage=1),
        Edge(2, 1, 0.5),
        Edge(3, 2, 0.75, 2.0, 0.5, 2),
    )
    labels = (Label(1, 1.0, 2.0), Label(2, 0.0), Label(3, 0.25))
    assert merge(groups) == [Group(PROMPT, ("a", "b", "c", "d"), edges, "human", labels, (1.0, None, 4.5, None))]


def test_merge_keeps_sources_subsets_items_and_origins_apart():
    base = Group(PROMPT, ("a", "b"), (Edge(0, 1),))
    others = [replace(base, **{name: "implicit"}) for name in ("origin", "source", "subset", "item")]
    assert merge([base, *others]) == [base, *others]
    assert len(merge([*others, *others])) == 4


def test_collapse_keeps_what_was_said_of_others():
    group = Group(
        PROMPT,
        ("a", "b", "a"),
        (Edge(0, 1, stage=0), Edge(0, 2, stage=0), Edge(2, 1, 0.75)),
        labels=(Label(2, 1.0),),
        scores=(1.0, None, 2.0),
    )
    collapsed = Group(PROMPT, ("a", "b"), (Edge(0, 1), Edge(0, 1, 0.75)), labels=(Label(0, 1.0),), scores=(1.5, None))
    assert collapse(group) == (collapsed, 1)
    assert collapse(collapsed) == (collapsed, 0)


texts = st.sampled_from("abcd")
judgements = st.builds(
    lambda prompt, source, sides, stage, probability, accepted: Group(
        (("user", prompt),),
        sides,
        tuple(Edge(0, k, probability, stage=stage) for k in range(1, len(sides))),
        labels=() if accepted is None else (Label(len(sides) - 1, accepted),),
        scores=tuple(float(ord(side)) for side in sides),
        source=source,
    ),
    st.sampled_from("pq"),
    st.sampled_from([None, "s", "t"]),
    st.lists(texts, min_size=2, max_size=4, unique=True).map(tuple),
    st.sampled_from([ALONE, 0]),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.sampled_from([None, 0.0, 1.0]),
)


@given(st.lists(judgements, max_size=12))
def test_merge_keeps_every_judgement(groups):
    def said(groups):
        edges = Counter(
            (g.prompt, g.source, g.responses[e.preferred], g.responses[e.other], e.probability, e.stage == ALONE)
            for g in groups
            for e in g.edges
        )
        return edges, Counter(
            (g.prompt, g.source, g.responses[lb.response], lb.accepted) for g in groups for lb in g.labels
        )

    merged = merge(groups)
    assert said(merged) == said(groups)
    assert len({(group.prompt, group.source) for group in merged}) == len(merged)
    for group in merged:
        assert len(set(group.responses)) == len(group.responses)
        assert group.scores == tuple(float(ord(response)) for response in group.responses)
        picks = {}
        for edge in group.edges:
            if edge.stage != ALONE:
                picks.setdefault(edge.stage, []).append(edge)
        for edges in picks.values():  # one pick each: one winner, against different others
            assert len({edge.preferred for edge in edges}) == 1
            assert len({edge.other for edge in edges}) == len(edges)
        staged = [g for g in groups if (g.prompt, g.source) == (group.prompt, group.source) and g.edges[0].stage == 0]
        assert len(picks) == len(staged)


def test_the_split_is_by_prompt_and_stays_when_data_grow():
    groups = [Group((("user", f"prompt {n}"),), ("a", "b"), (Edge(0, 1, 1.0),), "human") for n in range(400)]
    train, held = heldout_split(groups, 0.25)
    assert sorted(g.prompt for g in train + held) == sorted(g.prompt for g in groups)
    assert 60 <= len(held) <= 140
    _, held_of_half = heldout_split(groups[:200], 0.25)
    assert held_of_half == [group for group in held if group in groups[:200]]
    assert heldout_split(groups, 0.0) == (groups, [])
