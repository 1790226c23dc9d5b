"""Groups for the tests of evaluation, made from a few numbers; prompts and responses are distinct texts."""

from __future__ import annotations

from rm.preferences import Edge, Group, Label


def group(prompt="p", edges=(), *, responses=2, labels=(), scores=(), lengths=None, **kinds):
    """Make a group of `responses` texts of these lengths; edges are (preferred, other[, probability])."""
    lengths = lengths or [10] * responses
    texts = tuple(f"{index}".ljust(length, "x") for index, length in enumerate(lengths))
    return Group(
        (("user", f"prompt {prompt}"),),
        texts,
        tuple(Edge(*edge) for edge in edges),
        labels=tuple(Label(*label) for label in labels),
        scores=tuple(scores),
        **kinds,
    )
