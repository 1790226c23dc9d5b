"""Signals: named numbers of responses beside the reward."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from pipelines.config.base import Strict
from pipelines.config.model import ModelConfig

_COLUMN_VERSION = 1
"""Increased by hand whenever the same value of a column becomes another number."""


class SignalConfig(Strict):
    """One signal: exactly one of `column` and `model`."""

    column: str | None = None
    """A column of the corpus with numbers, or with true and false (1 and 0); or a field of its records. A row with a list of
    responses may have a list of as many values. It is read beside the score files, so that no model scores again for it, and
    needs no `input.carry`; about seven digits of it count."""
    model: ModelConfig | None = None
    """A further reward model. It scores by itself, once, and enters the reward only where a step says so."""

    @model_validator(mode="after")
    def _one_source(self) -> SignalConfig:
        if (self.column is None) == (self.model is None):
            raise ValueError("a signal is a column of the corpus or a model; give exactly one of column and model")
        return self

    def measure(self, name: str) -> dict[str, Any]:
        """The settings by which a plan knows the column of this signal; they name its side files."""
        return {"kind": "column", "name": name, "column": self.column, "version": _COLUMN_VERSION}
