"""Scorer: groups of responses to prompts → float32 rewards, in the order they came.

This is the plain path: rows sorted by length, padded to the longest of a batch, batches under a token budget. It knows
nothing of files or of which responses are worth keeping.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from rm.conversations import Conversation, UnusableError
from rm.identity import ModelError, effective_max_length
from rm.model import RewardModel, load_for_scoring, load_tokenizer
from rm.packing import plan_batches
from rm.templates import Encoded, Template

log = logging.getLogger(__name__)

Group = tuple[Conversation, Sequence[str]]


class GroupScores(NamedTuple):
    """What the model says of one group's K responses, aligned with them."""

    rewards: np.ndarray  # float32 [K]; NaN exactly where `reasons` says why
    reasons: list[str | None]  # too_long, template_error, out_of_memory, nan_reward
    prompt_tokens: np.ndarray  # int32 [K], as the model read them
    response_tokens: np.ndarray  # int32 [K]
    truncated: np.ndarray  # bool [K]


@dataclass
class Scorer:
    """Scores groups with one loaded model; one forward at a time.

    `tokens_per_batch` bounds `rows * longest row`. Out of memory halves it, for good; a single row that still does not
    fit is rejected with the reason `out_of_memory`.
    """

    model: RewardModel
    template: Template
    tokens_per_batch: int
    device: str
    on_batch: Callable[[int, int], None] | None = None  # told rows and tokens (without padding) of every batch

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
    ) -> Scorer:
        """The scorer of a model directory (see `rm.identity.resolve_model`). Raises `ModelError`.

        `tokens_per_batch` None means what suits the device: a GPU wants large batches, a CPU ones that fit its cache.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokens_per_batch = tokens_per_batch or (4096 if device == "cpu" else 32768)
        tokenizer = load_tokenizer(directory)
        model = load_for_scoring(directory, dtype=dtype, device=device)
        template = Template.of(
            tokenizer,
            causal=model.causal,
            max_length=effective_max_length(directory, max_length),
            too_long=too_long,
        )
        log.info(
            "loaded %s on %s in %s, template %s, at most %d tokens",
            directory,
            device,
            dtype,
            template.kind,
            template.max_length,
        )
        return cls(model, template, tokens_per_batch, device)

    def score(self, groups: Sequence[Group]) -> list[GroupScores]:
        """Rewards of every response of every group, in order. Exact duplicates in one call are scored once."""
        samples: list[Encoded | str] = []
        for prompt, responses in groups:
            samples += [self._encode(prompt, response) for response in responses]
        unique: dict[tuple[int, ...], int] = {}
        rows: list[Encoded] = []
        place: list[int | None] = []  # sample → row
        for sample in samples:
            if isinstance(sample, str):
                place.append(None)
                continue
            key = (*sample.ids, -1, *(sample.types or ()))
            if key not in unique:
                unique[key] = len(rows)
                rows.append(sample)
            place.append(unique[key])
        rewards, failures = self._forward_all(rows)
        return self._regroup(groups, samples, place, rewards, failures)

    def _encode(self, prompt: Conversation, response: str) -> Encoded | str:
        try:
            return self.template.encode(prompt, response)
        except UnusableError as error:
            return error.reason

    def _forward_all(self, rows: list[Encoded]) -> tuple[np.ndarray, dict[int, str]]:
        """float32 rewards [len(rows)], and row → reason for those that have none."""
        rewards = np.full(len(rows), np.nan, dtype=np.float32)
        failures: dict[int, str] = {}
        waiting = self._plan(rows, range(len(rows)))
        while waiting:
            batch = waiting.pop()
            try:
                rewards[batch] = self._forward([rows[index] for index in batch])
            except torch.OutOfMemoryError:
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
                if len(batch) == 1:
                    failures[batch[0]] = "out_of_memory"
                    continue
                self.tokens_per_batch = max(1, len(batch) * len(rows[batch[0]].ids) // 2)
                log.warning("out of memory: from now on at most %d tokens a batch", self.tokens_per_batch)
                waiting = self._plan(rows, [index for left in (batch, *waiting) for index in left])
        for index in np.flatnonzero(~np.isfinite(rewards)):
            failures.setdefault(int(index), "nan_reward")
        return rewards, failures

    def _plan(self, rows: list[Encoded], indices: Sequence[int]) -> list[list[int]]:
        """Batches of these rows, the first one to run at the end."""
        lengths = [len(rows[index].ids) for index in indices]
        plan = plan_batches(lengths, tokens_per_batch=self.tokens_per_batch)
        return [[indices[position] for position in batch] for batch in reversed(plan)]

    def _forward(self, rows: list[Encoded]) -> np.ndarray:
        """One padded batch → rewards [len(rows)]."""
        lengths = [len(row.ids) for row in rows]
        pad = self.template.tokenizer.pad_token_id or 0  # masked, so its value does not matter
        ids = torch.full((len(rows), max(lengths)), pad, dtype=torch.long)
        types = None if rows[0].types is None else torch.zeros_like(ids)
        for position, row in enumerate(rows):
            ids[position, : lengths[position]] = torch.tensor(row.ids)
            if types is not None and row.types is not None:
                types[position, : lengths[position]] = torch.tensor(row.types)
        with torch.inference_mode():
            rewards = self.model(
                ids.to(self.device),
                torch.tensor(lengths, device=self.device),
                None if types is None else types.to(self.device),
            )
        array: np.ndarray = rewards.cpu().numpy()
        if self.on_batch is not None:
            self.on_batch(len(rows), sum(lengths))
        return array

    @staticmethod
    def _regroup(
        groups: Sequence[Group],
        samples: list[Encoded | str],
        place: list[int | None],
        rewards: np.ndarray,
        failures: dict[int, str],
    ) -> list[GroupScores]:
        scored: list[GroupScores] = []
        at = 0
        for _, responses in groups:
            count = len(responses)
            result = GroupScores(
                np.full(count, np.nan, dtype=np.float32),
                [None] * count,
                np.zeros(count, dtype=np.int32),
                np.zeros(count, dtype=np.int32),
                np.zeros(count, dtype=bool),
            )
            for k, (sample, row) in enumerate(zip(samples[at : at + count], place[at : at + count], strict=True)):
                if isinstance(sample, str) or row is None:
                    result.reasons[k] = str(sample)
                    continue
                result.prompt_tokens[k] = sample.prompt_tokens
                result.response_tokens[k] = sample.response_tokens
                result.truncated[k] = sample.truncated
                result.reasons[k] = failures.get(row)
                if row not in failures:
                    result.rewards[k] = rewards[row]
            scored.append(result)
            at += count
        return scored


__all__ = ["Group", "GroupScores", "ModelError", "Scorer"]
