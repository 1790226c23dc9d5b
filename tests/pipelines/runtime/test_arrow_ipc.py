"""Bytes in the shuffle: tagged elements."""

from __future__ import annotations

from pipelines.runtime.arrow_ipc import Tag


def test_a_tag_selects_its_own_elements_in_order_and_takes_itself_off():
    rows, texts = Tag(b"r"), Tag(b"t")
    elements = [rows.add(b"t"), texts.add(b"r"), b"", rows.add(b""), rows.add(b"rr")]
    assert list(rows.select(elements)) == [b"t", b"", b"rr"]
    assert list(texts.select(elements)) == [b"r"]
    assert rows.remove(elements[0]) == b"t"
