"""Bradley-Terry training on groups: K forwards a group, then every comparison in it.

A `transformers.Trainer` with another loss; everything else (schedules, devices, logging, checkpoints) is the Trainer's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from rm.conversations import UnusableError
from rm.identity import ModelError, effective_max_length, resolve_model
from rm.losses import bradley_terry
from rm.model import ensure_distinct_pad, load_backbone_for_training, load_tokenizer, quiet_transformers
from rm.preferences import Group, PreferenceError, Rejections, detect, heldout_split, load_rows, merge, read_pairs
from rm.templates import Encoded, Template

log = logging.getLogger(__name__)

_LARGE = 1_000_000_000  # parameters


class TrainingError(Exception):
    """Training that did not give a usable model; the message says what was seen and what to try."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What a training run depends on; `pipelines.config.TrainConfig` documents the fields and holds the defaults."""

    data_path: str
    data_format: str
    origin: str
    heldout_fraction: float
    heldout_path: str | None
    model_path: str
    revision: str | None
    max_length: int
    epochs: float
    learning_rate: float | None
    groups_per_batch: int
    gradient_accumulation: int
    warmup_fraction: float
    weight_decay: float
    max_grad_norm: float
    seed: int
    report_to: tuple[str, ...]
    output_path: str


@dataclass(frozen=True)
class EncodedGroup:
    """A group as token ids: K responses and comparisons [(preferred, other, probability)]."""

    responses: list[Encoded]
    edges: list[tuple[int, int, float]]


class Groups(Dataset[EncodedGroup]):
    def __init__(self, groups: list[EncodedGroup]) -> None:
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> EncodedGroup:
        return self._groups[index]


@dataclass(frozen=True)
class Collator:
    """Groups → one padded batch of R responses and E comparisons."""

    pad: int

    def __call__(self, groups: Sequence[EncodedGroup]) -> dict[str, torch.Tensor]:
        rows = [row for group in groups for row in group.responses]
        width = max(len(row.ids) for row in rows)
        batch = {
            "input_ids": torch.full((len(rows), width), self.pad),  # [R, T]
            "attention_mask": torch.zeros((len(rows), width), dtype=torch.long),
        }
        if rows[0].types is not None:
            batch["token_type_ids"] = torch.zeros((len(rows), width), dtype=torch.long)
        for position, row in enumerate(rows):
            batch["input_ids"][position, : len(row.ids)] = torch.tensor(row.ids)
            batch["attention_mask"][position, : len(row.ids)] = 1
            if row.types is not None:
                batch["token_type_ids"][position, : len(row.ids)] = torch.tensor(row.types)
        edges, probabilities, weights, start = [], [], [], 0
        for group in groups:
            edges += [(start + i, start + j) for i, j, _ in group.edges]
            probabilities += [p for _, _, p in group.edges]
            weights += [1 / len(group.edges)] * len(group.edges)
            start += len(group.responses)
        batch["edges"] = torch.tensor(edges)  # [E, 2]
        batch["probabilities"] = torch.tensor(probabilities)  # [E]
        batch["weights"] = torch.tensor(weights)  # [E]
        return batch


