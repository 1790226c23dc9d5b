"""Combines the rewards of several models: each standardised, then combined in float64 and rounded once. No Beam.

Moments are exact, so that means and standard deviations do not depend on the order of rewards. Every sum over models is in one
fixed order, that of their fingerprints.

Example with two models and three responses:

    standards = standards_of(measure([table_a, table_b]), ["a", "b"])
    combine([[1, 2, 3], [10, 30, 20]], standards.models, ensemble=EnsembleConfig(combine="min"))
    →  rewards [-1.22, 0, 0], spreads [0, 0.61, 0.61]
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.config import EnsembleConfig
from pipelines.errors import InputError, ModelLoadError, StorageError
from pipelines.plan import Plan
from pipelines.score import score_files
from pipelines.score.exact_sum import ExactSum
from pipelines.score.score_files import Footer, ScoreFile

ROW = ("row", "response_index", "response_hash")
COMBINED = ("reward", "reason", "truncated")


@dataclass
class Moments:
    """Exact sums of one model's rewards and of their squares; mergeable."""

    sums: ExactSum = field(default_factory=ExactSum)
    squares: ExactSum = field(default_factory=ExactSum)

    @classmethod
    def of(cls, rewards: npt.NDArray[np.float32]) -> Moments:
        return cls(ExactSum.of(rewards), ExactSum.of_squares(rewards))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.sums + other.sums, self.squares + other.squares)


class Standard(NamedTuple):
    """Mean and deviation by which one model's rewards are standardised: (reward - mean) / std."""

    mean: float
    std: float  # population


@dataclass(frozen=True)
class Standards:
    """The standards of all models, in the order of their fingerprints."""

    responses: int  # scored by every model, over which the standards are computed
    models: tuple[Standard, ...]


def measure(tables: Sequence[pa.Table]) -> tuple[Moments, ...]:
    """Moments of each model's rewards in one fragment, over the responses that all models have scored."""
    scored = functools.reduce(pc.and_, (table["reward"].is_valid() for table in tables))
    return tuple(Moments.of(table["reward"].filter(scored).to_numpy()) for table in tables)


def merge_moments(parts: Iterable[tuple[Moments, ...]]) -> tuple[Moments, ...]:
    """The sums of the parts, model by model; `()` without parts."""
    merged: tuple[Moments, ...] = ()
    for part in parts:
        merged = tuple(map(Moments.__add__, merged, part)) if merged and part else merged or part
    return merged


def standards_of(moments: Sequence[Moments], names: Sequence[str]) -> Standards:
    """Mean and population standard deviation of each model's rewards, correctly rounded.

    Raises `InputError` if fewer than two responses are scored by all models, `ModelLoadError` if a model gives all of them the
    same reward.
    """
    responses = moments[0].sums.count if moments else 0
    if responses < 2:
        raise InputError(
            f"the models {', '.join(names)} have only {responses} scored in common, and standardising needs two or more; "
            "run `bestkept score` for each to see which responses it rejects, and remove the faulty model"
        )
    standards = []
    for name, one in zip(names, moments, strict=True):
        mean = one.sums.total() / responses
        variance = one.squares.total() / responses - mean * mean
        if not variance:
            raise ModelLoadError(
                f"model {name} gives each of {responses} responses the reward {float(mean)}, and standardising needs rewards "
                "that differ; remove it from the list under model"
            )
        standards.append(Standard(float(mean), math.sqrt(variance)))
    return Standards(responses, tuple(standards))


