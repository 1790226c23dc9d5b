"""Where the score files of one unit are, and which of them hold. No Beam."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import xxhash

from pipelines.errors import InputError
from pipelines.inputs import Fragment, InputFile, Unit
from pipelines.plan import Plan
from pipelines.storage import objects
from pipelines.storage.objects import Footer, ScoreFile


@dataclass(frozen=True)
class UnitScores:
    """Where the score files of one unit are, and which of them hold."""

    plan: Plan
    directory: str
    file_number: int
    unit: Unit

    @property
    def file(self) -> InputFile:
        return self.plan.files[self.file_number]

    def _name(self, index: int) -> str:
        return objects.name_of(
            file_key=self.file.key,
            unit=self.unit.number,
            unit_start=self.unit.start,
            fragment=index,
            rows_per_fragment=self.plan.rows_per_fragment,
        )

    def found_in_order(self) -> list[ScoreFile]:
        """Valid score files from the first fragment on, as far as they go, by the input's size and version alone."""
        found: list[ScoreFile] = []
        while not (found and found[-1].footer.last):
            path = objects.path_of(self.directory, self._name(len(found)))
            there = objects.read(path)
            if there is None:
                break
            footer = there[1]
            if (footer.file_size, footer.file_version) != (self.file.size, self.file.version):
                break  # the file has changed, or only its version: its content decides
            found.append(ScoreFile(path, self.file_number, footer))
        return found

    def find(self, index: int, content_hash: str, original: str) -> tuple[str, tuple[pa.Table, Footer] | None]:
        """Where the fragment's scores are or belong, and a valid file's content if one has scores of this text.

        The plain name goes to the first content seen at this place. Changed text, or the same text under columns of
        other types, has its own name; in the latter case the first file's scores come back, to be written there.
        """
        name = self._name(index)
        plain = objects.path_of(self.directory, name)
        there = objects.read(plain)
        same_text = there is not None and there[1].content_hash == content_hash
        if there is None or (same_text and objects.original_schema(there[0]) == original):
            return plain, there
        variant = xxhash.xxh3_128_hexdigest(f"{content_hash} {original}".encode())
        changed = objects.path_of(self.directory, name, variant)
        return changed, objects.read(changed) or (there if same_text else None)

    def footer(self, fragment: Fragment, columns: pa.Table, content_hash: str, tokens: int) -> Footer:
        return Footer(
            fingerprint=self.plan.fingerprint,
            file_key=self.file.key,
            file_size=self.file.size,
            file_version=self.file.version,
            unit=self.unit.number,
            unit_start=self.unit.start,
            fragment=fragment.index,
            rows=len(fragment.rows),
            last=fragment.last,
            responses=columns.num_rows,
            **objects.outcome_of(columns),
            tokens=tokens,
            text_bytes=sum(row.row_bytes for row in fragment.rows),
            content_hash=content_hash,
        )

    def check(self, fragment: Fragment, known: Footer) -> None:
        """Raise `InputError` where the fragment is not what the score file with the footer `known` was made of."""
        if (fragment.content_hash(), fragment.last) != (known.content_hash, known.last):
            raise InputError(
                f"input file {self.file.path} is not what was scored, although its size and version are the same "
                "(limits.verify); restore it, or give it another modification time: then it is scored as changed"
            )
