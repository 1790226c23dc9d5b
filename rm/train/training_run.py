"""One training run, from preference files to an ordinary checkpoint. `train` reads from top to bottom."""

from __future__ import annotations

import heapq
import logging
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments, set_seed

from rm.checkpoint.load import quiet_transformers
from rm.conversations import prompt_key
from rm.embedder import refuse_relevance
from rm.engine.device import resolve_device
from rm.preferences import Group, PreferenceError, ReadSettings, Rejections, heldout_split, read_preferences
from rm.preferences.length_balance import balance_lengths
from rm.text.templates import Template
from rm.train.checkpoints import SaveByTime, checkpoints_at, claim_checkpoints, find_checkpoint
from rm.train.data import Collator, Draws, EncodedGroup, doubts_about
from rm.train.foreign import ForeignResponses, ForeignSettings
from rm.train.heldout import EncodedData, describe_saved, stress_heldout
from rm.train.length_head import LengthHeadSettings
from rm.train.loss_network import GroupLoss, GroupNetwork
from rm.train.memory import refuse_steps
from rm.train.progress import ReportProgress, Watch
from rm.train.ranks import Ranks
from rm.train.rewards import judgement_accuracy, refuse_collapse
from rm.train.settings import (
    TrainResult,
    TrainSettings,
    default_learning_rate,
    refuse_missing_packages,
)
from rm.train.trained_model import TrainedModel, computes_in_bfloat16
from rm.train.trainer import GroupTrainer, SaveAtEnd, SetDrawEpoch

log = logging.getLogger(__name__)

_COLLAPSE_CHECK_GROUPS = 32  # groups whose rewards must differ after training


def train(settings: TrainSettings, watch: Watch = lambda _: None) -> TrainResult:
    """Train a reward model and save it as an ordinary `AutoModelForSequenceClassification` directory; report progress to `watch`.

    An interrupted run resumes from its last checkpoint when it is started again with the same settings. Started by
    `torchrun`, each process computes a part of every step on its own device; the first one saves.

    Raises `SettingsError` (a package is missing), `PreferenceError` (data), `ModelError` (backbone, device), `TrainingError` (not
    finite, collapsed, out of memory, or another run's checkpoints) or `RankError` (another process of the training ended).
    """
    refuse_missing_packages(settings)
    settings = replace(settings, device=resolve_device(settings.device))
    with Ranks.join(settings.device) as ranks:
        return _train(settings, ranks, watch)


def _train(settings: TrainSettings, ranks: Ranks, watch: Watch) -> TrainResult:
    set_seed(settings.seed)
    if (relevance := settings.relevance) is not None:
        ranks.first(lambda: refuse_relevance(**relevance))
    resume_from = ranks.first(lambda: find_checkpoint(settings))
    fit_groups, heldout_groups, rejected, notes = _read_groups(settings)
    if settings.length_balance:
        fit_groups = balance_lengths(fit_groups)
    model = TrainedModel.load(settings)
    fit = EncodedData.of(fit_groups, model.template, rejected)
    heldout = EncodedData.of(heldout_groups, model.template, rejected)
    _require_data(settings, fit, heldout, rejected)
    network = model.network(offset=_logit_of_base_rate(fit.encoded))
    network.offset.requires_grad_(any(len(group.labels) for group in fit.encoded))
    ranks.align(network)
    ranks.first(lambda: claim_checkpoints(settings, [*fit.encoded, *heldout.encoded], resumed=resume_from is not None))
    collator = model.collator(settings)
    draws = _make_draws(settings, fit, model.template, picks=collator.picks)
    trainer = _make_trainer(settings, network, collator, draws, heldout.encoded, ranks)
    ranks.first(lambda: refuse_steps(network, trainer.collator, settings, _worst_step(trainer)))
    for doubt in doubts_about(fit_groups, steps=trainer.args.max_steps):
        log.warning("%s", doubt)
    told = ReportProgress(trainer, watch)
    trainer.add_callback(told)
    if settings.checkpoint_secs is not None:
        trainer.add_callback(SaveByTime(trainer, settings.checkpoint_secs))
    saving = SaveAtEnd(lambda: _save(settings, trainer, model, fit.encoded), told.tell_saved)
    trainer.add_callback(saving)
    with quiet_transformers():
        outcome = trainer.train(resume_from_checkpoint=resume_from)
    saving.ensure()  # where early stopping chose the weights only now, or no step was left
    ranks.first(lambda: shutil.rmtree(trainer.args.output_dir))
    offset = network.offset.item() if network.offset.requires_grad else None
    rewards = trainer.heldout_rewards() if heldout.groups else []
    stressed = stress_heldout(settings, heldout, rewards, template=model.template, predict=trainer.predict_rewards)
    measured = ranks.first(lambda: describe_saved(settings, fit.groups, offset, heldout, rewards, stressed=stressed))
    training_secs = max(1e-9, outcome.metrics["train_runtime"] - trainer.evaluation_secs)
    judgements, tokens = ranks.add_up(torch.tensor([trainer.judgements, trainer.tokens], device=trainer.args.device))
    return TrainResult(
        output_path=settings.output_path,
        groups=len(fit.encoded),
        judgements=_count_kinds(fit.encoded),
        origins=_count_origins(fit),
        rejected=dict(rejected),
        notes=notes,
        steps=outcome.global_step,
        train_loss=float(outcome.training_loss),
        learning_rate=trainer.args.learning_rate,
        precision="bfloat16" if trainer.args.bf16 else "float32",
        packed=model.packed,
        judgements_per_sec=judgements.item() / training_secs,
        tokens_per_sec=tokens.item() / training_secs,
        heldout=measured,
        offset=offset,
    )


