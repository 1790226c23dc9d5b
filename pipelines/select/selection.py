"""The steps of a selection, split into early steps, on score files, and runs of late steps, on whole prompts. No Beam.

For example, of `threshold` (by reward), `top`, `best_of_n`, `top`, `random` the first two are early, since they look at one row
at a time once the cut is known; the late runs are [`best_of_n`] and [`top`, `random`], after the shuffle that brings the
responses to a prompt together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config import BestOfN, DropPrompts, RunConfig, Step, Top
from pipelines.config.rules import crossing_steps
from pipelines.errors import ConfigError
from pipelines.plan import Plan
from pipelines.runtime.step_times import timing
from pipelines.score import score_files
from pipelines.score.ensemble import Moments
from pipelines.score.score_files import ScoreFile
from pipelines.score.unit_scores import score_directories
from pipelines.select.candidates import Candidates
from pipelines.select.columns import Needs, score_columns, scores_to_candidates, total_size, unpack
from pipelines.select.corpus_standards import measure, needs_standards, with_standards
from pipelines.select.expressions import EarlyParts, expression_of, expressions_of, labels_of, values_of
from pipelines.select.length_correction import Curve
from pipelines.select.on_topic import Settled, foreign_column
from pipelines.select.prompt_limits import as_rows
from pipelines.select.rules import apply_rule
from pipelines.select.summary import StepCounts, StepSum
from pipelines.select.top import Cut, keep
from pipelines.storage.canonical_json import digest
from pipelines.storage.owner import Owner

PARTITIONS: int | None = None  # of the key space, instead of as many as the input's size calls for

_BYTES_PER_PARTITION = 2**30  # of stored input: about a million responses, 50 MB in the shuffle
_MOST_PARTITIONS = 4096

OFFSET_WARNING = (  # part of manifest.json and of the card: other words would conflict with outputs that exist
    "compares rewards of different prompts, and a model trained on pairs alone leaves a free offset per prompt: prefer rules "
    "within a prompt (best_of_n, min_z, a reference), or train with train.centring or accept/reject labels"
)


def selection_settings(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """The settings that determine the output, given the score files; their hash identifies a run."""
    output = config.output
    settings: dict[str, Any] = {
        "select": [step.settings() for step in config.select],
        "shape": output.shape,
        "rows_per_shard": output.rows_per_shard,
        "bytes_per_shard": output.bytes_per_shard,
        "include_columns": output.include_columns,
        "add": output.add,
        "license": output.license,
    }
    if any(step.needs_temperature for step in config.select) or "probability" in output.add:
        settings["temperature"] = plan.temperature
    if output.test_fraction is not None:
        settings |= {"test_fraction": output.test_fraction, "split_seed": output.split_seed}
    return settings


def offset_warning(config: RunConfig, plan: Plan) -> str | None:
    """A warning if a step compares rewards of different prompts and the model does not make these comparable."""
    of_signals = [name for name, model in plan.signals.items() if not model.get("comparable", True)]
    of_models = [] if plan.comparable else ["reward", *(name for name in config.numbers if name not in config.signals)]
    crossing = crossing_steps(config.select, [*of_models, *of_signals])
    return f"{crossing[0]} {OFFSET_WARNING}" if crossing else None


def owner_of(config: RunConfig, plan: Plan) -> Owner:
    """The owner of an output of this configuration."""
    return Owner(config.path, plan.content_hash, digest(selection_settings(config, plan)))


@dataclass(frozen=True)
class Selection:
    """The steps of a selection, the columns that they read, and the number of partitions of its shuffle."""

    steps: tuple[Step, ...]
    needs: Needs
    temperature: float | None
    partitions: int
    on_object_store: bool = False  # score files are on one, and reading them is mostly waiting
    signals: tuple[str, ...] = ()  # names of the numbers in the score files that expressions know

    @classmethod
    def of(cls, config: RunConfig, plan: Plan) -> Selection:
        """The selection of a configuration. Raises `ConfigError` if it needs a temperature and the model has none."""
        needing = [f"select.{at}.{step.name}" for at, step in enumerate(config.select) if step.needs_temperature]
        needing += ["output.add"] if "probability" in config.output.add else []
        if needing and plan.temperature is None:
            raise ConfigError(
                f"{needing[0]} needs the temperature of the model's rewards, and model.path has no calibration.json with one; "
                "run `bestkept evaluate` on held-out preferences to write it, or set the step's temperature"
            )
        partitions = PARTITIONS or min(_MOST_PARTITIONS, max(16, plan.input_bytes // _BYTES_PER_PARTITION))
        on_object_store = score_directories(config).on_object_store(plan)
        steps, needs = tuple(config.select), needs_of(config)
        numbers = (*config.numbers, *config.leaks)
        return cls(steps, needs, plan.temperature, partitions, on_object_store, numbers)

    @property
    def correction(self) -> Step | None:
        """The step that corrects rewards for length; only the first step can."""
        return self.steps[0] if self.steps and self.steps[0].length_correction is not None else None

    @property
    def leaks(self) -> list[str]:
        """The numbers that the steps `decontaminate` read."""
        numbers = (step.decontaminate.number for step in self.steps if step.decontaminate is not None)
        return [*dict.fromkeys(numbers)]

    @property
    def early(self) -> range:
        """The numbers of the steps that work on score files directly: the leading steps that do not need whole prompts, up to the
        last `top` or `where` among them."""
        return _early(self.steps)

    @property
    def late(self) -> list[list[int]]:
        """The numbers of the other steps, in runs; each run but the first begins with a step that looks at all prompts."""
        runs: list[list[int]] = [[]]
        for number in range(self.early.stop, len(self.steps)):
            if self.steps[number].needs_cut or self.steps[number].compares_texts:
                runs.append([])
            runs[-1].append(number)
        return runs

    @property
    def changing(self) -> int:
        """The number of leading steps that change rewards, row by row."""
        return _changing(self.steps)

    @property
    def early_parts(self) -> EarlyParts:
        """The parts of the late steps' expressions that are evaluated before the shuffle all the same."""
        return EarlyParts.of(self.steps[self.early.stop :], self.signals, first=self.early.stop)

    @property
    def standardised(self) -> list[list[int]]:
        """The numbers of the steps with `corpus_z`, which takes a pass over all score files: `reward`, then those after it."""
        numbers = [number for number, step in enumerate(self.steps) if needs_standards(step)]
        runs = [
            [number for number in numbers if (self.steps[number].reward is None) == later] for later in (False, True)
        ]
        return [run for run in runs if run]

    @property
    def reading(self) -> Needs:
        """The columns to read from score files, including those that are only evaluated there and not shuffled."""
        labels = dict.fromkeys([*self.needs.labels, *labels_of(self.steps, self.signals)])
        values = dict.fromkeys([*self.needs.values, *values_of(self.steps, self.signals)])
        return replace(self.needs, labels=tuple(labels), values=tuple(values), marks=(), computed=())

    @property
    def prefilter(self) -> BestOfN | None:
        """The rule by which rows can be dropped before the shuffle: the first rule after it, if that is best-of-N."""
        first = self.late[0]
        rule = self.steps[first[0]].best_of_n if first else None
        return None if rule is None or rule.distinct else rule


