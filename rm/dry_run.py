"""A scorer without weights, which counts the tokens that a model would read and compute.

Groups pass through the scorer's own tokenizer, template and batch plans, up to the forward, so its counts are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rm.checkpoint.interchange import pooling_pad_id
from rm.checkpoint.load import build_without_weights, load_tokenizer
from rm.checkpoint.refusals import refuse_switching, refuse_unembedded
from rm.engine.device import default_device, default_tokens_per_batch
from rm.engine.layout import lay_out
from rm.engine.packed_forward import PackedInputs, packing_obstacle
from rm.identity import ModelError, effective_max_length
from rm.scorer import Scorer
from rm.scores import ONE_OUTPUT, Batch, Launched, Outputs, ResponseGroup, Work
from rm.text.templates import Encoded, Template
from rm.together import split_lengths


@dataclass
class DryRun(Scorer):
    """A `Scorer` without weights: `score` returns token counts and no meaningful rewards, and its forwards take no time.

    The configuration alone decides whether rows count as packed; only a loaded model can confirm that.

        [tokens], work = DryRun.of(directory, ...).count([(prompt, responses)])
        work.computed_tokens
    """

    @classmethod
    def of(
        cls,
        directory: Path,
        *,
        max_length: int,
        too_long: str,
        tokens_per_batch: int | None,
        device: str | None,
        outputs: Outputs = ONE_OUTPUT,
    ) -> DryRun:
        """Return the dry run of a model directory for `device`: cpu, cuda, or None for this machine's. Raises `ModelError`."""
        device = device or default_device()
        model = build_without_weights(directory, outputs=outputs.names)
        tokenizer = load_tokenizer(directory)
        length = effective_max_length(directory, max_length)
        refuse_unembedded(directory, tokenizer, model.model)
        refuse_switching(directory, model.model.config, length)
        template = Template.of(tokenizer, causal=model.causal, max_length=length, too_long=too_long)
        packed = packing_obstacle(model.model.config, template.max_length) is None
        budget = tokens_per_batch or default_tokens_per_batch(device, training=False)
        split = split_lengths(model.model.config, template.max_length)
        return cls(model, template, budget, device, packed, split=split, outputs=outputs)

    @property
    def shape(self) -> dict[str, int]:
        """The number of parameters, also without embeddings, and the widths that determine memory."""
        config = self.model.model.config.get_text_config()
        hidden = int(config.hidden_size)
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "computing_parameters": self.model.computing_parameters,
            "hidden": hidden,
            "intermediate": int(getattr(config, "intermediate_size", 0) or 4 * hidden),
        }

    def count(self, groups: Sequence[ResponseGroup]) -> tuple[list[np.ndarray], Work]:
        """Count the tokens of every response [K] of every group, and the work of scoring them in one call.

        A response that cannot be read has 0 tokens. The work counts equal texts once, and includes padding.
        """
        batches: list[Work] = []
        self.on_batch = batches.append
        tokens = [scores.prompt_tokens + scores.response_tokens for scores in self.score(groups)]
        return tokens, Work(
            rows=sum(batch.rows for batch in batches),
            read_tokens=sum(batch.read_tokens for batch in batches),
            computed_tokens=sum(batch.computed_tokens for batch in batches),
            padding_tokens=sum(batch.padding_tokens for batch in batches),
            flops=0.0,
            peak_flops=0.0,
            secs=0.0,
        )

    def _inputs(self, rows: Sequence[Encoded], batch: Batch) -> PackedInputs:
        raise NotImplementedError  # a dry run builds no inputs

    def _forward(self, rows: Sequence[Encoded], batch: Batch) -> Launched:
        members = [rows[row] for run in batch for row in run]
        read = sum(len(row.ids) for row in members)
        if self.packed:
            groups = [[(rows[row].ids, rows[row].types) for row in run] for run in batch]
            computed = len(lay_out(groups, share=self.model.causal, pad=pooling_pad_id(self.model.model.config)).ids)
        else:
            computed = self._cost(rows, batch)
        padding = 0 if self.packed else computed - read
        work = Work(len(members), read, computed, padding, 0.0, 0.0, 0.0)
        zeros = np.zeros((len(members), 1 + len(self.outputs.names)), dtype=np.float32)
        return Launched(lambda: zeros, work, started=0.0)


__all__ = ["DryRun", "ModelError"]
