"""The `bestkept` command: a thin shell. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pipelines.commands import app as invocation
from pipelines.commands.app import complete_settings
from pipelines.runtime import logs

if TYPE_CHECKING:
    from pipelines.commands.run import Outcome
    from pipelines.config import RunConfig

app = invocation.App(
    name="bestkept",
    cls=invocation.Group,
    callback=invocation.describe_program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

models = invocation.App(cls=invocation.Group, no_args_is_help=True, rich_markup_mode=None)
app.add_typer(models, name="model", help="Put a model where workers find it.")

_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
_ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML configuration file.")]
_Extra = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]... [--BEAM-FLAG]...",
        help="Overrides of the file, and options for Beam.",
        autocompletion=complete_settings,
    ),
]
_Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...", help="Settings, over those of the file.", autocompletion=complete_settings
    ),
]


@app.command(settings="run", context_settings=_PASS_ON)
def run(config: _ConfigPath, extra: _Extra = None) -> None:
    """Score a corpus and keep the best: everything from input files to the finished data set."""
    settings, flags = _run_config(config, extra)
    from pipelines.commands.run import default_scorer, run_curation

    _show(settings, lambda: run_curation(settings, flags, scorer=default_scorer(settings)))


@app.command(settings="run", context_settings=_PASS_ON)
def plan(
    config: _ConfigPath,
    extra: _Extra = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    benchmark: Annotated[
        bool,
        typer.Option("--benchmark/--no-benchmark", help="Load the model and measure this machine, for a local run."),
    ] = True,
    max_cost: Annotated[
        float | None, typer.Option(metavar="MONEY", min=0.0, help="End with exit code 2 where the run may cost more.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="Estimate for this GPU, such as nvidia-l4.")] = None,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME", help="Price the time as that of this machine, such as g2-standard-8.")
    ] = None,
    prices: Annotated[
        str | None, typer.Option(metavar="FILE", help="Prices, instead of those that are shipped.")
    ] = None,
) -> None:
    """Say what a run would read, compute, take and cost, before it starts; writes nothing."""
    settings, flags = _run_config(config, extra)
    from pipelines.commands.estimate.estimate import PlanOptions, check_cost, plan_run
    from pipelines.commands.estimate.table import print_plan

    found = plan_run(settings, flags, PlanOptions(benchmark, gpu, machine, prices))
    print_plan(found, as_json=as_json)
    if max_cost is not None:
        check_cost(found, max_cost)


@app.command(settings="run", context_settings=_PASS_ON)
def score(
    config: _ConfigPath,
    extra: _Extra = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Score one of N shards alone, 0/N to (N-1)/N, in any order or at once, as in a Slurm array; `run` goes on from "
            "there.",
        ),
    ] = None,
) -> None:
    """Score a corpus and stop; what is scored already is not scored again."""
    settings, flags = _run_config(config, extra)
    from pipelines.commands.run import default_scorer, run_scoring
    from pipelines.score.work import CorpusShard

    part = None if shard is None else CorpusShard.of(shard)
    _show(settings, lambda: run_scoring(settings, flags, scorer=default_scorer(settings), shard=part))


@app.command(settings="run", context_settings=_PASS_ON)
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
    from pipelines.commands.run import run_curation
    from pipelines.errors import ConfigError

    if as_json:
        raise ConfigError("--json is the form of an explanation, and none is asked for; give --explain PROMPT_ID, too")
    _show(settings, lambda: run_curation(settings, flags, scorer=None))


@app.command(settings="train", context_settings=_PASS_ON)
def train(config: _ConfigPath, extra: _Settings = None) -> None:
    """Train a Bradley-Terry reward model on preferences."""
    from pipelines.commands.train import run_training
    from pipelines.config import TrainConfig, load
    from pipelines.errors import ConfigError

    overrides, flags = split_arguments(extra or [])
    if flags:
        raise ConfigError(invocation.unknown_flag_message("train", flags))
    run_training(load(TrainConfig, config, overrides))


@app.command(settings="evaluate", context_settings=_PASS_ON)
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model directory, also on an object store, or hub id.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="Preference files: a path, a glob or a URL.")],
    extra: _Settings = None,
) -> None:
    """Say how far a reward model agrees with preferences: a table, evaluation.json and evaluation.html."""
    from pipelines.commands.evaluate import run_evaluation
    from pipelines.config import EvaluateConfig, validated
    from pipelines.errors import ConfigError

    overrides, flags = split_arguments(extra or [])
    if flags:
        raise ConfigError(invocation.unknown_flag_message("evaluate", flags))
    values = {"model": {"path": model}, "data": {"path": data}}
    run_evaluation(validated(EvaluateConfig, values, overrides, where="bestkept evaluate"))


@app.command()
def config(
    command: Annotated[
        str, typer.Argument(metavar="[run|train|evaluate]", help="The command that is configured; run by default.")
    ] = "run",
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema, for editors, instead.")] = False,
) -> None:
    """Print an example configuration with every setting, its meaning and its default."""
    from pipelines.config.example import example, json_schema

    sys.stdout.write(json_schema(command) if schema else example(command))


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Files, as input.path names them: a path, a glob or a URL.")
    ],
    extra: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY.SUB=VALUE]...", help="Settings: input.columns=..., data.columns=..., model.path=..."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many conversations to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say what files are taken for and why, with their first conversations, as a model reads them too; writes nothing."""
    from pipelines.commands.inspect.inspect import inspect as inspected
    from pipelines.commands.inspect.inspect import question
    from pipelines.commands.summary import print_inspection
    from pipelines.config import InspectConfig, validated
    from pipelines.errors import InputError

    values = {"input": {"path": path}, "data": {"path": path}}
    config = validated(InspectConfig, values, extra or [], where="bestkept inspect")
    document = inspected(config, shown=rows)
    print_inspection(document, as_json=as_json)
    if (asked := question(document)) is not None:
        raise InputError(asked)


