"""Words, runs of words and their hashes, against the obvious loops."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.corpus.word_hashes import ngrams_of, words_of

BASE, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def polynomial(values: list[int]) -> int:
    return mixed(sum(value * BASE**k for k, value in enumerate(values)) & MASK)


def slow_words(text: str) -> list[str]:
    words, word = [], ""
    for character in unicodedata.normalize("NFKC", text).casefold() + " ":
        inside = character.isalnum() or unicodedata.category(character).startswith("M")
        alone = inside and (
            "\u3040" <= character <= "\u30ff" or "\u4e00" <= character <= "\u9fff" or "\u0e00" <= character <= "\u0eff"
        )
        if not inside or alone:
            words += [word] if word else []
            word = ""
        if alone:
            words.append(character)
        elif inside:
            word += character
    return words


def slow_hash(word: str) -> int:
    return polynomial([ord(character) + 1 for character in word])


def parts(hashed) -> list[list[int]]:
    return [part.tolist() for part in np.split(hashed.hashes, hashed.ends[:-1])] if len(hashed.ends) else []


TEXTS = st.lists(st.text("aBc1 .\n\u00c9e\u0301\ufb01\u4e2d\u3042\u0e01\U0001f600\udc80_-", max_size=24), max_size=6)


@given(TEXTS)
def test_words_are_those_of_the_loop(texts):
    clean = [text.encode(errors="replace").decode() for text in texts]
    assert parts(words_of(clean)) == [[slow_hash(word) for word in slow_words(text)] for text in clean]


@given(TEXTS, st.integers(1, 5), st.booleans())
def test_runs_of_words_are_those_of_the_loop(texts, size, shorter):
    texts = [text.encode(errors="replace").decode() for text in texts]
    expected = []
    for text in texts:
        words = [slow_hash(word) for word in slow_words(text)]
        runs = [words[at : at + size] for at in range(len(words) - size + 1)]
        if shorter and 0 < len(words) < size:
            runs = [words]
        expected.append([polynomial(run) for run in runs])
    assert parts(ngrams_of(words_of(texts), size, shorter=shorter)) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello,  World!", "hello world"),
        ("\ufb01ne caf\u00e9", "fine cafe\u0301"),
        ("STRASSE", "stra\u00dfe"),
        ("\uff21\uff22\uff23 \uff11", "abc 1"),
        ("\u4e2d\u6587", "\u4e2d \u6587"),
    ],
)
def test_texts_with_the_same_words(one, other):
    first, second = parts(words_of([one, other]))
    assert first == second


def test_hashes_that_are_stored_stay_what_they_are():
    assert words_of(["Hello w\u00f6rld 42"]).hashes.tolist() == [
        slow_hash(word) for word in ("hello", "w\u00f6rld", "42")
    ]
    assert slow_hash("hello") == HELLO


HELLO = 0x415D1A6F0F0BBA63
