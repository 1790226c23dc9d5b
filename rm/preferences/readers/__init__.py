"""Readers of preference rows: pairs, lists and votes."""
