"""Changes to a response that make it worse, or no better, and are known to mislead reward models.

Each function returns the changed text, or None if there is nothing to change.

>>> repeated("Blue.")
'Blue.\\n\\nBlue.'
"""

from __future__ import annotations

import random
import re

from rm.conversations import response_hash

_SENTENCE_END = re.compile(r"(?<=[.!?…])(?<!^\d\.)(?<!^\d\d\.)\s+|(?<=[。！？])\s*")  # not behind the number of a list
_MARKS = re.compile(r"^[ \t]*(?:#{1,6}|[-*+•]|\d+[.)])[ \t]+|\*\*|__|`+", re.MULTILINE)
_FEWEST_WORDS = 8
_BEFORE = "That is a great question, and I am glad that you asked! Let me give you a complete and helpful answer."
_AFTER = (
    "I hope that this helps! Please let me know if you have any further questions, or if there is anything else that I can "
    "do for you."
)


def truncated(text: str) -> str | None:
    """The first half of the words."""
    words = list(re.finditer(r"\S+", text))
    return text[: words[len(words) // 2 - 1].end()] if len(words) >= _FEWEST_WORDS else None


def repeated(text: str) -> str | None:
    """The text twice."""
    return f"{text}\n\n{text}"


def padded(text: str) -> str | None:
    """The text between polite phrases that say nothing."""
    return f"{_BEFORE}\n\n{text}\n\n{_AFTER}"


def shuffled(text: str) -> str | None:
    """The sentences in another order, drawn by a hash of the text."""
    sentences = sentences_of(text)
    order = list(range(len(sentences)))
    random.Random(response_hash(text)).shuffle(order)
    if order == sorted(order):
        order = order[1:] + order[:1]
    changed = [sentences[index] for index in order]
    return None if len(sentences) < 3 or changed == sentences else " ".join(changed)


def as_list(text: str) -> str | None:
    """A bold heading, and a bullet for each sentence."""
    sentences = sentences_of(text)
    return None if len(sentences) < 2 else "**Answer**\n\n" + "\n".join(f"- {sentence}" for sentence in sentences)


def with_emoji(text: str) -> str | None:
    """An emoji after each sentence."""
    return " ".join(f"{sentence} 😊" for sentence in sentences_of(text))


def without_marks(text: str) -> str | None:
    """The text without the marks of Markdown: headings, bullets, numbers of lists, bold and code."""
    plain = _MARKS.sub("", text)
    return None if plain == text or not plain.strip() else plain


def sentences_of(text: str) -> list[str]:
    """The sentences and lines of a text, without the space between them."""
    lines = (line.strip() for line in text.split("\n"))
    return [part.strip() for line in lines for part in _SENTENCE_END.split(line) if part.strip()]
