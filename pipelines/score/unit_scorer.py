"""Makes the score files of one unit, from a scorer or from rewards that the rows carry. No Beam.

Valid score files are looked up before anything is scored: this one mechanism provides resuming, incremental scoring and caching.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from pipelines.config import Limits
from pipelines.corpus import Fragment, Unit, original_columns, original_schema
from pipelines.corpus.decoded_units import read_stripe
from pipelines.corpus.fragments import groups_of
from pipelines.errors import InputError
from pipelines.plan import Plan
from pipelines.runtime import counters, progress
from pipelines.runtime.threaded_dofn import OneAhead
from pipelines.score import score_files
from pipelines.score.score_columns import score_columns, usable_rows
from pipelines.score.score_files import Footer, ScoreFile
from pipelines.score.side_files import UnitSideFiles
from pipelines.score.unit_scores import LookUp, ScoreDirectories, UnitScores
from rm.conversations import Conversation

Groups = Sequence[tuple[Conversation, Sequence[str]]]


class Scorer(Protocol):
    """The part of `rm.scorer.Scorer` that scoring uses."""

    def score(self, groups: Groups) -> Sequence[Any]:
        """One `rm.scorer.GroupScores`, or `GroupResult`, for each group."""
        ...


@runtime_checkable
class PreparingScorer(Scorer, Protocol):
    """A scorer that can begin with groups while it scores others."""

    def prepare(self, groups: Groups) -> Groups:
        """The same groups, to be scored once."""
        ...

    def score(self, groups: Groups, following: Callable[[], Groups | None] = ...) -> Sequence[Any]:
        """The scores of groups; the device then begins with the `following` groups, if they are prepared."""
        ...


ScorerFactory = Callable[[Plan], Scorer]
ScorerOf = Callable[[Fragment, str], Scorer]
"""(fragment, its content hash) → its scorer."""

NO_LIMITS = Limits()


@dataclass(frozen=True)
class UnitScorer:
    """Ensures that every fragment of a unit has its side files and a score file: the existing one, or one from its scorer.

    Without a `scorer_of`, every fragment must have been scored before, unless the rows carry their rewards. With `read_only`,
    carried rewards must also be in score files already, and nothing is written.
    """

    plan: Plan
    directories: ScoreDirectories
    scorer_of: ScorerOf | None
    read_only: bool = False
    limits: Limits = NO_LIMITS
    # the scorer, once there is one; its owner decides when it is released
    _known: list[weakref.ref[PreparingScorer]] = field(default_factory=list, init=False, compare=False)

    def read_leading(self, file_number: int, unit: Unit, look_up: LookUp = map) -> list[ScoreFile]:
        """The unit's valid score files from its first fragment on, see `UnitScores.read_leading`."""
        leading = self._unit_scores(file_number, unit).read_leading(look_up)
        return self._side_files(file_number, unit).add_existing(leading, look_up)

    def score_unit(
        self, file_number: int, unit: Unit, existing: Sequence[ScoreFile], *, stripe: int = 0, stripes: int = 1
    ) -> Iterator[ScoreFile]:
        """Yield the unit's score files in order, see `begin_unit`. Raises `BestkeptError`."""
        return self.begin_unit(file_number, unit, existing, stripe=stripe, stripes=stripes).score_files()

    def begin_unit(
        self, file_number: int, unit: Unit, existing: Sequence[ScoreFile], *, stripe: int = 0, stripes: int = 1
    ) -> UnitRun:
        """Begin to read a unit of which `read_leading` has just returned the `existing` score files. With stripes, only fragments
        whose number is `stripe` modulo `stripes` are included."""
        unit_scores, side_files = self._unit_scores(file_number, unit), self._side_files(file_number, unit)
        whole = [] if self.limits.verify else [*itertools.takewhile(side_files.has_all, existing)]
        waiting: Iterator[_FragmentWork] = iter(())
        if not (whole and whole[-1].footer.last):
            waiting = self._look_up(unit_scores, unit, len(existing), stripe=stripe, stripes=stripes)
            # reading, hashing and tokenising the next fragment takes a few percent of the time of a fast model
            waiting = waiting if self.scorer_of is None else OneAhead(waiting)
        return UnitRun(self, unit_scores, side_files, existing, whole, whole[stripe::stripes], waiting)

    def _look_up(
        self, unit_scores: UnitScores, unit: Unit, existing: int, *, stripe: int, stripes: int
    ) -> Iterator[_FragmentWork]:
        """Read the fragments of a stripe, and look up the score files of those beyond the `existing` ones."""
        plan, file = self.plan, unit_scores.file
        read = partial(plan.raw_fragments, file, unit, as_planned=True)
        for raw in read_stripe(plan.reading_key(file, unit), read, stripe=stripe, stripes=stripes):
            fragment = raw.parse(plan.mapping)
            if fragment.index < existing:
                yield _FragmentWork(fragment, raw.input_bytes)
                continue
            content_hash = fragment.content_hash()
            original = original_columns.dump(original_schema(file, fragment))
            path, known = unit_scores.find(fragment.index, content_hash, original)
            work = _FragmentWork(fragment, raw.input_bytes, content_hash, original, path, known)
            self.prepare(work)
            yield work

    def prepare(self, work: _FragmentWork) -> None:
        """Let the previous fragment's scorer, if there is one already, begin with a fragment that is to be scored."""
        scorer = self._known[-1]() if self._known else None
        if scorer is not None and work.groups is None and work.content_hash and work.existing is None:
            work.groups = scorer.prepare(groups_of(usable_rows(work.fragment)))

    def _unit_scores(self, file_number: int, unit: Unit) -> UnitScores:
        return UnitScores(self.plan, self.directories.of(self.plan.fingerprint), file_number, unit)

    def _side_files(self, file_number: int, unit: Unit) -> UnitSideFiles:
        return UnitSideFiles(self.plan, self.directories, file_number, unit)

    def score_fragment(
        self, unit_scores: UnitScores, work: _FragmentWork, following: Callable[[], Groups | None]
    ) -> tuple[ScoreFile, bool]:
        """The fragment's score file, and whether this call made it; `following` returns the groups that are scored next."""
        fragment, content_hash, original = work.fragment, work.content_hash, work.original
        path, existing = work.path, work.existing
        # looked up in advance: another run may have scored it since
        if existing is None and self.scorer_of is not None:
            path, existing = unit_scores.find(fragment.index, content_hash, original)
        file, number = unit_scores.file, unit_scores.file_number
        if existing is not None:
            columns, footer = existing
            if score_files.original_schema(columns) == original:
                return ScoreFile(path, number, footer), False
            if not self.read_only:  # the same text in columns of other types: nothing to score
                footer = replace(footer, file_size=file.size, file_version=file.version)
                return ScoreFile(path, number, score_files.write(path, columns, footer, original)), False
        carried = self.plan.mapping.reward is not None
        if self.read_only or (self.scorer_of is None and not carried):
            raise InputError(
                f"{file.path} has rows that are not scored yet (looked in {' and '.join(unit_scores.directories)}); run "
                f"`bestkept {'select' if carried else 'score'}` with the same configuration first"
            )
        scorer = None if carried or self.scorer_of is None else self.scorer_of(fragment, content_hash)
        progress.begin_fragment(
            input_bytes=work.input_bytes, responses=sum(len(row.parsed.responses) for row in fragment.rows)
        )
        groups = groups_of(usable_rows(fragment)) if work.groups is None else work.groups
        if isinstance(scorer, PreparingScorer):
            self._known[:] = [weakref.ref(scorer)]
            scored: Sequence[Any] | None = scorer.score(groups, following)
        else:
            scored = None if scorer is None else scorer.score(groups)
        columns, tokens, left_out = score_columns(fragment, scored, self.plan)
        footer = unit_scores.footer(fragment, columns, content_hash, tokens, left_out)
        return ScoreFile(path, number, score_files.write(path, columns, footer, original)), True


