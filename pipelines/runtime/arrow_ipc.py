"""Arrow tables as bytes, for the shuffle and for side inputs."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa


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
