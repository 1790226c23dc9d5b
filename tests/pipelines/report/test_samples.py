"""The text of sampled conversations: that of the response that was scored, or none."""

from __future__ import annotations

import pytest

from pipelines.corpus.columns.row_mapping import ParsedRow
from pipelines.corpus.fragments import Row
from pipelines.report.samples import ResponsePlace, sample_text
from rm.conversations import response_hash

PROMPT = (("system", "be brief"), ("user", "why?"))


def place(response: int, text: str) -> ResponsePlace:
    return ResponsePlace(file=0, unit=0, row=3, response=response, response_hash=response_hash(text))


def row(*responses: str | None) -> Row:
    reasons = [None if text is not None else "empty_response" for text in responses]
    parsed = ParsedRow(PROMPT, list(responses), reasons)
    return Row(3, parsed, bytes(16), row_bytes=10, held_bytes=10, seen_bytes=10, source=None, carry=(), original={})


def test_the_scored_response_is_shown_with_its_prompt():
    shown = sample_text(place(1, "because"), row("no", "because"), "a.jsonl", "row 3")
    assert shown is not None
    assert [(message["role"], message["content"]) for message in shown.messages] == [*PROMPT, ("assistant", "because")]
    assert (shown.cut, shown.file, shown.where) == (False, "a.jsonl", "row 3")


@pytest.mark.parametrize(
    "changed", [row("no", "because it is"), row("no"), row("because", "no"), row("no", None)], ids=range(4)
)
def test_a_response_that_is_no_longer_the_scored_one_is_not_shown(changed):
    assert sample_text(place(1, "because"), changed, "a.jsonl", "row 3") is None
