"""Matching of patterns with files that are not there yet, against what fsspec matches once they are."""

from __future__ import annotations

import itertools
import re
from uuid import uuid4

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import glob_translate
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.storage.patterns import could_match, template_expression

_PIECES = [
    "a",
    "b",
    "1",
    "-",
    ".x",
    "*",
    "?",
    "[a1]",
    "[!a]",
    "[0-5]",
    "[!0-5b]",
    "[",
    "]",
    "[]a]",
    "[!]",
    "[^1]",
    "[a-]",
    "!",
]
_parts = st.one_of(st.just("**"), st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4).map("".join)).filter(
    lambda part: part == "**" or "**" not in part
)
_names = st.lists(st.sampled_from(["a", "b", "1", "-", ".x", "[", "]", "#", "%"]), min_size=1, max_size=3).map("".join)


def stood_for(template: str):
    """Every name that a template stands for."""
    choices = [{"#": "0123456789", "%": "0123456789abcdef"}.get(character, character) for character in template]
    return map("".join, itertools.product(*choices))


@settings(max_examples=300, deadline=None)
@given(
    pattern=st.lists(_parts, min_size=1, max_size=4),
    folder=st.lists(st.sampled_from(["a", "b1", "[a1]", "1", "-a"]), max_size=2),
    name=st.lists(_names, min_size=1, max_size=2).filter(
        lambda parts: sum(p.count("#") + p.count("%") for p in parts) <= 2
    ),
)
@example(pattern=["**"], folder=[], name=["a"])
@example(pattern=["a[!a]a"], folder=["a"], name=["a"])
@example(pattern=["a", "**"], folder=["a"], name=["1"])
@example(pattern=["**", "[!0-5b]*"], folder=["a"], name=["%#"])
def test_a_pattern_could_match_what_it_matches_of_all_the_names(pattern, folder, name):
    glob, place, template = "/r/" + "/".join(pattern), "/".join(["/r", *folder]), "/".join(name)
    # within a part: a store looks only as deep as the pattern has parts, although `[!a]` in fsspec's expression takes a slash
    expression = re.compile(re.sub(r"\[\^(\]?)", r"[^\1/", glob_translate(glob)))
    expected = any(expression.match(f"{place}/{given}") for given in stood_for(template))
    assert could_match(glob, place, template) == expected
    assert all(re.fullmatch(template_expression(template), given) for given in stood_for(template))


@settings(max_examples=60, deadline=None)
@given(
    pattern=st.lists(_parts, min_size=1, max_size=3),
    name=_names.filter(lambda part: part.count("#") + part.count("%") <= 1),
)
def test_a_driver_lists_what_could_match(pattern, name):
    fs, root = MemoryFileSystem(), f"/{uuid4().hex}"
    glob = f"{root}/{'/'.join(pattern)}"
    for given_name in stood_for(name):
        fs.pipe_file(f"{root}/out/{given_name}", b"")
    listed = [path for path, info in fs.glob(glob, detail=True).items() if info["type"] == "file"]
    fs.rm(root, recursive=True)
    assert could_match(glob, f"{root}/out", name) == bool(listed)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        ("/r/**/*.parquet", True),
        ("/r/**", True),
        ("/r/*/data/train-*", True),
        ("/r/*/*/train-0000[0-3]*", True),
        ("/r/*/data/train-?????-of-00010.parquet", True),
        ("/r/*/data/train-????-of-*", False),
        ("/r/*/data/train-abc*", False),
        ("/r/*/*.parquet", False),
        ("/r/*.parquet", False),
        ("/r/**/*.jsonl", False),
        ("/other/**/*.parquet", False),
    ],
)
def test_patterns_and_a_shard(pattern, matches):
    assert could_match(pattern, "/r/nightly", "data/train-#####-of-#####.parquet") == matches
