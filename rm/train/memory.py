"""Estimates the memory of a training step before the first one, and finds settings that fit if it does not."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rm.checkpoint.memory_check import free_bytes, refuse_too_large, weights_bytes
from rm.engine.memory import BatchMemory, BatchSize, Peaks, measure_peaks
from rm.text.templates import Encoded
from rm.train.data import Collator, EncodedGroup, MicroBatch
from rm.train.loss_network import GroupNetwork
from rm.train.settings import TrainingError, TrainSettings

log = logging.getLogger(__name__)

_RANK = 16  # of the proposed adapters
_MOMENTS = 2  # of AdamW, each as large as the trained weights, in float32


@dataclass(frozen=True)
class StepMemory:
    """The bytes that a step needs beside the weights."""

    optimiser: int
    gradients: int
    activations: int
    several: bool  # several micro-batches: the gradients of the first ones are in memory while another runs

    @property
    def total(self) -> int:
        """The peak of bytes: a single micro-batch frees activations as it computes gradients."""
        both = self.gradients + self.activations if self.several else max(self.gradients, self.activations)
        return self.optimiser + both

    @classmethod
    def of(cls, network: GroupNetwork, batches: Sequence[MicroBatch], memory: BatchMemory) -> StepMemory:
        """Return the memory of a step of these micro-batches."""
        gradients = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
        activations = max(memory.bytes(_size_of(batch)) for batch in batches)
        return cls(_MOMENTS * gradients, gradients, activations, len(batches) > 1)


def refuse_weights(directory: Path, settings: TrainSettings, *, dtype: str, device: str) -> None:
    """Raise `ModelError` or `TrainingError`, before loading, if there is no memory to hold the weights, or to train them."""
    refuse_too_large(directory, dtype=dtype, devices=[device])
    free = free_for_rank(device)
    needed = (2 + _MOMENTS) * weights_bytes(directory, "float32")
    if settings.lora is None and free is not None and needed > free:
        raise TrainingError(
            f"training all weights of model.path {str(directory)!r} takes {needed:,} bytes for them, their gradients and the "
            f"optimiser, and {free:,} are free on {device}; set train.lora, which takes "
            f"{weights_bytes(directory, dtype):,} and little more, or use a larger device"
        )


def measure(network: GroupNetwork, collator: Collator, sample: Encoded, *, longest: int) -> BatchMemory:
    """Return the memory of micro-batches, by forwards and backwards of small ones with the `sample`'s tokens."""

    def measure_rows(lengths: Sequence[int], prefix: int) -> tuple[int, Peaks]:
        tokens = sample.ids * (max(lengths) // len(sample.ids) + 2)
        rows = []
        for number, length in enumerate(lengths):
            ids = [*tokens[:prefix], *tokens[prefix + number :]][:length]  # rows differ behind their prefix
            types = None if sample.types is None else [0] * length
            rows.append(sample._replace(ids=ids, types=types, response_start=1, response_tokens=length - 1))
        groups = [rows] if prefix else [[row] for row in rows]
        empty = np.empty((0, 6))
        batch = collator.micro_batch(
            [EncodedGroup(group, empty, _accept_first(), tuple(range(len(group)))) for group in groups]
        )
        peaks = measure_peaks(lambda: _backward(network, batch), trained=network.parameters())
        network.zero_grad()
        return batch.computed_tokens, peaks

    network.train()
    return BatchMemory.of(measure_rows, longest=longest, packed=collator.packed, shares=collator.causal)


def _accept_first() -> np.ndarray:
    """A group's labels with which its first response is learnt as text, if texts are learnt."""
    return np.array([[0.0, 1.0, 1.0]])


def _backward(network: GroupNetwork, batch: MicroBatch) -> None:
    outputs = network.outputs(batch)
    parts = [outputs.heads.sum(), *([] if outputs.text_loss is None else [outputs.text_loss])]
    torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]


def _size_of(batch: MicroBatch) -> BatchSize:
    if batch.layout is None:
        return BatchSize.padded(batch.computed_tokens, int(batch.lengths.max()))
    return BatchSize.packed(batch.layout.segments)


def refuse_steps(
    network: GroupNetwork, collator: Collator, settings: TrainSettings, worst: Sequence[EncodedGroup]
) -> StepMemory | None:
    """Return the memory of a step of the `worst` groups, None if it is unknown.

    Raises `TrainingError` if the step would not fit, with settings that would.
    """
    device = str(network.model.device)
    free = free_for_rank(device)
    batches = collator.micro_batches(worst)
    try:
        memory = measure(network, collator, worst[0].responses[0], longest=_longest(batches))
    except Exception as error:  # a model that fails on repeated tokens may still train
        log.debug("the memory of a step is not known: %s", type(error).__name__)
        return None
    step = StepMemory.of(network, batches, memory)
    if free is not None and step.total > free:
        remedy = _remedy(network, collator, settings, worst, memory, free - step.optimiser - step.gradients)
        raise TrainingError(
            f"a step needs {step.total:,} bytes beside the weights: {step.optimiser:,} for the optimiser, {step.gradients:,} for "
            f"gradients, {step.activations:,} for a micro-batch of {max(batch.computed_tokens for batch in batches):,} tokens; "
            f"{free:,} are free on {device}; {remedy}"
        )
    return step


def _remedy(
    network: GroupNetwork,
    collator: Collator,
    settings: TrainSettings,
    worst: Sequence[EncodedGroup],
    memory: BatchMemory,
    free: int,
) -> str:
    """Return the smallest change of settings that fits into the `free` bytes beside weights, optimiser and gradients."""
    smallest = max(collator.micro_batch([group]).computed_tokens for group in worst)  # groups stay whole
    batches = collator.micro_batches(worst)
    longest = _longest(batches)
    size = max(map(_size_of, batches))
    model, lighter = network.model, memory
    if not settings.gradient_checkpointing and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        lighter = measure(network, collator, worst[0].responses[0], longest=longest)
        model.gradient_checkpointing_disable()
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    linear = [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]
    adapters = sum(4 * _RANK * (module.in_features + module.out_features) for module in linear)
    adapted = free + (1 + _MOMENTS) * (trained - adapters)
    changes = [("", memory, free), ("train.gradient_checkpointing: true", lighter, free)]
    if settings.lora is None:
        changes += [
            (f"train.lora: {{rank: {_RANK}}}", memory, adapted),
            (f"train.lora: {{rank: {_RANK}}}, train.gradient_checkpointing: true", lighter, adapted),
        ]
    for change, batch, left in changes:
        tokens = batch.tokens_within(left, size)
        if tokens >= smallest:
            budget = f"train.tokens_per_batch: {min(tokens, collator.tokens_per_batch)}"
            return f"set {change}, {budget}" if change else f"set {budget}"
    return "use a larger device, or lower model.max_length or train.responses_per_group"


def _longest(batches: Sequence[MicroBatch]) -> int:
    return max(int(batch.lengths.max()) for batch in batches)


def free_for_rank(device: str) -> int | None:
    """Return the bytes that this process may still allocate: on a CPU, its share of the machine's free memory."""
    free = free_bytes(device)
    if free is None or device.startswith("cuda"):
        return free
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
