"""The Trainer with losses on groups: steps of micro-batches, held-out accuracy, and a collapse detector."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, RandomSampler
from transformers import Trainer, TrainerCallback

from rm.engine.device import is_out_of_memory
from rm.train.data import Collator, Draws, EncodedGroup, MicroBatch
from rm.train.length_head import LengthSums
from rm.train.loss_network import GroupLoss, StepTotals
from rm.train.ranks import Ranks
from rm.train.rewards import is_flat, judgement_accuracy, predict
from rm.train.settings import TrainingError

log = logging.getLogger(__name__)

_OFFSET_RATE = 100.0  # times the learning rate: the offset must move by units while weights move by thousandths
_COLLAPSED_STEPS = 20
_RECENT_STEPS = 20  # of the loss that is shown
_ALONE = Ranks()


class SetDrawEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the draws, also after a resume."""

    def __init__(self, draws: Draws, steps_per_epoch: int) -> None:
        self._draws, self._steps_per_epoch = draws, steps_per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._draws.epoch = state.global_step // self._steps_per_epoch


class SaveAtEnd(TrainerCallback):  # type: ignore[misc]
    """Saves the model after the last step, before evaluations and trackers, which may fail."""

    def __init__(self, save: Callable[[], None], tell: Callable[[], None] = lambda: None) -> None:
        self._save, self._tell, self._saved = save, tell, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps and not args.load_best_model_at_end:
            control.should_save = False  # no checkpoint: there is nothing to resume
            self.ensure()

    def ensure(self) -> None:
        """Save the model if it is not saved yet."""
        if not self._saved:
            self._save()
            self._saved = True
            self._tell()


