"""The `bestkept` command line: a function for each command, which imports its dependencies itself, so that `--help` is fast.

Options are in `commands/options.py`, common parts of all commands in `commands/app.py`.
"""

from __future__ import annotations

import sys
from functools import partial

from pipelines.commands import app as program
from pipelines.commands import options

app = program.App(
    name="bestkept",
    cls=program.Group,
    callback=program.describe_program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=program.HELP_OPTIONS,
)

models = program.App(
    cls=program.Group, no_args_is_help=True, rich_markup_mode=None, context_settings=program.HELP_OPTIONS
)
app.add_typer(models, name="model", help="Copy a model to where workers find it; average models.")


@app.command()
def init(job: options.Job = "best_of_n", list_jobs: options.ListJobs = False) -> None:
    """Write an example configuration into this directory."""
    from pipelines.commands.init import print_jobs, write_job

    if list_jobs:
        print_jobs()
    else:
        write_job(job)


@app.command()
def inspect(
    path: options.InputPath,
    extra: options.InspectSettings = None,
    rows: options.Rows = 3,
    as_json: options.AsJson = False,
) -> None:
    """Show how files are read and why; writes nothing."""
    from pipelines.commands.inspect.inspect import inspect as inspect_files
    from pipelines.commands.inspect.inspect import named_path, question
    from pipelines.commands.inspect.tables import print_inspection
    from pipelines.config import InspectConfig, validate
    from pipelines.errors import InputError

    with named_path(path) as place:
        values = {"input": {"path": place}, "data": {"path": place}}
        document = inspect_files(validate(InspectConfig, values, extra or [], where="bestkept inspect"), shown=rows)
    document["path"] = path
    print_inspection(document, as_json=as_json)
    if (open_question := question(document)) is not None:
        raise InputError(open_question)


@app.command(settings="train", context_settings=options.PASS_ON)
def train(
    config: options.ConfigPath = None,
    extra: options.Settings = None,
    metrics: options.Metrics = None,
    as_json: options.AsJson = False,
) -> None:
    """Train a Bradley-Terry reward model on preferences."""
    from pipelines.commands.metrics.reporting import reporting

    with reporting("train", program.config_name(config), metrics) as report:
        overrides = program.require_settings("train", extra)
        from pipelines.commands.train import run_training
        from pipelines.config import TrainConfig

        report.trained(run_training(program.load_config(TrainConfig, config, overrides)))


@app.command(settings="evaluate", context_settings=options.PASS_ON)
def evaluate(
    model: options.Model = None,
    data: options.Data = None,
    extra: options.Settings = None,
    as_json: options.AsJson = False,
) -> None:
    """Say whether a reward model is better than chance and than length."""
    words = program.require_settings("evaluate", [word for word in (model, data) if word is not None] + (extra or []))
    from pipelines.commands.evaluate import evaluation_config, run_evaluation

    run_evaluation(evaluation_config(words))


@app.command(settings="run", context_settings=options.PASS_ON)
def plan(
    config: options.ConfigPath = None,
    extra: options.Overrides = None,
    as_json: options.AsJson = False,
    benchmark: options.Benchmark = True,
    max_cost: options.MaxCost = None,
    gpu: options.Gpu = None,
    machine: options.Machine = None,
    prices: options.PriceFile = None,
) -> None:
    """Estimate rows, tokens, time and cost of a run; writes nothing."""
    settings, flags = program.load_run_config(config, extra)
    from pipelines.commands.estimate.estimate import PlanOptions, check_cost, plan_run
    from pipelines.commands.estimate.table import print_plan
    from pipelines.commands.progress_bar import showing_work

    with showing_work("reading a sample of the corpus") as show:
        estimate = plan_run(settings, flags, PlanOptions(benchmark, gpu, machine, prices), show=show)
    print_plan(estimate, as_json=as_json)
    if max_cost is not None:
        check_cost(estimate, max_cost)


