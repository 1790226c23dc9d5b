"""`--help`: the purpose of a command, its arguments and options, and examples at the end; a screen of 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "run": (
        ("bestkept run best_of_n.yaml", "as the file says"),
        ("bestkept run best_of_n.yaml output.path=strict limits.verify=true", "with other settings"),
        ("bestkept run input.path='corpus/*.parquet' model.path=reward-model output.path=curated", "without a file"),
        ("bestkept run best_of_n.yaml runner.workers=4", "on four GPUs, or on four shares of the cores"),
    ),
    "plan": (
        ("bestkept plan best_of_n.yaml", "time and sizes, by a short trial on this machine"),
        ("bestkept plan best_of_n.yaml --gpu nvidia-l4 --max-cost 50", "exit code 8 if the run may cost more"),
    ),
    "score": (
        ("bestkept score best_of_n.yaml", "the whole corpus"),
        ("bestkept score best_of_n.yaml --shard 2/8", "the third of eight parts, on any machine"),
    ),
    "select": (
        ("bestkept select best_of_n.yaml output.path=top 'select=[{top: {fraction: 0.1}}]'", "another rule"),
        ("bestkept select best_of_n.yaml --explain corpus/part-0.jsonl:17", "why row 17 is kept or dropped"),
    ),
    "train": (
        ("bestkept train train_pairs.yaml data.path=preferences.jsonl", "with other data"),
        ("bestkept train data.path=pairs.jsonl model.path=Qwen/Qwen3-0.6B output.path=reward-model", "without a file"),
    ),
    "evaluate": (
        ("bestkept evaluate reward-model heldout.jsonl output.path=evaluation", "a model, and preferences"),
        ("bestkept evaluate evaluation.yaml", "settings from a file"),
    ),
    "inspect": (
        ("bestkept inspect 'corpus/*.parquet'", "how the files are read"),
        ("bestkept inspect corpus.jsonl model.path=reward-model --rows 1", "what the model reads of the first row"),
        ("zcat big.jsonl.gz | head -1000 | bestkept inspect -", "JSON lines from standard input"),
    ),
    "report": (
        ("bestkept report curated", "draw report.html again"),
        ("bestkept report curated strict --write comparison.html", "compare two selections"),
    ),
    "trial": (("bestkept trial curated best_of_n.yaml --reference good.jsonl --quick", "some minutes on a CPU"),),
    "latest": (("bestkept latest nightly", "the path to read from"),),
    "clean": (
        ("bestkept clean nightly --keep 3 --dry-run", "what would be removed"),
        ("bestkept clean nightly --keep 3 --scores", "remove them, and unused scores"),
    ),
    "model fetch": (("bestkept model fetch organisation/reward-model gs://bucket/models/reward", "from the hub"),),
    "model merge": (("bestkept model merge seed-0 seed-1 seed-2 averaged", "one model from three"),),
    "config": (
        ("bestkept config > run.yaml", "a file with every setting"),
        ("bestkept config train --schema", "the JSON schema, for editors"),
    ),
    "init": (
        ("bestkept init", "best_of_n.yaml"),
        ("bestkept init train_pairs", "train_pairs.yaml"),
        ("bestkept init --list", "all jobs"),
    ),
    "env": (("bestkept env", "the versions and devices to put into a bug report"),),
    "": (
        ("bestkept init", "write a configuration to start from"),
        ("bestkept inspect 'corpus/*.parquet'", "see how files are read"),
        ("bestkept run best_of_n.yaml", "score, select and export"),
    ),
}
"""(command line, what it does) of each command; `""` is the program."""


class HelpCommand(TyperCommand):
    """A command with a plain `--help`: arguments as in the usage line, options without types."""

    settings: str | None = None  # run | train | evaluate

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["[OPTIONS]", *(one.metavar or one.name.upper() for one in _arguments(self, ctx))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows = [(one.metavar or one.name.upper(), one.help or "") for one in _arguments(self, ctx)]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        _write_options(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        if self.settings is not None:
            with formatter.section("Settings"):
                formatter.write_text(
                    f"`bestkept config {self.settings}` prints a file with every setting, its meaning and its default; "
                    "docs/reference.md lists them. Each can be given as KEY.SUB=VALUE."
                )
        _write_examples(ctx, formatter)


class HelpGroup(TyperGroup):
    """A group of commands; each has one line in its `--help`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, _first_sentence(one.help or "")) for name, one in commands if one and not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        _write_examples(ctx, formatter)


def _arguments(command: Any, ctx: Any) -> Iterator[Any]:
    return (one for one in command.get_params(ctx) if one.param_type_name == "argument")


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    options = [one for one in command.get_params(ctx) if one.param_type_name == "option" and not one.hidden]
    with formatter.section("Options"):
        formatter.write_dl([(_names(one), one.help or "") for one in options])


def _names(option: Any) -> str:
    """Return `-h, --help`, `--rows N`, or `--benchmark / --no-benchmark`."""
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        return f"{names} / {', '.join(option.secondary_opts)}"
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _first_sentence(text: str) -> str:
    return text.partition("\n")[0]


def _write_examples(ctx: Any, formatter: Any) -> None:
    examples = EXAMPLES.get(ctx.command_path.partition(" ")[2], ())
    if not examples:
        return
    with formatter.section("Examples"):
        for line, meaning in examples:
            formatter.write(f"{'':>{formatter.current_indent}}# {meaning}\n")
            for number, part in enumerate(_fold(line, formatter.width - formatter.current_indent)):
                formatter.write(f"{'':>{formatter.current_indent + (2 if number else 0)}}{part}\n")


def _fold(line: str, width: int) -> Iterator[str]:
    r"""Split a command line between words so that it can be pasted: each line but the last ends with a backslash."""
    part = ""
    for word in re.findall(r"(?:'[^']*'|[^ '])+", line):
        if part and len(part) + 1 + len(word) > width - 4:
            yield f"{part} \\"
            part = word
        else:
            part = f"{part} {word}".strip()
    yield part
