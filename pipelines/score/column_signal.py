"""Signals without a model: the numbers of a column of the corpus, as a measure of side files. No Beam, no files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from pipelines.corpus import Fragment, Row
from pipelines.corpus.columns.row_mapping import value_at
from pipelines.errors import InputError
from pipelines.score.expression_values import number_in


@dataclass(frozen=True)
class ColumnSignal:
    """The numbers of one column, as float32 or null."""

    name: str
    column: str  # or a path to a field of records

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> ColumnSignal:
        return cls(settings["name"], settings["column"])

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(f"signal.{self.name}", pa.float32())])

    def beside(self, fragment: Fragment) -> str:
        """A hash of the values, which the content hash does not cover."""
        values = [self._value(row) for row in fragment.rows]
        return xxhash.xxh3_128_hexdigest(json.dumps(values, default=str).encode())

    def measure(self, fragment: Fragment) -> list[pa.Array]:
        numbers = [number for row in fragment.rows for number in self._numbers(row)]
        with np.errstate(over="ignore"):
            values = np.array(numbers, dtype=np.float64).astype(np.float32)
        return [pa.array(values, mask=~np.isfinite(values))]

    def _value(self, row: Row) -> Any:
        return row.original[self.column] if self.column in row.original else value_at(row.original, self.column)

    def _numbers(self, row: Row) -> Iterator[float]:
        """The number of each response of the row, NaN for null."""
        value, count = self._value(row), len(row.parsed.responses)
        values = value if isinstance(value, list) else [value] * count
        if len(values) != count:
            values = [None] * count
        elif row.parsed.order is not None:
            values = [values[at] for at in row.parsed.order]
        yield from map(self._number, values)

    def _number(self, value: Any) -> float:
        number = number_in(value) if isinstance(value, str) else None
        if value is None:
            return float("nan")
        if isinstance(value, bool | int | float | Decimal):
            try:
                number = float(value)
            except OverflowError:
                return float("nan")
        if number is None:
            raise InputError(
                f"the column {self.column!r} of signals.{self.name} has a value of type {type(value).__name__} that is not a "
                "number; expected numbers, or true and false: name another column, or correct this one"
            )
        return number
