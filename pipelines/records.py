"""The small records that stages hand to one another; stages themselves never import each other."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

EXAMPLES = 3
_UNIT = struct.Struct("<qq")


@dataclass(frozen=True)
class Totals:
    """What scoring came to: read = scored + rejected."""

    rows: int = 0
    read: int = 0
    scored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    examples: tuple[
        tuple[str, int, int, str], ...
    ] = ()  # the first rejected: file, start of the unit, row in it, reason

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "rejected": dict(sorted(self.rejected.items())),
            "examples": [*map(list, self.examples)],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Totals:
        own = {entry.name: values[entry.name] for entry in fields(cls)}
        return cls(**{**own, "rejected": Counter(own["rejected"]), "examples": tuple(map(tuple, own["examples"]))})

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.rows + other.rows,
            self.read + other.read,
            self.scored + other.scored,
            self.rejected + other.rejected,
            self.truncated + other.truncated,
            self.tokens + other.tokens,
            tuple(sorted(self.examples + other.examples)[:EXAMPLES]),
        )


class KeptUnit(NamedTuple):
    """One unit's kept responses in place order."""

    file: int
    unit: int
    kept: bytes  # Arrow IPC, see `columnar.Needs`

    def to_bytes(self) -> bytes:
        return _UNIT.pack(self.file, self.unit) + self.kept

    @classmethod
    def from_bytes(cls, data: bytes) -> KeptUnit:
        file, unit = _UNIT.unpack_from(data)
        return cls(file, unit, data[_UNIT.size :])


class Shard(NamedTuple):
    """A published shard; the manifest lists all but `memory_bytes`."""

    name: str
    rows: int
    bytes: int
    xxh3_128: str
    memory_bytes: int  # of its rows as Arrow tables

    @property
    def split(self) -> str:
        return self.name.rpartition("/")[2].partition("-")[0]

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if name != "memory_bytes"}
