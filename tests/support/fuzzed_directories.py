"""Model directories and score files with one changed file: single bytes, or values of its JSON."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from support.fuzzed_configurations import ROWS, WRONG
from support.fuzzing import command, mutated
from support.tiny_models import save_causal, save_encoder

BLOCKS = {"input": {"path": "a.jsonl"}, "output": {"path": "out"}, "report": {"write": False}}
MODELS = {"encoder": save_encoder, "causal": save_causal}
VALUES = [
    value for value in WRONG if isinstance(value, str | int | float | list | dict | None) and len(str(value)) < 1000
]
NO_HUGE_ALLOCATION = (
    10**6
)  # a model of which the configuration says that it is large is made at that size, in other tests


def prepared(root: Path) -> Path:
    """A directory with a corpus, a configuration for each model, what these have scored, and models: made once in `root`."""
    base = root / "base"
    if base.exists():
        return base
    base.mkdir()
    (base / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, save in MODELS.items():
        save(base / name)
        blocks = {**BLOCKS, "model": {"path": name, "max_length": 32}}
        (base / f"{name}.yaml").write_text(yaml.safe_dump(blocks))
    (base / "column.yaml").write_text(yaml.safe_dump({**BLOCKS, "scores": {"column": "grade"}}))
    with contextlib.chdir(base):
        assert command(["run", "column.yaml"]) == 0
    return base


def check_scores(seed: int, root: Path) -> None:
    """A damaged score file is made again, and the output is the same."""
    base, work, dice = prepared(root), root / "work", random.Random(seed)
    _copy(base, work)
    shards = {path.name: path.read_bytes() for path in (work / "out" / "data").iterdir()}
    for path in (work / "out").iterdir():
        if path.name != "scores":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    [scores] = (work / "out" / "scores").glob("*/*.parquet")
    changed = _changed(scores, dice)
    with contextlib.chdir(work):
        assert command(["run", "column.yaml"]) == 0, changed
    assert {path.name: path.read_bytes() for path in (work / "out" / "data").iterdir()} == shards, changed


def check_model(seed: int, root: Path) -> None:
    """A changed model is scored with, or refused with 7; a configuration of which it makes nonsense, with 2; its rows, with 4."""
    base, work, dice = prepared(root), root / "work", random.Random(seed)
    _copy(base, work)
    name = dice.choice(list(MODELS))
    changed = _changed(dice.choice(sorted(path for path in (work / name).rglob("*") if path.is_file())), dice)
    with contextlib.chdir(work):
        code = command(["run", f"{name}.yaml", f"output.path=of-{name}"])
        assert code in (0, 2, 4, 7), (changed, code)


def _copy(base: Path, work: Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)


def _changed(path: Path, dice: random.Random) -> str:
    """Change a file, and say how."""
    data = path.read_bytes()
    kind = dice.randrange(4)
    if path.suffix == ".json" and kind:
        value = json.loads(data)
        for _ in range(dice.choice([1, 1, 2])):
            value = _other(value, dice)
        path.write_text(json.dumps(value))
        return f"{path.name}: {json.dumps(value)[:3000]}"
    if path.suffix == ".safetensors" and kind == 1:
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(_other(json.loads(data[8 : 8 + length]), dice)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
        return f"{path.name}: {header[:3000]!r}"
    if kind == 2 and dice.random() < 0.3:
        path.unlink()
        return f"{path.name} removed"
    head = dice.choice([len(data), 64, 512])  # headers are at the front
    path.write_bytes(mutated(data[:head], dice) + data[head:])
    return f"{path.name} with other bytes"


def _other(value: Any, dice: random.Random) -> Any:
    """A JSON value with one value in it replaced, removed or added, small ones as likely as those in large mappings."""
    if isinstance(value, dict) and value and dice.random() < 0.95:
        key = dice.choice(list(value))
        match dice.randrange(8):
            case 0:
                return {other: item for other, item in value.items() if other != key}
            case 1:
                return {
                    **value,
                    dice.choice(["x", "architectures", "auto_map", "quantization_config"]): dice.choice(VALUES),
                }
        return {**value, key: _other(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        return [*value[:at], _other(value[at], dice), *value[at + 1 :]]
    other = dice.choice(VALUES)
    return dice.randint(-2, 300) if isinstance(other, int) and abs(other) > NO_HUGE_ALLOCATION else other


seeds = st.integers(0, 2**40)
