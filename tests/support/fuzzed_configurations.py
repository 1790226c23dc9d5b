"""Configurations of `bestkept run` with errors: values of another type, size, nesting or encoding, in the file or on the command
line."""

from __future__ import annotations

import contextlib
import datetime
import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st
from support.fuzzing import command

from pipelines.config.settings_list import settings_of

ends: Counter[tuple[int, int]] = Counter()  # the exit codes of the first and the second run

ROWS = [{"prompt": f"p{n % 2}", "response": f"r{n}", "grade": n, "source": "s", "ok": n == 1} for n in range(4)]
RULES = [row for row in settings_of("run") if row.name.startswith("select[].")]
SETTINGS = [row for row in settings_of("run") if not row.name.startswith("select[].")]
DEEP: Any = "x"
for _ in range(45):
    DEEP = [DEEP]
WRONG: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 7, 1000, 2**31, 2**32, 2**53 - 1, 2**53, -(2**53), 2**64, 10**30, -(10**400)),
    *(0.0, 0.5, 1.0, -0.5, 1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        " ",
        "a",
        "grade",
        "source",
        "prompt",
        "ok=true",
        "x" * 300,
        "x" * 100_000,
        "ä🙂",
        "\u202e",
        "\x1b[31m",
        "[red]",
    ),
    *(
        "\n",
        "a\0b",
        "'",
        '"',
        "a: b",
        "#",
        "{date}",
        "{",
        "*",
        "**",
        "[",
        "[a",
        "-",
        "null",
        "1",
        "0x10",
        "1e3",
        ".inf",
    ),
    *("a.jsonl", "b.jsonl", "missing", "missing/*.jsonl", "sub", ".", "*.jsonl", "a.jsonl/x", "empty.parquet"),
    *(
        "nosuch://x",
        "://",
        "s3://",
        "s3://key:secret@bucket/x",
        "memory://x/*.jsonl",
        "file://",
        "zip://x::a.jsonl",
        "::",
    ),
    *([], [[]], {}, {"a": 1}, {"a": {"b": None}}, [1, "a", None], ["a"], ["source"], ["a.jsonl", "a.jsonl"], DEEP),
    *(
        datetime.date(2026, 1, 1),
        b"\xff\x00",
        {"a", "b"},
        ["x"] * 3000,
        {str(n): n for n in range(500)},
        {1: 2, None: 3},
    ),
    *([{"best_of_n": None}], [{"top": {"rows": 1}}, {"longest": None}], {"path": "m"}, [{"path": "m"}, {"path": "n"}]),
]
LINES = [b"---\n", b"&a [*a]\n", b"<<: *b\n", b"x: &x {<<: *x}\n", b"%YAML 9.9\n", b"!!python/name:os\n"]
ENDINGS = [b": 1", b" #", b"{", b"[" * 2000, b"\x00", b"\xff", b"\\U00110000"]
NOT_HERE = ("FlinkRunner", "SparkRunner", "PortableRunner")  # they reach for servers


