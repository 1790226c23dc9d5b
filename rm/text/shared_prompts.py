"""The prompt of many responses, tokenised once.

A tokenizer first splits a text at special tokens, and tokenises the text between them separately. So texts with a common
beginning have the same tokens up to the last special token in it, and the rest of each text can be tokenised separately, with
that special token in front. Each special token is tried on a few texts before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_TRIED = [
    ("a", "b"),
    ("Good day. ", "\nuser"),
    ("one\n\n", " two"),
    ("7 ", "  8"),
    ("\u00e9\u4e2d", "\u4e2dx"),
    ("x", ""),
]


@dataclass(frozen=True)
class SharedPrompts:
    """The special tokens of a tokenizer at which texts can be cut, with the outcome of their trials."""

    candidates: dict[str, int]  # text → id
    encode: Callable[[Sequence[str]], Sequence[Any]]
    _fits: dict[str, bool] = field(default_factory=dict, init=False)

    @classmethod
    def of(cls, tokenizer: Any, encode: Callable[[Sequence[str]], Sequence[Any]]) -> SharedPrompts:
        """Return the shared prompts of a fast tokenizer, which `encode` calls without adding special tokens."""
        tokens = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        texts = [token.content for token in tokens.values()]
        candidates = {
            token.content: number
            for number, token in tokens.items()
            # these depend on the text before them
            if not (token.lstrip or token.single_word or token.normalized)
            and not any(token.content in text for text in texts if text != token.content)
        }
        return cls(candidates, encode)

    def cut(self, groups: Sequence[Sequence[str]]) -> CutTexts:
        """Cut the texts of each group, except the first, after the last special token of their common beginning."""
        pieces, cuts = [], []
        for texts in groups:
            place = self._place(texts) if len(texts) > 1 else None
            cuts.append(place)
            pieces.append(list(texts) if place is None else [texts[0], *(text[place.at :] for text in texts[1:])])
        return CutTexts(groups, pieces, cuts, self.encode)

    def _place(self, texts: Sequence[str]) -> _Place | None:
        first, last = min(texts), max(texts)  # whatever these two share, all between them share
        low, high = 0, min(len(first), len(last))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if first[:middle] == last[:middle] else (low, middle - 1)
        at, text = max(((first.rfind(text, 0, low), text) for text in self.candidates), default=(-1, ""))
        return _Place(at, self.candidates[text]) if at > 0 and self._is_cut_at(text) else None

    def _is_cut_at(self, token: str) -> bool:
        """Return whether the tokenizer tokenises the texts before and after this token independently."""
        if token not in self._fits:
            wholes = self.encode([left + token + right for left, right in _TRIED])
            tails = self.encode([token + right for _, right in _TRIED])
            self._fits[token] = all(
                (tokens := _tokens_before(whole, len(left), self.candidates[token])) is not None
                and whole.ids[tokens:] == tail.ids
                for (left, _), whole, tail in zip(_TRIED, wholes, tails, strict=True)
            )
        return self._fits[token]


class _Place(NamedTuple):
    at: int  # character
    token: int  # that begins there


class CutTexts(NamedTuple):
    """Texts in groups, and their `pieces` to encode."""

    groups: Sequence[Sequence[str]]
    pieces: list[list[str]]
    cuts: list[_Place | None]
    encode: Callable[[Sequence[str]], Sequence[Any]]

    def join(self, encodings: Sequence[Any]) -> list[Any]:
        """Return the encodings of the whole texts, in order, from those of all pieces."""
        joined: list[Any] = []
        rest = iter(encodings)
        for texts, cut in zip(self.groups, self.cuts, strict=True):
            parts = [next(rest) for _ in texts]
            tokens = _tokens_before(parts[0], cut.at, cut.token) if cut is not None else None
            if cut is None:
                joined += parts
            elif tokens is None:  # no special token in this text after all
                joined += [parts[0], *self.encode(texts[1:])]
            else:
                head = _Head(parts[0], parts[0].ids[:tokens], parts[0].type_ids[:tokens], cut.at)
                joined += [parts[0], *(JoinedEncoding(head, tail) for tail in parts[1:])]
        return joined


def _tokens_before(encoding: Any, at: int, token: int) -> int | None:
    """Count the tokens before the character `at`, if this token begins there."""
    tokens = encoding.char_to_token(at)
    if tokens is None or encoding.ids[tokens] != token or encoding.token_to_chars(tokens)[0] != at:
        return None
    return int(tokens)


class _Head(NamedTuple):
    encoding: Any
    ids: list[int]
    type_ids: list[int]
    characters: int


class JoinedEncoding:
    """An encoding, with the attributes that callers read, of a text whose beginning was encoded with another text."""

    def __init__(self, head: _Head, tail: Any) -> None:
        self._head = head
        self._tail = tail

    @property
    def ids(self) -> list[int]:
        """The ids of all tokens."""
        return [*self._head.ids, *self._tail.ids]

    @property
    def type_ids(self) -> list[int]:
        """Their token types."""
        return [*self._head.type_ids, *self._tail.type_ids]

    def char_to_token(self, character: int) -> int | None:
        """Return the number of the token that covers a character; None if none does."""
        head = self._head
        if character < head.characters:
            return head.encoding.char_to_token(character)  # type: ignore[no-any-return]
        token = self._tail.char_to_token(character - head.characters)
        return None if token is None else len(head.ids) + token
