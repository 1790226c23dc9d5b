"""Signals: named numbers of responses beside the reward."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipelines.config.base import PathText, Strict
from pipelines.config.model import ModelConfig

_COLUMN_VERSION = 1
"""Increased by hand whenever the same value of a column becomes another number."""


class EmbeddingConfig(Strict):
    """An embedding model, read as sentence-transformers reads it: pooling, length and prefixes by its own files, in float32."""

    dtype: ClassVar[str] = "float32"
    devices: ClassVar[int] = 1

    path: PathText = Field(examples=["all-MiniLM-L6-v2"])
    """A local model directory, or a hub id: of a model of sentence-transformers (its modules.json says how it is read), or any
    encoder or causal model, whose tokens are averaged."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest text in tokens, prompt and response each by itself; what is longer is cut, and counted. Default: what the model's
    own settings say, else its positions, which bound it in any case."""
    device: Literal["auto", "cuda", "cpu", "mps"] = "auto"
    """`auto`: a GPU where PyTorch can use one, else the CPU."""
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


class RelevanceConfig(EmbeddingConfig):
    gap: float = Field(default=0.2, ge=0.0, allow_inf_nan=False)
    """The nearer response is taken where the cosines of two with the prompt differ by more than this, else the longer one."""


class SignalConfig(Strict):
    """One signal: exactly one of `column`, `model` and `embedding`."""

    column: str | None = None
    """A column of the corpus with numbers, or with true and false (1 and 0); or a field of its records. A row with a list of
    responses may have a list of as many values. It is read beside the score files, so that no model scores again for it, and
    needs no `input.carry`; about seven digits of it count."""
    model: ModelConfig | None = None
    """A further reward model. It scores by itself, once, and enters the reward only where a step says so."""
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
        """The settings by which a plan knows the column of this signal; they name its side files."""
        return {"kind": "column", "name": name, "column": self.column, "version": _COLUMN_VERSION}
