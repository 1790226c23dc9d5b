"""Streams rows of preferences, with all their columns, by the reader of corpora."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipelines.config import InputFiles
from pipelines.corpus import InputFile, Unit, column_names, split_units
from pipelines.corpus.columns.value_kinds import RowValues
from pipelines.corpus.fragments import read_raw_rows
from pipelines.corpus.listing import first_columns, list_files
from pipelines.corpus.parquet import refuse_doubled
from pipelines.errors import BestkeptError

if TYPE_CHECKING:
    from rm.preferences import ReadSettings


def preference_rows(
    path: str, settings: ReadSettings, *, section: str, max_row_bytes: int
) -> Iterator[RowValues | str]:
    """Read the rows of all files that a path, a directory, a glob or a URL names; a reason replaces a row that cannot be read.

    A row has every column of the first file that has any, with null for those that it lacks. Errors name the settings of
    `section`, such as `data.path`. Raises `InputError` and `StorageError`.
    """
    with _naming(section):
        files = list_files(InputFiles(path=path, split=settings.split))
        names, _, _ = first_columns(files, max_row_bytes=max_row_bytes)
        nothing = dict.fromkeys(names)
        for file in files:
            for row in _rows(file, tools=settings.columns.get("tools", "tools"), max_row_bytes=max_row_bytes):
                yield row if isinstance(row, str) else {**nothing, **row}


@contextmanager
def _naming(section: str) -> Iterator[None]:
    """Replace the names of `input` settings in errors by those of another section."""
    try:
        yield
    except BestkeptError as error:
        error.message = re.sub(r"\binput\.(path|split)\b", rf"{section}.\1", error.message)
        error.args = (error.message,)
        raise


def _rows(file: InputFile, *, tools: str, max_row_bytes: int) -> Iterator[RowValues | str]:
    names: list[str] = []
    units = [Unit(0, 0, file.size, file.size)]
    if file.kind == "parquet":
        names, units = column_names(file, max_row_bytes=max_row_bytes), split_units(file)
        refuse_doubled(file, names, names)
    for unit in units:
        for row in read_raw_rows(file, unit, names, tools=tools, max_row_bytes=max_row_bytes):
            yield row.values
