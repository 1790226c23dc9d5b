"""The `bestkept` command: a thin shell. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.curate import Outcome

app = typer.Typer(
    name="bestkept",
    help="Train a Bradley-Terry reward model, score a corpus with it, keep the best responses.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
_ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML configuration file.")]
_Extra = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]... [--BEAM-FLAG]...", help="Overrides of the file, and options for Beam."),
]


@app.command(context_settings=_PASS_ON)
def run(config: _ConfigPath, extra: _Extra = None) -> None:
    """Score a corpus and keep the best: everything from input files to the finished data set."""
    settings, flags = _run_config(config, extra)
    from pipelines import curate

    _show(settings, lambda: curate.curate(settings, flags, scorer=curate.default_scorer(settings)))


@app.command(context_settings=_PASS_ON)
def score(config: _ConfigPath, extra: _Extra = None) -> None:
    """Score a corpus and stop; what is scored already is not scored again."""
    settings, flags = _run_config(config, extra)
    from pipelines import curate

    _show(settings, lambda: curate.score(settings, flags, scorer=curate.default_scorer(settings)))


@app.command(context_settings=_PASS_ON)
def select(
    config: _ConfigPath,
    extra: _Extra = None,
    explain: Annotated[
        str | None,
        typer.Option(
            metavar="PROMPT_ID",
            help="Write nothing, and say for one prompt why each of its responses is kept or dropped; an id of the output's "
            "prompt_id, or its first 8 characters or more.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --explain: as one JSON object.")] = False,
) -> None:
    """Select and export from scores that are there; loads no model."""
    settings, flags = _run_config(config, extra)
    if explain is not None:
        _explain(settings, explain, flags, as_json=as_json)
        return
    from pipelines import curate
    from pipelines.errors import ConfigError

    if as_json:
        raise ConfigError("--json is the form of an explanation, and none is asked for; give --explain PROMPT_ID, too")
    _show(settings, lambda: curate.curate(settings, flags, scorer=None))


@app.command(context_settings=_PASS_ON)
def train(config: _ConfigPath, extra: _Extra = None) -> None:
    """Train a Bradley-Terry reward model on preferences."""
    from pipelines.config import TrainConfig, load
    from pipelines.errors import ConfigError
    from pipelines.training import run_training

    overrides, flags = split_arguments(extra or [])
    if flags:
        raise ConfigError(f"unknown option {flags[0]}; `bestkept train` takes key.sub=value overrides only")
    run_training(load(TrainConfig, config, overrides))


@app.command(context_settings=_PASS_ON)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model directory or hub id.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Preference files: a path, a glob or a URL.")],
    extra: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings, such as data.origin=model.")
    ] = None,
) -> None:
    """Say how far a reward model agrees with preferences: a table, evaluation.json and evaluation.html."""
    from pipelines.config import EvaluateConfig, validated
    from pipelines.errors import ConfigError
    from pipelines.evaluation import run_evaluation

    overrides, flags = split_arguments(extra or [])
    if flags:
        raise ConfigError(f"unknown option {flags[0]}; `bestkept evaluate` takes key.sub=value settings only")
    values = {"model": {"path": model}, "data": {"path": data}}
    run_evaluation(validated(EvaluateConfig, values, overrides, where="bestkept evaluate"))


@app.command()
def report(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output.path of a run that has ended.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="A second one: then the two are compared.")
    ] = None,
    write: Annotated[str, typer.Option(metavar="FILE", help="Where the comparison of two goes.")] = "comparison.html",
) -> None:
    """Write report.html of an output again, or compare two selections, or two models, in one page."""
    from pipelines import reporting

    path = reporting.rebuild(output) if other is None else reporting.compare(output, other, write=write)
    sys.stdout.write(f"{path}\n")


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(our overrides, Beam's flags): a word after `--flag` without `=` is that flag's value."""
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


def _run_config(path: str, extra: list[str] | None) -> tuple[RunConfig, list[str]]:
    from pipelines.config import RunConfig, load
    from pipelines.display import quieten

    quieten()
    overrides, flags = split_arguments(extra or [])
    return load(RunConfig, path, overrides), flags


def _show(settings: RunConfig, work: Any) -> None:
    from pipelines.display import closing_table, progress_shown

    with progress_shown():
        outcome: Outcome = work()
    if not outcome.handed_over:
        closing_table(settings, outcome)


def _explain(settings: RunConfig, prompt: str, flags: list[str], *, as_json: bool) -> None:
    from pipelines.display import explanation_shown, progress_shown
    from pipelines.explain import explain

    with progress_shown():
        found = explain(settings, prompt, flags)
    explanation_shown(found, as_json=as_json)


def main() -> None:
    """Entry point: run the command, and end with a documented exit code and a one-line error."""
    from pipelines.errors import BestkeptError
    from pipelines.signals import heeded

    try:
        with heeded():
            app()
    except BestkeptError as error:
        sys.stderr.write(f"bestkept: {error.message}\n")
        sys.exit(int(error.exit_code))
    except Exception as error:
        from pipelines.errors import Exit, remedy, whereabouts

        todo = remedy(error) or "please report this, with the command"
        sys.stderr.write(f"bestkept: unexpected {whereabouts(error)}; {todo}\n")
        sys.exit(int(Exit.STORAGE))


if __name__ == "__main__":
    main()
