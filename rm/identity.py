"""The identity of a reward model: everything that a reward depends on, as resolved values, without loading the model.

This module does not import torch: a run whose scores all exist should not wait for that import, let alone for weights.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rm.hash_cache import HashCache
from rm.messages import load_json

SCORING_VERSION = 2
"""Raised by hand whenever the same model and text give different rewards, which `tests/rm/test_golden.py` detects."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.*.json",  # transformers prefers a file named after its version, as for config.json
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
)
_ADAPTER = "adapter_config.json"
_HASHED_WEIGHTS = ("config.json", "config.*.json", *_WEIGHTS, _ADAPTER)
MODEL_FILES = (*_HASHED_WEIGHTS, *_TOKENIZER)
"""Patterns of the files of a model directory that are loaded, and that a copy needs."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
"""Bytes of one weight in each type; activations beside int8 weights are bfloat16."""
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "mpnet"}
"""Architectures whose positions begin after the pad token's id."""
_RESTORE = "restore it from the model's source"
_NO_LIMIT = 1_000_000  # tokenizers without a limit report 1e30


class ModelError(Exception):
    """A model that cannot be used; the message names the path, what was expected, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Resolved values that determine a reward; `fingerprint()` is their hash."""

    weights: dict[str, str]
    tokenizer: dict[str, str]
    max_length: int
    too_long: str
    dtype: str
    reading: str | None = None  # how texts are read, if not as every model of scoring version 2 reads them
    outputs: Mapping[str, Any] | None = None  # the outputs in use, if the head has several, see `rm.scores.Outputs`
    scoring_version: int = SCORING_VERSION

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def fingerprint(self, **context: object) -> str:
        """Hash this identity and `context` (the input mapping, for example) to 24 hex digits."""
        fields = {"model": self.to_json(), **context}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:24]


def resolve_model(path: str, revision: str | None = None) -> Path:
    """Return the local directory of a model: `path` itself, or the hub snapshot of that id, downloaded on first use.

    Raises `ModelError` if `path` is neither, or the directory has no safetensors weights.
    """
    directory = _directory_of(path, revision, (*_WEIGHTS, "*.json", *_TOKENIZER))
    require_weights(path, _names_in(directory))
    return directory


def require_weights(path: str, names: Iterable[str]) -> None:
    """Raise `ModelError` if a model directory has no weights that can be loaded safely."""
    files = sorted(names)
    if any(fnmatchcase(name, "*.safetensors") for name in files):
        return
    pickled = [name for name in files if fnmatchcase(name, "pytorch_model*.bin")]
    if pickled:
        raise ModelError(
            f"model.path {path!r} holds pickled weights ({pickled[0]}), which can run code when they are loaded; "
            "convert them once with transformers: model.save_pretrained(DIR, safe_serialization=True)"
        )
    raise ModelError(f"model.path {path!r} has no weights: expected *.safetensors beside config.json")


def refuse_adapters(path: str, names: Iterable[str]) -> None:
    """Raise `ModelError` for an adapter's files in a model directory.

    Alone they are not a model, and beside weights transformers applies them silently, even to weights already merged with them.
    """
    files = sorted(names)
    if _ADAPTER not in files:
        return
    adapter = [name for name in files if name == _ADAPTER or fnmatchcase(name, "adapter_model.*")]
    merge = (
        "AutoPeftModelForSequenceClassification.from_pretrained(ADAPTER, num_labels=1).merge_and_unload()"
        ".save_pretrained(MERGED), with the tokenizer beside it"
    )
    if {"model.safetensors", "model.safetensors.index.json"}.isdisjoint(files):
        raise ModelError(
            f"model.path {path!r} is an adapter ({', '.join(adapter)}), not a whole model; merge it into its base model once "
            f"with peft: {merge}; and use the merged model"
        )
    raise ModelError(
        f"model.path {path!r} has an adapter ({', '.join(adapter)}) beside whole weights, and transformers would apply it on "
        f"top of them; remove the adapter's files if the weights are merged already, else merge it once with peft: {merge}"
    )


def resolve_without_weights(path: str, revision: str | None = None) -> Path:
    """Return the result of `resolve_model`, without fetching or requiring weights. Raises `ModelError`."""
    return _directory_of(path, revision, ("*.json", *_TOKENIZER))


