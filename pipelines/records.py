"""The small records that stages hand to one another; stages themselves never import each other."""

from __future__ import annotations

from typing import Any, NamedTuple


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
