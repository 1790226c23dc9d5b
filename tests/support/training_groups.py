"""Encoded groups, collators and run settings for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from support.corpora import READ_ROWS, READING

from rm.text.templates import Encoded
from rm.train import TrainSettings
from rm.train.data import Collator, EncodedGroup


def row(*ids: int, types: bool = False) -> Encoded:
    return Encoded(list(ids), [0] * len(ids) if types else None, 1, len(ids) - 1, False, response_start=1)


def encoded_group(rows, edges=(), labels=(), members=None) -> EncodedGroup:
    """Make a group of these rows.

    Edges are (preferred, other[, probability[, weight[, margin[, stage]]]]), labels (response, accepted[, weight]).
    """
    defaults = (0, 0, 1.0, 1.0, 0.0, -1.0)
    return EncodedGroup(
        list(rows),
        np.array([(*edge, *defaults[len(edge) :]) for edge in edges], dtype=np.float64).reshape(-1, 6),
        np.array([(*label, 1.0)[:3] for label in labels], dtype=np.float64).reshape(-1, 3),
        tuple(members or range(len(rows))),
    )


def collator(**changes: Any) -> Collator:
    values = {
        "packed": False,
        "causal": True,
        "pad": 0,
        "first_position": 0,
        "tokens_per_batch": 10_000,
        "picks": False,
    }
    return Collator(**{**values, **changes})


def run_settings(data: Any, model: Path, output: Path, **changes: Any) -> TrainSettings:
    """Make settings of a run; `data` is a path, or a list of paths and (path, changes to its reading)."""
    sources = [item if isinstance(item, tuple) else (item, {}) for item in (data if isinstance(data, list) else [data])]
    values: dict[str, Any] = {
        "sources": tuple((str(path), {**READING, **reading}) for path, reading in sources),
        "heldout_fraction": 0.25,
        "heldout_path": None,
        "heldout_split": None,
        "stress_prompts": 0,
        "foreign": None,
        "length_balance": False,
        "length_head": None,
        "language_loss": None,
        "model_path": str(model),
        "revision": None,
        "max_length": 48,
        "device": "auto",
        "loss": "bradley_terry",
        "label_smoothing": 0.0,
        "centring": 0.0,
        "epochs": 4,
        "learning_rate": 3e-3,
        "groups_per_batch": 4,
        "responses_per_group": None,
        "tokens_per_batch": None,
        "precision": "float32",
        "gradient_checkpointing": False,
        "lora": None,
        "evaluations_per_epoch": 1,
        "early_stopping": None,
        "checkpoint_every": None,
        "checkpoint_secs": None,
        "warmup_fraction": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 0,
        "report_to": (),
        "output_path": str(output),
        "read_rows": READ_ROWS,
    }
    return TrainSettings(**{**values, **changes})
