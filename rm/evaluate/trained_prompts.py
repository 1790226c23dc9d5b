"""A sample of the prompts that a model was trained on, in `calibration.json`, so that an evaluation on them is noticed.

The sample is the smallest hashes of all prompts, at most 1,024. Prompts whose hashes are in its range are compared with it: the
share of them in the sample estimates the share of all that the model was trained on. A hash is 48 bits of the prompt's key, other
bits than those by which prompts are held out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rm.calibration_record import CALIBRATION_FILE
from rm.conversations import prompt_key
from rm.evaluate.calibration_file import update_calibration
from rm.identity import ModelError, read_json
from rm.preferences import Group

_FIELD = "training_prompts"
_SAMPLE = 1024
_BYTES = slice(8, 14)  # of a key


def store_trained_prompts(directory: Path | str, groups: Iterable[Group]) -> None:
    """Write the number of the groups' prompts, and the sample, beside the weights. Raises `OSError`."""
    hashes = _hashes(groups)
    sample = base64.b64encode(b"".join(sorted(hashes)[:_SAMPLE])).decode()
    update_calibration(directory, {_FIELD: {"prompts": len(hashes), "sample": sample}})


def share_trained_on(directory: Path | str, groups: Iterable[Group]) -> float | None:
    """Estimate the share of the groups' prompts that the model in a directory was trained on.

    None if the directory has no sample, or no prompt is in its range. Raises `ModelError` if the sample is damaged.
    """
    path = Path(directory) / CALIBRATION_FILE
    stored = read_json(path).get(_FIELD)
    if stored is None:
        return None
    sample, whole = _read(path, stored)
    compared = {place for place in _hashes(groups) if whole or (sample and place <= sample[-1])}
    return len(compared & {*sample}) / len(compared) if compared else None


def _hashes(groups: Iterable[Group]) -> set[bytes]:
    return {prompt_key(group.prompt)[_BYTES] for group in groups}


def _read(path: Path, stored: Any) -> tuple[list[bytes], bool]:
    """Return the sample, ascending, and whether it has all prompts."""
    try:
        fields: Mapping[str, Any] = stored
        data, size = base64.b64decode(fields["sample"], validate=True), _BYTES.stop - _BYTES.start
        sample = sorted(data[start : start + size] for start in range(0, len(data), size))
        return sample, len(sample) >= int(fields["prompts"])
    except (TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path} holds no sample of the prompts that the model was trained on ({type(error).__name__}); remove {_FIELD}"
        ) from error
