"""What gives rewards, and how the fragments of one unit get their score files with it. No Beam.

Looking before scoring is resume, incremental scoring and caching in one mechanism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from pipelines.config import Limits
from pipelines.corpus import Fragment, Row, Unit, original_columns, original_schema
from pipelines.errors import InputError, ModelLoadError
from pipelines.plan import Plan
from pipelines.runtime import counters, progress
from pipelines.score import score_files
from pipelines.score.score_files import Footer, ScoreFile
from pipelines.score.unit_scores import LookUp, ScoreDirectories, UnitScores
from rm.conversations import Conversation, response_hash


class Scorer(Protocol):
    """What `rm.scorer.Scorer` offers."""

    def score(self, groups: Sequence[tuple[Conversation, Sequence[str]]]) -> Sequence[Any]: ...


ScorerFactory = Callable[[Plan], Scorer]
ScorerOf = Callable[[Fragment, str], Scorer]
"""(fragment, its content hash) → what scores it."""

NO_LIMITS = Limits()
_ALL_FAIL = 16  # so many responses, all of which the model fails on: not an accident of the data


@dataclass(frozen=True)
class UnitScorer:
    """Gives every fragment of a unit a score file: the one that is there, or one of what `scorer_of` gives it.

    Without a `scorer_of`, every fragment must have been scored before, unless the rows carry their rewards; with `read_only`,
    those must be in score files already, too, and nothing is written.
    """

    plan: Plan
    directories: ScoreDirectories
    scorer_of: ScorerOf | None
    read_only: bool = False
    limits: Limits = NO_LIMITS

    def found(self, file_number: int, unit: Unit, look_up: LookUp = map) -> list[ScoreFile]:
        """Those of its score files that are there, see `UnitScores.found_in_order`."""
        return self._place(file_number, unit).found_in_order(look_up)

    def score_unit(
        self, file_number: int, unit: Unit, found: Sequence[ScoreFile], *, stripe: int = 0, stripes: int = 1
    ) -> Iterator[ScoreFile]:
        """Its score files in order, each durable when it comes, beginning with those `found` just now; of a stripe, those of
        fragments whose number is `stripe` modulo `stripes` alone. Raises `BestkeptError`."""
        place = self._place(file_number, unit)
        if not self.limits.verify:
            yield from shown(found[stripe::stripes], unit)
            if found and found[-1].footer.last:
                return
        seen = 0
        for fragment in self.plan.fragments(place.file, unit):
            done = fragment.rows[-1].seen_bytes if fragment.rows and not fragment.last else unit.input_bytes
            if fragment.index % stripes != stripe:
                seen = done
                continue
            if fragment.index < len(found):
                seen = done
                if self.limits.verify:
                    place.check(fragment, found[fragment.index].footer)
                    yield from shown([found[fragment.index]], unit)
                continue
            score_file, is_new = self._score_fragment(place, fragment, input_bytes=done - seen)
            _show(score_file.footer, input_bytes=done - seen, found=not is_new)
            seen = done
            yield score_file

    def _place(self, file_number: int, unit: Unit) -> UnitScores:
        return UnitScores(self.plan, self.directories.of(self.plan.fingerprint), file_number, unit)

    def _score_fragment(self, place: UnitScores, fragment: Fragment, *, input_bytes: int) -> tuple[ScoreFile, bool]:
        """The fragment's score file, and whether this call made it."""
        content_hash = fragment.content_hash()
        original = original_columns.dump(original_schema(place.file, fragment))
        path, there = place.find(fragment.index, content_hash, original)
        if there is not None and score_files.original_schema(there[0]) == original:
            return ScoreFile(path, place.file_number, there[1]), False
        if there is not None and not self.read_only:  # the same text under columns of other types: nothing to score
            footer = replace(there[1], file_size=place.file.size, file_version=place.file.version)
            return ScoreFile(path, place.file_number, score_files.write(path, there[0], footer, original)), False
        carried = place.plan.mapping.reward is not None
        if self.read_only or (self.scorer_of is None and not carried):
            raise InputError(
                f"{place.file.path} has rows that are not scored yet (looked in {' and '.join(place.directories)}); run "
                f"`bestkept {'select' if carried else 'score'}` with the same configuration first"
            )
        scorer = None if carried or self.scorer_of is None else self.scorer_of(fragment, content_hash)
        progress.begin_fragment(
            input_bytes=input_bytes, responses=sum(len(row.parsed.responses) for row in fragment.rows)
        )
        columns, tokens = score_fragment(scorer, fragment, place.plan)
        footer = place.footer(fragment, columns, content_hash, tokens)
        return ScoreFile(path, place.file_number, score_files.write(path, columns, footer, original)), True


