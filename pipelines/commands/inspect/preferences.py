"""Description of rows as preferences for `bestkept inspect`, as `bestkept train` would read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.commands.inspect.statistics import PromptResponses, response_statistics, token_statistics
from pipelines.config.train import PreferencesConfig
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.errors import InputError
from rm.conversations import UnusableError, describe_response, to_messages

if TYPE_CHECKING:
    from rm.preferences import Group, PreferenceError
    from rm.preferences.formats import Format
    from rm.preview import Preview

_FIRST_ROWS = 100  # from which the format is detected, as in training


def describe_preferences(
    data: PreferencesConfig,
    names: Sequence[str],
    rows: Sequence[RowValues | str],
    *,
    preview: Preview | None,
    shown: int,
) -> dict[str, Any]:
    """Return format, judgements, rejections, lengths and the first `shown` groups of these rows, or why they are no preferences.

    A string in place of a row is the reason why it cannot be read. Raises `InputError` if `data` configures how rows are read,
    and they cannot be read that way.
    """
    from rm.preferences import (
        PreferenceError,
        ReadSettings,
        add_roles,
        fitting_formats,
        read_preference_rows,
        read_unmerged,
        reading_notes,
        resolve_format,
    )

    settings = ReadSettings(**data.reading_options())
    nothing = dict.fromkeys(names)
    readable = [{**nothing, **row} for row in rows if not isinstance(row, str)]  # as `train` reads them
    reasons = Counter(row for row in rows if isinstance(row, str))
    try:
        format = resolve_format(readable[:_FIRST_ROWS], settings)
    except PreferenceError as error:
        if {"format", "columns"} & data.model_fields_set:
            raise InputError(str(error)) from error
        return _describe_failure(error)
    single, rejected = read_unmerged(readable, format, settings)
    groups, _ = read_preference_rows(readable, settings)
    usable_rows = [PromptResponses(group.prompt, group.responses) for group in single]
    present = _present_needs(format, add_roles(readable[0], settings.columns))
    others = [name for name in fitting_formats(readable, settings) if name != format.name]
    return {
        "detected": True,
        "ambiguous": False,
        "format": format.name,
        "why": f"the rows have {', '.join(present)}",
        "others": [{"why": f"the rows also fit {name}", "setting": f"data.format={name}"} for name in others],
        "notes": reading_notes(readable[:_FIRST_ROWS], format, settings),
        "judged_by": data.origin or format.origin,
        "judgements": _judgements(groups),
        "rows_used": len(single),
        "rejected": dict(sorted((rejected + reasons).items())),
        "figures": response_statistics(usable_rows),
        "tokens": preview and token_statistics(usable_rows, preview.lengths, max_length=preview.template.max_length),
        "first": [_example_of(group, preview) for group in groups[:shown]],
    }


def _describe_failure(error: PreferenceError) -> dict[str, Any]:
    """Return the description of rows that fit no format, or more than one."""
    return {
        "detected": False,
        "ambiguous": bool(error.settings),
        "why": "no format of preferences fits its columns",
        "question": str(error),
        "settings": error.settings,
    }


def _present_needs(format: Format, roles: Container[str]) -> list[str]:
    """Return, for each column that a format needs, its name in the rows."""
    alternatives = [[need] if isinstance(need, str) else need for need in format.needs]
    return [next(name for name in names if name in roles) for names in alternatives]


def _judgements(groups: Sequence[Group]) -> dict[str, int]:
    edges = [edge for group in groups for edge in group.edges]
    return {
        "groups": len(groups),
        "comparisons": len(edges),
        "ties": sum(edge.probability == 0.5 for edge in edges),
        "labels": sum(len(group.labels) for group in groups),
    }


def _example_of(group: Group, preview: Preview | None) -> dict[str, Any]:
    example: dict[str, Any] = {
        "prompt": to_messages(group.prompt),
        "responses": [*map(describe_response, group.responses)],
    }
    example["comparisons"] = [
        {"preferred": edge.preferred, "other": edge.other, "probability": edge.probability} for edge in group.edges
    ]
    example["labels"] = [{"response": label.response, "accepted": label.accepted} for label in group.labels]
    example["scores"] = list(group.scores)
    if preview is not None:
        try:
            example["as_read"] = preview.describe(group.prompt, group.responses[0])
        except UnusableError as error:
            example["as_read"] = {"rejected": error.reason}
    return example
