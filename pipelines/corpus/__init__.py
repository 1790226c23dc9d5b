"""The input corpus: files → units → fragments of rows."""

from pipelines.corpus.files import InputFile, Unit, UnitKey, is_seekable, kind_of, place_of, split_units, unit_of
from pipelines.corpus.first_rows import column_names, first_reason, no_lines, read_first_rows
from pipelines.corpus.fragments import (
    Fragment,
    RawFragment,
    Row,
    original_schema,
    read_fragments,
    read_raw_fragments,
    row_of,
)
from pipelines.corpus.reread import read_rows, take_batches
from pipelines.corpus.unreadable import UnreadableError, probe

__all__ = [
    "Fragment",
    "InputFile",
    "RawFragment",
    "Row",
    "Unit",
    "UnitKey",
    "UnreadableError",
    "column_names",
    "first_reason",
    "is_seekable",
    "kind_of",
    "no_lines",
    "original_schema",
    "place_of",
    "probe",
    "read_first_rows",
    "read_fragments",
    "read_raw_fragments",
    "read_rows",
    "row_of",
    "split_units",
    "take_batches",
    "unit_of",
]
