"""`score.colocate`: texts regrouped by prompt before they are scored, and durable results by text. No Beam.

A text is a prompt and a response, exactly as the model reads them. Its key of 24 bytes begins with a hash of the prompt, so that
sorting by key groups a prompt's responses, whatever the order of their arrival.

Example:

    bundle.add(prompt, [a, b], keys_of(prompt, [a, b]), unit=7, input_bytes=100)  # in each worker that reads rows
    bucket = Bucket.of([bundle.to_bytes(), ...])  # all texts whose prompts have the same first bits
    for piece in split_texts(bucket.texts, responses=4096):
        publish_results(directory, score_piece(scorer, piece, plan), plan.fingerprint)
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipelines.corpus.fragments import FRAGMENT_BYTES, PromptGroup
from pipelines.errors import StorageError
from pipelines.plan import Plan
from pipelines.runtime.arrow_ipc import from_ipc
from pipelines.score import score_files
from pipelines.score.score_columns import GroupResult, refuse_broken_model, result_columns
from pipelines.score.unit_scorer import Scorer
from pipelines.storage import publish
from pipelines.storage.files import join, names_in, read_bytes
from rm.conversations import Conversation, load_json

_KEY = pa.binary(24)
_BUCKET_BYTES = 32 * 2**20  # of text in a bucket, which one worker sorts in memory
_EXPANDS = 4  # bytes of text per stored byte, at most, in Parquet and in compressed files
_MAX_BITS = 14
_FORMAT = "1"
_DESCRIBED, _HASH = b"bestkept.colocated", b"bestkept.hash"

TEXTS = pa.schema(
    [
        pa.field("key", _KEY),
        pa.field("prompt", pa.dictionary(pa.int32(), pa.large_string())),  # as `prompt_text` writes it
        pa.field("response", pa.large_string()),
        pa.field("unit", pa.int64()),  # that needs it, as a packed `UnitKey`
        pa.field("input_bytes", pa.float32()),  # of the stored file; for progress
    ]
)
RESULTS = pa.schema([pa.field("key", _KEY), *(score_files.COLUMNS.field(name) for name in GroupResult._fields)])


def prompt_text(prompt: Conversation) -> str:
    """A prompt as JSON, not normalised: prompts that are equal for a selection (NFC) may differ for a model."""
    return json.dumps(prompt, ensure_ascii=False)


def keys_of(prompt: str, responses: Iterable[str]) -> list[bytes]:
    """The keys of one prompt's texts: xxh3-64 of the prompt, as `prompt_text` writes it, then xxh3-128 of prompt and response."""
    written = prompt.encode()
    first, whole = xxhash.xxh3_64_digest(written), xxhash.xxh3_128(written + b"\0")
    keys = []
    for response in responses:
        digest = whole.copy()
        digest.update(response.encode())
        keys.append(first + digest.digest())
    return keys


def bits_of(plan: Plan) -> int:
    """The number of bits of a bucket's number, such that a bucket has about `_BUCKET_BYTES` of text or less."""
    text = sum(file.size * (_EXPANDS if file.kind == "parquet" or file.codec else 1) for file in plan.files)
    return min(_MAX_BITS, max(0, math.ceil(math.log2(max(1.0, text / _BUCKET_BYTES)))))


def bucket_of(key: bytes, bits: int) -> int:
    """The bucket of a text, by the first `bits` of its key: one for all texts of a prompt."""
    return int.from_bytes(key[:2], "big") >> (16 - bits)


