"""Preferences: what annotators said about groups of responses, from files to groups with comparisons."""

from rm.preferences.detection import detect, fitting, resolve, with_roles
from rm.preferences.formats import FORMATS
from rm.preferences.groups import EQUAL_RESPONSES, Edge, Group, Label, Rejections, heldout_split, merge
from rm.preferences.reading import load_rows, read_each, read_preferences, read_rows
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
    "detect",
    "fitting",
    "heldout_split",
    "load_rows",
    "merge",
    "read_each",
    "read_preferences",
    "read_rows",
    "resolve",
    "with_roles",
]
