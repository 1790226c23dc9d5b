"""Input files → units → fragments of rows."""

from pipelines.inputs.again import read_rows, taken_batches
from pipelines.inputs.files import InputFile, Unit, kind_of, place_of, seekable, split_units
from pipelines.inputs.fragments import Fragment, Row, column_names, original_schema, read_fragments
from pipelines.inputs.unreadable import UnreadableError, probe

__all__ = [
    "Fragment",
    "InputFile",
    "Row",
    "Unit",
    "UnreadableError",
    "column_names",
    "kind_of",
    "original_schema",
    "place_of",
    "probe",
    "read_fragments",
    "read_rows",
    "seekable",
    "split_units",
    "taken_batches",
]