class GroupTrainer(Trainer):  # type: ignore[misc]
    """Trains a `GroupNetwork` on steps of whole groups.

    The gradient of a step is that of the weighted mean over all its terms, whatever its micro-batches, and whatever part of
    it each of several `ranks` computes. Running out of memory halves the micro-batches permanently.
    """

    optimizer: Any
    lr_scheduler: Any
    control: Any

    def __init__(
        self,
        *,
        loss: GroupLoss,
        heldout: Sequence[EncodedGroup],
        collator: Collator,
        ranks: Ranks = _ALONE,
        **rest: Any,
    ) -> None:
        super().__init__(**rest, data_collator=_collect)
        # accelerate would wrap a model of several ranks to add up gradients inside every backward
        self.model._is_accelerate_prepared = True
        self._loss, self._heldout, self.ranks = loss, heldout, ranks
        self.collator = collator
        self._flat_steps = 0
        self._losses: deque[float] = deque(maxlen=_RECENT_STEPS)
        self.judgements = self.tokens = 0
        self.evaluation_secs = 0.0
        self._measured: tuple[int, list[np.ndarray]] | None = None  # (step, held-out rewards)

    def get_train_dataloader(self) -> Any:
        """Return the loader of steps, whole on every rank and in the order of a run on one device."""
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            sampler=RandomSampler(self.train_dataset),
            collate_fn=self.data_collator,
        )
        options = {
            "num_processes": 1,
            "process_index": 0,
            "use_seedable_sampler": True,
            "data_seed": self.args.data_seed,
        }
        return prepare_data_loader(loader, **options)

    def training_step(
        self, model: Any, inputs: dict[str, list[EncodedGroup]], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        model.train()
        # a draw without a comparison is left out, whatever micro-batch it would share
        groups = [group for group in inputs["groups"] if self.collator.weight([group])]
        total = self.collator.weight(groups)
        if total == 0:  # draws in which no two responses were compared
            return torch.zeros((), device=self.args.device)
        mine = self.ranks.share(groups)
        totals = StepTotals(total, self.collator.count_texts(groups), self._length_totals(model, mine))
        loss, rewards = self._add_up(*self._accumulate(model, mine, totals))
        self.ranks.add_up_gradients(model.parameters())
        self._watch(loss, rewards)
        return loss

    def _accumulate(
        self, model: Any, groups: Sequence[EncodedGroup], totals: StepTotals
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Add these groups' part of a step to the gradient; return their part of the loss, and the micro-batches' rewards.

        If a micro-batch does not fit into memory, the step starts again with smaller ones.
        """
        while True:
            loss = torch.zeros((), device=self.args.device)
            rewards: list[torch.Tensor] = []
            batches = self._micro_batches(groups)
            for batch in batches:
                try:
                    share, flat = self._add_gradient(model, batch, totals)
                except Exception as error:
                    _refuse_other_than_memory(error)
                    break
                loss += share
                rewards.append(flat)
            else:
                self.judgements += sum(len(batch.edges) + len(batch.labelled) for batch in batches)
                self.tokens += sum(int(batch.lengths.sum()) for batch in batches)
                return loss, rewards
            model.zero_grad()
            self._halve(batch)
            totals = totals._replace(lengths=totals.lengths or self._length_totals(model, groups))

    def _micro_batches(self, groups: Sequence[EncodedGroup]) -> list[MicroBatch]:
        return [batch for batch in self.collator.micro_batches(groups) if batch.weight] if groups else []

    def _add_gradient(self, model: Any, batch: MicroBatch, totals: StepTotals) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a micro-batch's part to the gradient; return its part of the loss, and its rewards."""
        outputs = model.outputs(batch)
        loss = self._loss.of_part(outputs, model, batch, totals)
        self.accelerator.backward(loss)
        return loss.detach(), outputs.heads[:, 0].detach()

    def _length_totals(self, model: Any, groups: Sequence[EncodedGroup]) -> LengthSums | None:
        """Return the sums of a step for its correlations with length; None if one micro-batch is the whole step.

        Several micro-batches, or ranks, take an additional forward, without gradients, before those with gradients.
        """
        if self._loss.length_head is None or (self.ranks.count == 1 and len(self._micro_batches(groups)) == 1):
            return None
        while True:
            products = torch.zeros(4, 4, dtype=torch.float64, device=self.args.device)
            for batch in self._micro_batches(groups):
                try:
                    with torch.no_grad():
                        heads = model.outputs(batch, text=False).heads
                except Exception as error:
                    _refuse_other_than_memory(error)
                    self._halve(batch)
                    break
                products += LengthSums.of(heads, batch.response_tokens).products
            else:
                return LengthSums(self.ranks.add_up(products))

    def _halve(self, batch: MicroBatch) -> None:
        """Halve the micro-batches after one that did not fit. Raises `TrainingError` if it was a single group."""
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        if batch.groups == 1:
            raise TrainingError(
                f"out of memory with the {len(batch.lengths)} responses to one prompt, {batch.tokens} tokens, which must stay "
                "together; lower train.responses_per_group or model.max_length, or set train.gradient_checkpointing: true"
            )
        tokens = max(1, min(self.collator.tokens_per_batch, batch.tokens) // 2)
        self.collator = replace(self.collator, tokens_per_batch=tokens)
        log.warning("out of memory: from now on train.tokens_per_batch is %d; the step is repeated", tokens)

    def _add_up(self, loss: torch.Tensor, rewards: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of all ranks' parts of a step, and its rewards; with several ranks, only the extremes."""
        flat = torch.cat(rewards) if rewards else torch.empty(0, device=loss.device)
        if self.ranks.count == 1:
            return loss, flat
        sums = self.ranks.add_up(torch.stack([loss.double(), loss.new_tensor(len(flat), dtype=torch.float64)]))
        ends = torch.stack([flat.max(), -flat.min()]) if len(flat) else loss.new_full((2,), -math.inf)
        largest, smallest = self.ranks.most(ends) * ends.new_tensor([1, -1])
        return sums[0].float(), torch.stack([largest, smallest])[: int(sums[1])]

    @property
    def recent_loss(self) -> float | None:
        """The mean loss of the last steps."""
        return math.fsum(self._losses) / len(self._losses) if self._losses else None

    def _watch(self, loss: torch.Tensor, rewards: torch.Tensor) -> None:
        """Raise `TrainingError` immediately if the loss is not finite, and after 20 steps in which all rewards are equal."""
        if not torch.isfinite(loss):
            raise TrainingError(
                f"training diverged at step {self.state.global_step + 1}: the loss is {loss.item()}; "
                "lower train.learning_rate, or set train.precision: float32"
            )
        self._losses.append(loss.item())
        self._flat_steps = self._flat_steps + 1 if len(rewards) > 1 and is_flat(rewards.cpu().numpy()) else 0
        if self._flat_steps >= _COLLAPSED_STEPS:
            raise TrainingError(
                f"training collapsed at step {self.state.global_step + 1}: for {_COLLAPSED_STEPS} steps every response "
                f"had the reward {rewards[0].item():.6g}; lower train.learning_rate, or check that the sides differ"
            )

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the weights of a checkpoint; tied weights are stored under each name, as safetensors requires."""
        weights, seen = dict[str, torch.Tensor](), set[int]()
        for name, value in self.model.state_dict().items():
            weights[name] = value.clone() if value.data_ptr() in seen else value
            seen.add(value.data_ptr())
        super()._save(output_dir, weights)

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
        rewards = self.predict_rewards(self._heldout)
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
        return self.predict_rewards(self._heldout)

    def predict_rewards(self, groups: Sequence[EncodedGroup]) -> list[np.ndarray]:
        """Compute the rewards of each group's responses, float32 [K], with the current model.

        Every rank computes a part of them, and all ranks get all of them.
        """
        counts = [len(group.responses) for group in groups]
        whole = np.zeros(sum(counts), dtype=np.float32)
        rewards = np.split(whole, np.cumsum(counts)[:-1])  # views
        mine = range(self.ranks.rank, len(groups), self.ranks.count)
        values = self._predict([groups[index] for index in mine])
        for index, group_rewards in zip(mine, values, strict=True):
            rewards[index][:] = group_rewards
        if self.ranks.count > 1:
            whole[:] = self.ranks.add_up(torch.from_numpy(whole).to(self.args.device)).cpu().numpy()
        return rewards

    def _predict(self, groups: Sequence[EncodedGroup]) -> list[np.ndarray]:
        """Compute this rank's rewards, in smaller batches if memory runs out. Raises `TrainingError` if none fits."""
        tokens = sum(len(row.ids) for group in groups for row in group.responses)
        while True:
            try:
                return predict(self.model.eval(), groups, self.collator)
            except Exception as error:
                _refuse_other_than_memory(error)
            budget = min(self.collator.tokens_per_batch, tokens) // 2
            if budget < 1:
                raise TrainingError("out of memory with a single response; lower model.max_length")
            self.collator = replace(self.collator, tokens_per_batch=budget)
            log.warning("out of memory: from now on train.tokens_per_batch is %d", budget)

    def _heldout_loss(self, rewards: Sequence[np.ndarray]) -> float:
        offset = self.model.offset.detach().cpu()
        losses, weights = [], []
        for values, group in zip(rewards, self._heldout, strict=True):
            batch = self.collator.micro_batch([group])
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


def _refuse_other_than_memory(error: Exception) -> None:
    """Raise an error, unless memory ran out: then release the tensors in its frames, which filled the memory."""
    if not is_out_of_memory(error):
        raise error
    error.__traceback__ = None


def _collect(groups: list[EncodedGroup]) -> dict[str, list[EncodedGroup]]:
    """Return a step unchanged; micro-batches are made later, by the memory available."""
    return {"groups": groups}
