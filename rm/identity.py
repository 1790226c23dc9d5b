"""The identity of a reward model: everything that a reward depends on, in resolved values, without loading the model.

This module does not import torch: a run whose scores all exist must not pay for that import, let alone for weights.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

SCORING_VERSION = 2
"""Raised by hand whenever the same model and text give other rewards, which `tests/rm/test_golden.py` detects."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "chat_template.json",
)
_HASHED_WEIGHTS = ("config.json", *_WEIGHTS)
MODEL_FILES = (*_HASHED_WEIGHTS, *_TOKENIZER, "adapter_config.json")
"""Patterns of the files of a model directory that are loaded, so that a copy needs them."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one weight or activation in each type that a model computes in."""
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "longformer", "mpnet"}
"""Architectures that number positions from behind the pad token's id."""
_NO_LIMIT = 1_000_000  # tokenizers say 1e30 where they have no limit


class ModelError(Exception):
    """A model that cannot be used; the message names the path, what was expected, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Resolved values that decide a reward; `fingerprint()` is their hash."""

    weights: dict[str, str]
    tokenizer: dict[str, str]
    max_length: int
    too_long: str
    dtype: str
    scoring_version: int = SCORING_VERSION

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def fingerprint(self, **context: object) -> str:
        """Hash this identity and `context` (the input mapping, for example) to 24 hex digits."""
        fields = {"model": self.to_json(), **context}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:24]


def resolve_model(path: str, revision: str | None = None) -> Path:
    """Return the local directory of a model: `path` itself, or the hub snapshot of that id, downloaded on first use.

    Raises `ModelError` where `path` is neither, or the directory holds no safetensors weights.
    """
    directory = _directory_of(path, revision, (*_WEIGHTS, "*.json", *_TOKENIZER))
    require_weights(path, (file.name for file in directory.iterdir()))
    return directory


def require_weights(path: str, names: Iterable[str]) -> None:
    """Raise `ModelError` where the files of a model directory hold no weights that can be loaded safely."""
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


def resolve_without_weights(path: str, revision: str | None = None) -> Path:
    """Return what `resolve_model` returns, but neither fetch nor require weights. Raises `ModelError`."""
    return _directory_of(path, revision, ("*.json", *_TOKENIZER))