def _directory_of(path: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    directory = Path(path).expanduser()
    if not directory.is_dir():
        if directory.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise ModelError(
                f"model.path {path!r} is not a directory; expected a model directory or a hub id 'owner/name'"
            )
        directory = _hub_snapshot(path, revision, wanted)
    elif revision is not None:
        raise ModelError(f"model.revision {revision!r} is only for hub ids, and {path!r} is a directory; remove it")
    names = _names_in(directory)
    refuse_adapters(path, names)
    if "config.json" not in names:
        raise ModelError(f"model.path {path!r} has no config.json; expected a directory written by save_pretrained")
    return directory


def _names_in(directory: Path) -> list[str]:
    try:
        return [file.name for file in directory.iterdir()]
    except OSError as error:
        raise ModelError(
            f"model directory {directory} cannot be read: {error.strerror}; fetch the model again, or fix its permissions"
        ) from error


def _hub_snapshot(repo_id: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(wanted)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model.path {repo_id!r} is not a local directory and could not be fetched from the hub "
            f"({type(error).__name__}); check the id, the network, and HF_TOKEN for a gated model"
        ) from error


def identify(
    directory: Path,
    *,
    max_length: int,
    too_long: str,
    dtype: str,
    hashes: Mapping[str, str] | None = None,
    reading: str | None = None,
    outputs: Mapping[str, Any] | None = None,
) -> ModelIdentity:
    """Return the identity of a local model directory; its hashes are cached on this machine.

    `dtype` must be resolved (see `resolve_dtype`); `max_length` is the requested limit in tokens. `hashes` are the sha256
    of all the model's files if they are known already: then the directory need not have its weights. `reading` is the
    result of `rm.closing_token.reading_mark`.
    """
    if hashes is None:
        hashes = model_hashes(directory)
    return ModelIdentity(
        weights=select_files(hashes, _HASHED_WEIGHTS),
        tokenizer=select_files(hashes, _TOKENIZER),
        max_length=effective_max_length(directory, max_length),
        too_long=too_long,
        dtype=dtype,
        reading=reading,
        outputs=outputs,
    )


def effective_max_length(directory: Path, requested: int) -> int:
    """Return the smallest of the requested limit, the model's positions and the tokenizer's limit, in tokens."""
    limits = [requested]
    config = read_json(directory / "config.json")
    text = config.get("text_config")
    config = {**config, **(text if isinstance(text, dict) else {})}
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        positions = config.get(key)
        if isinstance(positions, int) and positions > 0:
            # these architectures number positions from padding_idx + 1
            pad = config.get("pad_token_id")
            before = pad if isinstance(pad, int) else 0
            limits.append(positions - (before + 1 if str(config.get("model_type")) in OFFSET_POSITIONS else 0))
    limit = read_json(directory / "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT:
        limits.append(int(limit))
    return min(limits)


def resolve_dtype(requested: str, device: str = "auto") -> str:
    """Return the type for `auto` on this machine: bfloat16 if its GPU supports it natively, else float32. Others are unchanged.

    With the `device` cpu or mps, an NVIDIA GPU does not count.

    The machine that plans resolves the type and the plan records it, so that every worker computes in the same type.
    """
    if requested != "auto":
        return requested
    if device in ("cpu", "mps"):
        return "float32"
    return "bfloat16" if _cuda_compute_capability() >= 8 else "float32"


def _cuda_compute_capability() -> int:
    """Return the major compute capability of the first CUDA device, 0 without one, from the driver, not torch."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count, major = ctypes.c_int(0), ctypes.c_int(0)
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return 0
    compute_capability_major = 75
    if cuda.cuDeviceGetAttribute(ctypes.byref(major), compute_capability_major, 0) != 0:
        return 0
    return major.value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a model directory; a missing file is read as empty. Raises `ModelError`."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, for good
            raise ModelError(f"{path} is not a regular file; {_RESTORE}")
        value = load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.is_symlink():
            raise ModelError(f"{path} is a broken link; {_RESTORE}") from None
        return {}
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; {_RESTORE}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({type(error).__name__}); {_RESTORE}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, not an object; {_RESTORE}")
    return value


def select_files(named: Mapping[str, Any], patterns: Iterable[str] = MODEL_FILES) -> dict[str, Any]:
    """Return the entries whose names match one of the patterns, sorted by name."""
    return {name: named[name] for name in sorted(named) if any(fnmatchcase(name, pattern) for pattern in patterns)}


def model_hashes(directory: Path) -> dict[str, str]:
    """Map each loaded file of a local model directory to its sha256 in hex. Raises `ModelError`."""
    return file_hashes(select_files({name: directory / name for name in _names_in(directory)}))


def file_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Map names to the sha256 of their files in hex, cached on this machine (see `HashCache`). Raises `ModelError`."""
    with HashCache() as cache:
        return {name: _sha256(cache, file) for name, file in files.items()}


def _sha256(cache: HashCache, file: Path) -> str:
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # a pipe would be waited for, for good
            raise ModelError(f"model file {file} is not a regular file; fetch the model again")
        return cache.sha256(file)
    except OSError as error:
        raise ModelError(f"model file {file} cannot be read: {error.strerror}; fetch the model again") from error