@app.command(settings="run", context_settings=options.PASS_ON)
def run(
    config: options.ConfigPath = None,
    extra: options.Overrides = None,
    metrics: options.Metrics = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a corpus, select, and export: from input files to a data set."""
    from pipelines.commands.metrics.reporting import reporting

    with reporting("run", program.config_name(config), metrics) as report:
        settings, flags = program.load_run_config(config, extra)
        report.configure(settings)
        from pipelines.commands.run import default_scorer, run_curation
        from pipelines.commands.summary import run_and_summarise

        scorer = default_scorer(settings)
        work = partial(run_curation, settings, flags, scorer=scorer, begin=report.begin)
        report.succeed(run_and_summarise(settings, work))


@app.command(settings="run", context_settings=options.PASS_ON)
def score(
    config: options.ConfigPath = None,
    extra: options.Overrides = None,
    shard: options.Shard = None,
    metrics: options.Metrics = None,
    as_json: options.AsJson = False,
) -> None:
    """Score a corpus and stop; nothing is scored twice."""
    from pipelines.commands.metrics.reporting import reporting

    with reporting("score", program.config_name(config), metrics) as report:
        settings, flags = program.load_run_config(config, extra)
        report.configure(settings)
        from pipelines.commands.run import default_scorer, run_scoring
        from pipelines.commands.summary import run_and_summarise
        from pipelines.score.work import CorpusShard

        part, scorer = None if shard is None else CorpusShard.of(shard), default_scorer(settings)
        work = partial(run_scoring, settings, flags, scorer=scorer, shard=part, begin=report.begin)
        report.succeed(run_and_summarise(settings, work))


@app.command(settings="run", context_settings=options.PASS_ON)
def select(
    config: options.ConfigPath = None,
    extra: options.Overrides = None,
    explain: options.ExplainedPrompt = None,
    as_json: options.AsJson = False,
    text: options.ExplanationWithText = False,
    metrics: options.Metrics = None,
) -> None:
    """Select and export from existing scores; loads no model."""
    from pipelines.errors import ConfigError

    if explain is not None:
        if metrics is not None:
            raise ConfigError("--metrics is for a selection, and --explain makes none; leave one of them out")
        settings, flags = program.load_run_config(config, extra)
        from pipelines.commands.explain.table import explain_and_print

        explain_and_print(settings, explain, flags, as_json=as_json, with_text=text)
        return
    from pipelines.commands.metrics.reporting import reporting

    if text:
        raise ConfigError("--text has no effect without --explain PROMPT; give both, or neither")
    with reporting("select", program.config_name(config), metrics) as report:
        settings, flags = program.load_run_config(config, extra)
        report.configure(settings)
        from pipelines.commands.run import run_curation
        from pipelines.commands.summary import run_and_summarise

        work = partial(run_curation, settings, flags, scorer=None, begin=report.begin)
        report.succeed(run_and_summarise(settings, work))


@app.command()
def report(
    output: options.Output, other: options.OtherOutput = None, write: options.ComparisonFile = "comparison.html"
) -> None:
    """Draw a report again, or compare two selections or two models."""
    from pipelines.commands.printing import print_path
    from pipelines.commands.report import compare, rebuild

    print_path(rebuild(output) if other is None else compare(output, other, write=write))


@app.command(settings="run")
def trial(
    output: options.Output,
    config: options.ConfigPath = None,
    extra: options.Settings = None,
    student: options.Student = None,
    reference: options.Reference = None,
    judge: options.Judge = None,
    quick: options.Quick = False,
    seeds: options.Seeds = None,
    steps: options.Steps = None,
    as_json: options.AsJson = False,
) -> None:
    """Fine-tune a small model on a selection and on simpler ones; compare."""
    overrides = program.require_settings("trial", extra)
    from pipelines.commands.trial.trial import TrialOptions, run_trial
    from pipelines.config import RunConfig

    tried = TrialOptions(student, reference, judge, quick, seeds, steps)
    run_trial(output, program.load_config(RunConfig, config, overrides), tried, as_json=as_json)


@app.command()
def latest(root: options.Root) -> None:
    """Print the path of the latest complete version of an output."""
    from pipelines.commands.printing import print_path
    from pipelines.finish.versions import latest_path

    print_path(latest_path(root))


@app.command()
def clean(
    root: options.Root,
    keep: options.Keep = 3,
    unfinished_days: options.UnfinishedDays = 7.0,
    scores: options.UnusedScores = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Remove old versions of an output, never the latest."""
    from pipelines.commands.printing import print_cleaned
    from pipelines.finish import retention

    cleaned = retention.clean(root, keep=keep, unfinished_days=unfinished_days, scores=scores, dry_run=dry_run)
    print_cleaned(cleaned, dry_run=dry_run)


@app.command()
def config(command: options.ConfiguredCommand = "run", schema: options.Schema = False) -> None:
    """Print a configuration with every setting and its default."""
    from pipelines.config.example import example, json_schema

    sys.stdout.write(json_schema(command) if schema else example(command))


@app.command()
def env(as_json: options.AsJson = False) -> None:
    """Print versions and devices, for a bug report."""
    from pipelines.commands.environment import print_environment

    print_environment(as_json=as_json)


@models.command(name="fetch")
def fetch(
    source: options.ModelSource,
    destination: options.Destination,
    revision: options.Revision = None,
    as_json: options.AsJson = False,
) -> None:
    """Copy a model from the hub or a directory to a bucket or directory."""
    from pipelines.commands.printing import print_fetched
    from pipelines.storage.models.fetch import fetch_model

    print_fetched(fetch_model(source, destination, revision=revision))


@models.command(name="merge")
def merge(sources: options.MergedModels, output: options.MergeOutput, as_json: options.AsJson = False) -> None:
    """Average the weights of reward models with the same backbone."""
    from pipelines.commands.merge import run_merge

    run_merge(sources, output)


def main() -> None:
    """Run the command line, and end the process with a documented exit code."""
    program.main(app)


if __name__ == "__main__":
    main()