class Bundle:
    """Texts of one bucket as they are shuffled: each prompt once, compressed."""

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._columns: tuple[list[Any], ...] = ([], [], [], [], [])

    def add(
        self, prompt: str, responses: Sequence[str], keys: Sequence[bytes], *, unit: int, input_bytes: float
    ) -> int:
        """Add texts of one prompt, and return their memory, approximately, in bytes."""
        count, new = len(responses), prompt not in self._prompts
        number = self._prompts.setdefault(prompt, len(self._prompts))
        values: tuple[Sequence[Any], ...] = (
            keys,
            [number] * count,
            responses,
            [unit] * count,
            [input_bytes / max(1, count)] * count,
        )
        for column, more in zip(self._columns, values, strict=True):
            column.extend(more)
        return new * len(prompt) + sum(map(len, responses)) + 64 * count

    def to_bytes(self) -> bytes:
        keys, prompts, *others = self._columns
        indices, dictionary = pa.array(prompts, pa.int32()), pa.array(list(self._prompts), pa.large_string())
        columns = [pa.array(keys, _KEY), pa.DictionaryArray.from_arrays(indices, dictionary)]
        columns += [pa.array(column, field.type) for column, field in zip(others, list(TEXTS)[2:], strict=True)]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, TEXTS, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(pa.table(columns, schema=TEXTS))
        data: bytes = sink.getvalue().to_pybytes()
        return data


class Bucket(NamedTuple):
    """The texts of one bucket, and the units that wait for their results."""

    texts: pa.Table  # each once, sorted by key
    waiting: pa.Table  # key and unit, with repetitions
    input_bytes: float  # of all texts, with repetitions

    @classmethod
    def of(cls, parts: Iterable[bytes]) -> Bucket:
        """Return the bucket of `Bundle`s, given as bytes in any order."""
        table = from_ipc(parts, TEXTS).unify_dictionaries()
        words = _words(table["key"])
        order = np.lexsort((words[:, 2], words[:, 1], words[:, 0]))
        ordered = words[order]
        first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
        texts = table.select(["key", "prompt", "response"]).take(pa.array(order[first])).combine_chunks()
        return cls(texts, table.select(["key", "unit"]), float(np.sum(table["input_bytes"].to_numpy())))

    def without(self, known: Mapping[bytes, int]) -> pa.Table:
        """The texts whose keys are not `known`, in order."""
        unknown = [key not in known for key in self.texts["key"].to_pylist()]
        return self.texts.filter(pa.array(unknown)).combine_chunks()


def _words(keys: pa.ChunkedArray) -> Any:
    """Keys as three unsigned integers each [N, 3], in the order of the bytes."""
    return np.frombuffer(b"".join(keys.to_pylist()), dtype=">u8").astype(np.uint64).reshape(-1, 3)


def split_texts(texts: pa.Table, *, responses: int) -> Iterator[pa.Table]:
    """Split sorted texts into pieces of at most so many responses and about `FRAGMENT_BYTES`: between two prompts, unless a
    single prompt has more."""
    if not texts.num_rows:
        return
    sizes = pc.binary_length(texts["response"]).to_numpy()
    changes = np.flatnonzero(np.diff(_prompt_numbers(texts))) + 1
    start = 0
    for first, end in zip([0, *changes.tolist()], [*changes.tolist(), texts.num_rows], strict=True):
        if first > start and (end - start > responses or sizes[start:end].sum() > FRAGMENT_BYTES):
            yield texts.slice(start, first - start)
            start = first
        while end - start > responses or sizes[start:end].sum() > FRAGMENT_BYTES:  # one prompt's, from `start` on
            fitting = int(np.searchsorted(np.cumsum(sizes[start : start + responses]), FRAGMENT_BYTES, side="right"))
            count = min(max(1, fitting), end - start)
            yield texts.slice(start, count)
            start += count
            if start == end:
                break
    if start < texts.num_rows:
        yield texts.slice(start)


def _prompt_numbers(texts: pa.Table) -> Any:
    return texts["prompt"].combine_chunks().indices.to_numpy()


def groups_in_texts(texts: pa.Table) -> list[PromptGroup]:
    """The texts of a piece by prompt, in order."""
    prompts = texts["prompt"].combine_chunks()
    numbers, responses = prompts.indices.to_pylist(), texts["response"].to_pylist()
    groups: list[PromptGroup] = []
    last = None
    for number, response in zip(numbers, responses, strict=True):
        if number != last:
            turns = json.loads(prompts.dictionary[number].as_py())
            groups.append((tuple((role, content) for role, content in turns), []))
            last = number
        groups[-1][1].append(response)
    return groups


