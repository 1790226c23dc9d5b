"""The speed of a model on this machine, measured on sampled rows."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.commands.estimate.quantity import Quantity
from pipelines.commands.estimate.survey import BlockOfRows
from pipelines.commands.progress_bar import ShowPart
from pipelines.corpus.fragments import PromptGroup, groups_of
from pipelines.errors import ModelLoadError
from pipelines.plan import Plan
from pipelines.storage.models import carrying_model_errors
from rm.conversations import Conversation

BENCHMARK_SECS = 15.0
_CHUNK_SECS = 1.5  # calls of the benchmark grow until one takes this long
_SPEED_VARIES = 0.1  # from one minute to the next, in addition to the variation within a benchmark


@dataclass(frozen=True)
class Speed:
    """The result of a benchmark."""

    tokens_per_sec: Quantity  # computed tokens
    load_secs: float
    secs: float  # of the benchmark, without loading
    responses: int
    device: str
    packed: bool
    devices: int = 1  # over which the model is spread

    def time_for(self, computed: Quantity) -> Quantity:
        """Return the seconds for these computed tokens."""
        rate = self.tokens_per_sec
        return Quantity(computed.value / rate.value, computed.low / rate.high, computed.high / rate.low, "measured")


def benchmark(
    plan: Plan, waiting: Sequence[BlockOfRows], *, seed: int, secs: float = BENCHMARK_SECS, show: ShowPart | None = None
) -> Speed:
    """Load the model and score randomly drawn prompts, each with all its responses in a block, for about `secs` seconds.

    Calls grow until one takes a second or two; only calls of that size count. `show` receives the elapsed seconds. Raises
    `ModelLoadError`.
    """
    from pipelines.score.load_model import LoadScorer

    started = time.perf_counter()
    scorer: Any = LoadScorer()(plan)
    load_secs = time.perf_counter() - started
    done: list[Any] = []
    scorer.on_batch = done.append
    queue = _shuffle_groups(waiting, seed)
    size, timed, responses = 1, [], 0
    begun = time.perf_counter()
    while queue and time.perf_counter() - begun < secs:
        if show is not None:
            show("measuring the speed of the model", time.perf_counter() - begun, secs)
        call = _next_call(queue, size)
        done.clear()
        before = time.perf_counter()
        with carrying_model_errors():
            scorer.score(call)
        took = time.perf_counter() - before
        computed = sum(work.computed_tokens for work in done)
        responses += sum(len(texts) for _, texts in call)
        if computed:
            timed.append((size, took, computed))
        if took < _CHUNK_SECS:
            size *= 4
    took, largest = time.perf_counter() - begun, max((size for size, _, _ in timed), default=1)
    counted = [(call_secs, tokens) for size, call_secs, tokens in timed if size == largest]
    if not counted:
        raise ModelLoadError("the model gave no reward to any row of the benchmark; leave it out with --no-benchmark")
    rates = [tokens / call_secs for call_secs, tokens in counted]
    pooled = sum(tokens for _, tokens in counted) / sum(call_secs for call_secs, _ in counted)
    rate = Quantity(pooled, min(rates) * (1 - _SPEED_VARIES), max(rates) * (1 + _SPEED_VARIES), "measured")
    return Speed(rate, load_secs, took, responses, scorer.device, scorer.packed, len(scorer.devices))


def _shuffle_groups(waiting: Sequence[BlockOfRows], seed: int) -> list[PromptGroup]:
    """Return the prompts of all blocks, each with its responses in one block, in random order."""
    groups: list[PromptGroup] = []
    for block in waiting:
        responses: dict[Conversation, list[str]] = {}
        for prompt, texts in groups_of(block.rows):
            responses.setdefault(prompt, []).extend(texts)
        groups += [(prompt, list(dict.fromkeys(texts))) for prompt, texts in responses.items() if texts]
    random.Random(seed).shuffle(groups)
    return groups


def _next_call(queue: list[PromptGroup], responses: int) -> list[PromptGroup]:
    """Take groups of about `responses` responses from the end of the queue; the rest of a cut group stays in the queue."""
    call: list[PromptGroup] = []
    while queue and responses > 0:
        prompt, texts = queue.pop()
        taken = texts[:responses]
        if len(texts) > len(taken):
            queue.append((prompt, texts[len(taken) :]))
        call.append((prompt, taken))
        responses -= len(taken)
    return call
