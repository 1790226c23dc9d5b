"""MinHash signatures of prompts and responses (Broder 1997): the similarity of two texts, without the texts. No Beam, no files.

A text is the set of its shingles, the runs of a few words. For each of 128 hash functions the signature has the smallest value
over these, stored in 16 bits: 256 bytes per text. The share of positions in which two signatures agree estimates the Jaccard
similarity of the two sets, with a standard deviation of at most 0.045; values that are equal by chance add 1/65536.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.corpus import Fragment
from pipelines.corpus.word_hashes import Hashed, ngrams_of, normalise, splitmix, words_of
from rm.conversations import TOOLS, Conversation

VALUES = 128
BYTES = 2 * VALUES
_ROWS = 256  # shingles at a time, whose values stay in a processor's cache

Signatures = npt.NDArray[np.uint16]
"""One row of `VALUES` for each text."""


def signature_column(of: str, words: int) -> str:
    """The column of side files with the signatures of prompts or responses by shingles of so many words."""
    return f"minhash.{of}.{words}"


@dataclass(frozen=True)
class MinHash:
    """Signatures of the prompts or of the responses of a fragment; null if there is no text."""

    of: str  # prompt | response
    words: int  # in a shingle

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> MinHash:
        """See `signature_settings`."""
        return cls(settings["of"], settings["words"])

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(signature_column(self.of, self.words), pa.binary(BYTES))])

    def beside(self, fragment: Fragment) -> str:
        """Empty: prompts and responses are in the fragment's content hash."""
        return ""

    def measure(self, fragment: Fragment) -> list[pa.Array]:
        texts = [text for row in fragment.rows for text in self._texts(row.parsed.prompt, row.parsed.responses)]
        numbers: dict[str | None, int] = {}
        at = [numbers.setdefault(text, len(numbers)) for text in texts]
        data = [b"" if text is None else None for text in numbers]
        distinct = [text for text in numbers if text is not None]
        packed = iter(pack(signatures_of(distinct, self.words)))
        values = [None if missing is not None else next(packed) for missing in data]
        return [pa.array([values[number] for number in at], pa.binary(BYTES))]

    def _texts(self, prompt: Conversation | None, responses: Sequence[str | None]) -> Sequence[str | None]:
        if self.of == "response":
            return [None if prompt is None else response for response in responses]
        return [None if prompt is None else prompt_text(prompt)] * len(responses)


def prompt_text(prompt: Conversation) -> str:
    """The text of all turns of a prompt, without its tools."""
    return "\n".join(content for role, content in prompt if role != TOOLS)


def signatures_of(texts: Sequence[str], words: int) -> Signatures:
    """Return the signatures [N, VALUES] of texts by shingles of so many words.

    A text of fewer words is one shingle of all of them; the shingle of a text without words is the text.
    """
    shingles = ngrams_of(words_of(texts), words, shorter=True)
    signatures = np.empty((len(texts), VALUES), dtype=np.uint16)
    for number, hashes in enumerate(_split(shingles)):
        if not len(hashes):
            hashes = np.array([xxhash.xxh3_64_intdigest(normalise(texts[number]).encode(errors="replace"))], np.uint64)
        signatures[number] = _least_values((hashes >> np.uint64(32)).astype(np.uint32))
    return signatures


def _split(shingles: Hashed) -> list[npt.NDArray[np.uint64]]:
    return np.split(shingles.hashes, shingles.ends[:-1]) if len(shingles.ends) else []


_FACTORS = (splitmix(np.arange(1, VALUES + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
"""The factors of the hash functions h → h * factor mod 2**32: odd, so that each is one to one."""


def _least_values(hashes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint16]:
    least = (hashes[:_ROWS, None] * _FACTORS).min(axis=0)  # wraps around
    for start in range(_ROWS, len(hashes), _ROWS):
        np.minimum(least, (hashes[start : start + _ROWS, None] * _FACTORS).min(axis=0), out=least)
    lower_bits: npt.NDArray[np.uint16] = least.astype(np.uint16)
    return lower_bits


def pack(signatures: Signatures) -> list[bytes]:
    """Return signatures in their stored form."""
    data = signatures.astype("<u2").tobytes()
    return [data[start : start + BYTES] for start in range(0, len(data), BYTES)]


def unpack(column: pa.ChunkedArray) -> Signatures:
    """Return a column of signatures [N, VALUES]; zeros where there is none."""
    whole = pa.concat_arrays([pa.array([], pa.binary(BYTES)), *column.chunks])
    if whole.null_count:
        whole = whole.fill_null(bytes(BYTES))
    data = whole.buffers()[1] or b""
    values = np.frombuffer(data, dtype="<u2", count=VALUES * len(whole), offset=BYTES * whole.offset)
    return values.reshape(-1, VALUES).astype(np.uint16, copy=False)