@dataclass
class UnitRun:
    """A unit whose first fragment is being read, and the next unit, if it has begun."""

    scorer: UnitScorer
    unit_scores: UnitScores
    side_files: UnitSideFiles
    existing: Sequence[ScoreFile]
    whole: Sequence[ScoreFile]  # the first of these, which need no check
    done: Sequence[ScoreFile]  # those of `whole` that are in the stripe
    works: Iterator[_FragmentWork]
    following: UnitRun | None = None

    def score_files(self) -> Iterator[ScoreFile]:
        """Yield the unit's score files in order, each already durable, the existing ones first. Raises `BestkeptError`."""
        try:
            yield from self._score_files()
        finally:
            if isinstance(self.works, OneAhead):
                self.works.close()

    def _score_files(self) -> Iterator[ScoreFile]:
        unit, read_only = self.unit_scores.unit, self.scorer.read_only
        yield from count_existing(self.done, unit)
        for work in self.works:
            fragment = work.fragment
            if fragment.index < len(self.whole):
                continue
            if fragment.index < len(self.existing):
                known = self.existing[fragment.index]
                self.unit_scores.check(fragment, known.footer)
                yield from count_existing([self.side_files.ensure(fragment, known, read_only=read_only)], unit)
                continue
            score_file, is_new = self.scorer.score_fragment(self.unit_scores, work, self.prepared)
            score_file = self.side_files.ensure(fragment, score_file, read_only=read_only)
            _count(score_file.footer, input_bytes=work.input_bytes, found=not is_new)
            yield score_file

    def prepared(self) -> Groups | None:
        """The groups that are scored next, of this unit or the next one, if they are already prepared."""
        if not isinstance(self.works, OneAhead) or self.works.at_end:
            return None if self.following is None else self.following.prepared()
        work: _FragmentWork | None = self.works.ready()
        if work is None:
            return None
        self.scorer.prepare(work)  # it may have been read before the model was loaded
        return work.groups


