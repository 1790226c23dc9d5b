"""Arguments and options of the commands, as `typer` reads them from annotations."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.app import complete_settings
from pipelines.runtime import logs

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Context settings of a command whose unknown options are Beam's."""

ConfigPath = Annotated[
    str | None,
    typer.Argument(
        metavar="[CONFIG]", help="A YAML file. Without one, the command line gives all settings.", show_default=False
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]... [--BEAM-FLAG]...",
        help="Settings that override the file, and options for Beam.",
        autocompletion=complete_settings,
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.SUB=VALUE]...", help="Settings that override the file.", autocompletion=complete_settings
    ),
]
InspectSettings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Settings: input.columns=..., data.columns=..., model.path=..."),
]
AsJson = Annotated[bool, typer.Option(logs.JSON, help="Print one JSON object instead of tables.")]
ExplanationWithText = Annotated[bool, typer.Option("--text", help="With --explain: also the prompt and the responses.")]

Benchmark = Annotated[
    bool, typer.Option("--benchmark/--no-benchmark", help="Load the model and measure this machine, for a local run.")
]
MaxCost = Annotated[
    float | None, typer.Option(metavar="MONEY", min=0.0, help="End with exit code 8 if the run may cost more.")
]
Gpu = Annotated[str | None, typer.Option(metavar="NAME", help="Estimate for this GPU, such as nvidia-l4.")]
Machine = Annotated[
    str | None, typer.Option(metavar="NAME", help="Use the price of this machine, such as g2-standard-8.")
]
PriceFile = Annotated[str | None, typer.Option(metavar="FILE", help="Prices to use instead of the shipped ones.")]

Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Write metrics of this command to FILE, in Prometheus' text format, when it ends or fails.",
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N",
        help="Score one of N parts, 0/N to (N-1)/N, in any order; `run` then does the rest. `auto` takes the number from "
        "Slurm, Cloud Run or AWS Batch, `auto/N` from Kubernetes.",
    ),
]
ExplainedPrompt = Annotated[
    str | None,
    typer.Option(
        metavar="PROMPT",
        help="Explain why each response to one prompt is kept or dropped, and write nothing. PROMPT is a prompt_id, at least its "
        "first 8 characters, FILE:ROW, or the beginning of the prompt's text.",
    ),
]

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL|CONFIG", help="A model directory, also on an object store, or a hub id; or a YAML file."
    ),
]
Data = Annotated[
    str | None,
    typer.Argument(metavar="[DATA]", help="Preference files: a path, a glob or a URL; not used with a YAML file."),
]
ConfiguredCommand = Annotated[
    str, typer.Argument(metavar="[run|train|evaluate]", help="The command that is configured; default run.")
]
Schema = Annotated[bool, typer.Option("--schema", help="Print the JSON schema instead, for editors.")]
Job = Annotated[str, typer.Argument(metavar="[JOB]", help="A job that --list shows; default best_of_n.")]
ListJobs = Annotated[bool, typer.Option("--list", help="List the jobs, and write nothing.")]
InputPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="Files, as input.path names them: a path, a glob or a URL; - for JSON lines on standard input.",
    ),
]
Rows = Annotated[int, typer.Option(metavar="N", min=0, help="Number of conversations to show; default 3.")]

Output = Annotated[str, typer.Argument(metavar="OUT", help="The output.path of a finished run.")]
OtherOutput = Annotated[str | None, typer.Argument(metavar="[OTHER]", help="A second output, to compare the two.")]
ComparisonFile = Annotated[str, typer.Option(metavar="FILE", help="File for the comparison; default comparison.html.")]
Student = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The small causal language model: a directory, also on an object store, or a hub id; default "
        "HuggingFaceTB/SmolLM2-135M-Instruct.",
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Good responses to other prompts, in any corpus layout. Default: the best by report.gold, otherwise the test split.",
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="A second reward model, which scores an answer of each student to each prompt."),
]
Quick = Annotated[bool, typer.Option("--quick", help="Two seeds and 20 steps of 512 tokens: minutes on a CPU.")]
Seeds = Annotated[
    int | None, typer.Option(metavar="N", min=1, max=100, help="Fine-tunes of each set; default 3, or 2 with --quick.")
]
Steps = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Steps of each fine-tune; default 100, or 20 with --quick.")
]
Root = Annotated[str, typer.Argument(metavar="ROOT", help="The output.path of runs with output.versions.")]
Keep = Annotated[int, typer.Option(metavar="N", min=1, help="Number of newest complete versions to keep; default 3.")]
UnfinishedDays = Annotated[
    float,
    typer.Option(metavar="DAYS", min=0.0, help="Age from which unfinished versions and scores are removed; default 7."),
]
UnusedScores = Annotated[
    bool, typer.Option("--scores", help="Also remove scores in ROOT/scores that no kept version uses.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")]

ModelSource = Annotated[str, typer.Argument(metavar="ID_OR_DIR", help="A hub id, or a model directory.")]
Destination = Annotated[
    str, typer.Argument(metavar="DESTINATION", help="A directory: gs://..., s3://..., or a local one.")
]
MergedModels = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Two or more model directories or hub ids.")
]
MergeOutput = Annotated[str, typer.Argument(metavar="OUTPUT", help="A new local directory for their average.")]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Commit or tag of a hub id.")]