def _save(settings: TrainSettings, trainer: GroupTrainer, model: TrainedModel, fit: Sequence[EncodedGroup]) -> None:
    """Save a model that has not collapsed, on the first rank, before anything else that can fail."""
    refuse_collapse(trainer.predict_rewards(fit[:_COLLAPSE_CHECK_GROUPS]))
    trainer.ranks.first(lambda: model.save(settings.output_path))


def _read_groups(settings: TrainSettings) -> tuple[list[Group], list[Group], Rejections, list[str]]:
    """Read (groups to fit, held-out groups, rejections, notes) from all sources; a prompt is on one side only.

    Groups whose prompts are also in a held-out file are not trained on: they are rejected as `heldout_prompt`.
    """
    groups, notes, rejected, rows = list[Group](), list[str](), Rejections(), settings.read_rows
    for path, reading in settings.sources:
        source_groups, source_rejected = read_preferences(path, ReadSettings(**reading), read_rows=rows, notes=notes)
        groups += source_groups
        rejected += source_rejected
    if settings.heldout_path is None:
        return (*heldout_split(groups, settings.heldout_fraction), rejected, notes)
    as_first = replace(ReadSettings(**settings.sources[0][1]), split=settings.heldout_split)
    heldout, heldout_rejected = read_preferences(settings.heldout_path, as_first, read_rows=rows, section="heldout")
    heldout_prompts = {prompt_key(group.prompt) for group in heldout}
    fit = [group for group in groups if prompt_key(group.prompt) not in heldout_prompts]
    if len(fit) < len(groups):
        rejected["heldout_prompt"] += len(groups) - len(fit)
    return fit, heldout, rejected + heldout_rejected, notes


def _require_data(settings: TrainSettings, fit: EncodedData, heldout: EncodedData, rejected: Rejections) -> None:
    if not fit.encoded:
        paths = ", ".join(repr(path) for path, _ in settings.sources)
        raise PreferenceError(
            f"data.path {paths} has no usable judgement to train on; rejected: {dict(rejected)}. Scores need two responses "
            "to one prompt that differ by at least data.min_gap"
        )
    even = [np.zeros(len(group.responses)) for group in heldout.encoded]
    if settings.early_stopping is not None and math.isnan(
        judgement_accuracy(even, heldout.encoded)
    ):  # nothing could be counted
        raise PreferenceError(
            f"train.early_stopping is {settings.early_stopping}, and no prompts are held out to measure accuracy on; "
            "raise heldout.fraction, set heldout.path, or remove train.early_stopping"
        )


def _logit_of_base_rate(groups: Sequence[EncodedGroup]) -> float:
    """Return the initial offset b: sigmoid(b) is the share of accepting labels, kept away from 0 and 1."""
    accepted = np.concatenate([group.labels[:, 1] for group in groups])
    rate = (accepted.sum() + 0.5) / (len(accepted) + 1)
    return float(np.log(rate / (1 - rate)))


def _make_draws(settings: TrainSettings, fit: EncodedData, template: Template, *, picks: bool) -> Draws:
    foreign = None
    if settings.foreign is not None:
        options = ForeignSettings(**settings.foreign)
        foreign = ForeignResponses(
            fit.groups, fit.encoded, template, settings=options, seed=settings.seed, picks=picks
        ).join
    return Draws(fit.encoded, responses_per_group=settings.responses_per_group, seed=settings.seed, foreign=foreign)