def score_piece(scorer: Scorer, texts: pa.Table, plan: Plan) -> pa.Table:
    """The model's results for a piece (`RESULTS`), in order.

    Raises `ModelLoadError` if the model is the cause of missing rewards for several prompts, see `refuse_broken_model`.
    """
    groups = groups_in_texts(texts)
    results = [GroupResult.of(scores) for scores in scorer.score(groups)]
    if len(groups) > 1:
        refuse_broken_model([reason for result in results for reason in result.reason], plan)
    return pa.table([texts["key"], *result_columns(results).values()], schema=RESULTS)


@dataclass(frozen=True)
class Results:
    """The model's results for some texts, as a scorer of these texts only."""

    table: pa.Table
    rows: Mapping[bytes, int]  # by key; the first of equal ones

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> Results:
        table = pa.concat_tables([RESULTS.empty_table(), *tables]).combine_chunks()
        rows: dict[bytes, int] = {}
        for row, key in enumerate(table["key"].to_pylist()):
            rows.setdefault(key, row)
        return cls(table, rows)

    def of_units(self, waiting: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """Yield (unit, the results that it needs, each once), by unit."""
        wanted: dict[int, dict[int, None]] = {}
        for key, unit in zip(waiting["key"].to_pylist(), waiting["unit"].to_pylist(), strict=True):
            wanted.setdefault(unit, {})[self.rows[key]] = None
        for unit in sorted(wanted):
            yield unit, self.table.take(pa.array(sorted(wanted[unit])))

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[GroupResult]:
        """Look up the results of each group. Raises `StorageError` for a text without results."""
        keys = [keys_of(prompt_text(prompt), responses) for prompt, responses in groups]
        try:
            rows = pa.array([self.rows[key] for group in keys for key in group], pa.int64())
        except KeyError:
            raise StorageError("a text was shuffled and has no result; run the same command again") from None
        columns = [self.table[name].take(rows).to_pylist() for name in RESULTS.names[1:]]
        ends = list(itertools.accumulate(map(len, keys)))
        return [
            GroupResult(*(column[start:end] for column in columns))
            for start, end in zip([0, *ends], ends, strict=False)
        ]


# durable results: one file for each piece, in a directory for each bucket


def directory_of(scores: str, bucket: int, bits: int) -> str:
    """The directory of a bucket's results, below the score files of one model."""
    return join(scores, "colocated", f"{bits:02d}-{bucket:04x}")


def encode(results: pa.Table, fingerprint: str) -> bytes:
    """A file of results, with a hash of its content."""
    described = json.dumps({"fingerprint": fingerprint, "format": _FORMAT})
    metadata = {_DESCRIBED: described.encode(), _HASH: score_files.columns_hash(results, described).encode()}
    sink = io.BytesIO()
    pq.write_table(results.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def decode(data: bytes, fingerprint: str) -> pa.Table | None:
    """The results in a file; None if it is incomplete, damaged or of another model."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        described = (table.schema.metadata or {})[_DESCRIBED].decode()
        undamaged = table.schema.metadata[_HASH].decode() == score_files.columns_hash(table, described)
        same_model = load_json(described) == {"fingerprint": fingerprint, "format": _FORMAT}
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None
    return table.replace_schema_metadata(None) if undamaged and same_model and table.schema.equals(RESULTS) else None


def read_results(directory: str, fingerprint: str) -> list[pa.Table]:
    """The results in all valid files of a directory."""
    contents = (read_bytes(join(directory, name)) for name in names_in(directory))
    tables = (decode(data, fingerprint) for data in contents if data is not None)
    return [table for table in tables if table is not None]


def publish_results(directory: str, results: pa.Table, fingerprint: str) -> pa.Table:
    """Publish the results of a piece under a hash of its texts, and return the published ones, which may be another worker's."""
    keys = b"".join(results["key"].to_pylist())
    path = join(directory, f"{xxhash.xxh3_128_hexdigest(keys)}.parquet")

    def accept(data: bytes) -> pa.Table | None:
        existing = decode(data, fingerprint)
        return existing if existing is not None and existing["key"].equals(results["key"]) else None

    return publish.settle(path, encode(results, fingerprint), accepts=accept, ours=results)