def combine(
    rewards: Sequence[npt.NDArray[np.float32]], standards: Sequence[Standard], *, ensemble: EnsembleConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """M models' rewards [N] each → combined rewards [N] and their spreads [N].

    With z = (r - mean) / std of each model, the combined reward is mean(z), min(z), or mean(z) - penalty * std(z) over the M
    models. The spread is std(z), population: the disagreement of the models.
    """
    scaled = [
        (reward.astype(np.float64) - standard.mean) / standard.std
        for reward, standard in zip(rewards, standards, strict=True)
    ]
    # one model after the other: the order of NumPy's own sum over an axis depends on the shape
    mean = functools.reduce(np.add, scaled) / len(scaled)
    spread = np.sqrt(functools.reduce(np.add, [(one - mean) ** 2 for one in scaled]) / len(scaled))
    combined = {
        "mean": lambda: mean,
        "min": lambda: functools.reduce(np.minimum, scaled),
        "lower_bound": lambda: mean - ensemble.penalty * spread,
    }[ensemble.combine]()
    return combined.astype(np.float32), spread.astype(np.float32)


def combine_tables(
    tables: Sequence[pa.Table],
    standards: Sequence[Standard],
    *,
    ensemble: EnsembleConfig,
    names: Sequence[str] = (),
) -> pa.Table | None:
    """The score columns of one fragment from those of each model; None if the tables do not have the same rows.

    The first table has all columns, the others need `ROW` and `COMBINED`. A response is rejected if any model rejects it, with
    the reason of the first of these; it counts as truncated if any model truncated it. The column `spread` is added, and with
    `names` of the models those of `signal_columns`. All other columns are those of the first table, including tokens, which
    are those of its tokenizer.
    """
    first = tables[0]
    if not all(table.select(ROW).equals(first.select(ROW)) for table in tables[1:]):
        return None
    reason = pc.coalesce(*(table["reason"] for table in tables))
    scored = reason.is_null()
    reward, spread = np.zeros((2, first.num_rows), dtype=np.float32)
    at = scored.to_numpy()
    known = [table["reward"].filter(scored).to_numpy() for table in tables]
    reward[at], spread[at] = combine(known, standards, ensemble=ensemble)
    columns = {
        "reward": pa.array(reward, mask=~at),
        "reason": reason,
        "truncated": functools.reduce(pc.or_, (table["truncated"] for table in tables)),
    }
    combined = first.drop_columns([name for name in first.column_names if name.startswith("signal.")])
    for name, column in columns.items():
        combined = combined.set_column(combined.schema.get_field_index(name), first.schema.field(name), column)
    added = {"spread": spread}
    for name, reward_of_one, standard in zip(names, known, standards, strict=bool(names)):
        for column, values in signal_columns(name, reward_of_one, standard).items():
            added[column] = np.zeros(first.num_rows, dtype=np.float32)
            added[column][at] = values
    for name, values in added.items():
        combined = combined.append_column(pa.field(name, pa.float32()), pa.array(values, mask=~at))
    return combined


def signal_columns(
    name: str, rewards: npt.NDArray[np.float32], standard: Standard
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the columns of a model's rewards in expressions: raw, and standardised."""
    z = (rewards.astype(np.float64) - standard.mean) / standard.std
    return {f"signal.{name}": rewards, f"signal.z({name})": z.astype(np.float32)}


def read_tables(files: Sequence[ScoreFile]) -> list[pa.Table]:
    """All columns of the first score file, and those of the others that `combine_tables` needs. Raises `StorageError`."""
    first = score_files.read(files[0].path)
    if first is None:
        raise StorageError(f"score file {files[0].path} is gone or damaged; run the same command again")
    return [first[0], *(score_files.read_columns(file.path, [*ROW, *COMBINED], file.footer) for file in files[1:])]


def footer_of(plan: Plan, files: Sequence[ScoreFile], columns: pa.Table) -> Footer:
    """The footer of combined scores: the text's fields from the first model's footer, the scores' fields from `columns`, and
    `left_out` of the template that leaves out most."""
    first = files[0]
    file = plan.files[first.file]
    left_out: Counter[str] = functools.reduce(Counter.__or__, (Counter(one.footer.left_out) for one in files))
    return replace(
        first.footer,
        fingerprint=plan.fingerprint,
        file_size=file.size,
        file_version=file.version,
        **score_files.outcome_of(columns),
        left_out=dict(sorted(left_out.items())),
    )
