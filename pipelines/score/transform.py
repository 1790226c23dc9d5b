"""ScoreCorpus: a plan → descriptors of score files, one for each fragment of the corpus.

`ScoreUnits` streams a unit, scores each fragment that has no valid score file yet, and publishes it. Only `ScoreUnits`
and `ScorePrompts` (of `score.colocate`) use the model of a run, and text never leaves them. Valid score files are looked up
before anything is scored: this one mechanism provides resuming, incremental scoring and caching.

Example:

    outputs = pipeline | "Score" >> ScoreCorpus(plan_path, ScoreDirectories("out/scores"), scorer=LoadScorer())
    outputs["scores"]  # a PCollection of `ScoreFile.to_bytes()`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsIter, PBegin
from apache_beam.utils.shared import Shared

from pipelines.config import Limits
from pipelines.corpus import InputFile, Unit, UnreadableError, decoded_units, probe, rewritten_copy
from pipelines.corpus.rewrite import rewrite
from pipelines.errors import InputError, carrying_errors
from pipelines.plan import Plan, plan_at
from pipelines.runtime.threaded_dofn import ThreadedDoFn, map_ahead
from pipelines.runtime.transforms import PCollection, Spread, in_global_window
from pipelines.score.load_model import acquire_scorer, ending_with_device, process_name
from pipelines.score.score_files import ScoreFile
from pipelines.score.skip_transform import skip_or_raise
from pipelines.score.unit_scorer import NO_LIMITS, ScorerFactory, UnitRun, UnitScorer
from pipelines.score.unit_scores import ScoreDirectories, UnitScores
from pipelines.score.work import CorpusShard, UnitFields, bytes_in, stripes_of, units_in, units_of_shard
from pipelines.storage.files import is_local

_SEARCHES = 64  # of score files, one for each unit of which stripes are scored


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class ScoreCorpus(beam.PTransform):  # type: ignore[misc]
    """Plan → {scores: `ScoreFile` descriptors as bytes}; if `limits` allow files to be skipped, also {skipped: (file, reason)}.

    Without a `scorer`, every fragment must have been scored before. With `read_only`, carried rewards must also be in score files
    already, and nothing is written.
    """

    plan_path: str
    directories: ScoreDirectories
    _: KW_ONLY
    scorer: ScorerFactory | None
    after: PCollection[Any] | None = None  # complete before scoring begins
    read_only: bool = False
    limits: Limits = NO_LIMITS
    accelerator: str | None = None  # a hint for the workers of ScoreUnits, see `RunnerConfig`
    shard: CorpusShard | None = None  # the only part of the corpus that is scored
    element_secs: float = math.inf  # the wanted maximum of work in an element of ScoreUnits
    colocate: beam.PTransform | None = None  # in place of ScoreUnits, see `score.colocation_transform`

    def expand(self, begin: PBegin) -> dict[str, PCollection[Any]]:
        rewritten = self._rewrite(self._list_files(begin))
        split = self._split(rewritten.files)
        units = split.units | "SpreadUnits" >> Spread()
        scored = self._score(units) if self.colocate is None else units | "Colocate" >> self.colocate
        outputs = {"scores": scored["scores"] | "KeepScored" >> Spread()}
        if self.limits.skip_bad_files:
            skipped = (rewritten.skipped, split.skipped, scored["skipped"])
            outputs["skipped"] = skipped | "EitherSkipped" >> beam.Flatten()
        return outputs

    def _list_files(self, begin: PBegin) -> PCollection[int]:
        wait = [] if self.after is None else [AsIter(self.after)]
        read_plan = beam.FlatMap(file_numbers, self.plan_path, self.shard, *wait).with_output_types(int)
        return begin | "ListFiles" >> beam.Impulse() | "ReadPlan" >> read_plan | "SpreadFiles" >> Spread()

    def _rewrite(self, files: PCollection[int]) -> Any:
        """{files, skipped}, the outputs of RewriteLarge."""
        rewrite_large = beam.ParDo(RewriteLarge(self.plan_path, self.limits, self.read_only))
        typed = rewrite_large.with_output_types(int, skipped=tuple[int, str])
        return files | "RewriteLarge" >> typed.with_outputs("skipped", main="files")

    def _split(self, files: PCollection[int]) -> Any:
        """{units, skipped}, the outputs of SplitUnits."""
        is_striped = self.scorer is not None and self.colocate is None  # the other steps read whole units
        secs = self.element_secs if is_striped else math.inf
        split_units = beam.ParDo(SplitUnits(self.plan_path, self.directories, self.limits, self.shard, secs))
        fields = tuple[int, tuple[int, int, int, int], tuple[int, int]]
        typed = split_units.with_output_types(fields, skipped=tuple[int, str])
        return files | "SplitUnits" >> typed.with_outputs("skipped", main="units")

    def _score(self, units: PCollection[UnitFields]) -> dict[str, PCollection[Any]]:
        score: beam.DoFn = ScoreUnits(
            self.plan_path, self.directories, self.scorer, read_only=self.read_only, limits=self.limits
        )
        if self.scorer is None:
            score = FindScores(score)
        hints = {} if self.accelerator is None or self.scorer is None else {"accelerator": self.accelerator}
        typed = beam.ParDo(score).with_resource_hints(**hints).with_output_types(bytes, skipped=tuple[int, str])
        scored = units | "ScoreUnits" >> typed.with_outputs("skipped", main="scores")
        return {"scores": scored.scores, "skipped": scored.skipped}


def file_numbers(
    _impulse: bytes, plan_path: str, shard: CorpusShard | None = None, _after: Any = None
) -> Iterator[int]:
    """The numbers of a plan's files; with a `shard`, of those that are in it or have units in it."""
    with carrying_errors():
        yield from range(len(plan_at(plan_path).files)) if shard is None else units_of_shard(plan_path, shard)