def needs_of(config: RunConfig) -> Needs:
    """The columns that the steps and the output of a configuration read."""
    steps: Sequence[Step] = config.select
    add, late = config.output.add, steps[_early(steps).stop :]
    early = EarlyParts.of(late, (*config.numbers, *config.leaks))
    return Needs(
        tokens=config.model is not None,
        length=True,
        raw=any(step.length_correction is not None or step.reward is not None for step in steps),
        rank="rank" in add,
        margin="margin" in add or "probability" in add,
        rival=not any(step.makes_pairs or step.needs_cut or step.compares_texts for step in steps),
        other=any(step.makes_pairs for step in steps),
        labels=tuple(dict.fromkeys(column for step in steps for _, column in step.columns())),
        values=tuple(dict.fromkeys([*early.values, *_values_read(config)])),
        marks=early.names(conditions=True),
        computed=early.names(conditions=False),
    )


def _values_read(config: RunConfig) -> Iterator[str]:
    """The numbers of score files that steps read without an expression."""
    for step in config.select:
        if step.drop_prompts is not None and step.drop_prompts.min_worst_tokens is not None:
            yield "response_tokens"
        if step.on_topic is not None:
            yield step.on_topic.signal
            if step.needs_cut and config.signals[step.on_topic.signal].embedding is not None:
                yield foreign_column(step.on_topic.signal)


def _changing(steps: Sequence[Step]) -> int:
    """The number of leading steps that change rewards row by row, and come before all others."""
    changing = (step.length_correction is not None or (step.reward is not None and _by_row(step)) for step in steps)
    return len([*itertools.takewhile(bool, changing)])


def _early(steps: Sequence[Step]) -> range:
    start = _changing(steps)
    lead = itertools.takewhile(lambda number: _by_row(steps[number]), range(start, len(steps)))
    last = [number for number in lead if steps[number].top is not None or steps[number].condition is not None]
    return range(start, last[-1] + 1) if last else range(start, start)


def _by_row(step: Step) -> bool:
    """Return True for a step that looks at one row at a time once its cut is known."""
    by_reward = step.threshold is not None and step.threshold.min_reward is not None
    expression = expression_of(step)
    by_itself = expression is not None and step.pairs is None and not expression.of_prompt
    return step.top is not None or by_reward or by_itself


