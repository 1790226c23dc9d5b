"""Common parts of all commands: `--quiet` and `--json-logs`, settings in `--help`, one form for every error and its exit
code.

`App.command` adds all of them to a function. Only typer is imported, because the click that it is based on differs by
version.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer

from pipelines.commands.help_pages import HelpCommand, HelpGroup
from pipelines.commands.signals import ending_on_signals
from pipelines.errors import (
    CREDENTIALS,
    BestkeptError,
    ConfigError,
    Exit,
    UnknownOptionError,
    hide_credentials,
    holds_credentials,
    remedy,
    whereabouts,
)
from pipelines.runtime import logs

if TYPE_CHECKING:
    from pydantic import BaseModel

    from pipelines.config import RunConfig

    Config = TypeVar("Config", bound=BaseModel)

Function = TypeVar("Function", bound=Callable[..., Any])

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
"""Context settings of every command and group."""

COMMAND_LINE = "command line"
"""The source of settings that are not in a file."""

_Quiet = Annotated[bool, typer.Option(logs.QUIET, help="Print only errors and the path of the output.")]
_JsonLogs = Annotated[
    bool, typer.Option(logs.JSON_LOGS, help="Write log lines, summary and errors to standard error as JSON.")
]


class Command(HelpCommand):
    """A command whose misspelt options are errors, and not passed on."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UnknownOptionError as error:  # a misspelt option of ours is passed on like a flag of Beam
            options = [flag for parameter in self.get_params(ctx) for flag in parameter.opts if flag.startswith("--")]
            raise error.among(options) from error


class Group(HelpGroup):
    """The commands of one level; an unknown one is a `ConfigError`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            raise ConfigError(f"unknown command {name!r}; {suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


class App(typer.Typer):
    """`typer.Typer` whose commands know `--quiet` and `--json-logs`."""

    def command(
        self, name: str | None = None, *, settings: str | None = None, **options: Any
    ) -> Callable[[Function], Function]:
        """Act as `typer.Typer.command`; `settings` names the configuration listed by `--help`: run, train or evaluate."""
        kind = type("Command", (Command,), {"settings": settings})
        context = {**HELP_OPTIONS, **options.pop("context_settings", {})}
        register = super().command(name, **{"cls": kind, "context_settings": context, **options})

        def decorate(function: Function) -> Function:
            register(_with_output_options(function))
            return function

        return decorate


def _with_output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as a command that first sets up log lines, and has the two options in its parser and its help.

    The signature is rebuilt at run time because typer reads options only from there: otherwise, every command would have to
    name two parameters that it does not use. Their values are dropped here, since `logs.set_output_mode` reads both options
    from the whole command line, in any position, before typer parses it.
    """

    @functools.wraps(function)
    def command(*, quiet: bool, json_logs: bool, **arguments: Any) -> Any:
        logs.set_up()
        return function(**arguments)

    more = {"quiet": _Quiet, "json_logs": _JsonLogs}
    hints = {**get_type_hints(function, include_extras=True), **more}
    signature = inspect.signature(function)
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=False, annotation=hint) for name, hint in more.items()]
    known = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    command.__signature__ = signature.replace(parameters=[*known, *added])  # type: ignore[attr-defined]
    command.__annotations__ = hints
    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        from pipelines.runtime.machine import tool_version

        sys.stdout.write(f"bestkept {tool_version()}\n")
        raise typer.Exit


_Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
]


def describe_program(quiet: _Quiet = False, json_logs: _JsonLogs = False, version: _Version = False) -> None:
    """Train a Bradley-Terry reward model, score a corpus with it, keep the best responses."""


def main(app: Callable[..., Any]) -> NoReturn:
    """Run the command line, and end the process with a documented exit code and, after a failure, a one-line error."""
    logs.set_output_mode(sys.argv[1:])
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # prints a path that is not UTF-8 unchanged
    try:
        with ending_on_signals():
            code = invoke(app)
    except ConfigError as error:
        _end(error.message, int(error.exit_code))
    except BestkeptError as error:
        _end(error.message, int(error.exit_code), cause=error)
    except Exception as error:
        advice = remedy(error) or "please report this, with the command"
        _end(f"unexpected {whereabouts(error)}; {advice}", int(Exit.STORAGE), cause=error)
    logs.discard()
    sys.exit(code)


def _end(message: str, exit_code: int, *, cause: Exception | None = None) -> NoReturn:
    """Print the error that ends the command, and the path of the log file if it says more than a wrong configuration needs."""
    log = logs.keep(cause) if cause is not None and exit_code in (Exit.STORAGE, Exit.MODEL) else None
    if log is None:
        logs.discard()
    if log is not None and not logs.output_mode().json_logs:
        sys.stderr.write(f"more in {log}\n")
    sys.stderr.write(logs.error_line(message, exit_code, **({} if log is None else {"log": log})))
    sys.exit(exit_code)


