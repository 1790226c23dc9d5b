"""Gives the fragments of one unit their score files, from a scorer or from rewards that the rows carry. No Beam.

Valid score files are looked up before anything is scored. That one mechanism is resume, incremental scoring and caching.

Example, of a fragment of two rows with two responses each, the last of them empty:

    scorer.score([(prompt_a, [text, text]), (prompt_b, [text])])  →  a `GroupScores` for each prompt
    score_fragment(scorer, fragment, plan)  →  a table of four rows (`score_files.COLUMNS`), the last with a reason
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import Limits
from pipelines.corpus import Fragment, Row, Unit, original_columns, original_schema
from pipelines.corpus.fragments import groups_of
from pipelines.errors import InputError, ModelLoadError
from pipelines.plan import Plan
from pipelines.runtime import counters, progress
from pipelines.runtime.threaded_dofn import one_ahead
from pipelines.score import score_files
from pipelines.score.score_files import Footer, ScoreFile
from pipelines.score.side_files import UnitSideFiles
from pipelines.score.unit_scores import LookUp, ScoreDirectories, UnitScores
from rm.conversations import Conversation, count_characters, response_hash

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


ScorerFactory = Callable[[Plan], Scorer]
ScorerOf = Callable[[Fragment, str], Scorer]
"""(fragment, its content hash) → its scorer."""

NO_LIMITS = Limits()
_MANY = 16  # responses that the model has read; its failure on nearly all of so many is no accident of the data
_NEARLY_ALL = 0.9


@dataclass(frozen=True)
class UnitScorer:
    """Gives every fragment of a unit a score file: the existing one, or one with the results of its scorer; and side files.

    Without a `scorer_of`, every fragment must have been scored before, unless the rows carry their rewards. With `read_only`,
    carried rewards must be in score files already, too, and nothing is written.
    """

    plan: Plan
    directories: ScoreDirectories
    scorer_of: ScorerOf | None
    read_only: bool = False
    limits: Limits = NO_LIMITS
    _prepare: list[Callable[[Groups], Groups]] = field(
        default_factory=list, init=False
    )  # of the scorer, once there is one

    def read_leading(self, file_number: int, unit: Unit, look_up: LookUp = map) -> list[ScoreFile]:
        """The unit's valid score files from its first fragment on, see `UnitScores.read_leading`."""
        leading = self._unit_scores(file_number, unit).read_leading(look_up)
        return self._side_files(file_number, unit).add_existing(leading, look_up)

    def score_unit(
        self, file_number: int, unit: Unit, existing: Sequence[ScoreFile], *, stripe: int = 0, stripes: int = 1
    ) -> Iterator[ScoreFile]:
        """Yield the unit's score files in order, each durable by then, beginning with the `existing` ones that `read_leading` has
        just returned. With stripes, only those of fragments whose number is `stripe` modulo `stripes`.

        Raises `BestkeptError`.
        """
        unit_scores, side_files = self._unit_scores(file_number, unit), self._side_files(file_number, unit)
        whole = [] if self.limits.verify else [*itertools.takewhile(side_files.has_all, existing)]
        yield from count_existing(whole[stripe::stripes], unit)
        if whole and whole[-1].footer.last:
            return
        waiting = self._look_up(unit_scores, unit, len(existing), stripe=stripe, stripes=stripes)
        # reading, hashing and tokenising the next fragment takes a few percent of the time of a fast model
        for work in waiting if self.scorer_of is None else one_ahead(waiting):
            fragment = work.fragment
            if fragment.index < len(whole):
                continue
            if fragment.index < len(existing):
                unit_scores.check(fragment, existing[fragment.index].footer)
                known = side_files.ensure(fragment, existing[fragment.index], read_only=self.read_only)
                yield from count_existing([known], unit)
                continue
            score_file, is_new = self._score_fragment(unit_scores, work)
            score_file = side_files.ensure(fragment, score_file, read_only=self.read_only)
            _count(score_file.footer, input_bytes=work.input_bytes, found=not is_new)
            yield score_file

    def _look_up(
        self, unit_scores: UnitScores, unit: Unit, existing: int, *, stripe: int, stripes: int
    ) -> Iterator[_FragmentWork]:
        """Read the fragments of a stripe, those after the `existing` ones with their score files if there are any."""
        seen = 0
        for fragment in self.plan.fragments(unit_scores.file, unit, as_planned=True):
            done = fragment.rows[-1].seen_bytes if fragment.rows and not fragment.last else unit.input_bytes
            fragment_bytes, seen = done - seen, done
            if fragment.index % stripes != stripe:
                continue
            if fragment.index < existing:
                yield _FragmentWork(fragment, fragment_bytes)
                continue
            content_hash = fragment.content_hash()
            original = original_columns.dump(original_schema(unit_scores.file, fragment))
            path, known = unit_scores.find(fragment.index, content_hash, original)
            groups = None
            if known is None and self._prepare:  # the scorer of the fragment before
                groups = self._prepare[0](groups_of(_usable(fragment)))
            yield _FragmentWork(fragment, fragment_bytes, content_hash, original, path, known, groups)

    def _unit_scores(self, file_number: int, unit: Unit) -> UnitScores:
        return UnitScores(self.plan, self.directories.of(self.plan.fingerprint), file_number, unit)

    def _side_files(self, file_number: int, unit: Unit) -> UnitSideFiles:
        return UnitSideFiles(self.plan, self.directories, file_number, unit)

    def _score_fragment(self, unit_scores: UnitScores, work: _FragmentWork) -> tuple[ScoreFile, bool]:
        """The fragment's score file, and whether this call made it."""
        fragment, content_hash, original = work.fragment, work.content_hash, work.original
        path, existing = work.path, work.existing
        # it was looked for ahead, and another run may have scored it meanwhile
        if existing is None and self.scorer_of is not None:
            path, existing = unit_scores.find(fragment.index, content_hash, original)
        file, number = unit_scores.file, unit_scores.file_number
        if existing is not None:
            columns, footer = existing
            if score_files.original_schema(columns) == original:
                return ScoreFile(path, number, footer), False
            if not self.read_only:  # the same text under columns of other types: nothing to score
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
        self._prepare.extend([scorer.prepare] if isinstance(scorer, PreparingScorer) and not self._prepare else ())
        columns, tokens, left_out = score_fragment(scorer, fragment, self.plan, groups=work.groups)
        footer = unit_scores.footer(fragment, columns, content_hash, tokens, left_out)
        return ScoreFile(path, number, score_files.write(path, columns, footer, original)), True


