"""What a model would read and compute, without its weights: its tokenizer, template and batch plans, and no forward.

The groups go the way that they go when they are scored, up to the forward, so the counts are the scorer's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rm.checkpoint.interchange import pooling_pad_id
from rm.checkpoint.load import build_without_weights, load_tokenizer
from rm.engine.device import default_device, default_tokens_per_batch
from rm.engine.layout import lay_out
from rm.engine.packed_forward import packing_obstacle
from rm.identity import ModelError, effective_max_length
from rm.scorer import Batch, GroupScores, ResponseGroup, Scorer, Work
from rm.text.templates import Encoded, Template


@dataclass
class DryRun(Scorer):
    """A `Scorer` without weights: `score` gives tokens, and NaN for rewards; `on_batch` is told of forwards that take no time.

    Whether the model takes packed rows is told by its configuration alone; only the loaded model can prove it.
    """

    @classmethod
    def of(
        cls, directory: Path, *, max_length: int, too_long: str, tokens_per_batch: int | None, device: str | None
    ) -> DryRun:
        """That of a model directory, as it would run on `device`: cpu, cuda, or None for this machine's. Raises `ModelError`."""
        device = device or default_device()
        model = build_without_weights(directory)
        template = Template.of(
            load_tokenizer(directory),
            causal=model.causal,
            max_length=effective_max_length(directory, max_length),
            too_long=too_long,
        )
        packed = packing_obstacle(model.model.config, template.max_length) is None
        budget = tokens_per_batch or default_tokens_per_batch(device, training=False)
        return cls(model, template, budget, device, packed)

    @property
    def shape(self) -> dict[str, int]:
        """Parameters, those of them that compute (all but embeddings), and the widths that decide memory."""
        config = self.model.model.config.get_text_config()
        hidden = int(config.hidden_size)
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "computing_parameters": self.model.computing_parameters,
            "hidden": hidden,
            "intermediate": int(getattr(config, "intermediate_size", 0) or 4 * hidden),
        }

    def count(self, groups: Sequence[ResponseGroup]) -> tuple[list[np.ndarray], Work]:
        """Tokens of every response [K] of every group, 0 for one that cannot be read; and what scoring them in one call takes:
        equal texts once, padding included."""
        done: list[Work] = []
        self.on_batch = done.append
        scores = self.score(groups)
        rows, read, computed, padding = (sum(work[field] for work in done) for field in range(4))  # fields of `Work`
        return [_tokens(each) for each in scores], Work(
            int(rows), int(read), int(computed), int(padding), 0.0, 0.0, 0.0
        )

    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> tuple[np.ndarray, Work]:
        members = [rows[row] for run in batch for row in run]
        read = sum(len(row.ids) for row in members)
        if self.packed:
            groups = [[(rows[row].ids, rows[row].types) for row in run] for run in batch]
            computed = len(lay_out(groups, share=self.model.causal, pad=pooling_pad_id(self.model.model.config)).ids)
        else:
            computed = self._cost(rows, batch)
        padding = 0 if self.packed else computed - read
        return np.zeros(len(members), dtype=np.float32), Work(len(members), read, computed, padding, 0.0, 0.0, 0.0)


def _tokens(scores: GroupScores) -> np.ndarray:
    tokens: np.ndarray = scores.prompt_tokens + scores.response_tokens
    return tokens


__all__ = ["DryRun", "ModelError"]
