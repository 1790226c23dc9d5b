"""Preferences: what annotators said about groups of responses, from files to groups with comparisons."""

from rm.preferences.groups import Edge, Group, Rejections, heldout_split, merge
from rm.preferences.pairs import detect, read_pairs
from rm.preferences.reading import PreferenceError, load_rows

__all__ = [
    "Edge",
    "Group",
    "PreferenceError",
    "Rejections",
    "detect",
    "heldout_split",
    "load_rows",
    "merge",
    "read_pairs",
]