def _directory_of(path: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    directory = Path(path).expanduser()
    if not directory.is_dir():
        if directory.exists() or path.startswith((".", "/", "~")) or path.count("/") != 1:
            raise ModelError(f"model.path {path!r} is not a directory; give a model directory or a hub id 'owner/name'")
        directory = _hub_snapshot(path, revision, wanted)
    elif revision is not None:
        raise ModelError(f"model.revision {revision!r} is only for hub ids, and {path!r} is a directory; remove it")
    if not (directory / "config.json").is_file():
        raise ModelError(f"model.path {path!r} has no config.json; give a directory written by save_pretrained")
    return directory


def _hub_snapshot(repo_id: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(wanted)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model.path {repo_id!r} is not a local directory and could not be had from the hub "
            f"({type(error).__name__}); check the id, the network, and HF_TOKEN for a gated model"
        ) from error


def identify(
    directory: Path, *, max_length: int, too_long: str, dtype: str, hashes: Mapping[str, str] | None = None
) -> ModelIdentity:
    """Return the identity of a local model directory; hashes are cached by path, size and modification time.

    `dtype` must be resolved (see `resolve_dtype`); `max_length` is the requested limit in tokens. `hashes` are the sha256
    of all the model's files where they are known already: then the directory need not hold its weights.
    """
    if hashes is None:
        hashes = model_hashes(directory)
    return ModelIdentity(
        weights=select_files(hashes, _HASHED_WEIGHTS),
        tokenizer=select_files(hashes, _TOKENIZER),
        max_length=effective_max_length(directory, max_length),
        too_long=too_long,
        dtype=dtype,
    )


def effective_max_length(directory: Path, requested: int) -> int:
    """Return the least of the requested limit, the model's positions and the tokenizer's limit, in tokens."""
    limits = [requested]
    config = _read_json(directory / "config.json")
    config = {**config, **(config.get("text_config") or {})}
    for key in ("max_position_embeddings", "n_positions", "max_seq_len"):
        positions = config.get(key)
        if isinstance(positions, int) and positions > 0:
            # these architectures number positions from padding_idx + 1
            offset = (config.get("pad_token_id") or 0) + 1 if config.get("model_type") in OFFSET_POSITIONS else 0
            limits.append(positions - offset)
    limit = _read_json(directory / "tokenizer_config.json").get("model_max_length")
    if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT:
        limits.append(int(limit))
    return min(limits)


def resolve_dtype(requested: str) -> str:
    """Return the type for `auto` on this machine, bfloat16 where its GPU has it natively, else float32; others unchanged.

    The machine that plans resolves it and the plan records it, so that every worker computes in the same type.
    """
    if requested != "auto":
        return requested
    return "bfloat16" if _cuda_compute_capability() >= 8 else "float32"


def _cuda_compute_capability() -> int:
    """Return the major compute capability of the first CUDA device, 0 without one; asks the driver, not torch."""
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON; restore it from the model's source") from error
    return value if isinstance(value, dict) else {}


def select_files(named: Mapping[str, Any], patterns: Iterable[str] = MODEL_FILES) -> dict[str, Any]:
    """Return the entries whose names match one of the patterns, sorted by name."""
    return {name: named[name] for name in sorted(named) if any(fnmatchcase(name, pattern) for pattern in patterns)}


def model_hashes(directory: Path) -> dict[str, str]:
    """Map each loaded file of a local model directory to its sha256 in hex. Raises `ModelError`."""
    return file_hashes(select_files({file.name: file for file in directory.iterdir()}))


def file_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Map names to the sha256 of their files in hex, cached by path, size and modification time. Raises `ModelError`."""
    with _HashCache() as cache:
        try:
            return {name: cache.sha256(file) for name, file in files.items()}
        except OSError as error:
            raise ModelError(
                f"model file {error.filename} cannot be read: {error.strerror}; fetch the model again"
            ) from error


class _HashCache:
    """sha256 of files, kept in the user's cache directory by path, size and modification time."""

    def __init__(self) -> None:
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        self._path = Path(root) / "bestkept" / "sha256.json"
        self._known: dict[str, str] = {}
        self._changed = False

    def __enter__(self) -> _HashCache:
        try:
            self._known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}  # a cache: unreadable means empty
        return self

    def sha256(self, file: Path) -> str:
        real = file.resolve()
        status = real.stat()
        key = f"{real}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            with real.open("rb") as stream:
                self._known[key] = hashlib.file_digest(stream, "sha256").hexdigest()
            self._changed = True
        return self._known[key]

    def __exit__(self, *_: object) -> None:
        if not self._changed:
            return
        temporary = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex[:12]}.tmp")
        with suppress(OSError):  # a read-only or full home costs a rehash next time, nothing else
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_text(json.dumps(self._known), encoding="utf-8")
                os.replace(temporary, self._path)
            finally:
                temporary.unlink(missing_ok=True)


CALIBRATION_FILE = "calibration.json"
_CALIBRATE = "run `bestkept evaluate` to write it again, or remove it"


def load_temperature(directory: Path | str) -> float | None:
    """Return the temperature stored beside a model's weights, or None. No reward depends on it.

    Raises `ModelError` where the file holds no positive number under `temperature`.
    """
    path = Path(directory) / CALIBRATION_FILE
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        value = float(fields["temperature"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} holds no temperature ({type(error).__name__}); {_CALIBRATE}") from error
    if not (math.isfinite(value) and value > 0):
        raise ModelError(f"{path} holds the temperature {value}; expected a positive number; {_CALIBRATE}")
    return value


def has_anchor(directory: Path | str) -> bool:
    """Tell whether rewards of different prompts are comparable.

    They are where labels of single responses, or centring, fixed their offset while the model was trained.
    """
    return not _read_json(Path(directory) / CALIBRATION_FILE).keys().isdisjoint({"offset", "centring"})


def tensor_shapes(directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of all tensors in the directory's safetensors files, from their headers alone.

    Raises `ModelError` where a file is cut or not a safetensors file.
    """
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > file.stat().st_size:
                raise ModelError(f"{file} is cut or not a safetensors file; fetch it again")
            try:
                header: dict[str, Any] = json.loads(stream.read(size))
            except ValueError as error:
                raise ModelError(f"{file} is cut or not a safetensors file; fetch it again") from error
        header.pop("__metadata__", None)
        if file.stat().st_size != 8 + size + max((entry["data_offsets"][1] for entry in header.values()), default=0):
            raise ModelError(f"{file} is cut or not a safetensors file; fetch it again")
        for name, entry in header.items():
            yield name, tuple(entry["shape"])
