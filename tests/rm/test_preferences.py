from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpora import SHARED, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from rm.preferences import Edge, Group, PreferenceError, detect, heldout_split, load_rows, merge, read_pairs

PROMPT = (("user", "Why?"),)


def pairs(rows, **settings):
    return read_pairs(rows, **{"format": detect(rows[0]), "origin": "human", **settings})


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {
            "prompt": [message("user", "Why?")],
            "chosen": [message("assistant", "Because.")],
            "rejected": [message("assistant", "No.")],
        },
        {
            "chosen": [message("user", "Why?"), message("assistant", "Because.")],
            "rejected": [message("user", "Why?"), message("assistant", "No.")],
        },
        {
            "prompt": "Why?",
            "chosen": [message("user", "Why?"), message("assistant", "Because.")],
            "rejected": [message("user", "Why?"), message("assistant", "No.")],
        },
        {
            "chosen": "\n\nHuman: Why?\n\nAssistant: Because.",
            "rejected": "\n\nHuman: Why?\n\nAssistant: No.",
        },
    ],
    ids=["trl-text", "trl-messages", "trl-implicit", "ultrafeedback-binarized", "hh"],
)
def test_every_pair_format_gives_the_same_group(row):
    groups, rejections = pairs([row])
    assert groups == [Group(PROMPT, ("Because.", "No."), (Edge(0, 1, 1.0),), "human")]
    assert not rejections


def test_unusable_pairs_are_counted_by_reason():
    rows = [
        {"prompt": "Why?", "chosen": "Same.", "rejected": "Same."},
        {"prompt": "Why?", "chosen": None, "rejected": "No."},
        {"prompt": "", "chosen": "Because.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    ]
    groups, rejections = pairs(rows)
    assert len(groups) == 1
    assert rejections == {"equal_sides": 1, "null_response": 1, "empty_prompt": 1}
    hh = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: other\n\nAssistant: c"}
    assert pairs([hh]) == ([], {"prompts_differ": 1})


def test_what_is_no_preference_is_an_error():
    with pytest.raises(PreferenceError, match="expected chosen and rejected"):
        detect({"prompt": "x", "chosen": "y"})
    with pytest.raises(PreferenceError, match=r"data\.format is 'xml'"):
        read_pairs([], format="xml", origin="human")


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


texts = st.sampled_from("abcd")


@given(st.lists(st.tuples(st.sampled_from(["p", "q"]), texts, texts), max_size=20))
def test_merge_keeps_every_judgement(rows):
    rows = [row for row in rows if row[1] != row[2]]
    made = [Group((("user", p),), (chosen, rejected), (Edge(0, 1, 1.0),), "human") for p, chosen, rejected in rows]
    merged = merge(made)
    said = sorted((g.prompt[0][1], g.responses[e.preferred], g.responses[e.other]) for g in merged for e in g.edges)
    assert said == sorted(rows)
    assert len({group.prompt for group in merged}) == len(merged)


def test_the_split_is_by_prompt_and_stays_when_data_grow():
    groups = [Group((("user", f"prompt {n}"),), ("a", "b"), (Edge(0, 1, 1.0),), "human") for n in range(400)]
    train, held = heldout_split(groups, 0.25)
    assert sorted(g.prompt for g in train + held) == sorted(g.prompt for g in groups)
    assert 60 <= len(held) <= 140
    _, held_of_half = heldout_split(groups[:200], 0.25)
    assert held_of_half == [group for group in held if group in groups[:200]]
    assert heldout_split(groups, 0.0) == (groups, [])


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.jsonl.zst", "p.parquet"])
def test_files_of_every_kind(tmp_path, monkeypatch, name):
    rows = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(3)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    compress = {"p.jsonl.gz": gzip.compress, "p.jsonl.zst": zstandard.compress}.get(name, bytes)
    if name == "p.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(compress(text))
    assert list(load_rows(str(tmp_path / name))) == rows


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PreferenceError, match="matches no file"):
        list(load_rows(str(tmp_path / "none.jsonl")))
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(PreferenceError, match="no known kind"):
        list(load_rows(str(tmp_path / "a.csv")))
    path = write_jsonl(tmp_path / "b.jsonl", [{"chosen": "a"}] * 50)
    path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes())[:-12])
    with pytest.raises(PreferenceError, match="cannot be read"):
        list(load_rows(str(tmp_path / "b.jsonl.gz")))


@pytest.mark.skipif(not SHARED.exists(), reason="the real HH-RLHF sample is not part of the project")
def test_real_hh_pairs():
    rows = list(load_rows(str(SHARED / "hh_rlhf_harmless.jsonl.gz")))
    groups, rejections = pairs(rows)
    assert len(groups) + rejections.total() == len(rows) == 1800
    assert len(groups) > 1700
    assert max(len(group.prompt) for group in groups) > 3
    assert all(group.prompt[-1][0] == "user" for group in groups)
