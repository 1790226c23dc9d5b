"""The scorer: groups of responses to prompts → float32 rewards, in the order of the input.

    scorer = Scorer.load(directory, dtype="float32", max_length=2048, too_long="truncate", tokens_per_batch=None)
    [scores] = scorer.score([((("user", "Why?"),), ["Because.", "No."])])
    scores.rewards  # float32 [2]

Loading a model decides how rows share a batch, by a check of rewards: packed, with a group's common prompt once
(`rm.engine.packed_forward`), or, if the architecture does not support that, sorted by length and padded, or of equal
lengths, or one by one (`rm.together`). Batches stay within a token budget. This module does not read files or decide which
responses to keep.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rm.batches import BatchPlanner
from rm.checkpoint.interchange import pooling_pad_id
from rm.checkpoint.load import load_for_scoring, load_tokenizer
from rm.checkpoint.memory_check import refuse_too_large, weights_bytes
from rm.checkpoint.placement import choose_devices, devices_of
from rm.checkpoint.refusals import refuse_switching, refuse_unembedded
from rm.checkpoint.reward_model import RewardModel
from rm.conversations import UnusableError
from rm.engine.device import (
    begin_copy,
    default_device,
    default_tokens_per_batch,
    native_bfloat16,
    peak_flops,
    works_apart,
)
from rm.engine.layout import Layout, lay_out
from rm.engine.norms import fuse_norms
from rm.engine.onednn import fuse_linear_layers
from rm.engine.packed_forward import PackedInputs, enable_packing, first_position, packed_rewards
from rm.forwards import Call, ForwardLoop, WindowRun
from rm.identity import ModelError, effective_max_length
from rm.scorer_memory import fit_batches
from rm.scores import ONE_OUTPUT, Batch, GroupScores, Launched, Outputs, ReadyBatch, ResponseGroup, Window, Work
from rm.text.templates import Encoded, Template
from rm.text.windows import PendingText, deduplicate, map_ahead, split_into_windows
from rm.together import PADDED, choose_way, padded_rewards, split_lengths

log = logging.getLogger(__name__)

_WINDOW_BATCHES = 8  # batches tokenised and planned together
_PREPARED = 2  # windows tokenised before their groups are scored
_CHARACTERS_PER_TOKEN = 4
_CPU_FILLS_AT = 1024  # tokens; larger batches do not speed up a CPU's kernels, and exceed its caches


class PreparedGroups(list[ResponseGroup]):
    """Groups whose first windows are tokenised; they can be scored once."""

    def __init__(self, groups: Sequence[ResponseGroup], call: Call) -> None:
        super().__init__(groups)
        self._call: Call | None = call

    def take(self) -> Call:
        """Return the call that scores them, once. Raises `ValueError` at the second time."""
        call, self._call = self._call, None
        if call is None:
            raise ValueError("these groups were scored already; prepare them again")
        return call

    def begin(self) -> Call | None:
        """Return the call; its batches may be launched before it is taken."""
        return self._call


@dataclass
class Scorer(ForwardLoop):
    """Scores groups with one loaded model; one forward at a time.

    `tokens_per_batch` limits the tokens of a forward. Running out of memory halves it permanently. A single row that still
    does not fit is rejected with the reason `out_of_memory`, a row that the model fails on with `model_error`.
    """

    model: RewardModel
    template: Template
    tokens_per_batch: int
    device: str
    packed: bool
    on_batch: Callable[[Work], None] | None = None
    way: str = PADDED  # how rows share a batch if they are not packed
    split: int | None = None  # longer rows are in separate batches, packed or not
    outputs: Outputs = ONE_OUTPUT
    _tokenising: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _asked: frozenset[Any] = frozenset()  # requests to the attention plan of the last forward

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        dtype: str,
        max_length: int,
        too_long: str,
        tokens_per_batch: int | None,
        device: str | None = None,
        devices: int | str = 1,
        memory: int | None = None,
        outputs: Outputs = ONE_OUTPUT,
    ) -> Scorer:
        """Load the scorer of a model directory (see `rm.identity.resolve_model`). Raises `ModelError`.

        If `tokens_per_batch` is None, it is the device's `default_tokens_per_batch`; if `device` is None, it is this
        machine's. `devices` is the number of GPUs to spread the model over, or `auto`; `memory` is the number of bytes of the
        machine's memory that this process may use, None for all. `outputs` are the named outputs of a head with several.
        """
        device = device or default_device()
        if dtype in ("bfloat16", "int8") and device.startswith("cuda") and not native_bfloat16(device):
            raise ModelError(
                f"model.dtype is {dtype}, and this GPU only emulates bfloat16; use float16, float32 or auto"
            )
        given = tokens_per_batch is not None
        tokens_per_batch = tokens_per_batch or default_tokens_per_batch(device, training=False)
        tokenizer = load_tokenizer(directory)
        chosen = choose_devices(directory, device, devices, dtype=dtype)
        refuse_too_large(directory, dtype=dtype, devices=chosen, straight=True, memory=memory)
        model = load_for_scoring(directory, dtype=dtype, device=device, devices=chosen, outputs=outputs.names)
        length = effective_max_length(directory, max_length)
        refuse_unembedded(directory, tokenizer, model.model)
        refuse_switching(directory, model.model.config, length)
        template = Template.of(tokenizer, causal=model.causal, max_length=length, too_long=too_long)
        reading = f"template {template.kind}, at most {template.max_length} tokens"
        log.info("loaded %s on %s in %s, %s", directory, ", ".join(devices_of(model)), dtype, reading)
        if device.startswith("cuda"):
            fuse_norms(model.model)
        packed = enable_packing(model.model, causal=model.causal, max_length=template.max_length)
        if device == "cpu" and len(chosen) == 1 and not model.causal:
            fuse_linear_layers(model.model)
        split = split_lengths(model.model.config, template.max_length)
        way = PADDED if packed else choose_way(model, template, split=split)
        scorer = cls(model, template, tokens_per_batch, device, packed, way=way, split=split, outputs=outputs)
        left = None if memory is None or device != "cpu" else max(0, memory - weights_bytes(directory, dtype))
        fit_batches(scorer, given=given, share=left)
        return scorer

    @cached_property
    def devices(self) -> list[str]:
        """The devices that hold the model."""
        return devices_of(self.model)

    @property
    def gathers(self) -> bool:
        """True if keys of prefixes are gathered: on a GPU, by its kernels."""
        return self.packed and self.model.causal and self.device.startswith("cuda")

    def score(
        self, groups: Sequence[ResponseGroup], following: Callable[[], Sequence[ResponseGroup] | None] = lambda: None
    ) -> list[GroupScores]:
        """Score every response of every group, in order, exact duplicates in a call only once. Raises `DeviceError`.

        Groups may be the result of `prepare`. `following` returns the prepared groups of the next call, if any; it is called
        at the end, so that a GPU can start on them.
        """

        def next_call() -> Call | None:
            prepared = following()
            return prepared.begin() if isinstance(prepared, PreparedGroups) else None

        results = [GroupScores.empty(len(responses), self.outputs.names) for _, responses in groups]
        call = groups.take() if isinstance(groups, PreparedGroups) else Call(self._windows(groups))
        for run in self._run(call, next_call):
            for reason, places in run.window.unusable:
                for group, index in places:
                    results[group].reasons[index] = reason
            for number, (row, places) in enumerate(zip(run.window.rows, run.window.places, strict=True)):
                for group, index in places:
                    result = results[group]
                    result.prompt_tokens[index] = row.prompt_tokens
                    result.response_tokens[index] = row.response_tokens
                    result.truncated[index] = row.truncated
                    if row.left_out:
                        result.left_out[index] = row.left_out
                    result.reasons[index] = run.failures.get(number)
                    if number not in run.failures:
                        result.rewards[index], *others = run.rewards[number]
                        for values, value in zip(result.outputs.values(), others, strict=True):
                            values[index] = value
        return results

    def prepare(self, groups: Sequence[ResponseGroup]) -> PreparedGroups:
        """Tokenize the first windows of groups to score, in another thread while other groups are scored."""
        call = Call(self._windows(groups))
        call.live.extend(itertools.islice(call.windows, _PREPARED))
        return PreparedGroups(groups, call)

    def _windows(self, groups: Sequence[ResponseGroup]) -> Iterator[WindowRun]:
        """Yield the windows of a call, each tokenised and planned while the previous one is computed. On a GPU the first windows
        are small, so that it has work at once."""
        size = _CHARACTERS_PER_TOKEN * _WINDOW_BATCHES * self.tokens_per_batch
        # not on a CPU, where other batches would give rewards that differ in their last bits
        share = self.packed and self.model.causal and self.device != "cpu"
        first = size // _WINDOW_BATCHES if works_apart(self.device) else None
        whole = self.template.fits_together
        windows = split_into_windows(deduplicate(groups), characters=size, share=share, first=first, whole=whole)
        return map_ahead(lambda window: self._begin(self._encode(window)), windows)

    def _encode(self, window: Sequence[PendingText]) -> Window:
        """Tokenize a window's texts; texts that cannot be read are listed as unusable."""
        encoded = Window([], [], [], [])
        with self._tokenising:  # tokenizer and template are not thread-safe
            samples = self.template.encode_groups([(prompt, responses) for prompt, responses, _ in window])
        for (_, _, places), rows in zip(window, samples, strict=True):
            whole: list[int] = []
            # the prompt of a truncated row begins elsewhere: a group with whole rows would have no common prefix
            truncated: list[int] = []
            for row, positions in zip(rows, places, strict=True):
                if isinstance(row, UnusableError):
                    encoded.unusable.append((row.reason, positions))
                    continue
                begins_elsewhere = row.truncated and not self.template.fits_together
                (truncated if begins_elsewhere else whole).append(len(encoded.rows))
                encoded.rows.append(row)
                encoded.places.append(positions)
            encoded.groups.extend(group for group in (whole, truncated) if group)
        return encoded

    def _begin(self, window: Window) -> WindowRun:
        """Plan a window's batches, and build the inputs of their forwards if rows are packed."""
        budget = self.tokens_per_batch
        batches = self._planner(budget).plan(window.rows, window.groups)
        if self.packed:
            # the forward raises this error again, and handles it
            with suppress(Exception):
                batches = [ReadyBatch(batch, self._inputs(window.rows, batch)) for batch in batches]
        return WindowRun(
            window, budget, batches, np.full((len(window.rows), 1 + len(self.outputs.names)), np.nan, np.float32)
        )

    def _forward_all(self, window: Window) -> tuple[np.ndarray, dict[int, str]]:
        """Return the float32 results of `_forward` for a window's rows, and row → reason for those without a reward."""
        [run] = self._run(Call(iter([self._begin(window)])))
        return run.rewards, run.failures

    def _planner(self, budget: int) -> BatchPlanner:
        full = min(budget, _CPU_FILLS_AT) if self.device == "cpu" else budget
        return BatchPlanner(budget, full, self.packed, self.model.causal, self.way, self.split)

    def _plan(self, rows: Sequence[Encoded], groups: Sequence[Sequence[int]]) -> list[Batch]:
        return self._planner(self.tokens_per_batch).plan(rows, groups)

    def _cost(self, rows: Sequence[Encoded], batch: Batch) -> int:
        return self._planner(self.tokens_per_batch).cost(rows, batch)

    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> Launched:
        """Start computing the rewards of a batch's rows, in its order: [rows, 1 + named outputs], the reward first."""
        started = time.perf_counter()
        with torch.inference_mode():
            rewards, computed = (self._forward_packed if self.packed else self._forward_padded)(rows, batch)
            copied = begin_copy(rewards)

        def read() -> np.ndarray:
            return copied().reshape(len(rewards), -1)[:, [self.outputs.reward, *self.outputs.names.values()]]

        tokens = sum(len(rows[row].ids) for run in batch for row in run)
        padding = 0 if self.packed else computed - tokens
        flops = 2.0 * self.model.computing_parameters * computed
        peak = (peak_flops(self.device, self.model.dtype) or 0.0) * len(self.devices)
        return Launched(read, Work(len(rewards), tokens, computed, padding, flops, peak, 0.0), started)

    def _inputs(self, rows: Sequence[Encoded], batch: Batch) -> PackedInputs:
        inputs = PackedInputs.of(self._lay_out(rows, batch), self.model.model.device)
        inputs.plan.build(self._asked)
        return inputs

    def _lay_out(self, rows: Sequence[Encoded], batch: Batch) -> Layout:
        config = self.model.model.config
        return lay_out(
            [[(rows[row].ids, rows[row].types) for row in run] for run in batch],
            share=self.model.causal,
            pad=pooling_pad_id(config),
            first_position=first_position(config),
        )

    def _forward_packed(self, rows: Sequence[Encoded], batch: Batch) -> tuple[torch.Tensor, int]:
        inputs = batch.inputs if isinstance(batch, ReadyBatch) else self._inputs(rows, batch)
        rewards = packed_rewards(self.model.model, inputs, causal=self.model.causal)
        self._asked = frozenset(inputs.plan.asked)
        return rewards, inputs.ids.numel()

    def _forward_padded(self, rows: Sequence[Encoded], batch: Batch) -> tuple[torch.Tensor, int]:
        members = [rows[row] for run in batch for row in run]
        return padded_rewards(self.model, members, pad=self.template.tokenizer.pad_token_id or 0)


__all__ = ["GroupScores", "ModelError", "ResponseGroup", "Scorer", "Work"]
