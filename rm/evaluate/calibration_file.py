"""Writes `calibration.json` beside a model's weights: the verdict, and the temperature for probabilities from reward gaps.

No reward depends on it, so the model's fingerprint does not include it (`rm.identity` hashes configuration, weights and
tokenizer by name).
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from rm.calibration_record import CALIBRATION_FILE, load_temperature
from rm.evaluate.calibration import Calibration
from rm.evaluate.stress import Stress
from rm.evaluate.verdict import Verdict, hash_preferences
from rm.messages import load_json
from rm.preferences import Group

FILE_NAME = CALIBRATION_FILE
__all__ = ["FILE_NAME", "load_temperature", "store_centring", "store_offset", "store_temperature", "update_calibration"]


def store_temperature(
    directory: Path | str,
    calibration: Calibration,
    *,
    data: str,
    fitted_on: str,
    output: tuple[str, int] | None = None,
    verdict: Verdict | None = None,
    groups: Sequence[Group] = (),
    stressed: Stress | None = None,
    trained_on: float | None = None,
) -> Path:
    """Write the fitted temperature, the verdict and the stress tests beside the weights, atomically.

    Older values are replaced. `data` is the path of the preferences, of which only the file name is stored; `fitted_on`
    describes the part used, and `groups` are its groups, of which a hash is stored. `output` is the name and number of the
    measured output of a model with several. `trained_on` is the share of the prompts that the model was trained on, if known.
    Raises `OSError` if the directory cannot be written.
    """
    fields: dict[str, object] = {
        "temperature": calibration.temperature.value,
        "at_bound": calibration.temperature.at_bound,
        "comparisons": calibration.comparisons,
        "prompts": calibration.prompts,
        "data": data.rstrip("/").rsplit("/", 1)[-1],
        "fitted_on": fitted_on,
    }
    if output is not None:
        fields["output"] = {"name": output[0], "number": output[1]}
    if verdict is not None:
        known_by = {"data": fields["data"], "part": fitted_on, "data_hash": hash_preferences(groups)}
        tested = {} if stressed is None else {"stress": stressed.to_json()}
        trained = {"trained_on": trained_on} if trained_on else {}
        fields["evaluation"] = {**verdict.to_json(), **known_by, **tested, **trained}
    return update_calibration(directory, fields)


def store_offset(directory: Path | str, offset: float) -> Path:
    """Write b of P(accepted) = sigmoid(r + b), learnt from accept/reject labels, beside the temperature."""
    return update_calibration(directory, {"offset": offset})


def store_centring(directory: Path | str, weight: float) -> Path:
    """Record that training pulled the rewards of every prompt towards zero, so that they are comparable across prompts."""
    return update_calibration(directory, {"centring": weight})


def update_calibration(directory: Path | str, fields: dict[str, object]) -> Path:
    """Write the file with these fields and its other fields, atomically."""
    path = Path(directory) / FILE_NAME
    try:
        others = load_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        others = {}
    temporary = path.with_name(f".{FILE_NAME}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(json.dumps({**others, **fields}, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path