def invoke(app: Callable[..., Any]) -> int:
    """Run the command line and return its exit code. Raises `ConfigError` for words that do not fit the command, and for
    words that contain credentials: arguments are printed and stored like the paths of a configuration."""
    for word in sys.argv[1:]:
        if holds_credentials(word):
            raise ConfigError(f"{hide_credentials(word)!r}: {CREDENTIALS}")
    try:
        code = app(prog_name="bestkept", standalone_mode=False)
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the words of a group alone
            sys.stdout.write(f"{error}\n")
            return 0
        if not hasattr(error, "format_message"):  # click's, or the copy of it inside typer
            raise
        raise ConfigError(_usage_message(error)) from error
    return code if isinstance(code, int) else 0


def _usage_message(error: Any) -> str:
    """Return click's message on a command line as a sentence of ours, with the remedy."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "bestkept"
    remedy = f"`{command} --help` shows its arguments"
    parameter, option = getattr(error, "param", None), getattr(error, "option_name", None)
    if hasattr(error, "possibilities") and option is not None:
        known = [flag for one in context.command.get_params(context) for flag in one.opts] if context else []
        return f"unknown option {option}; {suggestion(option, known, otherwise=remedy)}"
    if type(error).__name__ == "MissingParameter" and parameter is not None:
        return f"{parameter.metavar or parameter.name} is missing; {remedy}"
    message = str(error.format_message()).rstrip(".")
    return f"{message[:1].lower()}{message[1:]}; {remedy}"


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return (our overrides, Beam's flags): a word after `--flag` without `=` is that flag's value."""
    overrides: list[str] = []
    flags: list[str] = []
    for word in arguments:
        if word.startswith("--"):
            flags.append(word)
        elif flags and "=" not in word and "=" not in flags[-1]:
            flags[-1] = f"{flags[-1]}={word}"
        else:
            overrides.append(word)
    return overrides, flags


def load_run_config(path: str | None, extra: Sequence[str] | None) -> tuple[RunConfig, list[str]]:
    """Return the configuration in a file with the overrides in `extra`, and Beam's flags among them. Raises `ConfigError`."""
    from pipelines.config import RunConfig

    words, flags = split_arguments([*([] if path is None else [path]), *(extra or [])])
    return load_config(RunConfig, words[0] if words else None, words[1:]), flags


def load_config(kind: type[Config], path: str | None, overrides: Sequence[str]) -> Config:
    """Return the configuration in a file with `overrides`; `path` may be the first of these instead. Raises `ConfigError`."""
    from pipelines.config import load, validate

    if path is None:
        raise ConfigError(
            "CONFIG is missing; give a file, which `bestkept init` writes, or settings such as input.path=..."
        )
    if is_file(path):
        return load(kind, path, overrides)
    return validate(kind, {}, [path, *overrides], where=COMMAND_LINE)


def config_name(path: str | None) -> str:
    """Return the name of a configuration for metrics: its path, or the command line."""
    return path if path is not None and is_file(path) else COMMAND_LINE


def is_file(word: str) -> bool:
    """Return whether the first word after a command is a file rather than a setting."""
    return re.match(r"[\w.]+=", word) is None or os.path.exists(word)


def require_settings(command: str, extra: Sequence[str] | None) -> list[str]:
    """Return the overrides in `extra`. Raises `ConfigError` for a flag: this command passes none to Beam."""
    overrides, flags = split_arguments(extra or [])
    if flags:
        name = flags[0].partition("=")[0]
        remedy = f"`bestkept {command}` takes key.sub=value settings only"
        raise UnknownOptionError(name, otherwise=remedy)
    return overrides


def suggestion(word: str, known: Sequence[str], *, otherwise: str | None = None) -> str:
    """Return `did you mean 'run'?`, or `otherwise`, which by default lists all known words."""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0] if close[0].startswith('-') else repr(close[0])}?"
    return otherwise or f"expected one of {', '.join(known)}"


def complete_settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return (`key.sub=`, its meaning) for the settings of the command that is being typed."""
    kind: Any = getattr(ctx.command, "settings", None)
    if kind is None or "=" in incomplete:
        return []
    from pipelines.config.settings_list import settings_of

    names = [(f"{row.name}=", row.first_sentence) for row in settings_of(kind) if "[]" not in row.name]
    return [(name, meaning) for name, meaning in names if name.startswith(incomplete)]