@dataclass(frozen=True)
class LoadScores:
    """A descriptor → the rows of its score file that the early steps before step `until` keep, in the columns of a cut."""

    selection: Selection
    until: int

    @property
    def on_object_store(self) -> bool:
        return self.selection.on_object_store

    def __call__(self, element: bytes, sides: Sequence[Any], *, ties: bool) -> Candidates:
        signals = self.selection.signals
        early_steps = self.selection.steps[: min(self.until + 1, self.selection.early.stop)]
        named = {use.name for expression in expressions_of(early_steps) for use in expression.uses}
        needs = replace(
            self.selection.needs,
            key=False,
            place=ties or any(isinstance(side, Cut) for side in sides),
            tokens="tokens" in named
            or any(step.top is not None and step.top.tokens is not None for step in early_steps),
            length="characters" in named or self.selection.correction is not None,
            labels=tuple(
                sorted({*labels_of(early_steps, signals), *(c for step in early_steps for _, c in step.columns())})
            ),
            values=values_of(early_steps, signals),
        )
        descriptor = ScoreFile.from_bytes(element)
        candidates = read_candidates(descriptor, needs)
        return apply_early_steps(candidates, self.selection, sides, until=self.until)[0]


@dataclass(frozen=True)
class LoadMoments:
    """A descriptor → the moments of the arguments of `corpus_z` in some steps."""

    selection: Selection
    steps: tuple[int, ...]  # their numbers

    def __call__(self, element: bytes, sides: Sequence[Any]) -> dict[str, Moments]:
        selection, measured = self.selection, [self.selection.steps[number] for number in self.steps]
        read = [*selection.steps[: selection.changing], *measured]
        labels, values = labels_of(read, selection.signals), values_of(read, selection.signals)
        needs = replace(selection.needs, key=False, place=False, labels=labels, values=values)
        candidates = read_candidates(ScoreFile.from_bytes(element), needs)
        candidates, _ = change_rewards(candidates, selection, list(sides), until=self.steps[0])
        return measure(candidates, measured)


@dataclass(frozen=True)
class LoadPartition:
    """(partition, packed candidates) → candidates; for `limits`, the values of their prompts as rows."""

    needs: Needs
    limits: DropPrompts | None = None
    on_object_store = False

    def __call__(self, element: tuple[int, bytes], sides: Sequence[Any], *, ties: bool) -> Candidates:
        rows = unpack([element[1]], self.needs)
        return rows if self.limits is None else as_rows(rows, self.limits)


def apply_early_steps(
    candidates: Candidates, selection: Selection, sides: Sequence[Any], *, until: int
) -> tuple[Candidates, StepCounts]:
    """Apply the early steps before step `until`, and count what each keeps.

    `sides` are the curve of a length correction, where there is one, the standards of `Selection.standardised`, and the cuts of
    the early `top` steps, in order.
    """
    unused = list(sides)
    candidates, counts = change_rewards(candidates, selection, unused, until=until)
    for numbers in selection.standardised:
        if selection.changing <= numbers[0]:  # the others were taken where rewards were changed
            with timing(numbers[0]):
                steps = [selection.steps[number] for number in numbers if number < until]  # no others' columns are read
                candidates = with_standards(candidates, steps, unused.pop(0))
    for number in selection.early:
        if number < until:
            step = selection.steps[number]
            cut: Cut | None = unused.pop(0) if step.top is not None else None
            with timing(number):
                candidates = apply_step(candidates, step, cut=cut, temperature=selection.temperature)
            counts[number] = StepSum(step.name, len(candidates), None, total_size(candidates, selection.needs))
    return candidates, counts


def change_rewards(
    candidates: Candidates, selection: Selection, sides: list[Any], *, until: int
) -> tuple[Candidates, StepCounts]:
    """Apply the steps before step `until` that change rewards row by row. Consumes their inputs from the front of `sides`."""
    counts = StepCounts()
    for number in range(min(until, selection.changing)):
        step = selection.steps[number]
        with timing(number):
            if step.length_correction is not None:
                curve: Curve = sides.pop(0)
                candidates = curve.correct(candidates)
            else:
                if needs_standards(step):
                    candidates = with_standards(candidates, [step], sides.pop(0))
                candidates = apply_step(candidates, step, cut=None, temperature=None)
        counts[number] = StepSum(step.name, len(candidates), None, total_size(candidates, selection.needs))
    return candidates, counts


def apply_step(candidates: Candidates, step: Step, *, cut: Settled | None, temperature: float | None) -> Candidates:
    """The rows a step keeps: `top` by its settled cut, any other by its rule. Raises `ValueError` if a cut is missing.

    `near_duplicates` and `diverse` get rows from which `DropDuplicates` has removed the similar ones.
    """
    if step.near_duplicates is not None:
        return candidates
    if step.top is None and step.diverse is None:
        return apply_rule(candidates, step, temperature=temperature, cut=cut)
    if not isinstance(cut, Cut):
        raise ValueError(f"step {step!r} needs its cut over all prompts")
    return candidates.take(keep(candidates, cut))


def top_of(step: Step) -> Top | None:
    """The rule by which a step cuts across all prompts: that of `top`, or of the number of rows of `diverse`."""
    return Top(rows=step.diverse.rows) if step.diverse is not None else step.top


def read_candidates(descriptor: ScoreFile, needs: Needs) -> Candidates:
    """Read the scored rows of a score file."""
    scores = score_files.read_joined(descriptor, score_columns(needs))
    return scores_to_candidates(scores, file=descriptor.file, unit=descriptor.footer.unit, needs=needs)
