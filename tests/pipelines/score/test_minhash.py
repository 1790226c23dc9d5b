"""MinHash signatures: against a slow reference, against the true similarity, and against datasketch."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipelines.config.duplicates import signature_settings
from pipelines.corpus.word_hashes import ngrams_of, normalise, words_of
from pipelines.score import minhash
from pipelines.score.minhash import VALUES, MinHash, pack, signatures_of, unpack


def slow_signature(text: str, words: int) -> list[int]:
    shingles = ngrams_of(words_of([text]), words, shorter=True).hashes.tolist()
    shingles = shingles or [xxhash.xxh3_64_intdigest(normalise(text).encode())]
    return [min((h >> 32) * factor % 2**32 for h in shingles) % 2**16 for factor in minhash._FACTORS.tolist()]


def words_with_seed(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [f"word{rng.randrange(10**6)}" for _ in range(count)]


@pytest.mark.parametrize(
    "text", ["", "!?", "one", "Two words", " ".join(words_with_seed(1, 700)), "\u4e2d\u6587 \u4e2d\u6587"]
)
def test_a_signature_is_that_of_the_slow_reference(text):
    others = ["other text", ""]
    for place in range(3):  # wherever a text stands among others
        texts = [*others[:place], text, *others[place:]]
        assert signatures_of(texts, 3)[place].tolist() == slow_signature(text, 3)


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def pairs_of_texts(count: int = 150):
    """Texts of 20 to 300 words, each with a copy in which some words are others."""
    rng = random.Random(7)
    for number in range(count):
        words = words_with_seed(number, rng.randrange(20, 300))
        copy = [
            word if rng.random() > rng.choice([0.01, 0.05, 0.2]) else f"new{rng.randrange(10**9)}" for word in words
        ]
        one, other = shingles(words), shingles(copy)
        yield words, copy, len(one & other) / len(one | other)


def test_the_share_of_equal_values_estimates_the_similarity_as_well_as_datasketch_does():
    datasketch = pytest.importorskip("datasketch")
    ours, theirs, bound = [], [], []
    for words, copy, similarity in pairs_of_texts():
        first, second = signatures_of([" ".join(words), " ".join(copy)], 3)
        ours.append(np.mean(first == second) - similarity)
        sketches = []
        for text in (words, copy):
            sketch = datasketch.MinHash(num_perm=VALUES, seed=1)
            sketch.update_batch([" ".join(shingle).encode() for shingle in shingles(text)])
            sketches.append(sketch)
        theirs.append(sketches[0].jaccard(sketches[1]) - similarity)
        bound.append(similarity * (1 - similarity) / VALUES)
    deviation = np.sqrt(np.mean(bound))
    assert abs(np.mean(ours)) < 3 * deviation / np.sqrt(len(ours))  # unbiased
    assert 0.8 * deviation < np.sqrt(np.mean(np.square(ours))) < 1.2 * deviation  # and as exact as 128 values can be
    assert np.sqrt(np.mean(np.square(ours))) < 1.25 * np.sqrt(np.mean(np.square(theirs)))


def test_signatures_that_are_stored_stay_what_they_are():
    signatures = signatures_of(["The quick brown fox jumps over the lazy dog.", "", "\u00c4hnlich wie \u4e2d\u6587"], 3)
    assert xxhash.xxh3_64_hexdigest(b"".join(pack(signatures))) == STORED


def test_packed_and_unpacked_with_gaps_and_slices():
    signatures = signatures_of(["a b c d", "e f g h", "i j k l"], 3)
    column = pa.array([*pack(signatures), None], pa.binary(minhash.BYTES))
    chunks = pa.chunked_array([column.slice(0, 1), column.slice(1, 3)])
    assert (unpack(chunks)[:3] == signatures).all()
    assert not unpack(chunks)[3].any()
    assert unpack(pa.chunked_array([], pa.binary(minhash.BYTES))).shape == (0, VALUES)


def row(prompt, *responses):
    parsed = SimpleNamespace(
        prompt=None if prompt is None else (("tools", "[x]"), ("user", prompt)), responses=list(responses)
    )
    return SimpleNamespace(parsed=parsed)


def test_a_fragment_has_a_signature_of_each_prompt_or_response():
    fragment = SimpleNamespace(rows=[row("one", "a", None, "b"), row(None, "c"), row("two", "a")])
    (prompts,) = MinHash("prompt", 3).measure(fragment)  # type: ignore[arg-type]
    (responses,) = MinHash("response", 3).measure(fragment)  # type: ignore[arg-type]
    one, two, a, b = pack(signatures_of(["one", "two", "a", "b"], 3))
    assert prompts.to_pylist() == [one, one, one, None, two]
    assert responses.to_pylist() == [a, None, b, None, a]
    assert MinHash.from_settings(signature_settings("prompt", 4)) == MinHash("prompt", 4)


STORED = "87b5c0e505385d10"


def test_no_text_has_the_signature_of_nothing():
    assert signatures_of([], 3).shape == (0, 128)
