"""An index of the n-grams of test prompts that a corpus must not contain, built once by the launcher and read by all workers.

`index_of` reads the files that `decontaminate` names. It returns bytes, which are stored beside the side files of the measure,
and settings with a hash of these bytes, which determine the folder: other test prompts have other side files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from pipelines.config.corpus import InputFiles
from pipelines.corpus.files import InputFile, split_units
from pipelines.corpus.first_rows import column_names
from pipelines.corpus.fragments import read_raw_rows
from pipelines.corpus.listing import list_files
from pipelines.corpus.word_hashes import Hashes, ngrams_of, words_of
from pipelines.errors import InputError, join_names

MOST_FILES = 64
INDEX = "ngrams.bin"
"""The name of the index in the folder of the side files."""

_MAX_ROW_BYTES = 16 * 2**20
_PROMPTS = (
    "prompt", "question", "problem", "instruction", "query", "goal", "task", "input", "messages", "conversations",
    "conversation", "turns", "text", "content", "ctx", "sentence",
)  # fmt: skip

log = logging.getLogger(__name__)


class NgramIndex(NamedTuple):
    """Hashes of n-grams, ascending, each with the files that contain it: bit k stands for file k."""

    hashes: Hashes
    files: npt.NDArray[np.uint64]

    def to_bytes(self) -> bytes:
        return self.hashes.astype("<u8").tobytes() + self.files.astype("<u8").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> NgramIndex:
        values = np.frombuffer(data, dtype="<u8").astype(np.uint64)
        return cls(values[: len(values) // 2], values[len(values) // 2 :])

    def look_up(self, hashes: Hashes) -> npt.NDArray[np.uint64]:
        """The files of each n-gram; 0 if no file contains it."""
        if not len(self.hashes):
            return np.zeros(len(hashes), dtype=np.uint64)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        return np.where(self.hashes[at] == hashes, self.files[at], np.uint64(0))


def resolve_measures(measures: Sequence[Mapping[str, Any]]) -> tuple[tuple[Mapping[str, Any], ...], dict[str, bytes]]:
    """Return the measures' settings as a plan stores them, and the indexes that some of them need, by hash."""
    resolved: list[Mapping[str, Any]] = []
    indexes: dict[str, bytes] = {}
    for measure in measures:
        if measure["kind"] == "ngrams":
            settings, data = index_of(measure)
            indexes[settings["index"]] = data
            resolved.append(settings)
        else:
            resolved.append(measure)
    return tuple(resolved), indexes


def index_of(measure: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Read the test prompts that `decontaminate` names. Raises `InputError` if a file cannot be read or has no prompts."""
    parts, files, prompts, short = [], [], 0, 0
    for file in _files(measure["against"]):
        texts = list(_texts(file, measure["column"]))
        words = words_of(texts)
        hashes = np.unique(ngrams_of(words, measure["ngram"]).hashes)
        counts = words.ends - words.starts
        prompts, short = prompts + len(texts), short + int(np.count_nonzero(counts < measure["ngram"]))
        parts.append(hashes)
        files.append({"name": file.key.rsplit("/", 1)[-1], "prompts": len(texts), "ngrams": len(hashes)})
    if short:
        log.warning(
            "%d of %d test prompts have fewer than %d words, and are not looked for; decontaminate.ngram may be smaller",
            short, prompts, measure["ngram"],
        )  # fmt: skip
    index = _merge(parts)
    data = index.to_bytes()
    settings = {name: measure[name] for name in ("kind", "name", "ngram", "version")}
    return {**settings, "files": files, "index": xxhash.xxh3_128_hexdigest(data)}, data


def _merge(parts: Sequence[Hashes]) -> NgramIndex:
    hashes, at = np.unique(np.concatenate([np.zeros(0, np.uint64), *parts]), return_inverse=True)
    files = np.zeros(len(hashes), dtype=np.uint64)
    start = 0
    for number, part in enumerate(parts):
        files[at[start : start + len(part)]] |= np.uint64(1) << np.uint64(number)
        start += len(part)
    return NgramIndex(hashes, files)


def _files(paths: Sequence[str]) -> list[InputFile]:
    files: dict[str, InputFile] = {}
    for path in paths:
        try:
            files.update((file.path, file) for file in list_files(InputFiles(path=path)))
        except InputError as error:
            raise InputError(f"decontaminate.against: {error.message}") from error
    if len(files) > MOST_FILES:
        raise InputError(
            f"decontaminate.against names {len(files)} files, and hits are counted for at most {MOST_FILES}; join some of "
            "them, or use several steps"
        )
    return list(files.values())


def _texts(file: InputFile, column: str | None) -> Iterator[str]:
    """The non-blank prompts of a file."""
    names = column_names(file, max_row_bytes=_MAX_ROW_BYTES)
    chosen = column or next((name for name in _PROMPTS if name in names), None)
    if chosen is None or chosen not in names:
        lacking = "none is known to hold prompts" if column is None else f"none is {column!r}"
        raise InputError(
            f"decontaminate.against: of the columns of {file.path} ({join_names(names)}), {lacking}; name the one that holds "
            "them in decontaminate.column"
        )
    some = False
    for unit in split_units(file):
        for row in read_raw_rows(file, unit, [chosen], tools=None, max_row_bytes=_MAX_ROW_BYTES):
            if isinstance(row.values, str):
                raise InputError(
                    f"decontaminate.against: {file.path} has a row that cannot be read ({row.values}), whose prompt would not be "
                    "looked for; correct it, or remove it"
                )
            text = "\n".join(_strings(row.values.get(chosen)))
            if text.strip():
                some = True
                yield text
    if not some:
        raise InputError(
            f"decontaminate.against: {file.path} has no prompts in the column {chosen!r}; name another file or column"
        )


def _strings(value: Any) -> Iterator[str]:
    """All texts in a value; only the content of a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        contents = [value[name] for name in ("content", "value") if name in value]
        for one in contents or value.values():
            yield from _strings(one)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for one in value:
            yield from _strings(one)
