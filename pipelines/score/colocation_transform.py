"""Colocate (`score.colocate: prompt`) regroups texts by prompt before they are scored, so that the common tokens of a prompt's
responses are computed once even if the responses are in different files. The opt-in exception to "text is never shuffled".

    units with fragments to score  →  their texts, by a partition of the prompts
    texts of a partition  →  scored in pieces, the results already durable  →  the results of each unit
    a unit and its results  →  its score files, with the same names, footers and columns as from `ScoreUnits`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.shared import Shared

from pipelines.config import Limits
from pipelines.corpus import Fragment, Unit, UnitKey, UnreadableError
from pipelines.errors import InputError, StorageError, carrying_errors
from pipelines.plan import plan_at
from pipelines.runtime import progress
from pipelines.runtime.arrow_ipc import Tag, from_ipc, to_ipc
from pipelines.runtime.threaded_dofn import map_ahead
from pipelines.runtime.transforms import PCollection
from pipelines.score.colocation import (
    RESULTS,
    Bucket,
    Bundle,
    Results,
    bits_of,
    bucket_of,
    directory_of,
    keys_of,
    prompt_text,
    publish_results,
    read_results,
    score_piece,
    split_texts,
)
from pipelines.score.load_model import acquire_scorer, ending_with_device, process_name
from pipelines.score.side_files import UnitSideFiles
from pipelines.score.skip_transform import skip_or_raise
from pipelines.score.unit_scorer import NO_LIMITS, Scorer, ScorerFactory, UnitScorer, count_existing, waiting_fragments
from pipelines.score.unit_scores import ScoreDirectories, UnitScores
from pipelines.score.work import UnitFields
from pipelines.storage import publish

_MAX_HELD_BYTES = 32 * 2**20  # of text in a bundle, before it is shuffled
_UNIT, _RESULTS = Tag(b"U"), Tag(b"R")  # of the elements that GroupResults gathers by unit


_Keyed = tuple[int, bytes]  # by bucket, or by packed `UnitKey`


@dataclass(eq=False)  # not frozen: Beam sets `pipeline` on a transform applied to a root or a dict
class Colocate(beam.PTransform):  # type: ignore[misc]
    """(file number, unit) → {scores: `ScoreFile` descriptors as bytes, skipped: (file, reason)}, as from `ScoreUnits`."""

    plan_path: str
    directories: ScoreDirectories
    _: KW_ONLY
    scorer: ScorerFactory
    limits: Limits = NO_LIMITS
    accelerator: str | None = None  # a hint for the workers of ScorePrompts, see `RunnerConfig`

    def expand(self, units: PCollection[UnitFields]) -> dict[str, PCollection[Any]]:
        shuffled = self._shuffle(units)
        results = self._score(shuffled.texts)
        written = self._write(shuffled.units, results)
        return {
            "scores": (shuffled.scores, written.scores) | "FoundAndWritten" >> beam.Flatten(),
            "skipped": (shuffled.skipped, written.skipped) | "EitherUnread" >> beam.Flatten(),
        }

    def _shuffle(self, units: PCollection[UnitFields]) -> Any:
        """{texts, units, scores, skipped}, the outputs of ShuffleTexts."""
        shuffle_texts = beam.ParDo(ShuffleTexts(self.plan_path, self.directories, self.limits))
        typed = shuffle_texts.with_output_types(_Keyed, units=_Keyed, scores=bytes, skipped=tuple[int, str])
        return units | "ShuffleTexts" >> typed.with_outputs("units", "scores", "skipped", main="texts")

    def _score(self, texts: PCollection[_Keyed]) -> PCollection[_Keyed]:
        """(bucket, texts) → (unit, results)."""
        hints = {} if self.accelerator is None else {"accelerator": self.accelerator}
        score_prompts = beam.ParDo(ScorePrompts(self.plan_path, self.directories, self.scorer))
        typed = score_prompts.with_resource_hints(**hints).with_output_types(_Keyed)
        return texts | "GroupByPrompt" >> beam.GroupByKey() | "ScorePrompts" >> typed

    def _write(self, units: PCollection[_Keyed], results: PCollection[_Keyed]) -> Any:
        """{scores, skipped}, the outputs of WriteScores."""
        grouped = (units, results) | "UnitsAndResults" >> beam.Flatten() | "GroupResults" >> beam.GroupByKey()
        write_scores = beam.ParDo(WriteScores(self.plan_path, self.directories, self.limits))
        typed = write_scores.with_output_types(bytes, skipped=tuple[int, str])
        return grouped | "WriteScores" >> typed.with_outputs("skipped", main="scores")


@dataclass(eq=False)
class ShuffleTexts(beam.DoFn):  # type: ignore[misc]
    """(file number, unit) → (bucket, texts of fragments that have no score file yet); in `units`, the units that wait for
    results, as (unit, content hashes); in `scores`, the descriptors of units that have all their score files."""

    plan_path: str
    directories: ScoreDirectories
    limits: Limits

    def start_bundle(self) -> None:
        self._held: dict[int, Bundle] = {}
        self._held_bytes = 0

    def process(self, element: UnitFields) -> Iterator[Any]:
        file_number, unit = element[0], Unit(*element[1])  # never in stripes: its texts are read once
        with carrying_errors():
            plan = plan_at(self.plan_path)
            unit_scores = UnitScores(plan, self.directories.of(plan.fingerprint), file_number, unit)
            side_files = UnitSideFiles(plan, self.directories, file_number, unit)
            look_up = map_ahead if self.directories.on_object_store(plan) else map
            existing = side_files.add_existing(unit_scores.read_leading(look_up), look_up)
            is_complete = bool(existing) and existing[-1].footer.last
            if is_complete and side_files.has_all(existing[-1]) and not self.limits.verify:
                for score_file in count_existing(existing, unit):
                    yield beam.pvalue.TaggedOutput("scores", score_file.to_bytes())
                return
            hashes: dict[int, str] = {}
            try:
                for fragment, content_hash in () if is_complete else waiting_fragments(unit_scores, existing):
                    hashes[fragment.index] = content_hash
                    self._hold(fragment, UnitKey(file_number, unit.number), bits=bits_of(plan))
                    if self._held_bytes > _MAX_HELD_BYTES:
                        yield from self._release()
            except UnreadableError as error:
                yield skip_or_raise(file_number, error, self.limits)
                return
        described = json.dumps({"unit": unit, "hashes": sorted(hashes.items())}).encode()
        yield beam.pvalue.TaggedOutput("units", (UnitKey(file_number, unit.number).pack(), _UNIT.add(described)))

    def finish_bundle(self) -> Iterator[Any]:
        for output in self._release():
            yield GlobalWindows.windowed_value(output)

    def _hold(self, fragment: Fragment, unit: UnitKey, *, bits: int) -> None:
        seen = fragment.rows[-1].seen_bytes - fragment.rows[0].seen_bytes if fragment.rows else 0
        bytes_per_row = seen / max(1, len(fragment.rows) - 1)
        for row in fragment.rows:
            responses = [response for response in row.parsed.responses if response is not None]
            if row.parsed.prompt is None or not responses:
                continue
            prompt = prompt_text(row.parsed.prompt)
            keys = keys_of(prompt, responses)
            bundle = self._held.setdefault(bucket_of(keys[0], bits), Bundle())
            self._held_bytes += bundle.add(prompt, responses, keys, unit=unit.pack(), input_bytes=bytes_per_row)

    def _release(self) -> Iterator[tuple[int, bytes]]:
        held, self._held, self._held_bytes = self._held, {}, 0
        for bucket in sorted(held):
            yield bucket, held.pop(bucket).to_bytes()


class ScorePrompts(beam.DoFn):  # type: ignore[misc]
    """(bucket, its texts) → (unit, the results of its texts), already durable. Texts with results of an earlier run are not
    scored again."""

    def __init__(self, plan_path: str, directories: ScoreDirectories, scorer: ScorerFactory) -> None:
        self._plan_path = plan_path
        self._directories = directories
        self._make_scorer = scorer
        self._shared = Shared()
        self._launcher = process_name()

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        number, parts = element
        with carrying_errors(), ending_with_device(self._launcher):
            plan = plan_at(self._plan_path)
            bucket = Bucket.of(parts)
            directory = directory_of(self._directories.of(plan.fingerprint)[0], number, bits_of(plan))
            publish.sweep([directory])
            tables = read_results(directory, plan.fingerprint)
            known = Results.of(tables).rows
            bytes_per_text = bucket.input_bytes / bucket.texts.num_rows
            for piece in split_texts(bucket.without(known), responses=plan.rows_per_fragment):
                scorer = acquire_scorer(self._shared, self._make_scorer, plan)
                progress.begin_fragment(input_bytes=round(bytes_per_text * piece.num_rows), responses=piece.num_rows)
                results = score_piece(scorer, piece, plan)
                tables.append(publish_results(directory, results, plan.fingerprint))
            for unit, unit_results in Results.of(tables).of_units(bucket.waiting):
                yield unit, _RESULTS.add(to_ipc(unit_results))


@dataclass(eq=False)
class WriteScores(beam.DoFn):  # type: ignore[misc]
    """(unit, its description and the results of its texts) → one descriptor per fragment, whose score file is already durable."""

    plan_path: str
    directories: ScoreDirectories
    limits: Limits

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[Any]:
        file_number, parts = UnitKey.unpack(element[0]).file, list(element[1])
        with carrying_errors():
            plan = plan_at(self.plan_path)
            path = plan.files[file_number].path
            described = next(_UNIT.select(parts), None)
            if (
                described is None and self.limits.skip_bad_files
            ):  # it became unreadable after some of its texts were shuffled
                return
            if described is None:
                raise StorageError(f"the texts of {path} were shuffled without their unit; run the same command again")
            fields = json.loads(described)
            results = Results.of([from_ipc([part], RESULTS) for part in _RESULTS.select(parts)])
            scorer_of = partial(_results_of, results, dict(fields["hashes"]), path)
            unit_scorer = UnitScorer(plan, self.directories, scorer_of, limits=self.limits)
            try:
                unit = Unit(*fields["unit"])
                existing = unit_scorer.read_leading(file_number, unit)
                for score_file in unit_scorer.score_unit(file_number, unit, existing):
                    yield score_file.to_bytes()
            except UnreadableError as error:
                yield skip_or_raise(file_number, error, self.limits)


def _results_of(results: Results, hashes: dict[int, str], path: str, fragment: Fragment, content_hash: str) -> Scorer:
    """The scorer of a fragment, without a model. Raises `InputError` if the fragment is not the one that was shuffled."""
    if hashes.get(fragment.index) != content_hash:
        raise InputError(
            f"input file {path} has changed while it was scored, or one of its score files has gone; run the same command again"
        )
    return results