@dataclass(eq=False)
class RewriteLarge(beam.DoFn):  # type: ignore[misc]
    """File number → the same number, once any rewritten copy of the file exists; in `skipped`, files that cannot be read."""

    plan_path: str
    limits: Limits
    read_only: bool = False

    def process(self, file_number: int) -> Iterator[Any]:
        with carrying_errors():
            plan = plan_at(self.plan_path)
            file = plan.files[file_number]
            try:
                if file.copy is not None:
                    self._ensure(file, file.copy, plan.max_row_bytes)
                yield file_number
            except UnreadableError as error:
                yield skip_or_raise(file_number, error, self.limits)

    def _ensure(self, file: InputFile, copy: str, max_row_bytes: int) -> None:
        if not self.read_only:
            rewrite(file, copy, max_row_bytes=max_row_bytes, verify=self.limits.verify)
        elif rewritten_copy.read_index(copy) is None:
            raise InputError(
                f"the copy of {file.path} in {copy}, whose units were scored, is gone; run `bestkept score` or `bestkept select` "
                "with the same configuration first: it is written anew"
            )


@lru_cache(maxsize=4)
def _most_bytes(secs: float, plan_path: str) -> float:
    """See `bytes_in`, which looks at the weights and at the devices."""
    return bytes_in(secs, plan_at(plan_path))


@dataclass(eq=False)
class SplitUnits(ThreadedDoFn):
    """File number → its units, or stripes of units that would take more than `element_secs`. Opens footers on the workers."""

    plan_path: str
    directories: ScoreDirectories
    limits: Limits
    shard: CorpusShard | None = None
    element_secs: float = math.inf

    def waits_for_store(self) -> bool:
        return not is_local(plan_at(self.plan_path).files[0].path)

    def work(self, file_number: int) -> list[Any]:
        plan = plan_at(self.plan_path)
        file, most_bytes = plan.files[file_number], _most_bytes(self.element_secs, self.plan_path)
        try:
            if self.limits.skip_bad_files:
                # without this, a file whose scores all exist would first be opened by export, which cannot skip it
                probe(file.path)
            units = units_in(file_number, file, self.plan_path, self.shard)
            return [part for unit in units for part in self._parts(file_number, unit, plan, most_bytes)]
        except UnreadableError as error:
            return [skip_or_raise(file_number, error, self.limits)]

    def _parts(self, file_number: int, unit: Unit, plan: Plan, most_bytes: float) -> list[UnitFields]:
        """The stripes of a unit; one if it is scored already, since each stripe would look for all of its score files."""
        parts = stripes_of(file_number, unit, plan, most_bytes)
        if len(parts) == 1:
            return parts
        scores = UnitScores(plan, self.directories.of(plan.fingerprint), file_number, unit)
        leading = scores.read_leading(map_ahead if self.directories.on_object_store(plan) else map)
        return [(file_number, tuple(unit), (0, 1))] if leading and leading[-1].footer.last else parts


