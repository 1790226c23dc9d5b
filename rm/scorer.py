"""The scorer: groups of responses to prompts → float32 rewards, in the order of the input.

    scorer = Scorer.load(directory, dtype="float32", max_length=2048, too_long="truncate", tokens_per_batch=None)
    [scores] = scorer.score([((("user", "Why?"),), ["Because.", "No."])])
    scores.rewards  # float32 [2]

Loading a model decides how rows run together, by rewards alone: packed rows in which a group's common prompt stands once
(`rm.engine.packed_forward`), or, for architectures that cannot take those, rows sorted by length and padded, or of equal
lengths, or one by one (`rm.together`). Batches keep to a token budget. This module knows no files, and does not
decide which responses are worth keeping.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from rm.checkpoint.interchange import pooling_pad_id
from rm.checkpoint.load import load_for_scoring, load_tokenizer
from rm.checkpoint.memory_check import refuse_too_large, weights_bytes
from rm.checkpoint.placement import choose_devices, devices_of
from rm.checkpoint.refusals import refuse_switching, refuse_unembedded
from rm.checkpoint.reward_model import RewardModel
from rm.conversations import UnusableError
from rm.engine.device import (
    DeviceError,
    default_device,
    default_tokens_per_batch,
    is_out_of_memory,
    native_bfloat16,
    peak_flops,
    refuse_broken,
)
from rm.engine.layout import Layout, common_prefix, cut_rows, lay_out, plan_batches, plan_even
from rm.engine.onednn import fuse_linear_layers
from rm.engine.packed_forward import enable_packing, first_position, packed_rewards
from rm.identity import ModelError, effective_max_length
from rm.scorer_memory import fit_batches
from rm.scores import ONE_OUTPUT, Batch, GroupScores, Outputs, ResponseGroup, Window, Work
from rm.text.templates import Encoded, Template
from rm.text.windows import PendingText, deduplicate, map_ahead, split_into_windows
from rm.together import PADDED, choose_way, compatible_groups, padded_rewards, split_lengths

log = logging.getLogger(__name__)

_WINDOW_BATCHES = 8  # batches whose text is tokenised and planned at once
_CHARACTERS_PER_TOKEN = 4
_CPU_FILLS_AT = 1024  # tokens; a CPU's kernels gain nothing from more, and its caches lose
_REPEATS = 20  # a group is cut where repeating its prefix costs less than this fraction (1/20) of it


@dataclass
class Scorer:
    """Scores groups with one loaded model; one forward at a time.

    `tokens_per_batch` bounds the tokens that a forward computes. Running out of memory halves it for good. A single row
    that still does not fit is rejected with the reason `out_of_memory`, one that the model fails on with `model_error`.
    """

    model: RewardModel
    template: Template
    tokens_per_batch: int
    device: str
    packed: bool
    on_batch: Callable[[Work], None] | None = None
    way: str = PADDED  # in which rows run together where they are not packed
    split: int | None = None  # rows longer than this are in batches of their own, packed or not
    outputs: Outputs = ONE_OUTPUT
    _known: Encoded | None = field(default=None, init=False)  # a row that the model has scored

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

        `tokens_per_batch` None takes `default_tokens_per_batch` of the device, and `device` None this machine's. `devices`
        are the GPUs that the model is spread over, a number or `auto`; `memory` are the bytes of the machine's that this
        process may use, None for all that it has available. `outputs` are those of a head with several.
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
        """True where keys of prefixes are gathered: on a GPU, by its kernels."""
        return self.packed and self.model.causal and self.device.startswith("cuda")

    def score(self, groups: Sequence[ResponseGroup]) -> list[GroupScores]:
        """Score every response of every group, in order, exact duplicates in one call once. Raises `DeviceError`."""
        results = [GroupScores.empty(len(responses), self.outputs.names) for _, responses in groups]
        size = _CHARACTERS_PER_TOKEN * _WINDOW_BATCHES * self.tokens_per_batch
        for window in map_ahead(self._encode, split_into_windows(deduplicate(groups), characters=size)):
            rewards, failures = self._forward_all(window)
            for reason, places in window.unusable:
                for group, index in places:
                    results[group].reasons[index] = reason
            for number, (row, places) in enumerate(zip(window.rows, window.places, strict=True)):
                for group, index in places:
                    result = results[group]
                    result.prompt_tokens[index] = row.prompt_tokens
                    result.response_tokens[index] = row.response_tokens
                    result.truncated[index] = row.truncated
                    if row.left_out:
                        result.left_out[index] = row.left_out
                    result.reasons[index] = failures.get(number)
                    if number not in failures:
                        result.rewards[index], *others = rewards[number]
                        for values, value in zip(result.outputs.values(), others, strict=True):
                            values[index] = value
        return results

    def _encode(self, window: Sequence[PendingText]) -> Window:
        """Tokenize a window's texts; those that cannot be read are listed as unusable."""
        encoded = Window([], [], [], [])
        for prompt, responses, places in window:
            whole: list[int] = []
            # the prompt of a truncated row begins elsewhere: among whole rows it would leave them nothing to share
            truncated: list[int] = []
            for row, positions in zip(self.template.encode_group(prompt, responses), places, strict=True):
                if isinstance(row, UnusableError):
                    encoded.unusable.append((row.reason, positions))
                    continue
                (truncated if row.truncated else whole).append(len(encoded.rows))
                encoded.rows.append(row)
                encoded.places.append(positions)
            encoded.groups.extend(group for group in (whole, truncated) if group)
        return encoded

    def _forward_all(self, window: Window) -> tuple[np.ndarray, dict[int, str]]:
        """Return what `_forward` does of a window's rows, float32, and row → reason for those that have no reward."""
        rewards = np.full((len(window.rows), 1 + len(self.outputs.names)), np.nan, dtype=np.float32)
        failures: dict[int, str] = {}
        waiting = self._plan(window.rows, window.groups)
        while waiting:
            batch = waiting.pop()
            members = [row for run in batch for row in run]
            try:
                rewards[members], work = self._forward(window.rows, batch)
            except Exception as error:  # whatever a model or device raises, a single row may be the cause
                refuse_broken(error)
                memory = is_out_of_memory(error)
                if memory and self.device.startswith("cuda"):
                    error.__traceback__ = None  # its frames hold the tensors that filled the memory
                    torch.cuda.empty_cache()
                if len(members) == 1:
                    failures[members[0]] = "out_of_memory" if memory else self._blame(window.rows[members[0]], error)
                elif memory:
                    self.tokens_per_batch = max(1, self._cost(window.rows, batch) // 2)
                    log.warning("out of memory: from now on at most %d tokens a batch", self.tokens_per_batch)
                    waiting = self._plan(window.rows, [run for left in (batch, *waiting) for run in left])
                else:
                    waiting += [[members[: len(members) // 2]], [members[len(members) // 2 :]]]
                continue
            self._known = self._known or window.rows[members[-1]]
            if self.on_batch is not None:
                self.on_batch(work)
        for index in np.flatnonzero(~np.isfinite(rewards).all(1)):
            failures.setdefault(int(index), "nan_reward")
        return rewards, failures

    def _blame(self, row: Encoded, error: Exception) -> str:
        """Return the reason why this row has no reward.

        Raises `DeviceError` where a row that has been scored before now fails as well: then the row is not the cause.
        """
        if self._known is not None:
            try:
                self._forward([self._known], [[0]])
            except Exception:
                raise DeviceError(f"{type(error).__name__}, and a row that was scored before fails as well") from error
        log.warning("a row of %d tokens breaks the model (%s); it is rejected", len(row.ids), type(error).__name__)
        return "model_error"

    def _plan(self, rows: Sequence[Encoded], groups: Sequence[Sequence[int]]) -> list[Batch]:
        """Divide these rows into batches; the batch to run first is the last of the list."""
        budget = self.tokens_per_batch
        full = min(budget, _CPU_FILLS_AT) if self.device == "cpu" else budget
        way, lengths = PADDED if self.packed else self.way, [len(row.ids) for row in rows]
        batches: list[Batch] = []
        for part in compatible_groups(groups, lengths, way=way, split=self.split):
            if self.packed:
                runs = [run for group in part for run in self._runs(rows, group, full=full)]
                plan = plan_even([self._cost(rows, [run]) for run in runs], tokens_per_batch=budget, full=full)
            else:
                runs = [[row] for group in part for row in group]
                plan = plan_batches([lengths[row] for [row] in runs], tokens_per_batch=full)
            batches += [[runs[position] for position in batch] for batch in reversed(plan)]
        return batches

    def _runs(self, rows: Sequence[Encoded], group: Sequence[int], *, full: int) -> list[list[int]]:
        """Return the group as one run, or cut where it is too large, or more than full and its prefix cheap to repeat."""
        ids = [rows[row].ids for row in group]
        shared = self._shared(ids)
        if not shared:
            return [[row] for row in group]
        most = min(self.tokens_per_batch, max(full, _REPEATS * shared))
        cuts = cut_rows([len(row) for row in ids], prefix=shared, tokens_per_batch=most)
        return [[group[position] for position in cut] for cut in cuts]

    def _shared(self, ids: Sequence[Sequence[int]]) -> int:
        """Count the tokens that stand once for these rows: their common prefix, their last token excepted."""
        if not self.model.causal or len(ids) == 1:
            return 0
        return min(common_prefix(ids), *(len(row) - 1 for row in ids))

    def _cost(self, rows: Sequence[Encoded], batch: Batch) -> int:
        """Count the tokens that the forward of a batch computes."""
        runs = [[rows[row].ids for row in run] for run in batch]
        if not self.packed:
            lengths = [len(ids) for run in runs for ids in run]
            return len(lengths) * max(lengths)
        return sum(sum(map(len, run)) - (len(run) - 1) * self._shared(run) for run in runs)

    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> tuple[np.ndarray, Work]:
        """Compute the rewards of a batch's rows, in its order: [rows, 1 + named outputs], the reward first."""
        started = time.perf_counter()
        with torch.inference_mode():
            rewards, computed = (self._forward_packed if self.packed else self._forward_padded)(rows, batch)
            array: np.ndarray = rewards.cpu().numpy().reshape(len(rewards), -1)
            array = array[:, [self.outputs.reward, *self.outputs.names.values()]]
        secs = time.perf_counter() - started
        read = sum(len(rows[row].ids) for run in batch for row in run)
        padding = 0 if self.packed else computed - read
        flops = 2.0 * self.model.computing_parameters * computed
        peak = (peak_flops(self.device, self.model.dtype) or 0.0) * secs * len(self.devices)
        return array, Work(len(array), read, computed, padding, flops, peak, secs)

    def _forward_packed(self, rows: Sequence[Encoded], batch: Batch) -> tuple[torch.Tensor, int]:
        layout = self._lay_out(rows, batch)
        return packed_rewards(self.model.model, layout, causal=self.model.causal), len(layout.ids)

    def _lay_out(self, rows: Sequence[Encoded], batch: Batch) -> Layout:
        config = self.model.model.config
        return lay_out(
            [[(rows[row].ids, rows[row].types) for row in run] for run in batch],
            share=self.model.causal,
            pad=pooling_pad_id(config),
            first_position=first_position(config),
        )

    def _forward_padded(self, rows: Sequence[Encoded], batch: Batch) -> tuple[torch.Tensor, int]:
        pad = self.template.tokenizer.pad_token_id or 0
        return padded_rewards(self.model, [rows[row] for run in batch for row in run], pad=pad)


__all__ = ["GroupScores", "ModelError", "ResponseGroup", "Scorer", "Work"]
