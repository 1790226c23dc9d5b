"""`calibration.json` beside a model's weights: the temperature that turns its reward gaps into probabilities.

No reward depends on it, so the model's fingerprint does not include it (`rm.identity` hashes configuration, weights and
tokenizer by name).
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

from rm.evaluate.calibration import Calibration
from rm.identity import CALIBRATION_FILE, load_temperature

FILE_NAME = CALIBRATION_FILE
__all__ = ["FILE_NAME", "load_temperature", "store_centring", "store_offset", "store_temperature"]


def store_temperature(directory: Path | str, calibration: Calibration, *, data: str, fitted_on: str) -> Path:
    """Write the fitted temperature beside the weights, whole or not at all; an older one is replaced.

    `data` is the path of the preferences, of which the file name alone is stored; `fitted_on` describes the part used. Raises
    `OSError` where the directory cannot be written.
    """
    fields = {
        "temperature": calibration.temperature.value,
        "at_bound": calibration.temperature.at_bound,
        "comparisons": calibration.comparisons,
        "prompts": calibration.prompts,
        "data": data.rstrip("/").rsplit("/", 1)[-1],
        "fitted_on": fitted_on,
    }
    return _update(Path(directory) / FILE_NAME, fields)


def store_offset(directory: Path | str, offset: float) -> Path:
    """Write the b of P(accepted) = sigmoid(r + b), learnt from accept/reject labels, beside the temperature."""
    return _update(Path(directory) / FILE_NAME, {"offset": offset})


def store_centring(directory: Path | str, weight: float) -> Path:
    """Record that training pulled the rewards of every prompt towards zero, so that they are comparable across prompts."""
    return _update(Path(directory) / FILE_NAME, {"centring": weight})


def _update(path: Path, fields: dict[str, object]) -> Path:
    """Write the file with these fields beside its other ones, whole or not at all."""
    try:
        others = json.loads(path.read_text(encoding="utf-8"))
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
