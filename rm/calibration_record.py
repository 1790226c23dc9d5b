"""Readers of `calibration.json` beside a model's weights: temperature, verdict, and the data they were measured on.

No reward depends on it. `rm.evaluate.calibration_file` writes it; plans read it without an evaluation's imports.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rm.identity import ModelError, read_json
from rm.messages import load_json

CALIBRATION_FILE = "calibration.json"
_WITHOUT_EVALUATION = frozenset(
    {"offset", "centring", "training_prompts"}
)  # what training stores without held-out prompts
_CALIBRATE = "run `bestkept evaluate` to write it again, or remove it"


def load_temperature(directory: Path | str) -> float | None:
    """Return the temperature stored beside a model's weights, or None. No reward depends on it.

    Raises `ModelError` if the file has no positive number under `temperature`.
    """
    path = Path(directory) / CALIBRATION_FILE
    try:
        fields = load_json(path.read_text(encoding="utf-8"))
        if not _WITHOUT_EVALUATION.isdisjoint(fields) and "temperature" not in fields:
            return None  # trained without held-out prompts
        value = float(fields["temperature"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelError(f"{path} holds no temperature ({type(error).__name__}); {_CALIBRATE}") from error
    if not (math.isfinite(value) and value > 0):
        raise ModelError(f"{path} holds the temperature {value}; expected a positive number; {_CALIBRATE}")
    return value


def load_output(directory: Path | str) -> tuple[str, int] | None:
    """Return name and number of the output that temperature and verdict were measured on; None for a model with one output.

    Raises `ModelError` if the file has them in another form.
    """
    path = Path(directory) / CALIBRATION_FILE
    output = read_json(path).get("output")
    if output is None:
        return None
    name, number = (output.get("name"), output.get("number")) if isinstance(output, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(number, int):
        raise ModelError(f"{path} has no name and number under output; {_CALIBRATE}")
    return name, number


def load_evaluation(directory: Path | str) -> dict[str, Any] | None:
    """Return the evaluation stored beside a model's weights (`rm.evaluate.verdict`), or None. No reward depends on it.

    Raises `ModelError` if it lacks figures that a run reports.
    """
    path = Path(directory) / CALIBRATION_FILE
    evaluation = read_json(path).get("evaluation")
    if evaluation is None:
        return None
    try:
        parts = [evaluation["all"], evaluation["length_matched"]]
        numbers = [part[name][end] for part in parts for name in _ESTIMATES for end in ("value", "low", "high")]
        numbers += [part["comparisons"] for part in parts]
        texts = [evaluation["verdict"], evaluation["data"], evaluation["part"], *(part["rule"] for part in parts)]
        for test in evaluation.get("stress", {"tests": []})["tests"]:
            texts.append(test["name"])
            numbers += [test["prompts"], *(test["preferred"][end] for end in ("value", "low", "high"))]
        numbers.append(evaluation.get("trained_on"))
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path} holds an evaluation without {error}; {_CALIBRATE}") from error
    if not all(isinstance(text, str) for text in texts) or not all(
        isinstance(number, int | float | None) for number in numbers
    ):
        raise ModelError(f"{path} holds an evaluation with values of unexpected types; {_CALIBRATE}")
    return dict(evaluation)


_ESTIMATES = ("accuracy", "length", "over_length")


def has_anchor(directory: Path | str) -> bool:
    """Return whether rewards of different prompts are comparable.

    They are comparable if labels of single responses, or centring, fixed their offset in training.
    """
    return not read_json(Path(directory) / CALIBRATION_FILE).keys().isdisjoint({"offset", "centring"})
