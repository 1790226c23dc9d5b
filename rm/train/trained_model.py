"""The model being trained, with its tokenizer and template: loads it according to the settings, and saves it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rm.checkpoint.load import (
    ensure_distinct_pad,
    load_backbone_for_training,
    load_tokenizer,
    quiet_transformers,
)
from rm.checkpoint.refusals import refuse_switching, refuse_unembedded
from rm.checkpoint.reward_model import RewardModel
from rm.checkpoint.text_head import TextHead, load_text_head
from rm.engine.device import default_tokens_per_batch, native_bfloat16
from rm.engine.packed_forward import enable_packing, first_position
from rm.evaluate.calibration_file import FILE_NAME
from rm.identity import effective_max_length, resolve_model
from rm.text.templates import Template
from rm.together import EQUAL_LENGTHS, PADDED, choose_way, split_lengths
from rm.train.data import Collator
from rm.train.length_head import add_length_head, drop_length_head
from rm.train.loss_network import GroupNetwork
from rm.train.memory import refuse_weights
from rm.train.settings import TrainingError, TrainSettings

log = logging.getLogger(__name__)


@dataclass
class TrainedModel:
    """The model being trained, its tokenizer and its template."""

    classifier: Any  # the sequence classifier, perhaps with adapters inside
    adapted: Any  # the peft model around it, or None
    causal: bool
    packed: bool
    way: str  # how rows share a batch if they are not packed
    bfloat16: bool  # computes in it, whatever the type of its weights
    tokenizer: Any
    template: Template
    text_head: TextHead | None  # if the text of responses is also learnt
    length_head: str | None  # the name of the head, if it has a second row for length

    @classmethod
    def load(cls, settings: TrainSettings) -> TrainedModel:
        """Load the backbone on this process's device, of the kind named by `settings.device`, according to the settings.

        Weights that adapters leave unchanged have the type of the computation. Raises `ModelError`, also if text is to be
        learnt and there is no head for it.
        """
        directory = resolve_model(settings.model_path, settings.revision)
        tokenizer = load_tokenizer(directory)
        bfloat16 = computes_in_bfloat16(settings)
        dtype = "bfloat16" if bfloat16 and settings.lora is not None else "float32"
        refuse_weights(directory, settings, dtype=dtype, device=settings.device)
        loaded = load_backbone_for_training(directory, dtype=dtype)
        model, causal = loaded.model, loaded.causal
        if causal:
            ensure_distinct_pad(model, tokenizer)
        refuse_unembedded(directory, tokenizer, model)
        length = effective_max_length(directory, settings.max_length)
        refuse_switching(directory, model.config, length)
        template = Template.of(tokenizer, causal=causal, max_length=length, too_long="truncate")
        loaded.to(settings.device)
        text_head = None if settings.language_loss is None else load_text_head(directory, model)
        length_head = None if settings.length_head is None else add_length_head(model)
        packed, way = _choose_packing(loaded, template, bfloat16=bfloat16)
        adapted = None
        if settings.lora is not None:
            from rm.checkpoint.lora import add_lora

            adapted = add_lora(model, **settings.lora)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return cls(model, adapted, causal, packed, way, bfloat16, tokenizer, template, text_head, length_head)

    def collator(self, settings: TrainSettings) -> Collator:
        """Return the collator for this model's rows."""
        return Collator(
            packed=self.packed,
            causal=self.causal,
            pad=self.tokenizer.pad_token_id or 0,
            first_position=first_position(self.classifier.config),
            tokens_per_batch=settings.tokens_per_batch or default_tokens_per_batch(settings.device, training=True),
            picks=settings.loss == "plackett_luce",
            texts=self.text_head is not None,
        )

    def network(self, *, offset: float) -> GroupNetwork:
        """Return the network around the model that the trainer trains."""
        return GroupNetwork(
            self.classifier,
            causal=self.causal,
            offset=offset,
            way=self.way,
            bfloat16=self.bfloat16,
            text_head=self.text_head,
        )

    def save(self, path: str) -> None:
        """Save the ordinary checkpoint, without a length head. Adapters are merged, in float32; the model stays on the device."""
        device, dtype = self.classifier.device, self.classifier.dtype
        if self.adapted is not None:
            from rm.checkpoint.lora import merge_lora

            if dtype != torch.float32:
                self.adapted.to("cpu").float()  # the device may not have the memory for this
            self.classifier, self.adapted = merge_lora(self.adapted), None
        if self.length_head is not None:
            drop_length_head(self.classifier, self.length_head)
            self.length_head = None
        (Path(path) / FILE_NAME).unlink(missing_ok=True)  # of an earlier model in this directory
        with quiet_transformers():
            self.classifier.save_pretrained(path)  # not trainer.save_model, which adds a pickle
            self.tokenizer.save_pretrained(path)
        log.info("saved %s", path)
        if dtype != torch.float32:
            self.classifier.base_model.to(dtype)
            self.classifier.to(device)


def _choose_packing(loaded: RewardModel, template: Template, *, bfloat16: bool) -> tuple[bool, str]:
    """Return whether rows are packed, and the way for rows that are not, tried on the device as in training."""
    split = split_lengths(loaded.model.config, template.max_length)
    with torch.autocast(loaded.model.device.type, dtype=torch.bfloat16, enabled=bfloat16):
        # steps consist of whole groups: if rows depend on the longest one, only equal lengths share a forward
        packed = split is None and enable_packing(loaded.model, causal=loaded.causal, max_length=template.max_length)
        way = PADDED if packed else choose_way(loaded, template, split=split)
    if split is not None and way == PADDED:
        way = EQUAL_LENGTHS
    return packed, way


def computes_in_bfloat16(settings: TrainSettings) -> bool:
    """Return whether to compute in bfloat16. Raises `TrainingError` if a GPU would emulate it."""
    native = native_bfloat16(settings.device)
    if settings.precision == "bfloat16" and settings.device == "cuda" and not native:
        raise TrainingError("train.precision is bfloat16, which this GPU only emulates; use float32 or auto")
    return settings.precision == "bfloat16" or (settings.precision == "auto" and native)
