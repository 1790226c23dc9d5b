"""Finds the test files with which each row's prompt or response shares runs of words. No Beam."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.corpus import Fragment
from pipelines.corpus.ngram_index import INDEX, NgramIndex
from pipelines.corpus.word_hashes import ngrams_of, split_words, words_of
from pipelines.errors import StorageError
from pipelines.score.minhash import prompt_text
from pipelines.storage.files import join, read_bytes


def hits_column(name: str) -> str:
    """The column of side files with a bit for each test file, set if a row shares words with the file."""
    return f"hits.{name}"


@dataclass(frozen=True)
class NgramHits:
    """The number of test files with which a row's prompt or response shares an n-gram, and one bit for each file."""

    name: str  # of the number, in expressions
    ngram: int
    index: str  # hash of the index
    directories: tuple[str, ...] = ()  # of the side files; the first has the index

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> NgramHits:
        return cls(settings["name"], settings["ngram"], settings["index"])

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(f"signal.{self.name}", pa.float32()), pa.field(hits_column(self.name), pa.uint64())])

    def beside(self, fragment: Fragment) -> str:
        """Empty: prompts and responses are in the fragment's content hash, and the index is in the folder's name."""
        return ""

    def measure(self, fragment: Fragment) -> list[pa.Array]:
        index = read_index(join(self.directories[0], INDEX), self.index)
        usable = [row for row in fragment.rows if row.parsed.prompt is not None]
        prompts = hits_of([prompt_text(row.parsed.prompt or ()) for row in usable], index, self.ngram)
        responses = hits_of([text or "" for row in usable for text in row.parsed.responses], index, self.ngram)
        by_row = dict(zip((row.number for row in usable), prompts.tolist(), strict=True))
        numbers = [row.number for row in fragment.rows for _ in row.parsed.responses]
        hits = np.array([by_row.get(number, 0) for number in numbers], dtype=np.uint64)
        hits[[number in by_row for number in numbers]] |= responses
        return [pa.array(count_files(hits).astype(np.float32)), pa.array(hits)]


def hits_of(texts: Sequence[str], index: NgramIndex, ngram: int) -> npt.NDArray[np.uint64]:
    """The test files with which each text shares an n-gram, as bits."""
    grams = ngrams_of(words_of(texts), ngram)
    found = index.look_up(grams.hashes)
    at = np.flatnonzero(found)
    hits = np.zeros(len(texts), dtype=np.uint64)
    np.bitwise_or.at(hits, np.searchsorted(grams.ends, at, side="right"), found[at])
    return hits


def count_files(hits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The number of bits that are set."""
    bits = np.unpackbits(np.ascontiguousarray(hits).view(np.uint8).reshape(-1, 8), axis=1)
    counts: npt.NDArray[np.int64] = bits.sum(axis=1, dtype=np.int64)
    return counts


def count_hits(scores: pa.Table, names: Sequence[str]) -> Counter[tuple[str, int]]:
    """The number of rows that share words with each test file, by name and file number."""
    counts = Counter[tuple[str, int]]()
    for name in names:
        hits = scores[hits_column(name)].to_numpy()
        bits = np.unpackbits(
            np.ascontiguousarray(hits, dtype="<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little"
        )
        files = bits.sum(axis=0, dtype=np.int64)
        counts.update({(name, int(file)): int(files[file]) for file in np.flatnonzero(files)})
    return counts


class Hit(NamedTuple):
    """Words that a text shares with test prompts, in the form that is compared, and the numbers of the files that have them."""

    words: str
    files: list[int]


def first_hit(text: str, index: NgramIndex, ngram: int) -> Hit | None:
    """The first n-gram of a text that is in the index; None if there is none."""
    found = index.look_up(ngrams_of(words_of([text]), ngram).hashes)
    at = np.flatnonzero(found)
    if not len(at):
        return None
    files = int(found[at[0]])
    return Hit(
        " ".join(split_words(text)[at[0] : at[0] + ngram]), [number for number in range(64) if files >> number & 1]
    )


@lru_cache(maxsize=2)
def read_index(path: str, expected: str) -> NgramIndex:
    """The index at a path. Raises `StorageError` if it is gone or damaged."""
    data = read_bytes(path)
    if data is None or xxhash.xxh3_128_hexdigest(data) != expected:
        raise StorageError(f"{path} is gone or damaged; remove it and run the same command again")
    return NgramIndex.from_bytes(data)
