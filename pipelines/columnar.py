"""Arrow IPC as plain bytes: how columns travel through a shuffle, and the columns that do.

Elements are `(int, bytes)`: a RecordBatch as an element would pickle its slice's whole parent, and a custom coder is not
safe under the runner's threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.rules import Candidates

_PLACE = [pa.field(name, pa.int32()) for name in ("file", "unit", "row", "response")]

CANDIDATES = pa.schema(
    [
        pa.field("key_high", pa.uint64()),
        pa.field("key_low", pa.uint64()),
        pa.field("reward", pa.float32()),
        pa.field("response_hash", pa.uint64()),
        *_PLACE,
    ]
)  # 44 bytes a row


def to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_ipc(parts: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    """The concatenation of all parts, in the order given; an empty table where there are none."""
    tables = [pa.ipc.open_stream(part).read_all() for part in parts]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def to_candidates(table: pa.Table) -> Candidates:
    return Candidates(*(table[name].to_numpy() for name in CANDIDATES.names))


def to_table(candidates: Candidates) -> pa.Table:
    return pa.table([pa.array(getattr(candidates, name)) for name in CANDIDATES.names], schema=CANDIDATES)


def scored_candidates(scores: pa.Table, *, file: int, unit: int) -> Candidates:
    """The scored rows of a score file (`objects.COLUMNS`) as candidates."""
    scored = scores.filter(scores["reward"].is_valid())
    keys = scored["prompt_key"].combine_chunks()
    halves: Any = np.frombuffer(b"".join(keys.to_pylist()), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    count = scored.num_rows
    return Candidates(
        key_high=halves[:, 0],
        key_low=halves[:, 1],
        reward=scored["reward"].to_numpy(),
        response_hash=scored["response_hash"].to_numpy(),
        file=np.full(count, file, dtype=np.int32),
        unit=np.full(count, unit, dtype=np.int32),
        row=scored["row"].to_numpy(),
        response=scored["response_index"].to_numpy(),
    )


def sort_by_place(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in ("file", "unit", "row", "response")])