class ScoreUnits(beam.DoFn):  # type: ignore[misc]
    """(file number, unit, stripe) → one descriptor per fragment, whose score file is already durable."""

    def __init__(
        self,
        plan_path: str,
        directories: ScoreDirectories,
        scorer: ScorerFactory | None,
        *,
        read_only: bool = False,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self._read_only = read_only
        self._plan_path = plan_path
        self._directories = directories
        self._make_scorer = scorer
        self._limits = limits
        self._shared = Shared()
        self._launcher = process_name()
        self._scorer: UnitScorer | None = None
        self._search: Callable[[int, Unit], list[ScoreFile]] | None = None
        self._skipped: frozenset[int] = frozenset()  # files whose error is logged
        self._begun: tuple[UnitFields, UnitRun] | None = None  # an element of the bundle that waits for the next one

    def setup(self) -> None:
        decoded_units.hold()

    def teardown(self) -> None:
        decoded_units.release()

    def start_bundle(self) -> None:
        self._begun = None

    def process(self, element: UnitFields) -> Iterator[Any]:
        file_number, fields, (stripe, stripes) = element
        with carrying_errors():
            run = self.begin_unit(file_number, Unit(*fields), stripe=stripe, stripes=stripes)
        before, self._begun = self._begun, (element, run)
        if before is not None:
            before[1].following = run
            yield from self._descriptors(*before)

    def finish_bundle(self) -> Iterator[Any]:
        before, self._begun = self._begun, None
        if before is not None:
            yield from map(in_global_window, self._descriptors(*before))

    def descriptors(self, element: UnitFields, existing: Sequence[ScoreFile]) -> Iterator[Any]:
        """Yield a descriptor for each fragment, or, for a skipped file, its number and the reason."""
        file_number, fields, _ = element
        with carrying_errors():
            yield from self._descriptors(element, self.begin_unit(file_number, Unit(*fields), existing))

    def _descriptors(self, element: UnitFields, run: UnitRun) -> Iterator[Any]:
        file_number = element[0]
        with carrying_errors(), ending_with_device(self._launcher):
            try:
                for score_file in run.score_files():
                    yield score_file.to_bytes()
            except UnreadableError as error:  # which other stripes of the unit may meet, too
                is_logged, self._skipped = file_number in self._skipped, self._skipped | {file_number}
                yield skip_or_raise(file_number, error, self._limits, is_logged=is_logged)

    def begin_unit(
        self,
        file_number: int,
        unit: Unit,
        existing: Sequence[ScoreFile] | None = None,
        *,
        stripe: int = 0,
        stripes: int = 1,
    ) -> UnitRun:
        """See `UnitScorer.begin_unit`. Without `existing` score files, looks for them, once for all stripes of a unit. Raises
        `BestkeptError`."""
        scorer = self._unit_scorer()
        if existing is None:
            self._search = self._search or lru_cache(_SEARCHES)(self.read_leading)
            existing = (self._search if stripes > 1 else self.read_leading)(file_number, unit)
        return scorer.begin_unit(file_number, unit, existing, stripe=stripe, stripes=stripes)

    def read_leading(self, file_number: int, unit: Unit) -> list[ScoreFile]:
        """See `UnitScorer.read_leading`."""
        return self._unit_scorer().read_leading(file_number, unit, map_ahead if self.waits_for_store() else map)

    def waits_for_store(self) -> bool:
        """See `ScoreDirectories.on_object_store`."""
        return self._directories.on_object_store(plan_at(self._plan_path))

    def _unit_scorer(self) -> UnitScorer:
        if self._scorer is None:  # one for all units, with the model that they share
            plan, make = plan_at(self._plan_path), self._make_scorer
            scorer_of = None if make is None else lambda *_: acquire_scorer(self._shared, make, plan)
            self._scorer = UnitScorer(
                plan, self._directories, scorer_of, read_only=self._read_only, limits=self._limits
            )
        return self._scorer


class FindScores(ThreadedDoFn):
    """`ScoreUnits` without a model, for several units at a time: most of the work is looking for score files."""

    def __init__(self, score: ScoreUnits) -> None:
        self._score = score

    def waits_for_store(self) -> bool:
        return self._score.waits_for_store()

    def work(self, element: UnitFields) -> tuple[UnitFields, list[ScoreFile]]:
        file_number, fields, _ = element
        return element, self._score.read_leading(file_number, Unit(*fields))

    def collect(self, result: tuple[UnitFields, list[ScoreFile]]) -> Iterator[Any]:
        yield from self._score.descriptors(*result)
