"""`bestkept plan`: estimates the input, tokens, output, time and cost of a run before it starts. It writes no files.

`survey`, `scored_so_far`, `token_forecast` and `benchmark` read and measure; `selection_size` and `cost` compute estimates from
the results; this module combines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipelines.commands.estimate.cost import estimate_gpus, estimate_local
from pipelines.commands.estimate.hardware import OLD_DAYS, Prices, gpu_of, hardware, load_prices
from pipelines.commands.estimate.model_estimate import ModelEstimate, check_memory
from pipelines.commands.estimate.quantity import Quantity, to_json
from pipelines.commands.estimate.selection_size import selection_size
from pipelines.commands.estimate.survey import Survey, survey
from pipelines.commands.progress_bar import ShowPart
from pipelines.commands.verdict import verdicts_of, warnings_before
from pipelines.config import RunConfig
from pipelines.corpus import rewritten_copy
from pipelines.errors import ConfigError, CostError
from pipelines.plan import Plan, make_plans, with_absolute_paths
from pipelines.runtime import dataflow
from pipelines.runtime.accelerators import Accelerator
from pipelines.runtime.beam_options import requested_machine
from pipelines.score.unit_scores import score_directories, scores_path

_SCORE_FILE_BYTES = 5_600  # of a score file without rows, and of each row, as measured
_SCORE_ROW_BYTES = 21


@dataclass(frozen=True)
class PlanOptions:
    """Options of `bestkept plan` on the command line."""

    benchmark: bool = True
    gpu: str | None = None
    machine: str | None = None
    prices: str | None = None


def plan_run(
    config: RunConfig,
    flags: Sequence[str] = (),
    options: PlanOptions | None = None,
    *,
    show: ShowPart | None = None,
) -> dict[str, Any]:
    """Return the plan as plain JSON values, as `bestkept plan --json` prints them; `show` receives the benchmark's progress.

    Raises `BestkeptError` like a run that cannot start, and `ConfigError` for a model larger than the named GPU, a bad price
    file, and bad flags of Beam.
    """
    options = options or PlanOptions()
    config = with_absolute_paths(config)
    request = requested_machine(config.runner, flags)
    request = request._replace(gpu=options.gpu or request.gpu, machine=options.machine or request.machine)
    prices = load_prices(options.prices)
    if request.gpu is not None:
        gpu_of(request.gpu, hardware().gpus)
    if request.machine is not None and options.machine and prices.machine(request.machine, request.gpu) is None:
        raise ConfigError(f"--machine {request.machine!r} has no price; expected one of {', '.join(prices.machines)}")
    plans = make_plans(config)
    verdicts = warnings_before(config, plans.whole)
    seed = seed_of(plans.whole)
    surveyed = survey(plans.whole, skip_bad_files=config.limits.skip_bad_files, seed=seed)
    local = config.runner.name == "local" and options.gpu is None
    scored = score_directories(config)
    colocated = config.score.colocate is not None
    models = [
        ModelEstimate.of(member, scored.of(member.fingerprint), surveyed, seed=seed, local=local, colocated=colocated)
        for number, member in enumerate(plans.members if config.models else ())
        if number not in config.embeddings
    ]
    if request.gpu is not None:
        check_memory(models, request.gpu, gpus=request.gpus)
    speeds = [model.benchmark(surveyed, seed, show) for model in models] if local and options.benchmark else []
    selection = selection_size(config, surveyed)
    ways = (
        estimate_local(models, speeds, surveyed, request, prices)
        if local
        else estimate_gpus(models, request, prices, selection["shuffle_bytes"].high)
    )
    content = {
        "runner": config.runner.name,
        "corpus": _corpus_json(surveyed, plans.whole),
        "models": [model.to_json() for model in models],
        "verdicts": [{"model": name, "evaluation": known} for name, known in verdicts_of(config, plans.whole)],
        "scores": {"path": scores_path(config), "bytes": _score_bytes(config, surveyed, models)},
        "selection": selection,
        "ways": ways,
        "proposed": _propose_options(config, ways),
        "prices": {"date": prices.date.isoformat(), "region": prices.region, "currency": prices.currency}
        | {"source": prices.source, "age_days": prices.age_days(datetime.now(UTC).date())},
        "warnings": [
            *verdicts,
            *warn_of_rewriting(plans.whole),
            *_list_warnings(config, surveyed, models, prices, ways=ways),
        ],
    }
    return to_json(content)


def seed_of(plan: Plan) -> int:
    """Return the seed for drawing rows: the same corpus gives the same plan."""
    return int(plan.hash[:8], 16)


def check_cost(plan: dict[str, Any], max_cost: float) -> None:
    """Raise `CostError` if the upper end of the cost exceeds `max_cost`, and `ConfigError` if no cost is known."""
    ways = plan["ways"]
    if len(ways) != 1 or ways[0]["cost"] is None:
        remedy = "name one with --gpu" if len(ways) > 1 else "name the machine with --machine, or give --prices"
        raise ConfigError(f"--max-cost {max_cost:g} cannot be checked: the plan has no single cost; {remedy}")
    high = ways[0]["cost"]["high"]
    if high > max_cost:
        raise CostError(
            f"the run may cost up to {high:,.2f} {plan['prices']['currency']}, more than --max-cost {max_cost:g}; raise it, "
            "score less, or choose another machine"
        )


def _propose_options(config: RunConfig, ways: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return Beam options that suit `bestkept score` on Dataflow's GPUs; None elsewhere."""
    workers = ways[0].get("proposed_workers") if len(ways) == 1 else None
    if config.runner.name != dataflow.DATAFLOW or config.runner.accelerator is None or workers is None:
        return None
    return {"num_workers": workers, "autoscaling_algorithm": "NONE"}


