"""Texts on their way to the model, keyed, bundled, sorted and cut; and what it says of them, durable. No Beam."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.colocated_texts import Texts, bundled
from support.stubs import StubScorer, stub_reward

from pipelines.corpus import InputFile
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.errors import ModelLoadError, StorageError
from pipelines.plan import Plan
from pipelines.score import colocation
from pipelines.score.colocation import (
    RESULTS,
    Bucket,
    Results,
    bits_of,
    bucket_of,
    decode,
    encode,
    groups_in_texts,
    keys_of,
    prompt_text,
    publish_results,
    read_results,
    score_piece,
    split_texts,
)
from rm.conversations import from_prompt, prompt_key

PLAN = Plan((), RowMapping("prompt_response", "p", "r"), 8, 2**20, {"dtype": "float32"}, {}, "f")
NAMES = st.text("ab é", min_size=1, max_size=2).map(lambda text: text + "!")
TEXTS = st.lists(st.tuples(NAMES, NAMES, st.integers(0, 3)), min_size=1, max_size=40)


def key(name: str, response: str) -> bytes:
    return keys_of(prompt_text(from_prompt(name)), [response])[0]


def file(size: int, kind: str = "jsonl", compression: str | None = None) -> InputFile:
    return InputFile("a", "a", kind, compression, size, "1")


def test_a_key_tells_exact_texts_apart_and_begins_with_the_prompt():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert prompt_key(from_prompt(composed)) == prompt_key(from_prompt(decomposed)), "one prompt to a selection"
    keys = [key(composed, "x"), key(composed, "y"), key(decomposed, "x"), key("x", composed)]
    assert len(set(keys)) == 4
    assert [len(each) for each in keys] == [24] * 4
    assert keys[0][:8] == keys[1][:8] != keys[2][:8]
    assert key("a", "b\0c") != key("a\0b", "c")
    assert keys_of(prompt_text(from_prompt("p")), ["x", "y"]) == [key("p", "x"), key("p", "y")]


@given(TEXTS, st.integers(1, 4), st.randoms())
@settings(max_examples=60)
def test_a_bucket_is_the_same_whatever_order_its_texts_come_in(texts, bundles, draw):
    bucket = Bucket.of(bundled(texts, min(bundles, len(texts))))
    mixed = list(texts)
    draw.shuffle(mixed)
    other = Bucket.of(bundled(mixed, 1))
    keys = bucket.texts["key"].to_pylist()
    assert keys == sorted({key(name, response) for name, response, _ in texts})
    assert keys == other.texts["key"].to_pylist()
    assert groups_in_texts(bucket.texts) == groups_in_texts(other.texts)
    of_keys = {key(name, response): (from_prompt(name), response) for name, response, _ in texts}
    flat = [(prompt, response) for prompt, responses in groups_in_texts(bucket.texts) for response in responses]
    assert flat == [of_keys[each] for each in keys]
    prompts = [prompt for prompt, _ in groups_in_texts(bucket.texts)]
    assert len(prompts) == len({name for name, _, _ in texts}), "each prompt comes once"
    waiting = sorted(zip(bucket.waiting["key"].to_pylist(), bucket.waiting["unit"].to_pylist(), strict=True))
    assert waiting == sorted((key(name, response), unit) for name, response, unit in texts)
    assert bucket.input_bytes == 2.5 * len(texts)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(1, 7))
@settings(max_examples=100)
def test_pieces_are_bounded_and_cut_a_prompt_only_where_it_alone_is_too_large(sizes, most):
    texts = [(f"p{number}", f"r{index}", 0) for number, size in enumerate(sizes) for index in range(size)]
    whole = Bucket.of(bundled(texts)).texts
    cut = list(split_texts(whole, responses=most))
    assert pa.concat_tables(cut).equals(whole)
    assert all(0 < piece.num_rows <= most for piece in cut)
    large = {name for name, size in ((f"p{n}", size) for n, size in enumerate(sizes)) if size > most}
    where: dict[str, int] = {}
    for piece in cut:
        for prompt, _ in groups_in_texts(piece):
            where[prompt[-1][1]] = where.get(prompt[-1][1], 0) + 1
    assert {name for name, count in where.items() if count > 1} <= large
    assert all(count <= -(-sizes[int(name[1:])] // most) + 1 for name, count in where.items())
    for one, following in itertools.pairwise(cut):
        first = next(len(responses) for _, responses in groups_in_texts(following))
        assert one.num_rows + first > most or groups_in_texts(following)[0][0][-1][1] in large, (
            "no piece is needlessly small"
        )


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_pieces_are_bounded_in_bytes(sizes):
    texts = [("p", chr(97 + number) * size, 0) for number, size in enumerate(sizes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colocation, "FRAGMENT_BYTES", 8)
        whole = Bucket.of(bundled(texts)).texts
        cut = list(split_texts(whole, responses=5))
    assert pa.concat_tables(cut).equals(whole)
    assert all(piece.num_rows <= 5 for piece in cut)
    assert all(sum(map(len, piece["response"].to_pylist())) <= 8 or piece.num_rows == 1 for piece in cut)


def test_nothing_left_is_no_piece():
    bucket = Bucket.of(bundled([("p", "r", 0), ("q", "r", 0)]))
    known = dict.fromkeys(bucket.texts["key"].to_pylist(), 0)
    assert list(split_texts(bucket.without(known), responses=4)) == []
    del known[key("q", "r")]
    (left,) = split_texts(bucket.without(known), responses=4)
    assert groups_in_texts(left) == [(from_prompt("q"), ["r"])]


def test_buckets_grow_with_the_text_and_keep_a_prompt_together():
    def bits(*files: InputFile) -> int:
        return bits_of(replace(PLAN, files=files))

    size = colocation._BUCKET_BYTES
    assert [bits(file(n)) for n in (0, 1, size, size + 1, 2 * size, 2 * size + 1)] == [0, 0, 0, 1, 1, 2]
    assert bits(file(size, "parquet")) == bits(file(size, compression="gz")) == bits(file(4 * size)) == 2
    assert bits(file(size // 2), file(size)) == 1
    assert bits(file(2**60)) == 14
    assert [bucket_of(b"\xff\xff" + bytes(22), n) for n in (0, 1, 14)] == [0, 1, 2**14 - 1]
    assert bucket_of(b"\x7f\xff" + bytes(22), 1) == 0
    for n in (1, 5, 14):
        assert len({bucket_of(key("p", str(number)), n) for number in range(9)}) == 1
    assert {bucket_of(key(str(number), "r"), 2) for number in range(40)} == {0, 1, 2, 3}


def scored(texts: Texts) -> pa.Table:
    return score_piece(StubScorer(), Bucket.of(bundled(texts)).texts, PLAN)


def test_results_are_those_of_the_scorer_by_text():
    texts = [("p", "r", 0), ("p", "s t UNSCORABLE", 1), ("q", "r", 1), ("p", "r", 2)]
    results = Results.of([scored(texts[:2]), scored(texts)])  # one of them twice
    asked = [(from_prompt("q"), ["r"]), (from_prompt("p"), ["s t UNSCORABLE", "r"]), (from_prompt("p"), [])]
    for result, expected in zip(results.score(asked), StubScorer().score(asked), strict=True):
        assert result.reason == expected.reasons
        rewards = [np.nan if reward is None else reward for reward in result.reward]
        np.testing.assert_array_equal(np.float32(rewards), expected.rewards)
        for name in ("prompt_tokens", "response_tokens", "truncated"):
            assert getattr(result, name) == getattr(expected, name).tolist()
    with pytest.raises(StorageError, match="has no result"):
        results.score([(from_prompt("q"), ["s"])])
    other = scored(texts[:1]).set_column(1, RESULTS.field("reward"), pa.array([7.5], pa.float32()))
    for tables, reward in (([other, scored(texts)], 7.5), ([scored(texts), other], results.score(asked)[1].reward[1])):
        assert Results.of(tables).score(asked)[1].reward[1] == reward, "the first one stands"
    waiting = Bucket.of(bundled(texts)).waiting
    units = {unit: set(table["key"].to_pylist()) for unit, table in results.of_units(waiting)}
    assert units == {
        0: {key("p", "r")},
        1: {key("p", "s t UNSCORABLE"), key("q", "r")},
        2: {key("p", "r")},
    }
    (reward,) = (table["reward"].to_pylist() for unit, table in results.of_units(waiting) if unit == 2)
    assert reward == [float(stub_reward(from_prompt("p"), "r"))]


def test_a_model_that_fails_on_every_text_of_several_prompts_is_to_blame():
    failing = [("p", f"UNSCORABLE {number}", 0) for number in range(20)]
    assert scored(failing)["reason"].to_pylist() == ["nan_reward"] * 20, "it may be this prompt"
    assert scored([*failing[:14], ("q", "UNSCORABLE", 0)])["reason"].to_pylist() == ["nan_reward"] * 15
    with pytest.raises(ModelLoadError, match="gives NaN for every response"):
        scored([*failing, ("q", "UNSCORABLE", 0)])
    assert scored([*failing, ("q", "r", 0)])["reason"].null_count == 1


def test_a_damaged_file_of_results_is_not_believed():
    results = scored([(f"p{number}", f"r{number} UNSCORABLE" if number % 3 else "r", 0) for number in range(9)])
    data = encode(results, "f")
    assert decode(data, "f").equals(results)
    assert decode(data, "g") is None, "of another model"
    assert decode(b"", "f") is None
    assert decode(data[:-9], "f") is None
    draw = random.Random(0)
    for place in draw.sample(range(len(data)), 400):
        changed = bytearray(data)
        changed[place] ^= 1 << draw.randrange(8)
        there = decode(bytes(changed), "f")
        assert there is None or there.equals(results), place


def test_results_are_published_once_and_mended_where_they_are_damaged(tmp_path):
    directory, results = str(tmp_path / "colocated" / "00-0000"), scored([("p", "r", 0), ("q", "r", 0)])
    assert read_results(directory, "f") == []
    other = results.set_column(1, results.schema.field("reward"), pa.array([1.5, 2.5], pa.float32()))
    assert publish_results(directory, other, "f").equals(other)
    assert publish_results(directory, results, "f").equals(other), "the first one stands"
    (path,) = (tmp_path / "colocated" / "00-0000").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert read_results(directory, "f") == []
    assert publish_results(directory, results, "f").equals(results)
    (read,) = read_results(directory, "f")
    assert read.equals(results)
    assert len(list(path.parent.iterdir())) == 1
