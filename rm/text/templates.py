"""Converts conversations to token ids, exactly as the reward model reads them.

The tokenizer and model determine which of three kinds of template is used:

- `chat`: the tokenizer's chat template renders the whole conversation;
- `pair`: an encoder without a template reads the tokenizer's own pair encoding `tokenizer(prompt, response)`;
- `plain`: `prompt + "\\n\\n" + response + eos`; a tokenizer that ends every text with eos gets no second one.

In the last two, a prompt of several turns is written as `System:` / `Human:` / `Assistant:` paragraphs, and messages with more
than text are refused. A chat template gets whole messages, and the tools; values that it leaves out are reported
(`rm.text.left_out`). Prompt and response are always tokenised together: separately, some joins would have other tokens.
Special tokens spelled in a prompt or response are read as text (`rm.text.special_tokens`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, NamedTuple

from rm.conversations import Conversation, UnusableError, keys_of, to_messages, tools_in
from rm.identity import ModelError
from rm.messages import WHOLE, map_texts
from rm.text.left_out import LeftOut, find_left_out
from rm.text.samples import Encoded, TokenizedSample, fit, fit_together, without_oldest_turns
from rm.text.shared_prompts import SharedPrompts
from rm.text.spans import find_response, pair_spans, text_in, text_spans
from rm.text.special_tokens import SpecialTokens
from rm.text.template_limits import render_chat

_SPEAKER = {"system": "System", "user": "Human", "assistant": "Assistant", "tool": "Tool"}
_UNSEEN = {"name", "tool_call_id"}  # a text is complete without them


@dataclass(frozen=True)
class Template:
    """Encodes responses to prompts for one tokenizer.

    `max_length` is the effective limit in tokens. A longer conversation loses its oldest turns (not the system turn), then
    the left of the remaining prompt; a response that alone is too long is cut at its end, before the template's closing
    tokens. With `too_long="reject"` nothing is cut, and `encode` raises `UnusableError("too_long")`; with `truncate_group`
    the prompt is cut equally for all responses that are encoded together.
    """

    tokenizer: Any
    kind: str
    max_length: int
    too_long: str

    @classmethod
    def of(cls, tokenizer: Any, *, causal: bool, max_length: int, too_long: str) -> Template:
        """Return the template that fits this tokenizer: its chat template, else `pair` (encoder) or `plain` (causal)."""
        if getattr(tokenizer, "chat_template", None):
            return cls(tokenizer, "chat", max_length, too_long)
        return cls(tokenizer, "plain" if causal else "pair", max_length, too_long)

    def render(self, prompt: Conversation, response: str) -> tuple[str, str | None]:
        """Return the text for the tokenizer, and the second text of a pair or None.

        Raises `UnusableError`: `template_error`, or `no_template_for_<key>` if it cannot render that key; `ModelError` for a
        chat template that exceeds the limits of `rm.text.template_limits`.
        """
        if self.kind == "chat":
            return self._render_chat(to_messages(prompt, response), tools_in(prompt)), None
        refused = keys_of(prompt, response) - _UNSEEN
        if any(message["role"] == "tool" for message in to_messages(prompt, response)):
            refused.add("tool")
        if refused:
            raise UnusableError(f"no_template_for_{min(refused)}")
        message = to_messages((), response)[-1]
        if self.kind == "pair":
            return render_plain(prompt), message["content"]
        return f"{render_plain(prompt)}\n\n{message['content']}{self._eos}", None

    def _render_chat(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        try:
            return self._apply(messages, tools)
        except ModelError:
            raise
        except Exception as error:  # a template may raise any error (roles must alternate, ...)
            for key in sorted({key for message in messages for key in message} - {"role", "content"}):
                try:
                    self._apply([{name: value for name, value in m.items() if name != key} for m in messages], tools)
                except ModelError:
                    raise
                except Exception:
                    continue
                raise UnusableError(f"no_template_for_{key}") from error
            raise UnusableError(
                "no_template_for_tool" if any(m["role"] == "tool" for m in messages) else "template_error"
            ) from error

    def _apply(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        return render_chat(self.tokenizer, messages, tools)

    @property
    def fits_together(self) -> bool:
        """True if the prompt of several responses is cut equally for all of them."""
        return self.too_long == "truncate_group"

    @cached_property
    def left_out(self) -> LeftOut:
        """The numbers of responses read so far, and of those in which the template leaves something out."""
        return LeftOut()

    @cached_property
    def closes_itself(self) -> bool:
        """True if the tokenizer itself ends a text of kind `plain` with eos."""
        eos = self.tokenizer.eos_token_id
        if self.kind != "plain" or eos is None:
            return False
        encoding = self.tokenizer("a").encodings[0]
        return bool(encoding.ids[-1:] == [eos] and encoding.sequence_ids[-1] is None)  # None: no part of the text

    @cached_property
    def _eos(self) -> str:
        return "" if self.closes_itself else self.tokenizer.eos_token or ""

    def encode(self, prompt: Conversation, response: str) -> Encoded:
        """Encode one prompt and response to at most `max_length` tokens. Raises `UnusableError`."""
        [encoded] = self.encode_group(prompt, [response])
        if isinstance(encoded, UnusableError):
            raise encoded
        return encoded

    def encode_group(self, prompt: Conversation, responses: Sequence[str]) -> list[Encoded | UnusableError]:
        """Encode every response to a prompt in one tokenizer call; a response that cannot be encoded gives an error instead."""
        [encoded] = self.encode_groups([(prompt, responses)])
        return encoded

    def encode_groups(
        self, groups: Sequence[tuple[Conversation, Sequence[str]]]
    ) -> list[list[Encoded | UnusableError]]:
        """Encode the responses to several prompts, as `encode_group` does, in one call that can use all cores."""
        encoded = []
        for (prompt, responses), samples in zip(groups, self._tokenize(groups), strict=True):
            self.left_out.warn()
            encoded.append(self._fit(prompt, responses, samples))
        return encoded

    def _fit(
        self, prompt: Conversation, responses: Sequence[str], samples: Sequence[TokenizedSample | UnusableError]
    ) -> list[Encoded | UnusableError]:
        """Return the samples, those that are too long with less of their prompt or response."""

        def shorten(some: Sequence[str]) -> Iterator[list[TokenizedSample | UnusableError]]:
            for shorter in without_oldest_turns(prompt):
                yield from self._tokenize([(shorter, some)])

        if self.fits_together:
            return fit_together(samples, shorten(responses), max_length=self.max_length)
        fitted: list[Encoded | UnusableError] = []
        for response, sample in zip(responses, samples, strict=True):
            if isinstance(sample, UnusableError):
                fitted.append(sample)
            elif len(sample.encoded.ids) <= self.max_length:
                fitted.append(sample.encoded)
            elif self.too_long == "reject":
                fitted.append(UnusableError("too_long"))
            else:
                fitted.append(fit(sample, (one for [one] in shorten([response])), max_length=self.max_length))
        return fitted

    def _tokenize(
        self, groups: Sequence[tuple[Conversation, Sequence[str]]]
    ) -> Iterator[list[TokenizedSample | UnusableError]]:
        """Tokenize whole samples, prompt by prompt; a sample that the template does not render gives an error instead."""
        rendered = [self._render_group(prompt, responses) for prompt, responses in groups]
        texts = [[text for text in group if not isinstance(text, UnusableError)] for group in rendered]
        encodings = iter(self._encode_groups(texts))
        for (prompt, responses), group in zip(groups, rendered, strict=True):
            samples: list[TokenizedSample | UnusableError] = []
            for text, response in zip(group, responses, strict=True):
                if isinstance(text, UnusableError):
                    samples.append(text)
                    continue
                sample, left_out = (
                    self._sample(next(encodings), text, prompt, response),
                    find_left_out(prompt, response, text.first),
                )
                self.left_out.add(left_out)
                samples.append(sample._replace(encoded=sample.encoded._replace(left_out=frozenset(left_out))))
            yield samples

    def _render_group(self, prompt: Conversation, responses: Sequence[str]) -> list[_RenderedText | UnusableError]:
        rendered: list[_RenderedText | UnusableError] = []
        in_prompt = any(self._special_tokens.appear_in(content) for _, content in prompt)
        for response in responses:
            try:
                rendered.append(
                    self._render_sample(prompt, response, guarded=in_prompt or self._special_tokens.appear_in(response))
                )
            except UnusableError as error:
                rendered.append(error)
        return rendered

    @cached_property
    def _special_tokens(self) -> SpecialTokens:
        return SpecialTokens.of(self.tokenizer)

    def _render_sample(self, prompt: Conversation, response: str, *, guarded: bool) -> _RenderedText:
        """Render a sample; with `guarded`, for the encoder that reads special tokens spelled in it as text."""
        if not guarded:
            return _RenderedText(*self.render(prompt, response), guarded=False)
        hide = self._special_tokens.hide
        hidden = tuple((role, map_texts(content, hide)) for role, content in prompt)
        first, second = self.render(hidden, map_texts(response, hide))
        return _RenderedText(
            self._special_tokens.reveal(first),
            None if second is None else self._special_tokens.reveal(second),
            guarded=True,
        )

    def _encode_groups(self, groups: Sequence[Sequence[_RenderedText]]) -> list[Any]:
        """Encode rendered texts in order; a prompt's common beginning is encoded once if it ends with a special token."""
        if self.kind != "chat":
            return self._encode([text for group in groups for text in group])
        joined = self._shared_prompts.cut([[text.first for text in group if not text.guarded] for group in groups])
        pieces = [
            text._replace(first=next(firsts)) if not text.guarded else text
            for group, firsts in zip(groups, map(iter, joined.pieces), strict=True)
            for text in group
        ]
        encodings = self._encode(pieces)
        plain = iter(joined.join([one for one, text in zip(encodings, pieces, strict=True) if not text.guarded]))
        return [one if text.guarded else next(plain) for one, text in zip(encodings, pieces, strict=True)]

    @cached_property
    def _shared_prompts(self) -> SharedPrompts:
        return SharedPrompts.of(self.tokenizer, self._call_tokenizer)

    def _call_tokenizer(self, firsts: Sequence[str], seconds: Sequence[str | None] | None = None) -> list[Any]:
        """Encode texts, or pairs of them."""
        batch = self.tokenizer(
            list(firsts),
            seconds,
            add_special_tokens=self.kind != "chat",  # a chat template writes them itself: no second BOS
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return list(batch.encodings)

    def _encode(self, texts: Sequence[_RenderedText]) -> list[Any]:
        """Encode rendered texts in order, by at most two calls."""
        plain = [text for text in texts if not text.guarded]
        guarded = [(text.first, text.second) for text in texts if text.guarded]
        encodings: dict[bool, Any] = {False: iter(()), True: iter(())}
        if plain:
            seconds = [text.second for text in plain] if self.kind == "pair" else None
            encodings[False] = iter(self._call_tokenizer([text.first for text in plain], seconds))
        if guarded:
            encodings[True] = iter(self._special_tokens.encode(guarded, add_special_tokens=self.kind != "chat"))
        return [next(encodings[text.guarded]) for text in texts]

    def _sample(self, encoding: Any, text: _RenderedText, prompt: Conversation, response: str) -> TokenizedSample:
        ids = list(encoding.ids)
        types = list(encoding.type_ids) if "token_type_ids" in self.tokenizer.model_input_names else None
        if self.kind == "pair":
            spans = pair_spans(encoding)
        else:
            place = find_response(text.first, response, after=self._prompt_end(text, prompt, response))
            spans = text_spans(encoding, text.first, prompt, place, length=len(ids))
        response_tokens = spans.response_end - spans.response_start
        encoded = Encoded(
            ids, types, len(ids) - response_tokens, response_tokens, False, response_start=spans.response_start
        )
        return TokenizedSample(encoded, spans)

    def _prompt_end(self, text: _RenderedText, prompt: Conversation, response: str) -> int:
        """Return the end of the prompt in a rendered text; parts of the response may also occur in the prompt."""
        if not response.startswith(WHOLE):
            return 0  # the last place of a text is its own
        hide = self._special_tokens.hide if text.guarded else str
        hidden = tuple((role, map_texts(content, hide)) for role, content in prompt)
        try:
            alone = self._apply(to_messages(hidden), tools_in(hidden))
        except Exception:  # see `_render_chat`
            return 0
        both = zip(self._special_tokens.reveal(alone) if text.guarded else alone, text.first, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))


class _RenderedText(NamedTuple):
    """The text for a tokenizer; a pair encoding has a `second` one."""

    first: str
    second: str | None
    guarded: bool


def render_plain(prompt: Conversation) -> str:
    """Render a prompt as plain text: a single user turn unchanged, several turns as paragraphs with their speakers."""
    if len(prompt) == 1 and prompt[0][0] == "user":
        return text_in(prompt[0][1])
    return "\n\n".join(f"{_SPEAKER[role]}: {text_in(content)}" for role, content in prompt)


__all__ = ["Encoded", "Template", "render_plain"]