class Sample:
    """A configuration file's bytes and the words after it on the command line."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        values: dict[str, Any] = {
            "input": {"path": "a.jsonl"},
            "scores": {"column": "grade"},
            "report": {"write": False},
            "output": {"path": "out"},
        }
        self.words: list[str] = []
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            name, value = _change(dice)
            if dice.random() < 0.3:
                self.words.append(f"{name}={_flow(value)}")
            else:
                _put(values, name.split("."), value)
        if dice.random() < 0.05:
            self.words.append(
                dice.choice(["--nonsense", "--runner=x", "--streaming", "x", "=", "a=b=c", "--job_name=ä", "-x"])
            )
        try:
            text = yaml.safe_dump(values, allow_unicode=dice.random() < 0.5, sort_keys=False).encode(
                errors="surrogatepass"
            )
        except yaml.YAMLError:
            text = repr(values).encode(errors="replace")
        self.text = _spoilt(text, dice) if dice.random() < 0.2 else text

    def __repr__(self) -> str:
        return f"{self.text[:2000]!r} {[word[:200] for word in self.words]!r}"


def _change(dice: random.Random) -> tuple[str, Any]:
    """A setting and a value for it: one of its kind, or any."""
    if dice.random() < 0.35:
        steps = [_step(dice) for _ in range(dice.choice([1, 1, 2]))]
        return "select", steps if dice.random() < 0.9 else steps[0]
    row = dice.choice(SETTINGS)
    name = row.name
    match dice.randrange(12):
        case 0:
            name = name.rpartition(".")[0] or name  # the whole block
        case 1:
            name += dice.choice(["x", ".x", ".0", ".", "[]"])
    return name, dice.choice(WRONG) if dice.random() < 0.45 else _fitting(row.type, dice)


def _step(dice: random.Random) -> Any:
    row = dice.choice(RULES)
    _, rule, *field = row.name.split(".")
    value = dice.choice(WRONG) if dice.random() < 0.2 else _fitting(row.type, dice)
    if not field:  # such as `where`, which is one text
        return {rule: value}
    step = {rule: {".".join(field): value}}
    if dice.random() < 0.3:
        more = dice.choice([other for other in RULES if other.name.startswith(f"select[].{rule}.")])
        step[rule][more.name.rpartition(".")[2]] = _fitting(more.type, dice)
    return step if dice.random() < 0.9 else dice.choice(WRONG)


def _fitting(kind: str, dice: random.Random) -> Any:
    """A value of about the type that `settings_of` names."""
    if kind.startswith("integer"):
        return dice.choice([0, 1, 2, 3, 5, 100, 1024, 2**31, 2**53 - 1])
    if kind.startswith("number"):
        return dice.choice([0, 0.1, 0.5, 0.999, 1, 3.5, -2.5, 1e-300, 1e300])
    if kind.startswith("true or false"):
        return dice.random() < 0.5
    if kind.startswith("list of"):
        return dice.choice(
            [[], ["source"], ["ok"], ["grade", "ok"], ["rank"], ["margin", "rank"], ["missing"], ["prompt"]]
        )
    if kind.startswith("mapping of text to {column"):
        name = dice.choice(["mark", "ok", "reward", "a b"])
        return {
            name: dice.choice([{"column": "grade"}, {"column": "ok"}, {"column": "missing"}, {"model": {"path": "m"}}])
        }
    if " | " in kind:
        return dice.choice([word for word in kind.split(" | ") if word not in NOT_HERE])
    return dice.choice(["source", "ok", "grade", "prompt", "response", "sub", "a.jsonl", "ok=true", "other"])


def _put(values: dict[str, Any], parts: list[str], value: Any) -> None:
    for part in parts[:-1]:
        inner = values.get(part)
        values[part] = inner if isinstance(inner, dict) else {}
        values = values[part]
    values[parts[-1]] = value


def _flow(value: Any) -> str:
    """A value as one writes it behind `key=`."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)


def _spoilt(text: bytes, dice: random.Random) -> bytes:
    """YAML with another encoding, doubled or lost lines, or bytes changed; never with a path that leads elsewhere."""
    lines = text.splitlines(keepends=True)
    at = dice.randrange(len(lines))
    match dice.randrange(10):
        case 0:
            return text.decode(errors="replace").encode(dice.choice(["utf-16", "utf-32", "utf-8-sig", "utf-7"]))
        case 1:
            lines.insert(at, lines[at])
        case 2:
            del lines[at]
        case 3:
            lines.insert(
                at,
                dice.choice(
                    [b"---\n", b"&a [*a]\n", b"<<: *b\n", b"x: &x {<<: *x}\n", b"%YAML 9.9\n", b"!!python/name:os\n"]
                ),
            )
        case 4:
            lines[at] = dice.choice([b" ", b"\t", b"- ", b"? ", b"! ", b"!!int ", b"!!timestamp ", b"| "]) + lines[at]
        case 5:
            lines[at] = (
                lines[at].rstrip(b"\n")
                + dice.choice([b": 1", b" #", b"{", b"[" * 2000, b"\x00", b"\xff", b"\\U00110000"])
                + b"\n"
            )
        case _:
            changed = bytearray(text)
            for _ in range(dice.randint(1, 4)):
                place = dice.randrange(len(changed))
                changed[place : place + dice.choice([0, 1, 1, 5])] = dice.randbytes(dice.choice([0, 1, 1, 3]))
            return bytes(changed).replace(b"/", b"_").replace(b"~", b"_")
    return b"".join(lines)


def corpus(root: Path) -> None:
    """The files that configurations name, in an empty directory."""
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (root / "a.jsonl").write_text(text)
    (root / "b.jsonl").write_text(text.replace("grade", "other"))
    (root / "empty.parquet").touch()
    (root / "sub").mkdir()
    (root / "sub" / "c.jsonl").write_text(text)


def check_configuration(sample: Sample, root: Path) -> None:
    """Run the command twice: each time a documented end, and after a failure one line that says why."""
    corpus(root)
    (root / "run.yaml").write_bytes(sample.text)
    with contextlib.chdir(root):
        first, second = (command(["run", "run.yaml", *sample.words]) for _ in range(2))
    ends[first, second] += 1


configurations = st.integers(0, 2**40).map(Sample)
