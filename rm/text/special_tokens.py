"""Special tokens spelled in prompts and responses, which the model must read as plain text.

A tokenizer reads `<|im_end|>` or `[SEP]` anywhere in a text as the token of that name. In a conversation only the template
may write these tokens. In a prompt or response they are ordinary characters; otherwise a response could end its own turn
and continue in another role.
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
    """The special tokens of one (fast) tokenizer, and an encoder that has other names for them.

    In that encoder each special token has a name that cannot be guessed, also in its vocabulary, since a Unigram model
    would find `</s>` in plain text. The template's tokens are renamed, users' text is unchanged, and one call encodes both
    with the usual ids and joins:

        special = SpecialTokens.of(tokenizer)
        rendered = render(special.hide(prompt), special.hide(response))   # a template puts its tokens around
        [encoding] = special.encode([(special.reveal(rendered), None)], add_special_tokens=False)
    """

    tokenizer: Any
    nonce: str

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        return cls(tokenizer, secrets.token_hex(8))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The tokens' texts, longest first, so that the longer of two tokens at one position is found."""
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(sorted({token.content for token in added if token.special}, key=lambda text: (-len(text), text)))

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return tuple(sorted({text[:2] for text in self.tokens}))

    @cached_property
    def _any(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self.tokens)))

    def appear_in(self, text: str) -> bool:
        """Return whether the text spells a special token; fast if it does not, which is nearly always."""
        return any(start in text for start in self._beginnings) and any(token in text for token in self.tokens)

    def hide(self, text: str) -> str:
        """Replace the special tokens spelled in a user's text by marks."""
        return self._any.sub(lambda match: self._mark("u", match.group()), text)

    def reveal(self, rendered: str) -> str:
        """Return a rendered conversation of hidden texts as `encode` reads it.

        The template's tokens get the encoder's names, and the users' text is as it was written.
        """
        named = self._any.sub(lambda match: self._mark("t", match.group()), rendered)
        return self._marks.sub(lambda match: self.tokens[int(match.group(1))], named)

    def encode(self, texts: Sequence[tuple[str, str | None]], *, add_special_tokens: bool) -> Sequence[Any]:
        """Encode revealed texts, or pairs of them, in order."""
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

        description = json.loads(self.tokenizer.backend_tokenizer.to_str())
        names = {token: self._mark("t", token) for token in self.tokens}
        for token in description["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = description["model"]
        vocabulary = model["vocab"]
        if isinstance(vocabulary, dict):
            model["vocab"] = {names.get(text, text): number for text, number in vocabulary.items()}
        else:
            model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
        if model.get("unk_token") in names:
            model["unk_token"] = names[model["unk_token"]]
        description["truncation"] = description["padding"] = None
        return Tokenizer.from_str(json.dumps(description))
