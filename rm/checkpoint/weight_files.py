"""The weight files of a model directory that transformers reads, and their headers, without reading weights.

They are `model.safetensors`, or else the files named in `model.safetensors.index.json`. Other safetensors files beside
them (a copy in another layout, a head in a separate file) are never loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rm.identity import MODEL_FILES, ModelError, read_json, select_files
from rm.messages import load_json

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library


def tensor_shapes(directory: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the names and shapes of all tensors that are loaded, from their files' headers alone.

    Missing files yield nothing. Raises `ModelError` if a file is truncated or not a safetensors file.
    """
    for file in loaded_files(directory):
        if file.exists():
            yield from _shapes_in(file)


def require_files(directory: Path) -> None:
    """Raise `ModelError` if a file that would be loaded is missing, or has an unusual name."""
    renamed = read_json(directory / "config.json").get("transformers_weights")
    if renamed is not None:
        raise ModelError(
            f"model.path {str(directory)!r} names its weights in config.json (transformers_weights: {renamed!r}); save it once "
            f"with save_pretrained, which writes {_WHOLE}"
        )
    loaded = loaded_files(directory)
    if not loaded:
        raise ModelError(
            f"model.path {str(directory)!r} has neither {_WHOLE} nor {_INDEX}; expected a directory written by save_pretrained"
        )
    absent = sorted(file.name for file in loaded if not file.is_file())
    if absent:
        raise ModelError(
            f"model.path {str(directory)!r} lacks {absent[0]}, which {_INDEX} names ({len(absent)} of {len(loaded)} files are "
            "absent); fetch it again"
        )


def tensor_beside(directory: Path, names: Sequence[str]) -> tuple[str, str] | None:
    """Return (file, tensor) for the first file that is not loaded and has a tensor of one of these names, else None."""
    loaded = set(loaded_files(directory))
    for file in sorted(directory.glob("*.safetensors")):
        if file not in loaded and file.is_file():
            for name, _ in _shapes_in(file):
                if name in names:
                    return file.name, name
    return None


def refuse_damaged(directory: Path) -> None:
    """Raise `ModelError` with the name of the first of a model's files that is not what its name says."""
    files = select_files({file.name: file for file in directory.iterdir()}, MODEL_FILES)
    for file in files.values():
        if file.suffix == ".json":
            read_json(file)
        elif file.suffix == ".safetensors":
            for _ in _shapes_in(file):
                pass


def loaded_files(directory: Path) -> list[Path]:
    """List the files that transformers takes weights from. Raises `ModelError`."""
    whole, index = directory / _WHOLE, directory / _INDEX
    if whole.exists() or whole.is_symlink():
        return [whole]
    named = read_json(index).get("weight_map", {})
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{index} has no weight_map from tensors to files; fetch it again")
    names = sorted(set(named.values()))
    outside = [name for name in names if name != Path(name).name or not name.endswith(".safetensors")]
    if outside:
        raise ModelError(f"{index} names {outside[0]!r}; expected *.safetensors files beside it, in the same directory")
    return [directory / name for name in names]


def _shapes_in(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        length = file.stat().st_size
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > min(length, _LARGEST_HEADER):
                raise ValueError
            header = load_json(stream.read(size))
        header.pop("__metadata__", None)
        shapes = {name: _checked_shape(entry) for name, entry in header.items()}
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}; fetch it again") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ModelError(f"{file} is cut or not a safetensors file; fetch it again") from error
    if length != 8 + size + max(ends, default=0):
        raise ModelError(f"{file} is cut or not a safetensors file; fetch it again")
    yield from shapes.items()


def _checked_shape(entry: Any) -> tuple[int, ...]:
    """Return the shape in a header's entry. Raises `ValueError`, `TypeError` or `LookupError` if it has none."""
    shape = tuple(entry["shape"])
    if any(type(size) is not int or size < 0 for size in (*shape, *entry["data_offsets"])):
        raise ValueError
    return shape