class _FragmentWork(NamedTuple):
    """A fragment, and for one beyond the known score files its hash, its path and its score file, if there is one."""

    fragment: Fragment
    input_bytes: int
    content_hash: str = ""
    original: str = ""
    path: str = ""
    existing: tuple[pa.Table, Footer] | None = None
    groups: Groups | None = None  # prepared


def _usable(fragment: Fragment) -> list[Row]:
    return [row for row in fragment.rows if row.parsed.prompt is not None]


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


class GroupResult(NamedTuple):
    """A scorer's results for the K responses to one prompt, in their order."""

    reward: Sequence[float | None]  # None where there is a reason
    reason: Sequence[str | None]
    prompt_tokens: Sequence[int]
    response_tokens: Sequence[int]
    truncated: Sequence[bool]

    @classmethod
    def of(cls, scores: Any) -> GroupResult:
        """From an `rm.scorer.GroupScores`."""
        if isinstance(scores, cls):
            return scores
        return cls(
            [None if reason else float(reward) for reward, reason in zip(scores.rewards, scores.reasons, strict=True)],
            scores.reasons,
            *(
                np.asarray(column).tolist()
                for column in (scores.prompt_tokens, scores.response_tokens, scores.truncated)
            ),
        )

    @classmethod
    def carried(cls, row: Row) -> GroupResult:
        """From the rewards that a row carries (`scores.column`); there are no tokens without a tokenizer."""
        pairs = zip(row.parsed.responses, row.rewards or (), strict=True)
        rewards = [reward for response, reward in pairs if response is not None]
        reasons = ["no_reward" if reward is None else None for reward in rewards]
        zeros = [0] * len(rewards)
        return cls(rewards, reasons, zeros, zeros, [False] * len(rewards))


def result_columns(results: Sequence[GroupResult]) -> dict[str, pa.Array]:
    """The results of all groups, one after the other: an array for each field."""
    joined = {name: [value for result in results for value in getattr(result, name)] for name in GroupResult._fields}
    return {name: pa.array(values, score_files.COLUMNS.field(name).type) for name, values in joined.items()}


