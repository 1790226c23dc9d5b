"""Hashes of words and of runs of words, by which near-duplicates and leaked test prompts are found. Vectorised; no files.

A text is normalised first: NFKC, case folded. A word is a run of letters, digits and combining marks; in scripts that put no
spaces between words (Chinese, Japanese, Thai and others) each character is one. Everything else only separates words. The hashes
are stored in files that outlive a process, so whatever changes one of them needs a larger `WORDS_VERSION`.

    words = words_of(["Hello,  World!", "hello world"])   # two words each, the same ones
    ngrams_of(words, 2)                                    # one hash of each text, the same
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Ends = npt.NDArray[np.int64]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers never vanish
_OUTSIDE, _INSIDE, _ALONE, _UNKNOWN = 0, 1, 2, 255  # of a word, as a character counts
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class Hashed(NamedTuple):
    """Hashes of parts of texts, one text after the other."""

    hashes: Hashes
    ends: Ends  # of each text: the position behind its last hash

    @property
    def starts(self) -> Ends:
        return np.concatenate([np.zeros(min(1, len(self.ends)), np.int64), self.ends[:-1]])


def normalise(text: str) -> str:
    """Return the text as words are looked for in it."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def words_of(texts: Sequence[str]) -> Hashed:
    """Return the hashes of the words of each text."""
    normal = [normalise(text) for text in texts]
    joined = "\n".join([*normal, ""])
    codes = np.frombuffer(joined.encode("utf-32-le", errors="replace"), dtype="<u4")
    kinds = _kinds_of(codes)
    inside = np.flatnonzero(kinds)
    kind = kinds[inside]
    new = np.ones(len(inside), dtype=bool)  # the first character of a word
    new[1:] = (np.diff(inside) > 1) | (kind[1:] == _ALONE) | (kind[:-1] == _ALONE)
    starts = np.flatnonzero(new)
    lengths = np.diff(starts, append=len(inside))
    powers = _powers(int(lengths.max(initial=0)))
    within = np.arange(len(inside)) - np.repeat(starts, lengths)
    with np.errstate(over="ignore"):
        terms = (codes[inside].astype(np.uint64) + np.uint64(1)) * powers[within]
        hashes = splitmix(np.add.reduceat(terms, starts)) if len(starts) else np.zeros(0, np.uint64)
    text_ends = np.cumsum([len(text) + 1 for text in normal], dtype=np.int64)
    return Hashed(hashes, np.searchsorted(inside[starts], text_ends).astype(np.int64))


def ngrams_of(words: Hashed, size: int, *, shorter: bool = False) -> Hashed:
    """Return the hash of every `size` words in a row; with `shorter`, of a text of fewer words that of all its words."""
    starts, counts = words.starts, words.ends - words.starts
    ends = np.repeat(words.ends, counts)
    at = np.arange(len(words.hashes))
    whole = at + size <= ends
    if shorter:
        whole |= np.isin(at, starts[(counts > 0) & (counts < size)])
    at, ends = at[whole], ends[whole]
    sums, powers = np.zeros(len(at), dtype=np.uint64), _powers(size)
    with np.errstate(over="ignore"):
        for k in range(size):
            inside = at + k < ends
            sums += np.where(inside, words.hashes[np.where(inside, at + k, 0)] * powers[k], np.uint64(0))
    numbers = np.where(counts >= size, counts - size + 1, (counts > 0) & shorter)
    return Hashed(splitmix(sums), np.cumsum(numbers).astype(np.int64))


def splitmix(z: Hashes) -> Hashes:
    """The finaliser of splitmix64: one to one, and every bit of the result depends on all of `z`."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = z ^ (z >> np.uint64(31))
    return result


def _powers(count: int) -> Hashes:
    with np.errstate(over="ignore"):
        powers: Hashes = np.multiply.accumulate(np.append(np.uint64(1), np.full(count, _BASE)))
    return powers


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.uint8]:
    """The kind of each character, as far as it has been asked for: the same whoever fills it in."""
    return np.full(0x110000, _UNKNOWN, dtype=np.uint8)


def _kinds_of(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    table = _table()
    kinds = table[codes]
    unknown = kinds == _UNKNOWN
    if unknown.any():
        for code in np.unique(codes[unknown]).tolist():
            table[code] = _kind(code)
        kinds = table[codes]
    return kinds


def _kind(code: int) -> int:
    character = chr(code)
    if not (character.isalnum() or unicodedata.category(character).startswith("M")):
        return _OUTSIDE
    return _ALONE if any(first <= code <= last for first, last in _WITHOUT_SPACES) else _INSIDE
