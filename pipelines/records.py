"""The small records that stages hand to one another; stages themselves never import each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Totals:
    """What scoring came to: read = scored + rejected."""

    rows: int = 0
    read: int = 0
    scored: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rejected": dict(sorted(self.rejected.items()))}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Totals:
        names = ("rows", "read", "scored", "truncated", "tokens")
        return cls(rejected=Counter(fields["rejected"]), **{name: fields[name] for name in names})

    def __add__(self, other: Totals) -> Totals:
        return Totals(
            self.rows + other.rows,
            self.read + other.read,
            self.scored + other.scored,
            self.rejected + other.rejected,
            self.truncated + other.truncated,
            self.tokens + other.tokens,
        )


class KeptFile(NamedTuple):
    """One input file's kept responses in place order, and which fragments to check when they are read again."""

    file: int
    kept: bytes  # Arrow IPC of CANDIDATES, sorted by place
    fragments: list[tuple[int, int, str]]  # (unit, fragment, content hash)


class Shard(NamedTuple):
    """A published shard, as the manifest lists it."""

    name: str
    rows: int
    bytes: int
    xxh3_128: str
