"""Splits by the names of files and folders."""

from __future__ import annotations

import pytest

from rm.splits import SplitError, split_of, take_split


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("train.jsonl", "train"),
        ("train_1.jsonl.gz", "train"),
        ("Test-2.parquet", "Test"),
        ("data/test_sft-00000-of-00002.parquet", "test_sft"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("validation/0.parquet", "validation"),
        ("trainer.jsonl", None),
        ("evaluations/a.jsonl", None),
        ("part-00000-of-00009.parquet", None),
        ("contest.jsonl", None),
    ],
)
def test_names_that_say_a_split(key, split):
    assert split_of(key) == split


def test_one_split_is_taken_and_several_are_never_mixed():
    keys = ["a/train-0.jsonl", "a/train-1.jsonl", "a/test.jsonl", "a/more.jsonl"]
    with pytest.raises(SplitError, match="several splits: test, train"):
        take_split(keys, None)
    assert take_split(keys, "train") == keys[:2]
    with pytest.raises(SplitError, match="the splits test, train, and 'dev' is wanted"):
        take_split(keys, "dev")
    assert take_split(keys[2:], None) == keys[2:]
    with pytest.raises(SplitError, match="no split, and 'dev' is wanted"):
        take_split(["a.jsonl"], "dev")


def test_what_lies_beside_a_saved_data_set_is_no_data():
    names = ["data-00000-of-00001.arrow", "dataset_info.json", "state.json", "cache-12ab.arrow"]
    assert take_split([f"d/{name}" for name in names], None) == ["d/data-00000-of-00001.arrow"]
    assert take_split(["state.json", "a.jsonl", "cache-1.jsonl"], None) == ["state.json", "a.jsonl", "cache-1.jsonl"]
