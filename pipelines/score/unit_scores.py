"""Finds the valid score files of one unit. No Beam."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
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

_SMALL_ROWS = 2**16  # in a fragment, whose score file then has a few megabytes
LookUp = Callable[[Callable[[str], "ScoreFile | None"], Iterable[str]], Iterable["ScoreFile | None"]]


class ScoreDirectories(NamedTuple):
    """Directories of score files."""

    path: str  # written to, and read first
    also: tuple[str, ...] = ()  # read if `path` has no score file

    def on_object_store(self, plan: Plan) -> bool:
        """True if reading score files mostly waits for an object store, so that many should be read at once: one takes about
        50 ms, and many hardly longer. False if score files may be so large that many do not fit into memory."""
        return plan.rows_per_fragment <= _SMALL_ROWS and not all(map(is_local, (self.path, *self.also)))

    def of(self, fingerprint: str) -> tuple[str, ...]:
        """The directories of one model, in reading order."""
        return tuple(join(path, fingerprint) for path in (self.path, *self.also))


@dataclass(frozen=True)
class UnitScores:
    """Finds the score files of one unit."""

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
        """The valid score files from the first fragment to the first gap, by the input's size and version only. `look_up` is a
        `map` that may read ahead."""
        leading: list[ScoreFile] = []
        for score_file in look_up(self._current, map(self._name, itertools.count())):
            if score_file is None:
                break
            leading.append(score_file)
            if score_file.footer.last:
                break
        return leading

    def _current(self, name: str) -> ScoreFile | None:
        """The first valid score file of this name that was made from the current input; None if the input's size or version has
        changed, so that its content must be compared."""
        for directory in self.directories:
            path = score_files.path_of(directory, name)
            existing = score_files.read(path)
            if existing is None:
                continue
            footer = existing[1]
            if (footer.file_size, footer.file_version) == (self.file.size, self.file.version):
                return ScoreFile(path, self.file_number, footer)
        return None

    def find(self, index: int, content_hash: str, original: str) -> tuple[str, tuple[pa.Table, Footer] | None]:
        """The path of the fragment's scores, and the content of a valid file with scores of this text, if there is one.

        The plain name is that of the first content seen for a fragment. Changed text, or the same text in columns of other types,
        has another name; in the latter case the scores of the first file are returned, to be written there.
        """
        name, (directory, *others) = self._name(index), self.directories
        path, existing = self._find_in(directory, name, content_hash, original)
        if existing is not None and score_files.original_schema(existing[0]) == original:
            return path, existing
        for other in others:
            other_path, content = self._find_in(other, name, content_hash, original)
            if content is not None and content[1].content_hash == content_hash:
                if score_files.original_schema(content[0]) == original:
                    return other_path, content
                existing = existing or content
        return path, existing

    @staticmethod
    def _find_in(
        directory: str, name: str, content_hash: str, original: str
    ) -> tuple[str, tuple[pa.Table, Footer] | None]:
        plain = score_files.path_of(directory, name)
        existing = score_files.read(plain)
        same_text = existing is not None and existing[1].content_hash == content_hash
        if existing is None or (same_text and score_files.original_schema(existing[0]) == original):
            return plain, existing
        variant = xxhash.xxh3_128_hexdigest(f"{content_hash} {original}".encode())
        changed = score_files.path_of(directory, name, variant)
        return changed, score_files.read(changed) or (existing if same_text else None)

    def footer(
        self, fragment: Fragment, columns: pa.Table, content_hash: str, tokens: int, left_out: Mapping[str, int]
    ) -> Footer:
        """The footer of a fragment's score file with these columns."""
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
            message_keys=fragment.message_keys(),
            cut_prompts=sum(row.parsed.cut for row in fragment.rows),
            left_out=dict(sorted(left_out.items())),
        )

    def check(self, fragment: Fragment, known: Footer) -> None:
        """Raise `InputError` if the score file with the footer `known` was made from other text than the fragment's."""
        if (fragment.content_hash(), fragment.last) != (known.content_hash, known.last):
            raise InputError(
                f"input file {self.file.path} is not what was scored, although its size and version are the same "
                "(limits.verify); restore it, or give it another modification time: then it is scored as changed"
            )


def score_directories(config: RunConfig) -> ScoreDirectories:
    """The absolute directories of `scores.path` and `scores.also`."""
    return ScoreDirectories(scores_path(config), tuple(map(absolute, config.scores.also)))


def scores_path(config: RunConfig) -> str:
    """The absolute directory that score files are written to."""
    return absolute(config.scores_path)
