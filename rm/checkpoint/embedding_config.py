"""The settings of an embedding model, from the files that sentence-transformers stores beside the weights. Without torch.

A directory without these files has their defaults: the mean over all tokens, and no prefix before a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rm.identity import ModelError, effective_max_length, read_json
from rm.messages import load_json

EMBEDDING_VERSION = 1
"""Raised by hand whenever the same model and texts give different cosines."""
POOLING = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
"""The ways to make one vector of the hidden states of a text's tokens; the vectors of several ways are concatenated."""

_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULES = ("Transformer", "Pooling", "Normalize")
_NO_LIMIT = 1 << 20
_REMEDY = "choose a model with the modules Transformer, Pooling and Normalize, such as all-MiniLM-L6-v2"


@dataclass(frozen=True)
class EmbeddingSettings:
    """The resolved settings of an embedding model."""

    pooling: tuple[str, ...]
    max_length: int  # tokens
    query: str = ""  # before a prompt
    document: str = ""  # before a response
    lower_case: bool = False

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "pooling": [*self.pooling]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> EmbeddingSettings:
        return cls(**{**fields, "pooling": tuple(fields["pooling"])})


def read_embedding(directory: Path, max_length: int | None) -> EmbeddingSettings:
    """Return the settings of the model in a directory, with `max_length` tokens of a text, or the model's own limit.

    Raises `ModelError` for an unknown module.
    """
    modules = _read_modules(directory)
    pooling = next((path for kind, path in modules if kind == "Pooling"), None)
    modes = ("mean",) if pooling is None else _read_pooling(directory / pooling / "config.json")
    names = sorted(directory.glob("sentence_*_config.json"))
    reading = read_json(names[0]) if names else {}
    texts = read_json(directory / "config_sentence_transformers.json").get("prompts")
    prefixes = {
        name: text for name, text in (texts if isinstance(texts, dict) else {}).items() if isinstance(text, str)
    }
    if max_length is None:
        stored = reading.get("max_seq_length")
        max_length = stored if isinstance(stored, int) and stored > 0 else _NO_LIMIT
    return EmbeddingSettings(
        pooling=modes,
        max_length=effective_max_length(directory, max_length),
        query=prefixes.get("query", ""),
        document=next((prefixes[name] for name in ("document", "passage", "corpus") if name in prefixes), ""),
        lower_case=reading.get("do_lower_case") is True,
    )


def _read_modules(directory: Path) -> list[tuple[str, str]]:
    """Return (kind, folder) of each module, in order."""
    path = directory / "modules.json"
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        modules = [(str(entry["type"]).rpartition(".")[2], str(entry["path"])) for entry in content]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is no list of modules ({type(error).__name__}); fetch the model again") from error
    for kind, folder in modules:
        if kind not in _MODULES or (kind == "Transformer" and folder):
            raise ModelError(f"{path} has the module {kind!r} in {folder or '.'!r}, which is not supported; {_REMEDY}")
    return modules


def _read_pooling(path: Path) -> tuple[str, ...]:
    content = read_json(path)
    if not content:
        raise ModelError(f"{path}, which sets the pooling of tokens, is missing; fetch the model again")
    modes = content.get("pooling_mode")
    modes = [modes] if isinstance(modes, str) else modes
    modes = modes if isinstance(modes, list) else [mode for name, mode in _LEGACY.items() if content.get(name)]
    unknown = [mode for mode in modes if mode not in POOLING]
    if unknown or not modes:
        raise ModelError(f"{path} has the pooling {unknown or 'none'}; expected one of {', '.join(POOLING)}")
    if content.get("include_prompt") is False:
        raise ModelError(
            f"{path} leaves the instruction before a text out of the mean, which is not supported; {_REMEDY}"
        )
    return tuple(modes)
