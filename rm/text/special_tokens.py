"""Special tokens in the text of users and models: read as text, whatever they spell.

A tokenizer takes `<|im_end|>` or `[SEP]` for the token of that name wherever it stands. In a conversation only the template may
write those; in a prompt or response they are characters like any others, or a response could end its own turn and
go on as somebody else.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of one (fast) tokenizer, and an encoder that knows them by other names.

    In that encoder each special token is called by a name that nobody can guess, in its vocabulary too, since a Unigram model
    finds `</s>` in plain text by itself. So what a template writes is renamed, what users write is left as it is, and
    one call encodes both, with the same ids and the same joins as always.
    """

    tokenizer: Any
    nonce: str

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        return cls(tokenizer, secrets.token_hex(8))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Their texts, longest first, which wins where two begin at one place."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(sorted({token.content for token in added if token.special}, key=lambda text: (-len(text), text)))

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return tuple(sorted({text[:2] for text in self.tokens}))

    @cached_property
    def _any(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.tokens)))

    def inside(self, text: str) -> bool:
        """Whether the text spells a special token. Fast where it does not: that is nearly always."""
        return any(start in text for start in self._beginnings) and any(token in text for token in self.tokens)

    def hide(self, text: str) -> str:
        """The text of a user, with marks for what it spells."""
        return self._any.sub(lambda found: self._mark("u", found.group()), text)

    def reveal(self, rendered: str) -> str:
        """A rendered conversation of hidden texts, as the encoder reads it: the template's tokens by their names there, and all
        else as it was written."""
        named = self._any.sub(lambda found: self._mark("t", found.group()), rendered)
        return self._marks.sub(lambda found: self.tokens[int(found.group(1))], named)

    def encode(self, texts: Sequence[tuple[str, str | None]], *, add_special_tokens: bool) -> Sequence[Any]:
        """Encodings of revealed texts, or of pairs of them."""
        inputs: list[Any] = [first if second is None else (first, second) for first, second in texts]
        encodings: Sequence[Any] = self._encoder.encode_batch(inputs, add_special_tokens=add_special_tokens)
        return encodings

    def _mark(self, kind: str, token: str) -> str:
        return f"\ue000{kind}{self.nonce}-{self._numbers[token]}\ue001"

    @cached_property
    def _numbers(self) -> Mapping[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        return re.compile(f"\ue000u{self.nonce}-([0-9]+)\ue001")

    @cached_property
    def _encoder(self) -> Any:
        from tokenizers import Tokenizer

        described = json.loads(self.tokenizer.backend_tokenizer.to_str())
        names = {token: self._mark("t", token) for token in self.tokens}
        for token in described["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = described["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        described["truncation"] = described["padding"] = None
        return Tokenizer.from_str(json.dumps(described))