class LogLines(TrainerCallback):  # type: ignore[misc]
    """One log line for what the Trainer would print as a dictionary."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            step = f"step {state.global_step}/{state.max_steps}"
            log.info("%s  loss %.4f  lr %.2e", step, float(logs["loss"]), float(logs["learning_rate"]))


class RewardTrainer(Trainer):  # type: ignore[misc]
    """The Trainer with the Bradley-Terry loss; batches come from `Collator`."""

    def compute_loss(self, model: Any, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **_: Any) -> Any:
        inputs = dict(inputs)
        edges, probabilities, weights = (inputs.pop(name) for name in ("edges", "probabilities", "weights"))
        rewards = model(**inputs).logits[:, 0].float()  # [R]
        loss = bradley_terry(rewards, edges, probabilities, weights)
        return (loss, {"rewards": rewards}) if return_outputs else loss


@dataclass(frozen=True)
class TrainResult:
    """What a training run ends with; accuracies are None where nothing was held out."""

    output_path: str
    groups: int
    comparisons: int
    rejected: dict[str, int]
    train_loss: float
    heldout_comparisons: int
    heldout_accuracy: float | None
    learning_rate: float


def train(settings: TrainSettings) -> TrainResult:
    """Train a reward model and save it as an ordinary `AutoModelForSequenceClassification` directory.

    Raises `PreferenceError` (data), `ModelError` (backbone) or `TrainingError` (not finite, or collapsed).
    """
    set_seed(settings.seed)
    fit_groups, heldout_groups, rejected = _read(settings)
    directory = resolve_model(settings.model_path, settings.revision)
    tokenizer = load_tokenizer(directory)
    reward_model = load_backbone_for_training(directory)
    model = reward_model.model
    if reward_model.causal:
        ensure_distinct_pad(model, tokenizer)
    template = Template.of(
        tokenizer,
        causal=reward_model.causal,
        max_length=effective_max_length(directory, settings.max_length),
        too_long="truncate",
    )
    fit, heldout = encode_groups(fit_groups, template, rejected), encode_groups(heldout_groups, template, rejected)
    if not fit:
        raise PreferenceError(
            f"data.path {settings.data_path!r} leaves no comparison to train on; rejected: {dict(rejected)}"
        )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    learning_rate = settings.learning_rate or (9e-6 if parameters >= _LARGE else 3e-5)
    trainer = RewardTrainer(
        model=model,
        args=_arguments(settings, learning_rate, steps=math.ceil(len(fit) / settings.groups_per_batch)),
        train_dataset=Groups(fit),
        data_collator=Collator(pad=tokenizer.pad_token_id or 0),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LogLines())
    log.info(
        "training %d M parameters on %d groups, learning rate %g", parameters // 1_000_000, len(fit), learning_rate
    )
    with quiet_transformers():
        outcome = trainer.train()
    rewards = predict(trainer, heldout or fit)
    _refuse_collapse(rewards, outcome.training_loss)
    with quiet_transformers():
        model.save_pretrained(settings.output_path)  # not trainer.save_model, which adds a pickle
        tokenizer.save_pretrained(settings.output_path)
    return TrainResult(
        output_path=settings.output_path,
        groups=len(fit),
        comparisons=sum(len(group.edges) for group in fit),
        rejected=dict(rejected),
        train_loss=float(outcome.training_loss),
        heldout_comparisons=sum(len(group.edges) for group in heldout),
        heldout_accuracy=accuracy(rewards, heldout) if heldout else None,
        learning_rate=learning_rate,
    )


def _read(settings: TrainSettings) -> tuple[list[Group], list[Group], Rejections]:
    groups, rejected = _read_file(settings.data_path, settings)
    if settings.heldout_path is None:
        return (*heldout_split(groups, settings.heldout_fraction), rejected)
    heldout, more = _read_file(settings.heldout_path, settings)
    return groups, heldout, rejected + more


def _read_file(path: str, settings: TrainSettings) -> tuple[list[Group], Rejections]:
    rows = list(load_rows(path))
    if not rows:
        raise PreferenceError(f"data.path {path!r} has no rows; expected at least one comparison")
    format = detect(rows[0]) if settings.data_format == "auto" else settings.data_format
    groups, rejected = read_pairs(rows, format=format, origin=settings.origin)
    return merge(groups), rejected


def encode_groups(groups: Sequence[Group], template: Template, rejected: Rejections) -> list[EncodedGroup]:
    """Groups as token ids; comparisons whose sides cannot be told apart or encoded are counted in `rejected`."""
    encoded: list[EncodedGroup] = []
    for group in groups:
        rows: list[Encoded | None] = []
        for response in group.responses:
            try:
                rows.append(template.encode(group.prompt, response))
            except UnusableError as error:
                rejected[error.reason] += 1
                rows.append(None)
        edges = []
        for edge in group.edges:
            left, right = rows[edge.preferred], rows[edge.other]
            if left is None or right is None:
                continue
            if left.ids == right.ids:
                rejected["equal_after_truncation"] += 1
                continue
            edges.append(edge)
        used = sorted({index for edge in edges for index in edge[:2]})
        position = {index: place for place, index in enumerate(used)}
        if edges:
            encoded.append(
                EncodedGroup(
                    [row for index in used if (row := rows[index]) is not None],
                    [(position[i], position[j], p) for i, j, p in edges],
                )
            )
    return encoded


def _arguments(settings: TrainSettings, learning_rate: float, *, steps: int) -> TrainingArguments:
    native_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    optimiser_steps = max(1, round(steps * settings.epochs / settings.gradient_accumulation))
    return TrainingArguments(
        output_dir=settings.output_path,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.groups_per_batch,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup_fraction * optimiser_steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=native_bf16,
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=max(1, optimiser_steps // 20),
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
    )


def predict(trainer: Trainer, groups: Sequence[EncodedGroup], *, groups_per_batch: int = 8) -> list[np.ndarray]:
    """float32 rewards of each group's responses, from the trainer's model as it stands."""
    collate, model = trainer.data_collator, trainer.model.eval()
    rewards: list[np.ndarray] = []
    for start in range(0, len(groups), groups_per_batch):
        part = groups[start : start + groups_per_batch]
        batch = {name: value.to(model.device) for name, value in collate(part).items()}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        with torch.inference_mode():
            flat = model(**inputs).logits[:, 0].float().cpu().numpy()
        rewards += np.split(flat, np.cumsum([len(group.responses) for group in part])[:-1])
    return rewards


def accuracy(rewards: Sequence[np.ndarray], groups: Sequence[EncodedGroup]) -> float:
    """Share of comparisons that the rewards order as the annotators did; equal rewards count half, ties are left out."""
    points = [
        0.5 if scores[i] == scores[j] else float((scores[i] > scores[j]) == (p > 0.5))
        for scores, group in zip(rewards, groups, strict=True)
        for i, j, p in group.edges
        if p != 0.5
    ]
    return float(np.mean(points))


def _refuse_collapse(rewards: Sequence[np.ndarray], loss: float) -> None:
    values = np.concatenate(rewards)
    if not (math.isfinite(loss) and np.isfinite(values).all()):
        raise TrainingError(f"training diverged: loss {loss}, rewards not finite; lower train.learning_rate")
    if len(values) > 2 and np.ptp(values) < 1e-6 * max(1.0, float(np.abs(values).max())):
        raise TrainingError(
            f"training collapsed: every response has the reward {values[0]:.6g}; lower train.learning_rate, or check that "
            "chosen and rejected differ"
        )


__all__ = ["ModelError", "PreferenceError", "TrainResult", "TrainSettings", "TrainingError", "train"]
