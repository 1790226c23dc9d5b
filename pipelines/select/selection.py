"""How a list of steps is split: what works on score files directly, and the runs that work on whole prompts. No Beam."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipelines.config import BestOfN, RunConfig, Step
from pipelines.errors import ConfigError
from pipelines.plan import Plan
from pipelines.score import score_files
from pipelines.score.score_files import ScoreFile
from pipelines.score.unit_scores import score_directories
from pipelines.select.candidates import Candidates
from pipelines.select.columns import Needs, needs_of, score_columns, scores_to_candidates, total_size, unpack
from pipelines.select.length_correction import Curve
from pipelines.select.rules import apply_rule
from pipelines.select.summary import StepCounts, StepSum
from pipelines.select.top import Cut, keep

PARTITIONS: int | None = None  # of the key space, instead of as many as the input's size calls for

_BYTES_PER_PARTITION = 2**30  # of stored input: about a million responses, 50 MB in the shuffle
_MOST_PARTITIONS = 4096


@dataclass(frozen=True)
class Selection:
    """What Select is told: the steps, what they read, and how wide the shuffle is."""

    steps: tuple[Step, ...]
    needs: Needs
    temperature: float | None
    partitions: int
    on_object_store: bool = False  # score files are on one, and reading them is mostly waiting

    @property
    def correction(self) -> Step | None:
        """The step that changes rewards, which only the first can be."""
        return self.steps[0] if self.steps and self.steps[0].length_correction is not None else None

    @property
    def early(self) -> range:
        """Numbers of the steps that work on score files directly: the leading ones that need no whole prompt, up to the last
        `top` among them."""
        start = 1 if self.correction else 0
        lead = itertools.takewhile(lambda number: _by_row(self.steps[number]), range(start, len(self.steps)))
        tops = [number for number in lead if self.steps[number].top is not None]
        return range(start, tops[-1] + 1) if tops else range(start, start)

    @property
    def late(self) -> list[list[int]]:
        """Numbers of the other steps, in runs of which each but the first begins with a `top`."""
        runs: list[list[int]] = [[]]
        for number in range(self.early.stop, len(self.steps)):
            if self.steps[number].top is not None:
                runs.append([])
            runs[-1].append(number)
        return runs

    @property
    def combines(self) -> BestOfN | None:
        """The rule that lets rows be left out before the shuffle: the first after it, where that is best-of-N."""
        first = self.late[0]
        return self.steps[first[0]].best_of_n if first else None


def _by_row(step: Step) -> bool:
    return step.top is not None or (step.threshold is not None and step.threshold.min_reward is not None)


@dataclass(frozen=True)
class LoadScores:
    """A descriptor → what the early steps before step `until` leave of its score file, in the columns that a cut needs."""

    selection: Selection
    until: int

    @property
    def on_object_store(self) -> bool:
        return self.selection.on_object_store

    def __call__(self, element: bytes, sides: Sequence[Any], *, ties: bool) -> Candidates:
        steps = self.selection.steps
        early_steps = [steps[number] for number in self.selection.early if number <= self.until]
        needs = replace(
            self.selection.needs,
            key=False,
            place=ties or any(isinstance(side, Cut) for side in sides),
            tokens=any(step.top is not None and step.top.tokens is not None for step in early_steps),
            length=self.selection.correction is not None,
            labels=tuple(sorted({column for step in early_steps for _, column in step.columns()})),
        )
        descriptor = ScoreFile.from_bytes(element)
        candidates = read_candidates(descriptor, needs)
        return apply_early_steps(candidates, self.selection, sides, until=self.until)[0]


@dataclass(frozen=True)
class LoadPartition:
    """(partition, bytes) → candidates."""

    needs: Needs
    on_object_store = False

    def __call__(self, element: tuple[int, bytes], sides: Sequence[Any], *, ties: bool) -> Candidates:
        return unpack([element[1]], self.needs)


def apply_early_steps(
    candidates: Candidates, selection: Selection, sides: Sequence[Any], *, until: int
) -> tuple[Candidates, StepCounts]:
    """The steps before `until` that work row by row; `sides` are the curve, if there is one, and the cuts so far."""
    waiting, counts = list(sides), StepCounts()
    if selection.correction is not None:
        curve: Curve = waiting.pop(0)
        candidates = curve.correct(candidates)
        counts[0] = StepSum("length_correction", len(candidates), None, total_size(candidates, selection.needs))
    for number in selection.early:
        if number < until:
            step = selection.steps[number]
            cut: Cut | None = waiting.pop(0) if step.top is not None else None
            candidates = apply_step(candidates, step, cut=cut, temperature=selection.temperature)
            counts[number] = StepSum(step.name, len(candidates), None, total_size(candidates, selection.needs))
    return candidates, counts


def apply_step(candidates: Candidates, step: Step, *, cut: Cut | None, temperature: float | None) -> Candidates:
    """What one step keeps: `top` by its settled cut, any other by its rule. Raises `ValueError` for a `top` without a cut."""
    if step.top is None:
        return apply_rule(candidates, step, temperature=temperature)
    if cut is None:
        raise ValueError(f"step {step!r} cuts across all prompts, and its cut is not given")
    return candidates.take(keep(candidates, cut))


def read_candidates(descriptor: ScoreFile, needs: Needs) -> Candidates:
    scores = score_files.read_columns(descriptor.path, score_columns(needs), descriptor.footer)
    return scores_to_candidates(scores, file=descriptor.file, unit=descriptor.footer.unit, needs=needs)


def selection_of(config: RunConfig, plan: Plan) -> Selection:
    """What Select is told. Raises `ConfigError` where a step needs a temperature and the model has none."""
    wants = [f"select.{number}.{step.name}" for number, step in enumerate(config.select) if step.needs_temperature]
    wants += ["output.add"] if "probability" in config.output.add else []
    if wants and plan.temperature is None:
        raise ConfigError(
            f"{wants[0]} needs the temperature of the model's rewards, and model.path has no calibration.json; run "
            "`bestkept evaluate` on held-out preferences to write it, or give the step a temperature"
        )
    partitions = PARTITIONS or min(_MOST_PARTITIONS, max(16, plan.input_bytes // _BYTES_PER_PARTITION))
    on_object_store = score_directories(config).on_object_store(plan)
    return Selection(tuple(config.select), needs_of(config), plan.temperature, partitions, on_object_store)