def waiting_fragments(place: UnitScores, found: Sequence[ScoreFile]) -> Iterator[tuple[Fragment, str]]:
    """The fragments after those `found_in_order` that `UnitScorer` would need a scorer for, with their content hashes."""
    for fragment in place.plan.fragments(place.file, place.unit):
        if fragment.index >= len(found):
            content_hash = fragment.content_hash()
            original = original_columns.dump(original_schema(place.file, fragment))
            if place.find(fragment.index, content_hash, original)[1] is None:
                yield fragment, content_hash


def shown(found: Sequence[ScoreFile], unit: Unit) -> Iterator[ScoreFile]:
    """These score files, each counted as done."""
    for score_file in found:
        _show(score_file.footer, input_bytes=unit.input_bytes if score_file.footer.last else 0, found=True)
        yield score_file


def _show(footer: Footer, *, input_bytes: int, found: bool) -> None:
    counters.count_fragment(input_bytes=input_bytes, responses=footer.responses, scored=footer.scored, found=found)


@dataclass(frozen=True)
class _Carried:
    """Rewards that a row carries itself, as a scorer would give them; a row has no tokens without a tokenizer."""

    rewards: Sequence[float | None]

    @property
    def reasons(self) -> list[str | None]:
        return ["no_reward" if reward is None else None for reward in self.rewards]

    @property
    def prompt_tokens(self) -> list[int]:
        return [0] * len(self.rewards)

    response_tokens = truncated = prompt_tokens


def _carried(row: Row) -> _Carried:
    pairs = zip(row.parsed.responses, row.rewards or (), strict=True)
    return _Carried([reward for response, reward in pairs if response is not None])


def score_fragment(scorer: Scorer | None, fragment: Fragment, plan: Plan) -> tuple[pa.Table, int]:
    """A fragment's score columns (`objects.COLUMNS` and the carried ones), one row per response, and its tokens.

    Without a scorer, rewards are those that the rows carry (`scores.column`).

    Raises `ModelLoadError` where no response of the fragment has a reward, and the model is to blame for each.
    """
    usable = [row for row in fragment.rows if row.parsed.prompt is not None]
    groups = [
        (row.parsed.prompt, [response for response in row.parsed.responses if response is not None])
        for row in usable
        if row.parsed.prompt is not None
    ]
    scored = [_carried(row) for row in usable] if scorer is None else scorer.score(groups)
    results = dict(zip((row.number for row in usable), scored, strict=True))
    carried = [f"carry.{name}" for name in plan.mapping.carry]
    schema = pa.schema([*score_files.COLUMNS, *(pa.field(name, pa.string()) for name in carried)])
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row in fragment.rows:
        position = 0
        for index, (response, reason) in enumerate(zip(row.parsed.responses, row.parsed.reasons, strict=True)):
            values: dict[str, Any] = {"reason": reason, "prompt_tokens": 0, "response_tokens": 0, "truncated": False}
            values["response_chars"] = 0
            if response is not None:
                result = results[row.number]
                values = {
                    "response_hash": response_hash(response),
                    "reason": result.reasons[position],
                    "reward": None if result.reasons[position] else float(result.rewards[position]),
                    "prompt_tokens": int(result.prompt_tokens[position]),
                    "response_tokens": int(result.response_tokens[position]),
                    "truncated": bool(result.truncated[position]),
                    "response_chars": len(response),
                }
                position += 1
            values |= {"row": row.number, "response_index": index, "prompt_key": row.group_key}
            values |= {"row_bytes": row.row_bytes, "source": row.source}
            values |= dict(zip(carried, row.carry, strict=True))
            for name, column in columns.items():
                column.append(values.get(name))
    refuse_broken_model(columns["reason"], plan)
    tokens = sum(columns["prompt_tokens"]) + sum(columns["response_tokens"])
    return pa.table([pa.array(columns[field.name], type=field.type) for field in schema], schema=schema), tokens


def refuse_broken_model(reasons: Sequence[str | None], plan: Plan) -> None:
    """Raise `ModelLoadError` where the model gives no response of a fragment a reward: then it is not the data."""
    if len(reasons) < _ALL_FAIL or not set(reasons) <= {"nan_reward", "model_error"}:
        return
    if set(reasons) == {"nan_reward"}:
        what, remedy = "gives NaN for", "try model.dtype=float32"
    else:
        what, remedy = "fails on", "the log says how; check that it scores a text in plain transformers"
    raise ModelLoadError(
        f"the model {what} every response of a fragment ({len(reasons)} responses) in {plan.model['dtype']}; {remedy}"
    )
