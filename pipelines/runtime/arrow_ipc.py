"""Bytes for the shuffle and for side inputs: Arrow tables, and elements of several kinds that a tag distinguishes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa


def to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def from_ipc(parts: Iterable[bytes], schema: pa.Schema) -> pa.Table:
    """The concatenation of all parts, in the given order; an empty table if there are none."""
    tables = [pa.ipc.open_stream(part).read_all() for part in parts]
    return pa.concat_tables(tables) if tables else schema.empty_table()


class Tag(NamedTuple):
    """The first byte of the elements of one kind, if elements of several kinds are flattened and grouped together.

    >>> score, text = Tag(b"s"), Tag(b"t")
    >>> list(score.select([score.add(b"1"), text.add(b"x"), score.add(b"2")]))
    [b'1', b'2']
    """

    code: bytes

    def add(self, data: bytes) -> bytes:
        return self.code + data

    def remove(self, element: bytes) -> bytes:
        return element[len(self.code) :]

    def select(self, elements: Iterable[bytes]) -> Iterator[bytes]:
        """The elements with this tag, in the given order and without the tag."""
        return (self.remove(element) for element in elements if element.startswith(self.code))
