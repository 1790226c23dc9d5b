"""What all commands have in common: `--quiet` and `--json-logs`, the settings in `--help`, one form for every usage error.

A function decorated with `App.command` gets all of it. Only typer is imported: which click it stands on differs by version.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from pipelines.errors import ConfigError
from pipelines.runtime import logs

Function = TypeVar("Function", bound=Callable[..., Any])

_Quiet = Annotated[
    bool, typer.Option(logs.QUIET, help="Print errors and, at the end, the path of the output; nothing else.")
]
_JsonLogs = Annotated[
    bool, typer.Option(logs.JSON_LOGS, help="Log lines, the summary and errors as JSON lines on standard error.")
]


class Command(TyperCommand):
    """A command whose `--help` ends with the settings of its configuration."""

    settings: str | None = None  # run | train | evaluate

    def invoke(self, ctx: Any) -> Any:
        logs.offer([flag for parameter in self.get_params(ctx) for flag in parameter.opts if flag.startswith("--")])
        return super().invoke(ctx)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        super().format_epilog(ctx, formatter)
        if self.settings is None:
            return
        from pipelines.config.settings_list import sections

        with formatter.section("Settings, in the file or as KEY.SUB=VALUE"):
            formatter.write_text(f"`bestkept config {self.settings}` prints a file with all of them.")
        for title, rows in sections(self.settings):
            with formatter.section(title):
                formatter.write_dl([(row.name, row.in_brief()) for row in rows], col_max=32)


class Group(TyperGroup):
    """The commands; an unknown one is an error of ours."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise ConfigError(f"unknown command {name!r}; {suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """With the whole first line of each docstring: click cuts it to fit beside the longest name."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, (one.help or "").partition("\n")[0]) for name, one in commands if one and not one.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class App(typer.Typer):
    """`typer.Typer` whose commands know `--quiet` and `--json-logs`."""

    def command(
        self, name: str | None = None, *, settings: str | None = None, **given: Any
    ) -> Callable[[Function], Function]:
        """As `typer.Typer.command`; `settings` names the configuration that `--help` lists: run, train or evaluate."""
        kind = type("Command", (Command,), {"settings": settings})
        register = super().command(name, **{"cls": kind, **given})

        def decorate(function: Function) -> Function:
            register(_with_output_options(function))
            return function

        return decorate


def _with_output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with log lines in their places, and with two more options, for parser and help: `logs.adopt` reads them
    wherever they stand."""

    @functools.wraps(function)
    def command(*, quiet: bool, json_logs: bool, **given: Any) -> Any:
        from pipelines.runtime.logs import set_up

        set_up()
        return function(**given)

    more = {"quiet": _Quiet, "json_logs": _JsonLogs}
    hints = {**get_type_hints(function, include_extras=True), **more}
    own = inspect.signature(function)
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=False, annotation=hint) for name, hint in more.items()]
    known = [parameter.replace(annotation=hints[name]) for name, parameter in own.parameters.items()]
    command.__signature__ = own.replace(parameters=[*known, *added])  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


def describe_program(quiet: _Quiet = False, json_logs: _JsonLogs = False) -> None:
    """Train a Bradley-Terry reward model, score a corpus with it, keep the best responses."""


def invoke(app: Callable[..., Any]) -> int:
    """Run the command line; the exit code. Raises `ConfigError` for what does not fit the command."""
    try:
        code = app(prog_name="bestkept", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's, or the copy of it inside typer
            raise
        raise ConfigError(_usage(error)) from error
    return code if isinstance(code, int) else 0


def _usage(error: Any) -> str:
    """What click says of a command line, as a sentence of ours with the remedy."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bestkept"
    remedy = f"`{command} --help` says what it takes"
    parameter, option = getattr(error, "param", None), getattr(error, "option_name", None)
    if hasattr(error, "possibilities") and option is not None:
        known = [flag for one in context.command.get_params(context) for flag in one.opts] if context else []
        return f"unknown option {option}; {suggestion(option, known, otherwise=remedy)}"
    if type(error).__name__ == "MissingParameter" and parameter is not None:
        return f"{parameter.metavar or parameter.name} is missing; {remedy}"
    message = str(error.format_message()).rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; {remedy}"


def unknown_flag_message(command: str, flags: Sequence[str]) -> str:
    """What is wrong with `flags` of a command that hands none on to Beam."""
    name = flags[0].partition("=")[0]
    remedy = f"`bestkept {command}` takes key.sub=value settings only"
    return f"unknown option {name}; {suggestion(name, logs.offered(), otherwise=remedy)}"


def suggestion(given: str, known: Sequence[str], *, otherwise: str | None = None) -> str:
    """`did you mean 'run'?`, or what else helps: by default, all that is known."""
    close = difflib.get_close_matches(given, known, n=1)
    if close:
        return f"did you mean {close[0] if close[0].startswith('-') else repr(close[0])}?"
    return otherwise or f"expected one of {', '.join(known)}"


def complete_settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(`key.sub=`, its meaning) for the settings of the command that is being typed."""
    kind: Any = getattr(ctx.command, "settings", None)
    if kind is None or "=" in incomplete:
        return []
    from pipelines.config.settings_list import settings_of

    names = [(f"{row.name}=", row.first_sentence) for row in settings_of(kind) if "[]" not in row.name]
    return [(name, meaning) for name, meaning in names if name.startswith(incomplete)]
