"""Detection of preferences that are read as a corpus. Their format is detected as in `bestkept train`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from pydantic import ValidationError

from pipelines.config.train import PreferencesConfig
from pipelines.corpus.columns.layouts import Reading
from pipelines.corpus.columns.row_mapping import RowMapping
from pipelines.corpus.columns.value_kinds import FirstRows
from pipelines.errors import InputError


def as_preferences(
    table: FirstRows,
    base: RowMapping,
    user_columns: Mapping[str, str],
    *,
    where: str,
    repeated_prompt: str | None,
) -> tuple[RowMapping, Reading]:
    """Return `base` as a mapping for rows of preferences, which reads all columns of the first rows, and the reading.

    Raises `InputError` if their format is unknown, or a row has only one response.
    """
    from rm.preferences import PreferenceError, ReadSettings, settle_ranking

    try:
        config = PreferencesConfig.model_validate(
            {"path": "-", "columns": dict(user_columns), "repeated_prompt": repeated_prompt}
        )
    except ValidationError as error:
        role = str(error.errors()[0]["loc"][-1])
        raise InputError(
            f"input.columns.{role} is {user_columns.get(role)!r}, and the format preferences has no place for it; remove it"
        ) from None
    settings = ReadSettings(**config.reading_options())
    try:
        settled = settle_ranking(table.rows, settings)
    except PreferenceError as error:
        message = re.sub(r"\bdata\.(columns|format|path)", r"input.\1", str(error))
        raise InputError(f"{where}, read as preferences (input.format): {message}") from error
    reads = {name: None for row in table.rows for name in row}
    source = user_columns.get("source") or ("source" if "source" in table.names else None)
    mapping = replace(base, source=source, preferences=settled, reads=tuple(reads))
    return mapping, Reading("preferences", user_columns, "input.format says so")