@app.command()
def report(
    output: Annotated[str, typer.Argument(metavar="OUT", help="The output.path of a run that has ended.")],
    other: Annotated[
        str | None, typer.Argument(metavar="[OTHER]", help="A second one: then the two are compared.")
    ] = None,
    write: Annotated[str, typer.Option(metavar="FILE", help="Where the comparison of two goes.")] = "comparison.html",
) -> None:
    """Write report.html of an output again, or compare two selections, or two models, in one page."""
    from pipelines.commands.report import compare, rebuild
    from pipelines.commands.summary import print_path

    path = rebuild(output) if other is None else compare(output, other, write=write)
    print_path(path)


@app.command()
def latest(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="The output.path of runs with output.versions.")],
) -> None:
    """Print the path of the latest complete version of an output."""
    from pipelines.commands.summary import print_path
    from pipelines.finish.versions import latest_path

    print_path(latest_path(root))


@app.command()
def clean(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="The output.path of runs with output.versions.")],
    keep: Annotated[int, typer.Option(min=1, help="How many complete versions stay, the newest ones.")] = 3,
    unfinished_days: Annotated[
        float, typer.Option(metavar="DAYS", min=0.0, help="Age at which unfinished versions, and scores, may go.")
    ] = 7.0,
    scores: Annotated[
        bool, typer.Option("--scores", help="Also remove what ROOT/scores holds for no version that stays.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove old versions of an output; never the latest, and no part of one that stays."""
    from pipelines.commands.summary import print_cleaned
    from pipelines.finish import retention

    found = retention.clean(root, keep=keep, unfinished_days=unfinished_days, scores=scores, dry_run=dry_run)
    print_cleaned(found, dry_run=dry_run)


@models.command(name="fetch")
def fetch(
    source: Annotated[str, typer.Argument(metavar="ID_OR_DIR", help="A hub id, or a model directory.")],
    destination: Annotated[
        str, typer.Argument(metavar="DESTINATION", help="A directory: gs://..., s3://..., or a local one.")
    ],
    revision: Annotated[str | None, typer.Option(metavar="NAME", help="Commit or tag of a hub id.")] = None,
) -> None:
    """Copy a hub model (a gated one with your token) or a directory to a bucket or directory, for model.path to name."""
    from pipelines.commands.summary import print_fetched
    from pipelines.storage.models.fetch import fetch_model

    print_fetched(fetch_model(source, destination, revision=revision))


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

    overrides, flags = split_arguments(extra or [])
    return load(RunConfig, path, overrides), flags


def _show(settings: RunConfig, work: Any) -> None:
    from pipelines.commands.progress_bar import showing_progress
    from pipelines.commands.summary import print_summary

    with showing_progress():
        outcome: Outcome = work()
    if not outcome.handed_over:
        print_summary(settings, outcome)


def _explain(settings: RunConfig, prompt: str, flags: list[str], *, as_json: bool) -> None:
    from pipelines.commands.explain.explain_transform import explain
    from pipelines.commands.explain.table import print_explanation
    from pipelines.commands.progress_bar import showing_progress

    with showing_progress():
        found = explain(settings, prompt, flags)
    print_explanation(found, as_json=as_json)


def main() -> None:
    """Entry point: run the command, and end with a documented exit code and a one-line error."""
    from pipelines.commands.signals import ending_on_signals
    from pipelines.errors import BestkeptError, ConfigError

    logs.set_output_mode(sys.argv[1:])
    try:
        with ending_on_signals():
            code = invocation.invoke(app)
    except ConfigError as error:
        _end(error.message, int(error.exit_code))
    except BestkeptError as error:
        _end(error.message, int(error.exit_code), cause=error)
    except Exception as error:
        from pipelines.errors import Exit, remedy, whereabouts

        todo = remedy(error) or "please report this, with the command"
        _end(f"unexpected {whereabouts(error)}; {todo}", int(Exit.STORAGE), cause=error)
    from pipelines.runtime.logs import discard

    discard()
    sys.exit(code)


def _end(message: str, exit_code: int, *, cause: Exception | None = None) -> NoReturn:
    """Say what ends the command; of what is not the configuration's fault, the log file says more."""
    from pipelines.errors import Exit
    from pipelines.runtime.logs import discard, keep

    log = keep(cause) if cause is not None and exit_code in (Exit.STORAGE, Exit.MODEL) else None
    if log is None:
        discard()
    if log is not None and not logs.output_mode().json_logs:
        sys.stderr.write(f"more in {log}\n")
    sys.stderr.write(logs.error_line(message, exit_code, **({} if log is None else {"log": log})))
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
