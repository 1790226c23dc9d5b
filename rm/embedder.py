"""The relevance of responses: the cosine of prompt and response in an embedding model.

    embedder = Embedder.load(directory, read_embedding(directory, None), device="cpu", tokens_per_batch=None)
    [scores] = embedder.score([((("user", "Why is the sky blue?"),), ["Because of Rayleigh scattering.", "Boil the rice."])])
    scores.rewards             # float32 [2], cosines
    scores.outputs["foreign"]  # float32 [2], cosines of the same prompt with responses to another prompt

Texts are embedded separately, so each prompt once, whatever the number of its responses. Texts of similar length share a
batch. A text longer than the model's window is cut: a prompt loses its oldest turns, then its end; a response loses its end.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from rm.batches import BatchPlanner
from rm.checkpoint.embedding_config import EmbeddingSettings, read_embedding
from rm.checkpoint.embedding_model import EmbeddingModel
from rm.checkpoint.load import load_encoder, load_tokenizer
from rm.checkpoint.refusals import refuse_unembedded
from rm.conversations import TOOLS, Conversation
from rm.engine.device import begin_copy, default_device, default_tokens_per_batch, peak_flops, resolve_device
from rm.forwards import Call, ForwardLoop, WindowRun
from rm.identity import ModelError, resolve_model
from rm.messages import describe_response, open_messages
from rm.scores import Batch, GroupScores, Launched, ResponseGroup, Window, Work
from rm.text.special_tokens import SpecialTokens
from rm.text.templates import Encoded, render_plain
from rm.text.windows import map_ahead
from rm.together import EQUAL_LENGTHS, PADDED, padded_rewards

log = logging.getLogger(__name__)

FOREIGN = "foreign"
"""The name of the cosines with responses to another prompt: the level of unrelated texts, in this corpus and for this model."""

_CHUNK_TEXTS = 4096  # texts whose vectors are in memory at once
_CPU_FILLS_AT = 1024  # tokens
_TOLERANCE = 1e-4  # change of a vector by padding, as a share of its length
_TRIED = ("a", "some more words", "and a text that is quite a bit longer than the others are, with a comma")


class _Chunk(NamedTuple):
    """Groups whose texts run together: each distinct text once."""

    groups: list[int]  # their numbers in the call
    prompts: list[int]  # the text of each group's prompt
    responses: list[list[int]]  # the texts of its responses
    texts: list[tuple[str, Conversation | None]]  # the text, and for a prompt the turns by which it can be shortened


@dataclass
class Embedder(ForwardLoop):
    """Embeds texts with one loaded model, in float32; one forward at a time."""

    model: EmbeddingModel
    tokenizer: Any
    settings: EmbeddingSettings
    tokens_per_batch: int
    device: str
    on_batch: Callable[[Work], None] | None = None
    way: str = field(default=PADDED)  # how texts share a batch, see `rm.together`

    @classmethod
    def load(
        cls,
        directory: Path,
        settings: EmbeddingSettings,
        *,
        device: str | None = None,
        tokens_per_batch: int | None = None,
    ) -> Embedder:
        """Load the embedder of a model directory. Raises `ModelError`."""
        device = device or default_device()
        tokenizer = load_tokenizer(directory)
        backbone = load_encoder(directory, device=device)
        refuse_unembedded(directory, tokenizer, backbone)
        model = EmbeddingModel(backbone, settings.pooling).eval()
        budget = tokens_per_batch or default_tokens_per_batch(device, training=False)
        embedder = cls(model, tokenizer, settings, budget, device)
        if embedder.padding_error() > _TOLERANCE:
            log.warning(
                "only texts of equal length share a batch, which is slower: padding changes this model's vectors"
            )
            embedder.way = EQUAL_LENGTHS
        reading = f"{' and '.join(settings.pooling)} pooling, at most {settings.max_length} tokens"
        log.info("loaded %s on %s in float32 as embedding model, %s", directory, device, reading)
        return embedder

    @classmethod
    def open(
        cls, path: str, *, revision: str | None, max_length: int | None, device: str, tokens_per_batch: int | None
    ) -> Embedder:
        """Load the embedder of a directory or hub id, on the device that a configuration names. Raises `ModelError`."""
        directory, on = resolve_model(path, revision), resolve_device(device)
        return cls.load(directory, read_embedding(directory, max_length), device=on, tokens_per_batch=tokens_per_batch)

    @torch.inference_mode()
    def padding_error(self) -> float:
        """The largest change of a vector by other texts in its batch, as a share of its length."""
        rows, pad = self._encode([(text, None) for text in _TRIED]), self.tokenizer.pad_token_id or 0
        together, _ = padded_rewards(self.model, rows, pad=pad)
        alone = torch.cat([padded_rewards(self.model, [row], pad=pad)[0] for row in rows])
        return float(((together - alone).norm(dim=1) / alone.norm(dim=1).clamp_min(1e-12)).max())

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return the float32 vectors [texts, H] of unchanged texts; NaN if the model fails on a text."""
        [run] = self._run(Call(iter([self._begin([(text, None) for text in texts])])))
        return run.rewards

    def score(self, groups: Sequence[ResponseGroup]) -> list[GroupScores]:
        """Return as rewards the cosines of responses with their prompts, and as the output `foreign` the cosines of each prompt
        with as many responses to the next different prompt of the call; NaN if there is none. Raises `DeviceError`.
        """
        results = [GroupScores.empty(len(responses), (FOREIGN,)) for _, responses in groups]
        chunks = [*_chunks(groups, self.settings)]
        runs = self._run(Call(map_ahead(lambda chunk: self._begin(chunk.texts), chunks)))
        for chunk, run in zip(chunks, runs, strict=True):
            _fill(results, chunk, run)
        return results

    def _begin(self, texts: Sequence[tuple[str, Conversation | None]]) -> WindowRun:
        """Tokenize texts and plan their batches."""
        rows = self._encode(texts)
        window = Window(rows, [[*range(len(rows))]], [], [])
        vectors = np.full((len(rows), self.model.width), np.nan, dtype=np.float32)
        return WindowRun(window, self.tokens_per_batch, self._plan(rows, window.groups), vectors)

    def _encode(self, texts: Sequence[tuple[str, Conversation | None]]) -> list[Encoded]:
        """Tokenize texts, at most `max_length` tokens of each."""
        rows = []
        for encoding, (_, prompt) in zip(self._tokenize([text for text, _ in texts]), texts, strict=True):
            cut = len(encoding.ids) > self.settings.max_length
            while len(encoding.ids) > self.settings.max_length and prompt is not None and len(prompt) > 1:
                prompt = prompt[1:]
                [encoding] = self._tokenize([_read_prompt(prompt, self.settings)])
            rows.append(self._fit(encoding, cut=cut))
        return rows

    def _tokenize(self, texts: Sequence[str]) -> list[Any]:
        """Encode whole texts; special tokens that they spell are encoded as text."""
        spelled = [self._special.appear_in(text) for text in texts]
        plain = [text for text, guarded in zip(texts, spelled, strict=True) if not guarded]
        guarded = [(text, None) for text, guarded in zip(texts, spelled, strict=True) if guarded]
        settings = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        encodings = {
            False: iter(self.tokenizer(plain, **settings).encodings if plain else ()),
            True: iter(self._special.encode(guarded, add_special_tokens=True) if guarded else ()),
        }
        return [next(encodings[one]) for one in spelled]

    @cached_property
    def _special(self) -> SpecialTokens:
        return SpecialTokens.of(self.tokenizer)

    def _fit(self, encoding: Any, *, cut: bool) -> Encoded:
        """Return the tokens of a text, cut at its end to the limit; special tokens after the text are kept."""
        ids = list(encoding.ids)
        types = list(encoding.type_ids) if "token_type_ids" in self.tokenizer.model_input_names else None
        excess = len(ids) - self.settings.max_length
        if excess > 0:
            end = 1 + max(
                (at for at, part in enumerate(encoding.sequence_ids) if part is not None), default=len(ids) - 1
            )
            for values in (ids, types or []):
                del values[max(0, end - excess) : end]
        return Encoded(ids, types, 0, len(ids), truncated=cut)

    def _plan(self, rows: Sequence[Encoded], groups: Sequence[Sequence[int]]) -> list[Batch]:
        return self._planner.plan(rows, groups)

    def _cost(self, rows: Sequence[Encoded], batch: Batch) -> int:
        return self._planner.cost(rows, batch)

    @property
    def _planner(self) -> BatchPlanner:
        full = min(self.tokens_per_batch, _CPU_FILLS_AT) if self.device == "cpu" else self.tokens_per_batch
        return BatchPlanner(self.tokens_per_batch, full, packed=False, causal=False, way=self.way, split=None)

    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> Launched:
        """Start computing the vectors of a batch's texts, in its order."""
        started = time.perf_counter()
        members = [rows[row] for run in batch for row in run]
        with torch.inference_mode():
            vectors, computed = padded_rewards(self.model, members, pad=self.tokenizer.pad_token_id or 0)
            copied = begin_copy(vectors)
        tokens = sum(len(row.ids) for row in members)
        flops = 2.0 * self.model.computing_parameters * computed
        peak = peak_flops(self.device, torch.float32) or 0.0
        return Launched(copied, Work(len(members), tokens, computed, computed - tokens, flops, peak, 0.0), started)


