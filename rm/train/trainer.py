"""The Trainer with losses on groups: steps of micro-batches, held-out accuracy, and a collapse detector."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback

from rm.engine.layout import cut_rows, plan_groups
from rm.train.data import Collator, Draws, EncodedGroup, MicroBatch
from rm.train.loss_network import GroupLoss
from rm.train.settings import TrainingError

log = logging.getLogger(__name__)

_OFFSET_RATE = 100.0  # times the learning rate: the offset must move by units while weights move by thousandths
_COLLAPSED_STEPS = 20


class LogProgress(TrainerCallback):  # type: ignore[misc]
    """Logs in one line what the Trainer would print as a dictionary."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        step = f"step {state.global_step}/{state.max_steps}"
        if logs and "loss" in logs:
            fields = {"step": state.global_step, "loss": float(logs["loss"])}
            rate = float(logs["learning_rate"])
            log.info(
                "%s  loss %.4f  lr %.2e",
                step,
                fields["loss"],
                rate,
                extra={"fields": {**fields, "learning_rate": rate}},
            )
        if logs and "eval_accuracy" in logs:
            log.info("%s  held-out accuracy %.3f  loss %.4f", step, logs["eval_accuracy"], logs["eval_loss"])


class SetDrawEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the draws, also after a resume."""

    def __init__(self, draws: Draws, steps_per_epoch: int) -> None:
        self._draws, self._steps_per_epoch = draws, steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._draws.epoch = state.global_step // self._steps_per_epoch


class GroupTrainer(Trainer):  # type: ignore[misc]
    """Trains a `GroupNetwork` on the steps of a `Collator`.

    The gradient of a step is that of the weighted mean over all its terms, whatever its micro-batches.
    """

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(self, *, loss: GroupLoss, heldout: Sequence[EncodedGroup], **rest: Any) -> None:
        super().__init__(**rest)
        self._loss, self._heldout = loss, heldout
        self._flat_steps = 0
        self.judgements = self.tokens = 0
        self.evaluation_secs = 0.0
        self._measured: tuple[int, list[np.ndarray]] | None = None  # (step, held-out rewards)

    def training_step(
        self, model: Any, inputs: dict[str, list[MicroBatch]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        batches = inputs["micro_batches"]
        total = math.fsum(batch.weight for batch in batches)
        loss = torch.zeros((), device=self.args.device)
        rewards = []
        for position, batch in enumerate(batches):
            if batch.weight == 0:
                continue  # a draw in which no two responses were compared
            last = position == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    flat = model(batch)
                offset = self.accelerator.unwrap_model(model).offset
                share = self._loss(flat, offset, batch) * (batch.weight / total)
                self.accelerator.backward(share)
            loss += share.detach()
            rewards.append(flat.detach())
            self.judgements += len(batch.edges) + len(batch.labelled)
            self.tokens += int(batch.lengths.sum())
        if rewards:
            self._watch(loss, torch.cat(rewards))
        return loss

    def _watch(self, loss: torch.Tensor, rewards: torch.Tensor) -> None:
        """Raise `TrainingError` at once where the loss is not finite, and after 20 steps in which all rewards are equal."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"training diverged at step {self.state.global_step + 1}: the loss is {loss.item()}; "
                "lower train.learning_rate, or set train.precision: float32"
            )
        self._flat_steps = self._flat_steps + 1 if len(rewards) > 1 and is_flat(rewards.cpu().numpy()) else 0
        if self._flat_steps >= _COLLAPSED_STEPS:
            raise TrainingError(
                f"training collapsed at step {self.state.global_step + 1}: for {_COLLAPSED_STEPS} steps every response "
                f"had the reward {rewards[0].item():.6g}; lower train.learning_rate, or check that the sides differ"
            )

    def create_optimizer(self, model: Any = None) -> Any:
        """Create the Trainer's optimiser, with a larger learning rate for the offset."""
        if self.optimizer is not None:
            return self.optimizer
        network = self.model if model is None else model
        decayed = set(self.get_decay_parameter_names(network)) - {"offset"}
        trained = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)
        rate = options["lr"]
        self.optimizer = kind(
            [
                {"params": [v for n, v in trained if n in decayed], "weight_decay": self.args.weight_decay},
                {"params": [v for n, v in trained if n not in decayed and n != "offset"], "weight_decay": 0.0},
                {"params": [v for n, v in trained if n == "offset"], "weight_decay": 0.0, "lr": rate * _OFFSET_RATE},
            ],
            **options,
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the schedule of the learning rate: see `rate_at`."""
        if self.lr_scheduler is None:
            warmup = self.args.get_warmup_steps(num_training_steps)
            rate = functools.partial(rate_at, warmup=warmup, steps=num_training_steps)
            self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Compute and log held-out accuracy and loss, for early stopping and the choice of the best checkpoint."""
        started = time.monotonic()
        rewards = predict(self, self._heldout)
        self._measured = (self.state.global_step, rewards)
        metrics = {
            "eval_accuracy": judgement_accuracy(rewards, self._heldout),
            "eval_loss": self._heldout_loss(rewards),
        }
        self.evaluation_secs += time.monotonic() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def heldout_rewards(self) -> list[np.ndarray]:
        """Return the rewards of the held-out groups, float32 [K] each, by the model at the end of training."""
        kept_last = not self.args.load_best_model_at_end
        if self._measured is not None and kept_last and self._measured[0] == self.state.global_step:
            return self._measured[1]
        return predict(self, self._heldout)

    def _heldout_loss(self, rewards: Sequence[np.ndarray]) -> float:
        offset = self.model.offset.detach().cpu()
        losses, weights = [], []
        for values, group in zip(rewards, self._heldout, strict=True):
            batch = self.data_collator.micro_batch([group])
            losses.append(float(self._loss(torch.from_numpy(values), offset, batch)) * batch.weight)
            weights.append(batch.weight)
        return math.fsum(losses) / math.fsum(weights)


def rate_at(step: int, *, warmup: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, as a share of its peak.

    It rises in equal parts over the `warmup` steps, from above zero: a step at zero would change nothing. Then it falls
    along half a cosine, to just above zero at the last of all `steps`.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def predict(trainer: Trainer, groups: Sequence[EncodedGroup]) -> list[np.ndarray]:
    """Compute the rewards of each group's responses, float32 [K], with the trainer's current model.

    Without comparisons to keep together, groups larger than the token budget are cut.
    """
    collate: Collator = trainer.data_collator
    network = trainer.model.eval()
    budget = collate.tokens_per_batch
    pieces = [
        (index, rows)
        for index, group in enumerate(groups)
        for rows in cut_rows([len(row.ids) for row in group.responses], prefix=0, tokens_per_batch=budget)
    ]
    lengths = [[len(groups[index].responses[row].ids) for row in rows] for index, rows in pieces]
    rewards = [np.empty(len(group.responses), dtype=np.float32) for group in groups]
    for batch in plan_groups(lengths, tokens_per_batch=budget, padded=not collate.packed):
        chosen = [pieces[position] for position in batch]
        with torch.inference_mode(), trainer.compute_loss_context_manager():
            flat = network(collate.micro_batch([groups[index].select(rows) for index, rows in chosen])).cpu().numpy()
        cuts = np.cumsum([len(rows) for _, rows in chosen])[:-1]
        for (index, rows), values in zip(chosen, np.split(flat, cuts), strict=True):
            rewards[index][rows] = values
    return rewards


def judgement_accuracy(rewards: Sequence[np.ndarray], groups: Sequence[EncodedGroup]) -> float:
    """Return the share of judgements that the rewards agree with: comparisons, and accepted against rejected in a group.

    Equal rewards count half; ties are left out. NaN where nothing can be counted.
    """
    right = total = 0.0
    for values, group in zip(rewards, groups, strict=True):
        i, j = group.edges[:, 0].astype(int), group.edges[:, 1].astype(int)
        stated_order = np.sign(group.edges[:, 2] - 0.5)
        reward_order = np.sign(values[i] - values[j])
        agreement, decided = [reward_order * stated_order], [stated_order != 0]
        accepted, labelled = group.labels[:, 1], values[group.labels[:, 0].astype(int)]
        above = np.subtract.outer(labelled, labelled)[np.greater.outer(accepted, accepted)]
        agreement.append(np.sign(above))
        decided.append(np.ones(len(above), dtype=bool))
        points = (1 + np.concatenate(agreement)) / 2
        counted = np.concatenate(decided)
        right += float(points[counted].sum())
        total += int(counted.sum())
    return right / total if total else math.nan


def is_flat(rewards: np.ndarray) -> bool:
    """Tell whether all rewards are one number up to rounding."""
    return bool(np.ptp(rewards) < 1e-6 * max(1.0, float(np.abs(rewards).max())))


def refuse_collapse(rewards: Sequence[np.ndarray], loss: float) -> None:
    """Raise `TrainingError` where loss or rewards are not finite, or every response has the same reward."""
    values = np.concatenate(rewards)
    if not (math.isfinite(loss) and np.isfinite(values).all()):
        raise TrainingError(f"training diverged: loss {loss}, rewards not finite; lower train.learning_rate")
    if len(values) > 2 and is_flat(values):
        raise TrainingError(
            f"training collapsed: every response has the reward {values[0]:.6g}; lower train.learning_rate, or check "
            "that chosen and rejected differ"
        )