def score_in_line(runs: Iterable[UnitRun]) -> Iterator[ScoreFile]:
    """Yield the score files of units; each unit is begun before its predecessor is scored."""
    before: UnitRun | None = None
    for run in itertools.chain(runs, [None]):
        if before is not None:
            before.following = run
            yield from before.score_files()
        before = run


@dataclass
class _FragmentWork:
    """A fragment; beyond the existing score files, also its hash, its path and its score file, if any."""

    fragment: Fragment
    input_bytes: int
    content_hash: str = ""
    original: str = ""
    path: str = ""
    existing: tuple[pa.Table, Footer] | None = None
    groups: Groups | None = None  # prepared


def waiting_fragments(unit_scores: UnitScores, existing: Sequence[ScoreFile]) -> Iterator[tuple[Fragment, str]]:
    """The fragments after the `existing` score files for which `UnitScorer` would need a scorer, with their content hashes."""
    for fragment in unit_scores.plan.fragments(unit_scores.file, unit_scores.unit, as_planned=True):
        if fragment.index >= len(existing):
            content_hash = fragment.content_hash()
            original = original_columns.dump(original_schema(unit_scores.file, fragment))
            if unit_scores.find(fragment.index, content_hash, original)[1] is None:
                yield fragment, content_hash


def count_existing(existing: Sequence[ScoreFile], unit: Unit) -> Iterator[ScoreFile]:
    """Yield these score files, each counted as done in the progress."""
    for score_file in existing:
        _count(score_file.footer, input_bytes=unit.input_bytes if score_file.footer.last else 0, found=True)
        yield score_file


def _count(footer: Footer, *, input_bytes: int, found: bool) -> None:
    counters.count_fragment(input_bytes=input_bytes, responses=footer.responses, scored=footer.scored, found=found)
