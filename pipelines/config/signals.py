"""Signals: named numbers of responses besides the reward."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import PathText, Strict
from pipelines.config.model import ModelConfig
from pipelines.config.prompt_rules import RelevanceGate

_COLUMN_VERSION = 1
"""Increased by hand whenever the same column value becomes a different number."""


class EmbeddingConfig(Strict):
    """An embedding model, read as sentence-transformers reads it: its own files set pooling, length and prefixes. Computes in
    float32."""

    dtype: ClassVar[str] = "float32"
    devices: ClassVar[int] = 1

    path: PathText = Field(examples=["all-MiniLM-L6-v2"])
    """A local model directory, or a hub id: a model of sentence-transformers, read as its modules.json says, or any encoder
    or causal model, whose tokens are averaged."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest text in tokens, for prompt and response separately; longer texts are cut and counted. Default: the model's own
    setting, or else the number of its positions, which is a limit in any case."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """`auto`: a GPU if PyTorch can use one, otherwise the CPU."""
    tokens_per_batch: int | None = Field(default=None, ge=1)
    """Tokens per forward pass, padding included. Default: 32768 on a GPU, 4096 on a CPU."""

    @field_validator("path")
    @classmethod
    def _is_no_store(cls, path: str) -> str:
        if "://" in path:
            raise ValueError(
                f"{path!r} is on an object store, and embedding models are read from a local directory or the hub; copy it, to "
                "the same place on all workers"
            )
        return path


class RelevanceConfig(RelevanceGate, EmbeddingConfig):
    """An embedding model for a relevance gate, which decides before length, and before the reward as the step `on_topic` does."""


class SignalConfig(Strict):
    """One signal: exactly one of `column`, `model` and `embedding`."""

    column: str | None = None
    """A column of the corpus, or a field of its records, with numbers or with true and false (1 and 0). A row with a list of
    responses may have a list of as many values. It is stored beside the score files, so that no model scores again, and need
    not be in `input.carry`; about seven digits count."""
    model: ModelConfig | None = None
    """Another reward model. It scores separately, once, and affects the reward only if a step says so."""
    embedding: EmbeddingConfig | None = None
    """Relevance: the cosine of prompt and response in an embedding model, which embeds each prompt and response once."""

    @model_validator(mode="after")
    def _one_source(self) -> SignalConfig:
        if sum(source is not None for source in (self.column, self.model, self.embedding)) != 1:
            raise ValueError(
                "a signal is a column of the corpus, a reward model or an embedding model; give exactly one of column, model and "
                "embedding"
            )
        return self

    @property
    def scorer(self) -> ModelConfig | EmbeddingConfig | None:
        """The model of the signal; None for a column."""
        return self.model or self.embedding

    def measure(self, name: str) -> dict[str, Any]:
        """The settings by which a plan identifies this signal's column; they name its side files."""
        return {"kind": "column", "name": name, "column": self.column, "version": _COLUMN_VERSION}
