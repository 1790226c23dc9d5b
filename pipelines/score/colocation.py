"""`score.colocate`: texts on their way to the model regrouped by prompt, and what it says of them, durable by text. No Beam.

A text is a prompt and a response, exactly as the model reads them, and known by a key of 24 bytes: equal prompts have equal
beginnings, so that sorting by key brings a prompt's responses together, whatever order they arrive in.
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

from pipelines.corpus.fragments import FRAGMENT_BYTES
from pipelines.errors import StorageError
from pipelines.plan import Plan
from pipelines.runtime.arrow_ipc import from_ipc
from pipelines.score import score_files
from pipelines.score.unit_scorer import Scorer, refuse_broken_model
from pipelines.storage import publish
from pipelines.storage.files import join, names_in, read_bytes
from rm.conversations import Conversation

_KEY = pa.binary(24)
_PROMPT_BYTES = 8  # of a key, the first ones
_BUCKET_BYTES = 32 * 2**20  # of text in a bucket, which one worker sorts in memory
_EXPANDS = 4  # bytes of text that a stored one may stand for, in Parquet and where it is compressed
_MOST_BITS = 14
_FORMAT = "1"
_DESCRIBED, _HASH = b"bestkept.colocated", b"bestkept.hash"

TEXTS = pa.schema(
    [
        pa.field("key", _KEY),
        pa.field("prompt", pa.dictionary(pa.int32(), pa.large_string())),  # as `prompt_text` writes it
        pa.field("response", pa.large_string()),
        pa.field("unit", pa.int64()),  # that waits for it, as a packed `UnitKey`
        pa.field("input_bytes", pa.float32()),  # of the stored file; for progress
    ]
)
RESULTS = pa.schema(
    [
        pa.field("key", _KEY),
        pa.field("reward", pa.float32()),  # null where rejected
        pa.field("reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("response_tokens", pa.int32()),
        pa.field("truncated", pa.bool_()),
    ]
)


def prompt_text(prompt: Conversation) -> str:
    """A prompt as JSON, to the letter: what is one prompt to a selection may be two to a model (NFC)."""
    return json.dumps(prompt, ensure_ascii=False)


def keys_of(prompt: str, responses: Iterable[str]) -> list[bytes]:
    """Of the texts of one prompt, as `prompt_text` writes it: xxh3-64 of the prompt, then xxh3-128 of prompt and response."""
    written = prompt.encode()
    first, whole = xxhash.xxh3_64_digest(written), xxhash.xxh3_128(written + b"\0")
    keys = []
    for response in responses:
        digest = whole.copy()
        digest.update(response.encode())
        keys.append(first + digest.digest())
    return keys


def bits_of(plan: Plan) -> int:
    """There are 2 to this power buckets: so many that each holds `_BUCKET_BYTES` of text, or less."""
    text = sum(file.size * (_EXPANDS if file.kind == "parquet" or file.compression else 1) for file in plan.files)
    return min(_MOST_BITS, max(0, math.ceil(math.log2(max(1.0, text / _BUCKET_BYTES)))))


def bucket_of(key: bytes, bits: int) -> int:
    """All texts of one prompt are in one bucket."""
    return int.from_bytes(key[:2], "big") >> (16 - bits)


class Bundle:
    """Texts of one bucket, as they are shuffled: each prompt once, compressed."""

    def __init__(self) -> None:
        self._prompts: dict[str, int] = {}
        self._columns: tuple[list[Any], ...] = ([], [], [], [], [])

    def add(
        self, prompt: str, responses: Sequence[str], keys: Sequence[bytes], *, unit: int, input_bytes: float
    ) -> int:
        """Hold texts of one prompt; the bytes that they take, about."""
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
    """What waits for the rewards of one bucket."""

    texts: pa.Table  # each once, sorted by key
    waiting: pa.Table  # key and unit, as often as they came
    input_bytes: float  # of all that came

    @classmethod
    def of(cls, parts: Iterable[bytes]) -> Bucket:
        """From what `Bundle` has made, in any order."""
        table = from_ipc(parts, TEXTS).unify_dictionaries()
        words = _words(table["key"])
        order = np.lexsort((words[:, 2], words[:, 1], words[:, 0]))
        ordered = words[order]
        first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
        texts = table.select(["key", "prompt", "response"]).take(pa.array(order[first])).combine_chunks()
        return cls(texts, table.select(["key", "unit"]), float(np.sum(table["input_bytes"].to_numpy())))

    def without(self, known: Mapping[bytes, int]) -> pa.Table:
        """The texts that are not known yet, in order."""
        unknown = [key not in known for key in self.texts["key"].to_pylist()]
        return self.texts.filter(pa.array(unknown)).combine_chunks()


def _words(keys: pa.ChunkedArray) -> Any:
    """Keys as three unsigned integers each [N, 3], in the order of the bytes."""
    return np.frombuffer(b"".join(keys.to_pylist()), dtype=">u8").astype(np.uint64).reshape(-1, 3)


def pieces(texts: pa.Table, *, responses: int) -> Iterator[pa.Table]:
    """Sorted texts cut into pieces of at most so many responses, and of about `FRAGMENT_BYTES` at most: between two prompts,
    unless one alone has more."""
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


def groups_of(texts: pa.Table) -> list[tuple[Conversation, list[str]]]:
    """The texts of a piece as the model is given them, in order."""
    prompts = texts["prompt"].combine_chunks()
    numbers, responses = prompts.indices.to_pylist(), texts["response"].to_pylist()
    groups: list[tuple[Conversation, list[str]]] = []
    last = None
    for number, response in zip(numbers, responses, strict=True):
        if number != last:
            turns = json.loads(prompts.dictionary[number].as_py())
            groups.append((tuple((role, content) for role, content in turns), []))
            last = number
        groups[-1][1].append(response)
    return groups


def score_piece(scorer: Scorer, texts: pa.Table, plan: Plan) -> pa.Table:
    """What the model says of a piece (`RESULTS`), in order.

    Raises `ModelLoadError` where no response to several prompts has a reward, and the model is to blame for each.
    """
    groups = groups_of(texts)
    columns: dict[str, list[Any]] = {name: [] for name in RESULTS.names[1:]}
    for scores in scorer.score(groups):
        columns["reason"] += scores.reasons
        for name in ("prompt_tokens", "response_tokens", "truncated"):
            columns[name] += np.asarray(getattr(scores, name)).tolist()
        pairs = zip(scores.rewards, scores.reasons, strict=True)
        columns["reward"] += [None if reason else float(reward) for reward, reason in pairs]
    if len(groups) > 1:
        refuse_broken_model(columns["reason"], plan)
    arrays = [pa.array(columns[name], RESULTS.field(name).type) for name in columns]
    return pa.table([texts["key"], *arrays], schema=RESULTS)


@dataclass(frozen=True)
class Results:
    """What the model says of some texts; a scorer of these alone."""

    table: pa.Table
    rows: Mapping[bytes, int]  # of each key; of equal ones the first

    @classmethod
    def of(cls, tables: Sequence[pa.Table]) -> Results:
        table = pa.concat_tables([RESULTS.empty_table(), *tables]).combine_chunks()
        rows: dict[bytes, int] = {}
        for row, key in enumerate(table["key"].to_pylist()):
            rows.setdefault(key, row)
        return cls(table, rows)

    def of_units(self, waiting: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """(unit, the results that it waits for, each once), by unit."""
        wanted: dict[int, dict[int, None]] = {}
        for key, unit in zip(waiting["key"].to_pylist(), waiting["unit"].to_pylist(), strict=True):
            wanted.setdefault(unit, {})[self.rows[key]] = None
        for unit in sorted(wanted):
            yield unit, self.table.take(pa.array(sorted(wanted[unit])))

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> list[_Found]:
        """Raises `StorageError` for a text that is not among these."""
        keys = [keys_of(prompt_text(prompt), responses) for prompt, responses in groups]
        try:
            rows = pa.array([self.rows[key] for group in keys for key in group], pa.int64())
        except KeyError:
            raise StorageError("a text was shuffled and has no result; run the same command again") from None
        columns = [self.table[name].take(rows).to_pylist() for name in RESULTS.names[1:]]
        ends = list(itertools.accumulate(map(len, keys)))
        return [
            _Found(*(column[start:end] for column in columns)) for start, end in zip([0, *ends], ends, strict=False)
        ]


class _Found(NamedTuple):
    """Results of one group, as a scorer gives them; in the order of `RESULTS`."""

    rewards: list[float | None]
    reasons: list[str | None]
    prompt_tokens: list[int]
    response_tokens: list[int]
    truncated: list[bool]


# durable results: one file a piece, in a directory for each bucket


def directory_of(scores: str, bucket: int, bits: int) -> str:
    """Where the results of a bucket are, below the score files of one model."""
    return join(scores, "colocated", f"{bits:02d}-{bucket:04x}")


def encode(results: pa.Table, fingerprint: str) -> bytes:
    described = json.dumps({"fingerprint": fingerprint, "format": _FORMAT})
    metadata = {_DESCRIBED: described.encode(), _HASH: score_files.columns_hash(results, described).encode()}
    sink = io.BytesIO()
    pq.write_table(results.replace_schema_metadata(metadata), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def decode(data: bytes, fingerprint: str) -> pa.Table | None:
    """The results in a file; None where the bytes are not a whole and unharmed one of this model."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        described = (table.schema.metadata or {})[_DESCRIBED].decode()
        whole = table.schema.metadata[_HASH].decode() == score_files.columns_hash(table, described)
        own = json.loads(described) == {"fingerprint": fingerprint, "format": _FORMAT}
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError):
        return None
    return table.replace_schema_metadata(None) if whole and own and table.schema.equals(RESULTS) else None


def read_results(directory: str, fingerprint: str) -> list[pa.Table]:
    """All that is there and holds."""
    found = (read_bytes(join(directory, name)) for name in names_in(directory))
    tables = (decode(data, fingerprint) for data in found if data is not None)
    return [table for table in tables if table is not None]


def publish_results(directory: str, results: pa.Table, fingerprint: str) -> pa.Table:
    """Publish the results of a piece, under a hash of its texts; those that stand, which may be another worker's."""
    keys = b"".join(results["key"].to_pylist())
    path = join(directory, f"{xxhash.xxh3_128_hexdigest(keys)}.parquet")

    def accept(data: bytes) -> pa.Table | None:
        existing = decode(data, fingerprint)
        return existing if existing is not None and existing["key"].equals(results["key"]) else None

    return publish.settle(path, encode(results, fingerprint), accepts=accept, ours=results)
