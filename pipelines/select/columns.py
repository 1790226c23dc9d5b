"""Columns in a shuffle, as Arrow IPC bytes, and the choice of the columns that a run shuffles.

Elements are `(int, bytes)`: a RecordBatch as an element would pickle its slice's whole parent, and a custom coder is not
safe under the runner's threads. A column that no rule needs is not shuffled, and is zeros afterwards.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.config.expression_terms import BUILT_IN
from pipelines.runtime.arrow_ipc import from_ipc, to_ipc
from pipelines.select.candidates import COLUMN_NAMES, Candidates, Labels, zero_columns

_UNIT = struct.Struct("<qq")

_PLACE = ("response_hash", "file", "unit", "row", "response")
_KINDS = {
    "key_high": pa.uint64(),
    "key_low": pa.uint64(),
    "response_hash": pa.uint64(),
    "reward": pa.float32(),
    "raw": pa.float32(),
    "margin": pa.float32(),
    "rival": pa.float32(),
    "other_hash": pa.uint64(),
    "other_raw": pa.float32(),
}
_LABEL = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class Needs:
    """The columns that the rules and the output of a run need beside those that are always shuffled (44 bytes a row)."""

    key: bool = True
    place: bool = True  # and response hash
    tokens: bool = False
    length: bool = False
    raw: bool = False
    rank: bool = False
    margin: bool = False
    rival: bool = False
    other: bool = False
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  # numbers of score files that expressions read
    marks: tuple[str, ...] = ()  # conditions that are evaluated before the shuffle
    computed: tuple[str, ...] = ()  # numbers that are evaluated before the shuffle

    @property
    def columns(self) -> tuple[str, ...]:
        """The needed columns of `Candidates`, without labels."""
        return _columns(self)

    @property
    def schema(self) -> pa.Schema:
        return _schema(self)

    @property
    def read(self) -> Needs:
        """The needs of rows that no rule has seen, without the columns that rules compute."""
        return replace(self, rank=False, margin=False, rival=False, other=False)

    @property
    def kept(self) -> Needs:
        """The needs of the kept rows, after the last rule."""
        return replace(self, tokens=False, length=False, rival=False, labels=(), values=(), marks=(), computed=())


@lru_cache(maxsize=16)
def _columns(needs: Needs) -> tuple[str, ...]:
    return tuple(
        name
        for name in COLUMN_NAMES
        if name == "reward" or (needs.place if name in _PLACE else getattr(needs, name.partition("_")[0]))
    )


@lru_cache(maxsize=16)
def _schema(needs: Needs) -> pa.Schema:
    plain = [pa.field(name, _KINDS.get(name, pa.int32())) for name in needs.columns]
    labels = [pa.field(f"label.{name}", _LABEL) for name in needs.labels]
    values = [pa.field(f"value.{name}", value_type(name)) for name in needs.values]
    marks = [pa.field(f"mark.{name}", pa.uint8()) for name in needs.marks]
    computed = [pa.field(f"computed.{name}", pa.float64()) for name in needs.computed]
    return pa.schema([*plain, *labels, *values, *marks, *computed])


def value_type(name: str) -> pa.DataType:
    """The type of a number that expressions read."""
    if name in BUILT_IN:
        return pa.uint8() if name == "truncated" else pa.int32()
    return pa.float32()


def to_table(candidates: Candidates, needs: Needs) -> pa.Table:
    plain = [pa.array(getattr(candidates, name)) for name in needs.columns]
    labels = [_to_dictionary(candidates.labels[name]) for name in needs.labels]
    values = [pa.array(candidates.values[name]) for name in (*needs.values, *needs.marks, *needs.computed)]
    return pa.table([*plain, *labels, *values], schema=needs.schema)


def to_candidates(table: pa.Table, needs: Needs) -> Candidates:
    columns: dict[str, Any] = {
        **zero_columns(table.num_rows),
        **{name: table[name].to_numpy() for name in needs.columns},
    }
    if not needs.raw:
        columns["raw"] = columns["reward"]
    values = {name: table[f"value.{name}"].to_numpy() for name in needs.values}
    values |= {name: table[f"mark.{name}"].to_numpy() for name in needs.marks}
    values |= {name: table[f"computed.{name}"].to_numpy() for name in needs.computed}
    return Candidates(
        **columns, labels={name: to_labels(table[f"label.{name}"]) for name in needs.labels}, values=values
    )


def pack(candidates: Candidates, needs: Needs) -> bytes:
    return to_ipc(to_table(candidates, needs))


def unpack(parts: Iterable[bytes], needs: Needs) -> Candidates:
    return to_candidates(from_ipc(parts, needs.schema), needs)


def sizes_of(candidates: Candidates, needs: Needs) -> Any:
    """The size of each row: tokens, or characters if there is no tokenizer."""
    return candidates.tokens if needs.tokens else candidates.length


def total_size(candidates: Candidates, needs: Needs) -> int:
    return int(sizes_of(candidates, needs).sum(dtype=np.int64))


def keep_needed(candidates: Candidates, needs: Needs) -> Candidates:
    """The same rows with only those labels and values that `needs` names."""
    labels = {name: candidates.labels[name] for name in needs.labels}
    values = {name: candidates.values[name] for name in (*needs.values, *needs.marks, *needs.computed)}
    return replace(candidates, labels=labels, values=values)


def concatenate(parts: Sequence[Candidates], needs: Needs) -> Candidates:
    """All parts one after the other."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {**zero_columns(sum(map(len, parts)))}
    for name in needs.columns:
        columns[name] = _join([getattr(part, name) for part in parts])
    if not needs.raw:
        columns["raw"] = columns["reward"]
    labels = {
        name: to_labels(pa.chunked_array([_to_dictionary(part.labels[name]) for part in parts], type=_LABEL))
        for name in needs.labels
    }
    kept_values = (*needs.values, *needs.marks, *needs.computed)
    values = {name: np.concatenate([part.values[name] for part in parts]) for name in kept_values}
    return Candidates(**columns, labels=labels, values=values)


