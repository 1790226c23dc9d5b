"""Where the score files of one unit are, and which of them hold. No Beam."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import xxhash

from pipelines.config import RunConfig
from pipelines.corpus import Fragment, InputFile, Unit
from pipelines.errors import InputError
from pipelines.plan import Plan
from pipelines.score import score_files
from pipelines.score.score_files import Footer, ScoreFile
from pipelines.storage.files import absolute, is_local, join

_SMALL_ROWS = 2**16  # a few megabytes
LookUp = Callable[[Callable[[str], "ScoreFile | None"], Iterable[str]], Iterable["ScoreFile | None"]]


class ScoreDirectories(NamedTuple):
    """Directories of score files: one that is written to, and others that are read where it has none."""

    path: str
    also: tuple[str, ...] = ()

    def on_object_store(self, plan: Plan) -> bool:
        """Whether any of them is on a store, where one score file takes some 50 ms and many at a time hardly longer; not where
        score files may be so large that many do not fit into memory."""
        return plan.rows_per_fragment <= _SMALL_ROWS and not all(map(is_local, (self.path, *self.also)))

    def of(self, fingerprint: str) -> tuple[str, ...]:
        """Those of one model, the first one first."""
        return tuple(join(path, fingerprint) for path in (self.path, *self.also))


@dataclass(frozen=True)
class UnitScores:
    """Where the score files of one unit are, and which of them hold."""

    plan: Plan
    directories: tuple[str, ...]  # the first is written to
    file_number: int
    unit: Unit

    @property
    def file(self) -> InputFile:
        return self.plan.files[self.file_number]

    def _name(self, index: int) -> str:
        return score_files.name_of(
            file_key=self.file.key,
            unit=self.unit.number,
            unit_start=self.unit.start,
            fragment=index,
            rows_per_fragment=self.plan.rows_per_fragment,
        )

    def read_leading(self, look_up: LookUp = map) -> list[ScoreFile]:
        """Valid score files from the first fragment on, as far as they go, by the input's size and version alone; `look_up` is a
        `map` that may look ahead."""
        found: list[ScoreFile] = []
        for score_file in look_up(self._current, map(self._name, itertools.count())):
            if score_file is None:
                break
            found.append(score_file)
            if score_file.footer.last:
                break
        return found

    def _current(self, name: str) -> ScoreFile | None:
        """The first valid score file of this name that was made of the input as it is; where the input has changed, or only its
        version, its content decides."""
        for directory in self.directories:
            path = score_files.path_of(directory, name)
            there = score_files.read(path)
            if there is not None and (there[1].file_size, there[1].file_version) == (self.file.size, self.file.version):
                return ScoreFile(path, self.file_number, there[1])
        return None

    def find(self, index: int, content_hash: str, original: str) -> tuple[str, tuple[pa.Table, Footer] | None]:
        """Where the fragment's scores are or belong, and a valid file's content if one has scores of this text.

        The plain name goes to the first content seen at this place. Changed text, or the same text under columns of
        other types, has its own name; in the latter case the first file's scores come back, to be written there.
        """
        name, (own, *others) = self._name(index), self.directories
        path, there = self._find_in(own, name, content_hash, original)
        for directory in others if there is None or score_files.original_schema(there[0]) != original else ():
            elsewhere, other = self._find_in(directory, name, content_hash, original)
            if other is not None and other[1].content_hash == content_hash:
                if score_files.original_schema(other[0]) == original:
                    return elsewhere, other
                there = there or other
        return path, there

    @staticmethod
    def _find_in(
        directory: str, name: str, content_hash: str, original: str
    ) -> tuple[str, tuple[pa.Table, Footer] | None]:
        plain = score_files.path_of(directory, name)
        there = score_files.read(plain)
        same_text = there is not None and there[1].content_hash == content_hash
        if there is None or (same_text and score_files.original_schema(there[0]) == original):
            return plain, there
        variant = xxhash.xxh3_128_hexdigest(f"{content_hash} {original}".encode())
        changed = score_files.path_of(directory, name, variant)
        return changed, score_files.read(changed) or (there if same_text else None)

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
            **score_files.outcome_of(columns),
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


def score_directories(config: RunConfig) -> ScoreDirectories:
    return ScoreDirectories(scores_path(config), tuple(map(absolute, config.scores.also)))


def scores_path(config: RunConfig) -> str:
    return absolute(config.scores_path)
