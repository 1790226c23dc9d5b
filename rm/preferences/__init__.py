"""Preferences: annotators' judgements of groups of responses, from rows to groups with comparisons.

groups, rejections = read_preference_rows(rows, ReadSettings(format="auto", ...))
groups[0].responses, groups[0].edges  # ("a", "b"), (Edge(preferred=0, other=1),)
"""

from rm.preferences.detection import add_roles, detect_format, fitting_formats, resolve_format
from rm.preferences.formats import FORMATS
from rm.preferences.groups import EQUAL_RESPONSES, Edge, Group, Label, Rejections, heldout_split, merge
from rm.preferences.ranked import needed_columns, read_ranked, settle_ranking
from rm.preferences.reading import (
    RowReader,
    read_preference_rows,
    read_preferences,
    read_unmerged,
    reading_notes,
)
from rm.preferences.row_values import PreferenceError, ReadSettings

__all__ = [
    "EQUAL_RESPONSES",
    "FORMATS",
    "Edge",
    "Group",
    "Label",
    "PreferenceError",
    "ReadSettings",
    "Rejections",
    "RowReader",
    "add_roles",
    "detect_format",
    "fitting_formats",
    "heldout_split",
    "merge",
    "needed_columns",
    "read_preference_rows",
    "read_preferences",
    "read_ranked",
    "read_unmerged",
    "reading_notes",
    "resolve_format",
    "settle_ranking",
]