def _corpus_json(surveyed: Survey, plan: Plan) -> dict[str, Any]:
    return {
        "files": len(plan.files),
        "bytes": plan.input_bytes,
        "rows": surveyed.rows,
        "responses": surveyed.responses,
        "read": "whole" if surveyed.whole else "sample",
        "blocks": len(surveyed.blocks),
        "footers": surveyed.footers,
        "unreadable": surveyed.unreadable,
    }


def _score_bytes(config: RunConfig, surveyed: Survey, models: Sequence[ModelEstimate]) -> Quantity:
    """Return the size of all score files after the run, without sources and carried columns."""
    fragments = max(surveyed.files, surveyed.rows.value / config.input.rows_per_fragment)
    if surveyed.whole:
        fragments = len(surveyed.blocks)
    rows = surveyed.responses
    sizes = [fragments * _SCORE_FILE_BYTES + count * _SCORE_ROW_BYTES for count in (rows.value, rows.low, rows.high)]
    value, low, high = (size * max(1, len(models)) for size in sizes)
    return Quantity(value, low, high, "assumed")


def warn_of_rewriting(plan: Plan) -> list[str]:
    """Return a warning if large compressed files have no rewritten copy yet."""
    waiting = [file for file in plan.files if file.copy is not None and not rewritten_copy.is_whole(file.copy)]
    if not waiting:
        return []
    size, folder = sum(file.size for file in waiting), str(waiting[0].copy).rsplit("/", 1)[0]
    what = "1 compressed JSONL file is" if len(waiting) == 1 else f"{len(waiting):,} compressed JSONL files are"
    return [f"{what} large, and will first be rewritten in {folder}, which takes about {size / 1e9:,.1f} GB"]


def _list_warnings(
    config: RunConfig,
    surveyed: Survey,
    models: Sequence[ModelEstimate],
    prices: Prices,
    *,
    ways: Sequence[dict[str, Any]],
) -> list[str]:
    warnings = []
    age = prices.age_days(datetime.now(UTC).date())
    if age > OLD_DAYS and any(way["cost"] is not None for way in ways):
        warnings.append(f"prices are of {prices.date}, {age} days old; give newer ones with --prices FILE")
    remote = any(way["basis"] == "assumed" for way in ways)
    if remote:
        warnings.append(
            "times and costs on GPUs are estimates from peak FLOP/s and an assumed utilisation: nothing was measured"
        )
    devices = sorted({way["devices"] for way in ways if way["fits"] is not False} - {1})
    if devices:
        numbers = " or ".join(map(str, devices))
        warnings.append(
            f"model.devices spreads the model over {numbers} GPUs of each worker, which compute one after the other: it takes "
            f"the time of one, and GPU-hours{' and costs' if remote else ''} are those of all"
        )
    auto_dtype = any(model.dtype == "auto" for model in config.models)
    if remote and auto_dtype and any(model.plan.model["dtype"] == "float32" for model in models):
        warnings.append(
            "model.dtype=auto is float32 on this machine, and workers also compute in it; for GPUs set model.dtype"
        )
    if config.embeddings:
        warnings.append("embedding models of signals are not included in these times and costs; they are usually small")
    accelerator = None if config.runner.accelerator is None else Accelerator.of(config.runner.accelerator)
    if accelerator is not None and accelerator.machine_type is None:
        warnings.append(
            "runner.options.machine_type applies to all workers, including those without a GPU; name that of the scoring workers "
            "in runner.accelerator (machine_type:...), and a cheaper one, such as n2-standard-4, in runner.options"
        )
    if surveyed.unreadable:
        warnings.append(f"{surveyed.unreadable:,} files could not be read and are skipped (limits.skip_bad_files)")
    if not surveyed.whole and len(surveyed.blocks) < 2:
        warnings.append("only one block of rows could be drawn: intervals are guesses")
    return warnings
