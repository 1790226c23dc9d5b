"""`model.path` → a local directory, with the necessary parts of the model.

Planning needs configuration, tokenizer and the hashes of the weights; scoring, evaluation and training need the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.errors import ModelLoadError, StorageError
from pipelines.storage import files
from pipelines.storage.files import join
from pipelines.storage.models import cache
from pipelines.storage.models.checksums import Files, FileSum, Listing, known_files, list_model

_LOCAL_URLS = ("file://", "local://")
_WEIGHTS_SUFFIX = ".safetensors"  # a launcher needs only the hashes of these files


class LocatedModel(NamedTuple):
    """A model as a launcher sees it."""

    directory: Path  # configuration, tokenizer and calibration, and for a local model the weights
    hashes: dict[str, str] | None  # name → sha256 of all model files, if the directory does not contain them all
    planned: dict[str, Any]  # the location, for workers


def is_remote(path: str) -> bool:
    """Return whether a `model.path` names a directory on an object store."""
    return "://" in path and not path.startswith(_LOCAL_URLS)


def locate(path: str, revision: str | None) -> LocatedModel:
    """The parts of a model that planning needs; weights on a store are fetched only if no checksums file has their hashes.

    Raises `ModelLoadError` or `StorageError`.
    """
    from rm.identity import ModelError, resolve_model

    if not is_remote(path):
        try:
            directory = resolve_model(path, revision)
        except ModelError as error:
            raise ModelLoadError(str(error)) from error
        return LocatedModel(directory, None, {"directory": str(directory.resolve())})
    sums, listing = _sums_of(path, revision)
    directory = _small_copy(listing, sums)
    planned = {"directory": listing.url, "files": {name: list(file) for name, file in sums.items()}}
    return LocatedModel(directory, {name: file.sha256 for name, file in sums.items()}, planned)


def weight_bytes(planned: Mapping[str, Any]) -> int:
    """Return the bytes of a planned model's weights, without reading them; 0 if there are none."""
    if "files" in planned:
        return sum(size for name, (size, _) in planned["files"].items() if name.endswith(_WEIGHTS_SUFFIX))
    weights = Path(planned["directory"]).glob(f"*{_WEIGHTS_SUFFIX}")
    return sum(path.stat().st_size for path in weights if path.is_file())


def reading_directory(path: str, revision: str | None) -> Path:
    """A local directory with configuration and tokenizer; weights are neither fetched nor required. Raises `ModelLoadError` or
    `StorageError`."""
    from rm.identity import ModelError, resolve_without_weights

    if not is_remote(path):
        try:
            return resolve_without_weights(path, revision)
        except ModelError as error:
            raise ModelLoadError(str(error)) from error
    _refuse_revision(path, revision)
    return _small_copy(list_model(path, with_weights=False), None)


def whole_directory(path: str, revision: str | None) -> Path:
    """A local directory with the whole model. Raises `ModelLoadError` or `StorageError`."""
    from rm.identity import ModelError, resolve_model

    if not is_remote(path):
        try:
            return resolve_model(path, revision)
        except ModelError as error:
            raise ModelLoadError(str(error)) from error
    sums, listing = _sums_of(path, revision)
    return cache.copy_of(listing.url, sums)


def small_directory(model: Mapping[str, Any]) -> Path:
    """A local directory with the configuration and tokenizer of a plan's model, on the launcher."""
    if "files" not in model:
        return Path(model["directory"])
    return cache.copy_of(model["directory"], _without_weights(_planned_files(model)))


def loadable_directory(model: Mapping[str, Any], identity: Mapping[str, Any]) -> Path:
    """The directory from which a worker loads a plan's model. Raises `ModelLoadError` or `StorageError` unless it has exactly
    the weights and tokenizer of the plan's fingerprint."""
    from rm.identity import ModelError, identify

    if "files" in model:
        return cache.copy_of(model["directory"], _planned_files(model))
    directory = Path(model["directory"])
    if not directory.is_dir():
        raise ModelLoadError(
            f"there is no model directory {directory} on this worker; put the model into the workers' image, or on an object "
            "store: `bestkept model fetch`"
        )
    try:
        actual = identify(directory, max_length=model["max_length"], too_long=model["too_long"], dtype=model["dtype"])
    except (ModelError, OSError) as error:
        raise ModelLoadError(str(error)) from error
    for kind, hashes in (("weights", actual.weights), ("tokenizer", actual.tokenizer)):
        planned = identity[kind]
        other = [name for name in sorted({*planned, *hashes}) if planned.get(name) != hashes.get(name)]
        if other:
            raise ModelLoadError(
                f"{directory / other[0]} is not the file that the run was planned with: it changed since, or this worker's image "
                "has another model; run the same command again, with the same model on launcher and workers"
            )
    return directory


def _sums_of(path: str, revision: str | None) -> tuple[Files, Listing]:
    _refuse_revision(path, revision)
    listing = list_model(path)
    sums, expected = known_files(listing)
    if sums is None:
        sums = cache.copy_unknown(listing, expected)
    return sums, listing


def _refuse_revision(path: str, revision: str | None) -> None:
    if revision is not None:
        raise ModelLoadError(
            f"model.revision {revision!r} is only for hub ids, and {path!r} is a directory on an object store; remove it"
        )


def _small_copy(listing: Listing, sums: Files | None) -> Path:
    """A copy of all files except the weights. Files without known checksums, which are small, are read first."""
    from rm.calibration_record import CALIBRATION_FILE

    known = dict(_without_weights(sums or {}))
    wanted = [name for name in (*listing.model, *listing.others) if not name.endswith(_WEIGHTS_SUFFIX)]
    unknown = listing.model.keys() - known.keys() | {CALIBRATION_FILE}
    fresh = _read(listing.url, [name for name in wanted if name in unknown])
    known |= {name: FileSum(len(data), sha256(data).hexdigest()) for name, data in fresh.items()}
    return cache.copy_of(listing.url, known, contents=fresh)


def _read(url: str, names: Sequence[str]) -> dict[str, bytes]:
    contents = {}
    for name in names:
        data = files.read_bytes(join(url, name))
        if data is None:
            raise StorageError(f"{join(url, name)} is gone since it was listed; run the same command again")
        contents[name] = data
    return contents


def _without_weights(sums: Files) -> dict[str, FileSum]:
    return {name: file for name, file in sums.items() if not name.endswith(_WEIGHTS_SUFFIX)}


def _planned_files(model: Mapping[str, Any]) -> dict[str, FileSum]:
    return {name: FileSum(*fields) for name, fields in model["files"].items()}


@contextmanager
def carrying_model_errors() -> Iterator[None]:
    """Turn a model's errors while it reads texts, such as an endless chat template, into a `ModelLoadError`."""
    from rm.identity import ModelError

    try:
        yield
    except ModelError as error:
        raise ModelLoadError(str(error)) from error