def _join(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """All parts one after the other; a single value for all rows takes no memory afterwards either."""
    filled = [part for part in parts if len(part)]
    if filled and all(part.strides == (0,) and part[0] == filled[0][0] for part in filled):
        return np.broadcast_to(filled[0][:1], (sum(map(len, filled)),))
    return np.concatenate(parts)


def to_labels(column: pa.ChunkedArray) -> Labels:
    """A column of text, dictionary-encoded or not, as codes; equal texts have equal codes."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.DictionaryArray.from_arrays(pa.array([], pa.int32()), pa.array([], pa.string()))
    codes = whole.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    return Labels(codes, tuple(whole.dictionary.to_pylist()))


def _to_dictionary(labels: Labels) -> pa.DictionaryArray:
    missing = labels.codes < 0
    codes = pa.array(labels.codes, mask=missing) if missing.any() else pa.array(labels.codes)
    return pa.DictionaryArray.from_arrays(codes, pa.array(labels.values, pa.string()))


def scores_to_candidates(scores: pa.Table, *, file: int, unit: int, needs: Needs) -> Candidates:
    """The scored rows of a score file (`score_files.COLUMNS` and carried ones) as candidates."""
    count, reward = scores.num_rows, _values(scores["reward"])
    columns: dict[str, Any] = {**zero_columns(count), "reward": reward, "raw": reward}
    if needs.place:
        columns["response_hash"] = _values(scores["response_hash"])
        columns["file"] = np.broadcast_to(np.int32(file), (count,))
        columns["unit"] = np.broadcast_to(np.int32(unit), (count,))
        columns["row"], columns["response"] = _values(scores["row"]), _one_for_all(_values(scores["response_index"]))
    if needs.key:
        columns["key_high"], columns["key_low"] = key_halves(scores["prompt_key"])
    if needs.length:
        columns["length"] = _values(scores["response_chars"])
    if needs.tokens:
        columns["tokens"] = _values(scores["prompt_tokens"]) + _values(scores["response_tokens"])
    labels = {name: to_labels(scores[score_column(name)]) for name in needs.labels}
    values = {name: _values(scores[_value_column(name)].cast(value_type(name)), none=None) for name in needs.values}
    every = Candidates(**columns, labels=labels, values=values)
    valid = scores["reward"].is_valid().to_numpy() if scores["reward"].null_count else None
    return every if valid is None else every.take(valid)


def _values(column: pa.ChunkedArray, none: int | None = 0) -> Any:
    """The column as NumPy, with zeros for nulls; with `none=None`, NaN for nulls of a column of numbers."""
    whole = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    fill = np.nan if none is None and pa.types.is_floating(whole.type) else 0
    return (whole.fill_null(fill) if whole.null_count else whole).to_numpy()


def _one_for_all(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The values; if all are zero, as in a corpus of one response per row, in a form that takes no memory or time."""
    return values if values.any() else np.broadcast_to(np.zeros(1, values.dtype), values.shape)


def key_halves(column: pa.ChunkedArray) -> tuple[Any, Any]:
    """16-byte keys as two unsigned integers each, in the order of the bytes."""
    keys = (
        column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], pa.binary(16)), *column.chunks])
    )
    raw = np.frombuffer(keys.buffers()[1] or b"", dtype=np.uint64, count=2 * len(keys), offset=16 * keys.offset)
    halves = (raw.byteswap() if sys.byteorder == "little" else raw).reshape(-1, 2)
    return np.ascontiguousarray(halves[:, 0]), np.ascontiguousarray(halves[:, 1])


def score_column(name: str) -> str:
    """The column of a score file for a column named by a rule."""
    return name if name == "source" else f"carry.{name}"


def _value_column(name: str) -> str:
    """The column of a score file for a number that expressions read."""
    return name if name in BUILT_IN else f"signal.{name}"


def score_columns(needs: Needs) -> list[str]:
    """The columns of a score file that candidates are made of."""
    plain = ["reward"] + ["prompt_key"] * needs.key + ["response_hash", "row", "response_index"] * needs.place
    plain += ["response_chars"] * needs.length + ["prompt_tokens", "response_tokens"] * needs.tokens
    return list(dict.fromkeys([*plain, *map(score_column, needs.labels), *map(_value_column, needs.values)]))


class KeptUnit(NamedTuple):
    """One unit's kept responses in place order."""

    file: int
    unit: int
    kept: bytes  # Arrow IPC, in the columns of `Needs`

    def to_bytes(self) -> bytes:
        return _UNIT.pack(self.file, self.unit) + self.kept

    @classmethod
    def from_bytes(cls, data: bytes) -> KeptUnit:
        file, unit = _UNIT.unpack_from(data)
        return cls(file, unit, data[_UNIT.size :])