def score_fragment(
    scorer: Scorer | None, fragment: Fragment, plan: Plan, *, groups: Groups | None = None
) -> tuple[pa.Table, int, Counter[str]]:
    """A fragment's score columns (`score_files.COLUMNS` and the carried ones), one row per response, its tokens, and the number
    of scored responses by key that the template leaves out, if the scorer counts them. `groups` are the fragment's, if prepared.

    Without a scorer, rewards are those that the rows carry (`scores.column`).

    Raises `ModelLoadError` where the model is to blame, and not the data, see `refuse_broken_model`.
    """
    usable = _usable(fragment)
    left_out = Counter[str]()
    scored: list[Any] = []
    if scorer is None:
        results = [GroupResult.carried(row) for row in usable]
    else:
        scored = [
            scores
            for _, scores in zip(usable, scorer.score(groups_of(usable) if groups is None else groups), strict=True)
        ]
        results = [GroupResult.of(scores) for scores in scored]
        for scores, result in zip(scored, results, strict=True):
            for index, keys in getattr(scores, "left_out", {}).items():
                left_out.update(keys if result.reason[index] is None else ())
    columns = _unscored_columns(fragment.rows, plan.mapping.carry)
    is_usable = columns["response_hash"].is_valid()
    for name, values in result_columns(results).items():
        columns[name] = pc.replace_with_mask(columns[name], is_usable, values)
    for name in plan.model.get("outputs", {}).get("names", ()):
        values = np.concatenate([np.zeros(0, np.float32), *(scores.outputs[name] for scores in scored)])
        nulls = pa.nulls(len(is_usable), pa.float32())
        columns[f"signal.{name}"] = pc.replace_with_mask(nulls, is_usable, pa.array(values, mask=np.isnan(values)))
    refuse_broken_model(columns["reason"].to_pylist(), plan)
    tokens = sum(pc.sum(columns[name]).as_py() or 0 for name in ("prompt_tokens", "response_tokens"))
    return pa.table(columns), tokens, left_out


def _unscored_columns(rows: Sequence[Row], carry: Sequence[str]) -> dict[str, pa.Array]:
    """The score columns of rows, one value per response, as they are where none is usable."""
    row_of = [row for row in rows for _ in row.parsed.responses]
    responses = [response for row in rows for response in row.parsed.responses]
    zeros = [0] * len(responses)
    values: dict[str, Sequence[Any]] = {
        "row": [row.number for row in row_of],
        "response_index": [index for row in rows for index in range(len(row.parsed.responses))],
        "prompt_key": [row.group_key for row in row_of],
        "response_hash": [None if response is None else response_hash(response) for response in responses],
        "reward": [None] * len(responses),
        "reason": [reason for row in rows for reason in row.parsed.reasons],
        "prompt_tokens": zeros,
        "response_tokens": zeros,
        "response_chars": [0 if response is None else count_characters(response) for response in responses],
        "row_bytes": [row.row_bytes for row in row_of],
        "truncated": [False] * len(responses),
        "source": [row.source for row in row_of],
    }
    columns = {field.name: pa.array(values[field.name], field.type) for field in score_files.COLUMNS}
    carried = zip(*(row.carry for row in row_of), strict=True) if row_of else [()] * len(carry)
    for name, column in zip(carry, carried, strict=True):
        columns[f"carry.{name}"] = pa.array(column, pa.string())
    return columns


def refuse_broken_model(reasons: Sequence[str | None], plan: Plan) -> None:
    """Raise `ModelLoadError` where the model fails on nearly every response of a fragment, or gives none of them a reward.

    Then it is not the data. Responses that the model has not read, for reasons of their own, do not count.
    """
    counts = Counter(reasons)
    failed, nan = counts["model_error"], counts["nan_reward"]
    reached = failed + nan + counts["out_of_memory"] + counts[None]
    if reached < _MANY or (failed < _NEARLY_ALL * reached and failed + nan < reached):
        return
    if failed:
        what, remedy = "fails on", "the log says how; check that it scores a text in plain transformers"
    else:
        what, remedy = "gives NaN for", "try model.dtype=float32"
    part = "every response" if failed + nan == reached else f"{failed} of the responses"
    raise ModelLoadError(
        f"the model {what} {part} of a fragment ({reached} responses) in {plan.model['dtype']}; {remedy}"
    )
