"""Writes what is made from the commands, the configuration models and the exit codes: `make reference`.

That is docs/reference.md, and deploy/flex/metadata.json.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines import cli
from pipelines.config.settings_list import Setting, block_meanings, sections
from pipelines.errors import Exit
from pipelines.runtime import logs

PATH = Path(__file__).with_name("reference.md")
METADATA = Path(__file__).parents[1] / "deploy" / "flex" / "metadata.py"
TITLES = {"run": "run, score, select", "train": "train", "evaluate": "evaluate"}
EXITS = {
    Exit.DONE: "done; or there was nothing left to do",
    Exit.CONFIG: "the command line or the configuration is wrong; nothing was touched",
    Exit.INPUT: "an input is missing, damaged, changed, or not of a known form",
    Exit.REJECTED: "more rows were rejected than `limits.max_rejected_fraction` allows",
    Exit.STORAGE: "storage or a worker failed: try again",
    Exit.CONFLICT: "the output belongs to another selection or another corpus",
    Exit.MODEL: "the model cannot be loaded or trained",
    Exit.COST: "`bestkept plan --max-cost`: the run may cost more",
    Exit.INTERRUPTED: "interrupted by Ctrl-C; the same command resumes",
    Exit.TERMINATED: "terminated by SIGTERM; the same command resumes",
}
HEAD = """<!-- made by `make reference`; do not edit -->
# Reference

The commands, their options, all settings with their defaults, and the exit codes. The same is on the command line:
`bestkept COMMAND --help`, `bestkept config` (an example file with every setting) and `bestkept config --schema` (for editors).
"""


def reference() -> str:
    """The page, with its last line end."""
    parts = [HEAD, "## Commands\n", *commands()]
    for kind, title in TITLES.items():
        parts += [f"## Settings of {title}\n", *settings(kind)]
    parts += ["## Exit codes\n", table(("code", "means"), [(str(int(code)), EXITS[code]) for code in Exit])]
    parts += ["What to do about each: [operating](operating.md#exit-codes).\n"]
    return "\n".join(parts)


def commands() -> Iterator[str]:
    group: Any = typer.main.get_command(cli.app)
    for name, command in every_command(group):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        words = " ".join(one.metavar or one.name.upper() for one in arguments)
        yield f"### `bestkept {name} {words}`\n"
        yield " ".join(command.help.split()) + "\n"
        rows = [option_row(one) for one in command.params if one not in arguments and not common(one)]
        if rows:
            yield table(("option", "does"), rows)
    yield "Every command takes, after it or before:\n"
    rows = [option_row(one) for one in group.params if common(one)]
    yield table(("option", "does"), rows)
    yield "`bestkept --install-completion` makes the shell complete commands, options and settings.\n"


def every_command(group: Any) -> Iterator[tuple[str, Any]]:
    """Names and commands, those of groups inside it by both names."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {inner}", each) for inner, each in every_command(command))
        else:
            yield name, command


def common(option: Any) -> bool:
    return option.opts[0] in (logs.QUIET, logs.JSON_LOGS, "--version")


def option_row(option: Any) -> tuple[str, str]:
    return f"`{', '.join(option.opts)}{value_of(option)}`", option.help or ""


def value_of(option: Any) -> str:
    return "" if option.is_flag else f" {option.metavar or option.name.upper()}"


def settings(kind: str) -> Iterator[str]:
    meanings = block_meanings(kind)
    for title, rows in sections(kind):
        yield f"### {title}\n"
        if meanings.get(title):
            yield f"{meanings[title]}\n"
        yield table(("setting", "type", "default", "meaning"), [cells(row) for row in rows])


def cells(row: Setting) -> tuple[str, ...]:
    default = row.default if row.default == "required" else f"`{row.default}`"
    return f"`{row.name}`", row.type, default, row.meaning


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PATH.write_text(reference(), encoding="utf-8")
    runpy.run_path(str(METADATA), run_name="__main__")
