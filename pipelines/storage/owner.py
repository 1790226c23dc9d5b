"""The owner of an output: settled once, before anything is published there, and never replaced.

A claim (`finish/claim.py`) may be taken over as long as nothing is published, and a check of the published files is outdated at
once: two runs may both conclude that an output is theirs. Therefore a run creates `owner.json` before it publishes, or finds
that the file names the same inputs and selection. If several runs do so at once, one of them wins, on disks and object stores
alike; no clock decides, and no run needs to know which others are alive. In the same way, `shards.json` settles the numbers of
shards: two runs with equal settings may disagree if an input was replaced by another of the same size between them, and the
output would contain shards of both under different names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pipelines.errors import ConflictError, StorageError
from pipelines.storage.canonical_json import to_json
from pipelines.storage.files import join, read_bytes
from pipelines.storage.publish import create_or_equal, create_or_read
from pipelines.storage.stores.local import Writer
from rm.conversations import load_json

CLAIM, OWNER, SHARDS = "claim.json", "owner.json", "shards.json"
_PARTS = {"inputs": "input files or model", "selection": "select or output settings"}


class Owner(NamedTuple):
    """A selection of a corpus, and the output to which it is published."""

    output: str
    inputs: str  # hashes
    selection: str

    def publish(self, name: str, write: Writer | bytes, *, shards: Mapping[str, int] | None = None) -> str:
        """Publish a file of the output like `create_or_equal`, once the output is settled to be this selection's; with `shards`,
        once the number of shards of each split is also settled."""

        def settle() -> None:
            self.settle()
            if shards is not None:
                self._settle_shards(shards)

        return create_or_equal(join(self.output, name), write, first=settle)

    def settle(self) -> None:
        """Make this selection the owner of the output, or check that it is, before anything is published there.

        Raises `ConflictError` if another selection owns the output or has claimed it, and `StorageError` if the claim is missing.
        """
        if self.is_settled():
            return
        claimed = read_bytes(join(self.output, CLAIM))
        if claimed is None:
            raise StorageError(
                f"{join(self.output, CLAIM)} is missing: the output was removed during the run; run the same command again"
            )
        if self.differences(claimed):
            raise ConflictError(
                f"output.path {self.output} has been claimed by another run since this one began; choose another output.path "
                f"(scores.path={join(self.output, 'scores')} re-uses what is scored there)"
            )
        existing = create_or_read(join(self.output, OWNER), to_json(self._known()))
        if existing is not None and (other := self.differences(existing[0])):
            raise self.conflict(other)

    def is_settled(self) -> bool:
        """Return whether this selection is the final owner of the output; False if none is yet. Raises `ConflictError`."""
        data = read_bytes(join(self.output, OWNER))
        if data is None:
            return False
        if other := self.differences(data):
            raise self.conflict(other)
        return True

    def _settle_shards(self, counts: Mapping[str, int]) -> None:
        path, content = join(self.output, SHARDS), to_json(dict(counts))
        data = read_bytes(path)
        if data is None:
            existing = create_or_read(path, content)
            data = content if existing is None else existing[0]
        if data != content:
            raise ConflictError(
                f"{path} names a different number of shards than this run makes: an input has changed since they were written; "
                "choose another output.path, or remove the old output first"
            )

    def differences(self, claimed: bytes) -> list[str]:
        """The parts in which a claim or an owner differs, in words; all of them for a damaged one."""
        try:
            values: Any = load_json(claimed)
        except ValueError:
            values = None
        known: dict[str, Any] = values if isinstance(values, dict) else {}
        return [words for key, words in _PARTS.items() if known.get(key) != self._known()[key]]

    def conflict(self, other: list[str]) -> ConflictError:
        """The error for an output of a run with other settings, in the words of `differences`."""
        return ConflictError(
            f"output.path {self.output} belongs to a run with other {' and '.join(other)}; choose another output.path "
            f"(scores.path={join(self.output, 'scores')} re-uses what is scored there)"
        )

    def _known(self) -> dict[str, str]:
        return {"inputs": self.inputs, "selection": self.selection}
