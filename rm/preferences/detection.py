"""Which format rows are in: told from columns and their types, or by name, and checked against the settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rm.preferences.formats import BY_ROLES, EVERYWHERE, FORMATS, PUBLISHED, Format
from rm.preferences.rows import PreferenceError, ReadSettings, Row


def with_roles(row: Row, columns: Mapping[str, str]) -> Row:
    """`row` with the columns that `columns` (role → column) names under their roles too."""
    named = {role: row[column] for role, column in columns.items() if column in row}
    return {**row, **named} if named else row


def detect(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """The name of the format that a row is in, by its columns and their types.

    Raises `PreferenceError` where none fits, or several do and `columns` does not decide.
    """
    columns = columns or {}
    view = with_roles(row, columns)
    fitting = [format for format in FORMATS.values() if format.fits(view)]
    taking = [format for format in fitting if format.takes(columns)]
    by_roles = [format.name for format in taking if format in BY_ROLES]
    if taking and taking[0] in PUBLISHED:
        return taking[0].name
    if len(by_roles) == 1:
        return by_roles[0]
    if by_roles:
        raise PreferenceError(
            f"data has columns {_listed(row)}, which fit the formats {_listed(by_roles)}; "
            f"set data.format to one of them, or name the column to use in data.columns"
        )
    if fitting:
        raise PreferenceError(
            f"data.columns names {_listed(columns)}, and the format {fitting[0].name} of the rows takes only "
            f"{_listed({*fitting[0].roles, *fitting[0].inner, *EVERYWHERE})}; remove the others, or set data.format"
        )
    for role, column in columns.items():
        if column not in row:
            raise PreferenceError(_no_such_column(role, column, row))
    raise PreferenceError(
        f"data has columns {_listed(row)}, which fit no known format ({', '.join(FORMATS)}); set data.format, or name "
        "the columns, for example data.columns={prompt: COLUMN, response: COLUMN, score: COLUMN}"
    )


def resolve(rows: Sequence[Row], settings: ReadSettings) -> Format:
    """The format of rows, by name or from the first of `rows` that fits one, with the settings checked against it.

    Raises `PreferenceError`.
    """
    if not rows:
        raise PreferenceError("data has no rows; expected at least one comparison")
    if settings.format != "auto" and settings.format not in FORMATS:
        raise PreferenceError(f"data.format is {settings.format!r}; expected auto or one of {', '.join(FORMATS)}")
    name = settings.format if settings.format != "auto" else _first_detected(rows, settings.columns)
    format = FORMATS[name]
    if not format.takes(settings.columns):
        extra = sorted(settings.columns.keys() - {*format.roles, *format.inner, *EVERYWHERE})
        raise PreferenceError(f"data.columns names {_listed(extra)}, for which the format {format.name} has no place")
    known = {name for row in rows for name in row}
    for role, column in settings.columns.items():
        if role not in format.inner and column not in known:
            raise PreferenceError(_no_such_column(role, column, known))
    missing = [format.missing(with_roles(row, settings.columns)) for row in rows]
    if all(missing):
        raise PreferenceError(
            f"data.format is {format.name}, and the rows have no column {_listed(missing[0])}; they have "
            f"{_listed(known)}; set another data.format, or name the columns in data.columns"
        )
    if not format.graded and (settings.min_gap > 0 or settings.gap_use != "none"):
        raise PreferenceError(
            f"data.min_gap and data.gap_use act on scores, and the format {format.name} has none; remove them"
        )
    return format


def _first_detected(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """The format of the first row that has one: a file may begin with rows that are not whole."""
    first: PreferenceError | None = None
    for row in rows:
        try:
            return detect(row, columns)
        except PreferenceError as error:
            first = first or error
    raise first or PreferenceError("data has no rows; expected at least one comparison")


def _no_such_column(role: str, column: str, known: Iterable[str]) -> str:
    return f"data.columns.{role} is {column!r}, and the rows have no such column; name one of {_listed(known)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, names)))