def _make_trainer(
    settings: TrainSettings,
    network: GroupNetwork,
    collator: Collator,
    draws: Draws,
    heldout: Sequence[EncodedGroup],
    ranks: Ranks,
) -> GroupTrainer:
    steps_per_epoch = math.ceil(len(draws) / settings.groups_per_batch)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    learning_rate = settings.learning_rate or default_learning_rate(parameters, lora=settings.lora is not None)
    trainer = GroupTrainer(
        loss=_loss_of(settings),
        heldout=heldout,
        collator=collator,
        ranks=ranks,
        model=network,
        args=_training_arguments(settings, learning_rate, steps_per_epoch=steps_per_epoch, evaluates=bool(heldout)),
        train_dataset=draws,
        eval_dataset=Draws(heldout, responses_per_group=None, seed=0) if heldout else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(SetDrawEpoch(draws, steps_per_epoch))
    if settings.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=settings.early_stopping))
    guessing = settings.loss == "bradley_terry" and draws.are_plain_comparisons
    log.info(
        "training %s M parameters on %s prompts: %s steps of up to %d, learning rate %g, in %s%s",
        f"all {parameters / 1e6:,.0f}" if settings.lora is None else f"{trained / 1e6:,.0f} of {parameters / 1e6:,.0f}",
        f"{draws.groups:,}",
        f"{trainer.args.max_steps:,}",
        settings.groups_per_batch,
        learning_rate,
        "bfloat16" if trainer.args.bf16 else "float32",
        "; a model that guesses has a loss of 0.693 and an accuracy of 50 %" if guessing else "",
    )
    return trainer


def _loss_of(settings: TrainSettings) -> GroupLoss:
    length = None if settings.length_head is None else LengthHeadSettings(**settings.length_head)
    text = 0.0 if settings.language_loss is None else settings.language_loss["weight"]
    return GroupLoss(settings.loss, settings.label_smoothing, settings.centring, length, text)


def _worst_step(trainer: GroupTrainer) -> list[EncodedGroup]:
    """Return the largest part of a step that the first rank computes: its share of the largest draws."""
    draws = map(trainer.train_dataset.draw, range(len(trainer.train_dataset)))
    largest = heapq.nlargest(
        trainer.args.per_device_train_batch_size, draws, key=lambda group: sum(len(row.ids) for row in group.responses)
    )
    return trainer.ranks.share(largest)


def _training_arguments(
    settings: TrainSettings, learning_rate: float, *, steps_per_epoch: int, evaluates: bool
) -> TrainingArguments:
    steps = max(1, round(steps_per_epoch * settings.epochs))
    early = settings.early_stopping is not None
    between = max(1, steps_per_epoch // settings.evaluations_per_epoch)
    save_every = between if early else settings.checkpoint_every
    arguments = TrainingArguments(
        output_dir=str(checkpoints_at(settings.output_path)),
        max_steps=steps,
        per_device_train_batch_size=settings.groups_per_batch,
        learning_rate=learning_rate,
        warmup_steps=math.ceil(settings.warmup_fraction * steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        use_cpu=settings.device == "cpu",
        bf16=computes_in_bfloat16(settings),
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=between,
        logging_steps=max(1, steps // 20),
        logging_nan_inf_filter=False,
        save_strategy="no" if save_every is None else "steps",
        save_steps=save_every or steps,
        save_total_limit=2,
        load_best_model_at_end=early,
        restore_callback_states_from_checkpoint=True,  # the patience of early stopping
        metric_for_best_model="eval_accuracy" if early else None,
        report_to=list(settings.report_to) or "none",
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,  # batches move to the device inside the network
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        log.warning(
            "%d GPUs are visible and one is used; `torchrun --nproc_per_node %d --no-python bestkept train ...` uses them all",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1  # with more, this process would copy the model to every GPU at every step
    return arguments


def _count_kinds(groups: Sequence[EncodedGroup]) -> dict[str, int]:
    return {
        "comparisons": sum(len(group.edges) for group in groups),
        "labels": sum(len(group.labels) for group in groups),
    }


def _count_origins(data: EncodedData) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group, encoded in zip(data.groups, data.encoded, strict=True):
        counts[group.origin] += len(encoded.edges) + len(encoded.labels)
    return dict(counts)
