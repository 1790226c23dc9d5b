"""Makes the columns of a fragment's score file from the results of a scorer, one row per response. No Beam.

Example with a fragment of two rows with two responses each, the last of them empty:

    scorer.score([(prompt_a, [text, text]), (prompt_b, [text])])  →  a `GroupScores` for each prompt
    score_columns(fragment, scored, plan)  →  a table of four rows (`score_files.COLUMNS`), the last with a reason
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.corpus import Fragment, Row
from pipelines.errors import ModelLoadError
from pipelines.plan import Plan
from pipelines.score import score_files
from rm.conversations import count_characters, response_hash

_MANY = 16  # responses that the model has read; the data do not cause a failure on nearly all of so many
_NEARLY_ALL = 0.9


def usable_rows(fragment: Fragment) -> list[Row]:
    """The rows with a prompt for the model."""
    return [row for row in fragment.rows if row.parsed.prompt is not None]


class GroupResult(NamedTuple):
    """A scorer's results for the K responses to one prompt, in their order."""

    reward: Sequence[float | None]  # None if there is a reason
    reason: Sequence[str | None]
    prompt_tokens: Sequence[int]
    response_tokens: Sequence[int]
    truncated: Sequence[bool]

    @classmethod
    def of(cls, scores: Any) -> GroupResult:
        """Return the result of an `rm.scorer.GroupScores`."""
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
        """Return the result of a row that carries rewards (`scores.column`), without tokens, as there is no tokenizer."""
        pairs = zip(row.parsed.responses, row.rewards or (), strict=True)
        rewards = [reward for response, reward in pairs if response is not None]
        reasons = ["no_reward" if reward is None else None for reward in rewards]
        zeros = [0] * len(rewards)
        return cls(rewards, reasons, zeros, zeros, [False] * len(rewards))


def result_columns(results: Sequence[GroupResult]) -> dict[str, pa.Array]:
    """The results of all groups, one after the other: an array for each field."""
    joined = {name: [value for result in results for value in getattr(result, name)] for name in GroupResult._fields}
    return {name: pa.array(values, score_files.COLUMNS.field(name).type) for name, values in joined.items()}


def score_columns(fragment: Fragment, scored: Sequence[Any] | None, plan: Plan) -> tuple[pa.Table, int, Counter[str]]:
    """A fragment's score columns (`score_files.COLUMNS` and the carried ones, one row per response), its tokens, and the number
    of scored responses by key that the template leaves out, if the scorer counts them.

    `scored` has the scores of each usable row; if it is None, the rewards are those that the rows carry (`scores.column`).

    Raises `ModelLoadError` if the model is the cause of failures, and not the data, see `refuse_broken_model`.
    """
    usable = usable_rows(fragment)
    left_out = Counter[str]()
    if scored is None:
        results = [GroupResult.carried(row) for row in usable]
    else:
        results = [GroupResult.of(scores) for _, scores in zip(usable, scored, strict=True)]
        for scores, result in zip(scored, results, strict=True):
            for index, keys in getattr(scores, "left_out", {}).items():
                left_out.update(keys if result.reason[index] is None else ())
    columns = _unscored_columns(fragment.rows, plan.mapping.carry)
    is_usable = columns["response_hash"].is_valid()
    for name, values in result_columns(results).items():
        columns[name] = pc.replace_with_mask(columns[name], is_usable, values)
    for name in plan.model.get("outputs", {}).get("names", ()):
        values = np.concatenate([np.zeros(0, np.float32), *(scores.outputs[name] for scores in scored or ())])
        nulls = pa.nulls(len(is_usable), pa.float32())
        columns[f"signal.{name}"] = pc.replace_with_mask(nulls, is_usable, pa.array(values, mask=np.isnan(values)))
    refuse_broken_model(columns["reason"].to_pylist(), plan)
    tokens = sum(pc.sum(columns[name]).as_py() or 0 for name in ("prompt_tokens", "response_tokens"))
    return pa.table(columns), tokens, left_out


def _unscored_columns(rows: Sequence[Row], carry: Sequence[str]) -> dict[str, pa.Array]:
    """The score columns of unusable rows, one value per response."""
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
    """Raise `ModelLoadError` if the model fails on nearly every response of a fragment, or gives NaN for all of them.

    In these cases the data are not the cause. Responses that the model has not read do not count.
    """
    counts = Counter(reasons)
    failed, nan = counts["model_error"], counts["nan_reward"]
    reached = failed + nan + counts["out_of_memory"] + counts[None]
    if reached < _MANY or (failed < _NEARLY_ALL * reached and failed + nan < reached):
        return
    if failed:
        what, remedy = "fails on", "the log has the errors; check that it scores a text in plain transformers"
    else:
        what, remedy = "gives NaN for", "try model.dtype=float32"
    part = "every response" if failed + nan == reached else f"{failed} of the responses"
    raise ModelLoadError(
        f"the model {what} {part} of a fragment ({reached} responses) in {plan.model['dtype']}; {remedy}"
    )
