"""Hashes of words and n-grams, used to find near-duplicates and leaked test prompts. Vectorised; no files.

A text is first normalised: NFKC, case folded. A word is a run of letters, digits and combining marks; in scripts without
spaces between words (Chinese, Japanese, Thai and others) each character is a word. All other characters only separate words.
Hashes are stored in files that outlive a process, so a change to any of them requires a larger `WORDS_VERSION`.

    words = words_of(["Hello,  World!", "hello world"])   # two words each, the same ones
    ngrams_of(words, 2)                                    # one hash for each text, the same
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Ends = npt.NDArray[np.int64]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that there is an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 2**64))
_BATCH = 1 << 15  # characters
_OUTSIDE, _INSIDE, _ALONE, _UNKNOWN = 0, 1, 2, 255  # kinds of characters: outside a word, inside one, a word alone
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip


class Hashed(NamedTuple):
    """Hashes of the words or n-grams of texts, one text after the other."""

    hashes: Hashes
    ends: Ends  # for each text, the position after its last hash

    @property
    def starts(self) -> Ends:
        return np.concatenate([np.zeros(min(1, len(self.ends)), np.int64), self.ends[:-1]])


def normalise(text: str) -> str:
    """Return the text in the form that is split into words."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def words_of(texts: Sequence[str]) -> Hashed:
    """Return the hashes of the words of each text."""
    hashes, ends, first = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)], 0
    for part in _batches([normalise(text) for text in texts]):
        some = _hash_words(part)
        hashes.append(some.hashes)
        ends.append(some.ends + first)
        first += len(some.hashes)
    return Hashed(np.concatenate(hashes), np.concatenate(ends))


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield batches of texts whose arrays fit a processor's cache, unless a single text is longer."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and size + len(text) > _BATCH:
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text) + 1
    if part:
        yield part


def _hash_words(texts: Sequence[str]) -> Hashed:
    """Hash the words of normalised texts. The hash of a word is that of sum(code * BASE**k): the difference of two cumulative
    sums, divided by the power at which the word begins."""
    codes, kinds = _characters("\n".join([*texts, ""]))
    before = np.concatenate([np.zeros(1, dtype=np.uint8), kinds[:-1]])
    first = (kinds != _OUTSIDE) & ((before == _OUTSIDE) | (kinds == _ALONE) | (before == _ALONE))
    after = np.append(kinds[1:], np.uint8(_OUTSIDE))
    last = (kinds != _OUTSIDE) & ((after == _OUTSIDE) | (kinds == _ALONE) | (after == _ALONE))
    starts, ends = np.flatnonzero(first), np.flatnonzero(last) + 1
    powers, inverses = _powers_up_to(len(codes))
    with np.errstate(over="ignore"):
        sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum((codes + np.uint64(1)) * powers[: len(codes)], out=sums[1:])
        hashes = splitmix((sums[ends] - sums[starts]) * inverses[starts])
    text_ends = np.cumsum([len(text) + 1 for text in texts], dtype=np.int64)
    return Hashed(hashes, np.searchsorted(starts, text_ends).astype(np.int64))


def _characters(text: str) -> tuple[Hashes, npt.NDArray[np.uint8]]:
    """Return (codes of the characters, their kinds)."""
    if text.isascii():
        data = text.encode()
        return np.frombuffer(data, np.uint8).astype(np.uint64), np.frombuffer(data.translate(_ASCII), np.uint8)
    codes = np.frombuffer(text.encode("utf-32-le", errors="replace"), dtype="<u4")
    return codes.astype(np.uint64), _kinds_of(codes)


def split_words(text: str) -> list[str]:
    """Return the words of a text as they are hashed."""
    words: list[str] = []
    before = _OUTSIDE
    for character, kind in zip(normal := normalise(text), map(_kind, map(ord, normal)), strict=True):
        if kind == _INSIDE and before == _INSIDE:
            words[-1] += character
        elif kind != _OUTSIDE:
            words.append(character)
        before = kind
    return words


def ngrams_of(words: Hashed, size: int, *, shorter: bool = False) -> Hashed:
    """Return the hashes of all n-grams of `size` words; with `shorter`, a text of fewer words has the hash of all its words."""
    starts, counts = words.starts, words.ends - words.starts
    ends = np.repeat(words.ends, counts)
    at = np.arange(len(words.hashes))
    whole = at + size <= ends
    if shorter:
        whole |= np.isin(at, starts[(counts > 0) & (counts < size)])
    at, ends = at[whole], ends[whole]
    sums, powers = np.zeros(len(at), dtype=np.uint64), _powers(_BASE, size)
    with np.errstate(over="ignore"):
        for k in range(size):
            inside = at + k < ends
            sums += np.where(inside, words.hashes[np.where(inside, at + k, 0)] * powers[k], np.uint64(0))
    numbers = np.where(counts >= size, counts - size + 1, (counts > 0) & shorter)
    return Hashed(splitmix(sums), np.cumsum(numbers).astype(np.int64))


def splitmix(z: Hashes) -> Hashes:
    """The finaliser of splitmix64: a bijection in which every bit of the result depends on all of `z`."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        result: Hashes = z ^ (z >> np.uint64(31))
    return result


def _powers_up_to(count: int) -> tuple[Hashes, Hashes]:
    """Return (powers of the base, their inverses), at least `count` of each."""
    return _cached_powers() if count <= 2 * _BATCH else (_powers(_BASE, count), _powers(_INVERSE, count))


@lru_cache(maxsize=1)
def _cached_powers() -> tuple[Hashes, Hashes]:
    return _powers(_BASE, 2 * _BATCH), _powers(_INVERSE, 2 * _BATCH)


def _powers(base: np.uint64, count: int) -> Hashes:
    with np.errstate(over="ignore"):
        powers: Hashes = np.multiply.accumulate(np.append(np.uint64(1), np.full(count, base)))
    return powers


@lru_cache(maxsize=1)
def _table() -> npt.NDArray[np.uint8]:
    """The kinds of the characters seen so far; any thread fills in the same values."""
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


_ASCII = bytes(_kind(code) if code < 128 else _OUTSIDE for code in range(256))
"""The kinds of the ASCII characters, for `bytes.translate`."""
