"""The text that a model reads for a conversation, without its weights: token counts, and the text in pieces.

Tokenizer and template are those of scoring (`rm.text.templates`), so special tokens spelled in a user's text are text here
as well.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from rm.checkpoint.load import load_tokenizer, reads_last_token
from rm.conversations import Conversation, UnusableError
from rm.identity import effective_max_length
from rm.text.left_out import describe_left_out
from rm.text.templates import Template

log = logging.getLogger(__name__)

_NO_LIMIT = 2**62


class TextPiece(NamedTuple):
    """Consecutive tokens as text; each `special` token, added by the template or tokenizer, is a separate piece."""

    text: str
    special: bool


class SampleLength(NamedTuple):
    """Tokens of one prompt and response before truncation; template and special tokens count as prompt, as in scoring."""

    prompt: int
    response: int


@dataclass(frozen=True)
class Preview:
    """The reading side of one model: tokenizer, template and length limit (`template.max_length`), as in scoring."""

    template: Template

    @classmethod
    def load(cls, directory: Path, *, max_length: int) -> Preview:
        """Load the preview of a model directory (see `rm.identity.resolve_without_weights`). Raises `ModelError`."""
        tokenizer = load_tokenizer(directory)
        causal = not getattr(tokenizer, "chat_template", None) and reads_last_token(directory)
        limit = effective_max_length(directory, max_length)
        preview = cls(Template.of(tokenizer, causal=causal, max_length=limit, too_long="truncate"))
        preview.template.left_out.mute()
        return preview

    def lengths(self, prompt: Conversation, responses: Sequence[str]) -> list[SampleLength | str]:
        """Return each response's length before truncation, or the reason why the template does not render it."""
        return [
            sample.reason
            if isinstance(sample, UnusableError)
            else SampleLength(sample.prompt_tokens, sample.response_tokens)
            for sample in self._unlimited().encode_group(prompt, responses)
        ]

    def _unlimited(self) -> Template:
        template = replace(self.template, max_length=_NO_LIMIT)
        template.left_out.mute()
        return template

    def warnings(self, groups: Iterable[tuple[Conversation, Sequence[str]]]) -> list[str]:
        """Return warnings about the first groups of a corpus: keys that the template refuses in all of them, or leaves out."""
        template, refused = self._unlimited(), Counter[str]()
        for prompt, responses in groups:
            for sample in template.encode_group(prompt, responses):
                refused.update([sample.reason] if isinstance(sample, UnusableError) else [])
        rendered, warnings = template.left_out.responses, []
        if refused and not rendered:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in refused.most_common())
            warnings.append(
                f"the model's template renders none of the first {refused.total():,} responses ({reasons}); choose a model "
                "whose template does, or remove the key from the corpus"
            )
        if template.left_out.counts:
            warnings.append(describe_left_out(template.left_out.counts, rendered, "of the first responses"))
        return warnings

    @property
    def special_tokens(self) -> list[str]:
        """The texts of the special tokens, as a template writes them."""
        return sorted(
            {token.content for token in self.template.tokenizer.added_tokens_decoder.values() if token.special}
        )

    def describe(self, prompt: Conversation, response: str) -> dict[str, Any]:
        """Return the text that the model reads, truncated to its limit: `tokens`, `truncated`, and its `pieces` in order.

        Raises `UnusableError`.
        """
        encoded = self.template.encode(prompt, response)
        pieces = _text_pieces(self.template.tokenizer, encoded.ids)
        return {
            "tokens": len(encoded.ids),
            "truncated": encoded.truncated,
            "pieces": [piece._asdict() for piece in pieces],
        }


def _text_pieces(tokenizer: Any, ids: Sequence[int]) -> list[TextPiece]:
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    special -= {tokenizer.unk_token_id}  # an unknown word is content
    pieces: list[TextPiece] = []
    for is_special, run in groupby(ids, key=special.__contains__):
        if is_special:
            pieces += [TextPiece(tokenizer.convert_ids_to_tokens(number), special=True) for number in run]
        else:
            pieces.append(TextPiece(tokenizer.decode(list(run), clean_up_tokenization_spaces=False), special=False))
    return pieces
