"""Weights in and out: loading, other libraries' formats, adapters, and the memory they take."""
