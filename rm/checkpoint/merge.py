"""Averages several reward models into one checkpoint, which is as fast as one of them.

Models trained from the same backbone, with other seeds or on other data, are close enough for the mean of their weights to be a
model, and errors that they do not share shrink (Ramé et al. 2024, "WARM", arXiv 2401.12187). Tensors are averaged one after the
other, in float64.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rm.checkpoint.weight_files import loaded_files, refuse_damaged, require_files
from rm.identity import ModelError, model_hashes, read_json, resolve_model, select_files

_NO_MATTER = ("_name_or_path", "transformers_version")
"""Keys of config.json that record a model's origin."""
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def merge_models(paths: Sequence[str], output: Path) -> int:
    """Write the average of two or more models to the new directory `output`; return its number of tensors.

    Configuration and tokenizer are those of the first model, and must be the same in all. Raises `ModelError` if models do not
    fit together, and `OSError` if the directory cannot be written.
    """
    directories = [resolve_model(path) for path in paths]
    for directory in directories:
        require_files(directory)
        refuse_damaged(directory)
    _refuse_different(paths, directories)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        made = Path(folder) / "model"
        made.mkdir()
        count = _average(paths, directories, made)
        files = select_files({file.name: file for file in directories[0].iterdir()})
        for name, file in files.items():
            if name not in select_files(files, ("*.safetensors",)):
                shutil.copy(file, made / name)
        made.rename(output)
    return count


def _refuse_different(paths: Sequence[str], directories: Sequence[Path]) -> None:
    """Raise `ModelError` if the models are not of one architecture and one tokenizer."""
    first, *others = map(_described, directories)
    for path, other in zip(paths[1:], others, strict=True):
        for what, ours, theirs in zip(("config.json", "tokenizer"), first, other, strict=True):
            if ours != theirs:
                names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
                raise ModelError(
                    f"{path} and {paths[0]} differ in {what} ({', '.join(names[:5])}); only models that were trained from the "
                    "same backbone can be averaged"
                )


def _described(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    config = {name: value for name, value in read_json(directory / "config.json").items() if name not in _NO_MATTER}
    hashes = model_hashes(directory)
    weights = select_files(hashes, ("config.json", "config.*.json", *_WEIGHTS))
    return config, {name: value for name, value in hashes.items() if name not in weights}


def _average(paths: Sequence[str], directories: Sequence[Path], made: Path) -> int:
    """Write the averaged weights in the files that the first model has; return the number of tensors."""
    places = [{name: file for file in loaded_files(directory) for name in _names_in(file)} for directory in directories]
    for path, other in zip(paths[1:], places[1:], strict=True):
        odd = sorted(places[0].keys() ^ other.keys())
        if odd:
            raise ModelError(f"{path} and {paths[0]} do not have the same tensors ({odd[0]} is in one of them)")
    for file in loaded_files(directories[0]):
        tensors = {name: _mean(paths, [place[name] for place in places], name) for name in _names_in(file)}
        try:
            save_file(tensors, made / file.name, metadata={"format": "pt"})
        except SafetensorError as error:  # what it raises for a full disk
            raise OSError(None, str(error)) from error
    return len(places[0])


def _names_in(file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _mean(paths: Sequence[str], files: Sequence[Path], name: str) -> torch.Tensor:
    first, *others = (_read(file, name) for file in files)
    total = first.double()
    for path, other in zip(paths[1:], others, strict=True):
        if other.shape != first.shape or other.dtype != first.dtype:
            raise ModelError(
                f"{name} is {tuple(other.shape)} of {other.dtype} in {path}, and {tuple(first.shape)} of {first.dtype} in "
                f"{paths[0]}"
            )
        if not first.dtype.is_floating_point and not torch.equal(first, other):
            raise ModelError(
                f"{name}, which has the type {first.dtype} and is not a weight, differs between {path} and {paths[0]}"
            )
        total += other.double()
    return (total / len(files)).to(first.dtype) if first.dtype.is_floating_point else first


def _read(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
    return tensor