def cosines_of(scores: Sequence[GroupScores]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the cosines that `Embedder.score` measured: of each group's responses, and of responses to another prompt."""
    return [one.rewards for one in scores], [one.outputs[FOREIGN] for one in scores]


def refuse_relevance(path: str, *, revision: str | None, max_length: int | None, **_: Any) -> None:
    """Raise `ModelError` before the work begins if the embedding model of the evaluation cannot be read."""
    try:
        read_embedding(resolve_model(path, revision), max_length)
    except ModelError as error:
        raise ModelError(str(error).replace("model.path", "relevance.path", 1)) from error


def _read_prompt(prompt: Conversation, settings: EmbeddingSettings) -> str:
    text = settings.query + render_plain(prompt)
    return text.lower() if settings.lower_case else text


def _read_response(response: str, settings: EmbeddingSettings) -> str:
    parts = [str(message.get("content") or "") for message in open_messages("assistant", response)]
    said = "\n\n".join(part for part in parts if part)
    text = settings.document + (said or describe_response(response))  # a call of tools may stand alone
    return text.lower() if settings.lower_case else text


def _chunks(groups: Sequence[ResponseGroup], settings: EmbeddingSettings) -> Iterator[_Chunk]:
    """Divide the groups of a call into chunks; groups are never cut, and those without responses are left out."""
    chunk, numbers = _Chunk([], [], [], []), dict[tuple[bool, str], int]()

    def number(text: str, prompt: Conversation | None) -> int:
        known = numbers.setdefault((prompt is None, text), len(chunk.texts))
        if known == len(chunk.texts):
            chunk.texts.append((text, prompt))
        return known

    for at, (conversation, responses) in enumerate(groups):
        if not responses:
            continue
        prompt = tuple(turn for turn in conversation if turn[0] != TOOLS)
        chunk.groups.append(at)
        chunk.prompts.append(number(_read_prompt(prompt, settings), prompt))
        chunk.responses.append([number(_read_response(response, settings), None) for response in responses])
        if len(chunk.texts) >= _CHUNK_TEXTS:
            yield chunk
            chunk, numbers = _Chunk([], [], [], []), {}
    if chunk.groups:
        yield chunk


def _fill(results: Sequence[GroupScores], chunk: _Chunk, run: WindowRun) -> None:
    """Enter the cosines of a chunk's groups."""
    vectors = run.rewards.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.full_like(vectors, np.nan), where=lengths > 0)
    rows = run.window.rows
    others = next_others(chunk.prompts)
    for at, (group, prompt, responses) in enumerate(zip(chunk.groups, chunk.prompts, chunk.responses, strict=True)):
        scores = results[group]
        scores.rewards[:] = _cosines(vectors[responses], vectors[prompt])
        scores.prompt_tokens[:] = rows[prompt].response_tokens
        if (other := others[at]) is not None:
            foreign = itertools.islice(itertools.cycle(chunk.responses[other]), len(responses))
            scores.outputs[FOREIGN][:] = _cosines(vectors[[*foreign]], vectors[prompt])
        for index, row in enumerate(responses):
            scores.response_tokens[index] = rows[row].response_tokens
            scores.truncated[index] = rows[row].truncated or rows[prompt].truncated
            reason = run.failures.get(prompt) or run.failures.get(row)
            scores.reasons[index] = reason or ("nan_reward" if np.isnan(scores.rewards[index]) else None)


def _cosines(vectors: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    cosines: np.ndarray = np.clip((vectors * prompt).sum(1), -1.0, 1.0)
    return cosines


def next_others(prompts: Iterable[int]) -> list[int | None]:
    """Return for each position of a circular list the next position with another number; None if all are equal."""
    numbers = [*prompts]
    count = len(numbers)
    following: list[int | None] = [None] * (2 * count)
    for at in range(2 * count - 2, -1, -1):
        after = (at + 1) % count
        following[at] = after if numbers[after] != numbers[at % count] else following[at + 1]
    return following[:count]
