"""`bestkept plan`: what a run would read, compute, write, take and cost, before it starts. Nothing is written.

Reading (`survey`, `already`, `forecast`) and arithmetic (`estimate`, `hardware`) are elsewhere; here they are put together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import zstandard

from pipelines.already import already_scored
from pipelines.config import RunConfig
from pipelines.errors import ConfigError
from pipelines.estimate import (
    SHUFFLE_BYTES,
    Candidates,
    Quantity,
    as_json,
    billed_hours,
    forward_secs,
    kept_responses,
    memory_bytes,
    total_of,
    wall_secs,
    weakest,
)
from pipelines.forecast import Forecast, Speed, benchmark, forecast, load_forecaster, unscored
from pipelines.hardware import (
    OLD_DAYS,
    Asked,
    Machine,
    Prices,
    gpu_named,
    hardware,
    load_prices,
    refuse_large,
)
from pipelines.plan import Plan, make_plans
from pipelines.survey import Survey, survey

if TYPE_CHECKING:
    from rm.forecast import Forecaster

log = logging.getLogger(__name__)

_SCORE_FILE_BYTES = 5_600  # of a score file without rows, and of each row, as measured
_SCORE_ROW_BYTES = 21
_LOCAL_SECS = (2.0, 8.0)  # of a local run beside loading and forwards: Beam's graph
_ROW_SECS = (2e-5, 3e-4)  # and of each response: reading, selecting, exporting
_TEXT_ROWS = 1_000  # compressed, to see how small text gets


@dataclass(frozen=True)
class Wishes:
    """What the command line asks of a plan."""

    benchmark: bool = True
    gpu: str | None = None
    machine: str | None = None
    prices: str | None = None


def plan_run(config: RunConfig, flags: Sequence[str] = (), wishes: Wishes | None = None) -> dict[str, Any]:
    """The plan as plain JSON values; see `bestkept plan --json`. Raises `BestkeptError` like a run that cannot start, and
    `ConfigError` for a model larger than the GPU that is named, a bad price file, and flags of Beam."""
    from pipelines.curate import located, scores_path
    from pipelines.runners import machines_asked

    wishes = wishes or Wishes()
    config = located(config)
    asked = machines_asked(config.runner, flags)
    asked = asked._replace(gpu=wishes.gpu or asked.gpu, machine=wishes.machine or asked.machine)
    prices = load_prices(wishes.prices)
    if asked.gpu is not None:
        gpu_named(asked.gpu, hardware().gpus)
    if asked.machine is not None and wishes.machine and prices.machine(asked.machine, asked.gpu) is None:
        raise ConfigError(f"--machine {asked.machine!r} has no price; expected one of {', '.join(prices.machines)}")
    plans = make_plans(config)
    seed = int(plans.whole.hash[:8], 16)
    surveyed = survey(plans.whole, skip_bad_files=config.limits.skip_bad_files, seed=seed)
    local = config.runner.name == "local" and wishes.gpu is None
    models = [_Model.of(config, member, surveyed, seed=seed, local=local) for member in _scoring(config, plans.members)]
    if asked.gpu is not None:
        _refuse_models(models, asked.gpu)
    speeds = [each.benchmark(surveyed, seed) for each in models] if local and wishes.benchmark else []
    ways = _local(models, speeds, surveyed, asked, prices) if local else _remote(models, asked, prices, surveyed)
    content = {
        "runner": config.runner.name,
        "corpus": _corpus(surveyed, plans.whole),
        "models": [each.to_json() for each in models],
        "scores": {"path": scores_path(config), "bytes": _score_bytes(config, surveyed, models)},
        "selection": _selection(config, surveyed),
        "ways": ways,
        "prices": {"date": prices.date.isoformat(), "region": prices.region, "currency": prices.currency}
        | {"source": prices.source, "age_days": prices.age_days(datetime.now(UTC).date())},
        "warnings": _warnings(config, surveyed, models, prices, ways=ways),
    }
    return as_json(content)


def refuse_cost(plan: dict[str, Any], max_cost: float) -> None:
    """Raise `ConfigError` (exit 2) where the upper end of the cost exceeds `max_cost`, or where no cost is known."""
    ways = plan["ways"]
    if len(ways) != 1 or ways[0]["cost"] is None:
        remedy = "name one with --gpu" if len(ways) > 1 else "name what runs it with --machine, or give --prices"
        raise ConfigError(f"--max-cost {max_cost:g} cannot be checked: the plan has no one cost; {remedy}")
    high = ways[0]["cost"]["high"]
    if high > max_cost:
        raise ConfigError(
            f"the run may cost up to {high:,.2f} {plan['prices']['currency']}, more than --max-cost {max_cost:g}; raise it, "
            "score less, or choose another machine"
        )


def _scoring(config: RunConfig, members: Sequence[Plan]) -> Sequence[Plan]:
    """The plans that a model scores; none where rewards come with the corpus."""
    return members if config.models else ()


@dataclass(frozen=True)
class _Model:
    """One model of a plan, looked at without its weights."""

    plan: Plan
    name: str
    packed: bool
    causal: bool
    shape: dict[str, int]
    tokens_per_batch: int
    found: Forecast

    @classmethod
    def of(cls, config: RunConfig, plan: Plan, surveyed: Survey, *, seed: int, local: bool) -> _Model:
        from pipelines.curate import score_places

        places = score_places(config).of(plan.fingerprint)
        forecaster: Forecaster = load_forecaster(plan, device=None if local else "cuda")
        already = already_scored(plan, places, seed=seed)
        found = forecast(plan, surveyed, forecaster, already, seed=seed)
        name = plan.model["directory"].rsplit("/", 1)[-1]
        causal = forecaster.model.causal
        return cls(plan, name, forecaster.packed, causal, forecaster.shape, forecaster.tokens_per_batch, found)

    def benchmark(self, surveyed: Survey, seed: int) -> Speed | None:
        """None where nothing is left to score."""
        waiting = unscored(self.plan, surveyed, self.found.already)
        return benchmark(self.plan, waiting, seed=seed) if waiting and self.found.left_computed.high else None

    @property
    def memory(self) -> tuple[int, int]:
        longest = max(self.tokens_per_batch, int(self.plan.model["max_length"]))
        return memory_bytes(
            parameters=self.shape["parameters"],
            dtype=self.plan.model["dtype"],
            tokens=longest,
            hidden=self.shape["hidden"],
            intermediate=self.shape["intermediate"],
        )

    def to_json(self) -> dict[str, Any]:
        found, already = self.found, self.found.already
        return {
            "name": self.name,
            "fingerprint": self.plan.fingerprint,
            "dtype": self.plan.model["dtype"],
            "max_length": self.plan.model["max_length"],
            "parameters": self.shape["parameters"],
            "packed": self.packed,
            "shares_prompts": self.packed and self.causal,
            "scored": {"fragments": already.fragments, "responses": already.responses, "tokens": already.tokens},
            "tokens": found.tokens,
            "left": {
                "responses": found.left_responses,
                "tokens": found.left_tokens,
                "computed_tokens": found.left_computed,
            },
            "computed_share": found.computed_share,
            "sampled_responses": found.sampled_responses,
        }


def _refuse_models(models: Sequence[_Model], gpu: str) -> None:
    for each in models:
        why = refuse_large(gpu, hardware().gpus[gpu], each.memory)
        if why is not None:
            raise ConfigError(
                f"model.path {each.name!r}, {each.shape['parameters']:,} parameters in {each.plan.model['dtype']}: {why}; "
                "choose a larger GPU, a 16-bit model.dtype, or a smaller model.tokens_per_batch"
            )


def _corpus(surveyed: Survey, plan: Plan) -> dict[str, Any]:
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


def _score_bytes(config: RunConfig, surveyed: Survey, models: Sequence[_Model]) -> Quantity:
    """Of all score files that the run leaves; sources and carried columns not counted."""
    fragments = max(surveyed.files, surveyed.rows.value / config.input.rows_per_fragment)
    if surveyed.whole:
        fragments = len(surveyed.blocks)
    rows = surveyed.responses
    sizes = [fragments * _SCORE_FILE_BYTES + count * _SCORE_ROW_BYTES for count in (rows.value, rows.low, rows.high)]
    value, low, high = (each * max(1, len(models)) for each in sizes)
    return Quantity(value, low, high, "assumed")


def _selection(config: RunConfig, surveyed: Survey) -> dict[str, Any]:
    """What the selection shuffles and keeps, were nothing rejected."""
    prompts, exact = _prompts(surveyed)
    responses = surveyed.responses
    kept, known = kept_responses(config.select, Candidates(responses.value, prompts))
    basis = weakest("exact" if known and exact else "at_most", responses.basis)
    text, compression = _text(surveyed)
    sides = 2 if config.output.shape == "preference" else 1
    size = kept * text * sides * compression
    return {
        "shuffle_bytes": Quantity(SHUFFLE_BYTES * responses.value, 0.0, SHUFFLE_BYTES * responses.high, "at_most"),
        "prompts": Quantity(prompts, prompts, prompts, "exact" if exact else "at_most"),
        "kept": Quantity(kept, kept if basis == "exact" else 0.0, kept, basis),
        "output_bytes": Quantity(size, 0.0, size, weakest("sampled", basis)),
    }


def _prompts(surveyed: Survey) -> tuple[float, bool]:
    """(distinct prompts, whether they were counted): else as many as rows, less what repeats inside the blocks."""
    if surveyed.prompts is not None:
        return float(surveyed.prompts), True
    rows = sum(len(block.rows) for block in surveyed.blocks)
    distinct = sum(len({row.group_key for row in block.rows}) for block in surveyed.blocks)
    return surveyed.rows.value * distinct / max(1, rows), False


def _text(surveyed: Survey) -> tuple[float, float]:
    """(bytes of a response with its prompt, what of that zstandard leaves), of rows spread over the blocks."""
    texts: list[bytes] = []
    each = max(1, _TEXT_ROWS // max(1, len(surveyed.blocks)))
    for block in surveyed.blocks:
        for row in block.rows[:: max(1, len(block.rows) // each)]:
            if row.sample.prompt is not None:
                prompt = "".join(content for _, content in row.sample.prompt)
                texts += [(prompt + text).encode() for text in row.sample.responses if text is not None]
    size = sum(map(len, texts))
    if not size:
        return 0.0, 1.0
    return size / len(texts), len(zstandard.compress(b"\n".join(texts), 3)) / size


def _local(
    models: Sequence[_Model], speeds: Sequence[Speed | None], surveyed: Survey, asked: Asked, prices: Prices
) -> list[dict[str, Any]]:
    """This machine, by a benchmark; without one its time is not known."""
    machine = prices.machine(asked.machine, asked.gpu) if asked.machine or asked.gpu else None
    way: dict[str, Any] = {"where": "this machine", "basis": "unknown", "speed": [], "secs": None, "gpu_hours": None}
    way |= {"machine": machine[0] if machine else None, "workers": 1, "cost": None, "fits": None}
    idle = all(not each.found.left_computed.high for each in models)
    if not speeds and not idle:
        return [way]
    known = [(each, speed) for each, speed in zip(models, speeds, strict=bool(speeds)) if speed is not None]
    work = total_of([speed.time_for(each.found.left_computed) for each, speed in known])
    load = sum(speed.load_secs for _, speed in known)
    rows = surveyed.responses.value
    low, high = (start + rows * row for start, row in zip(_LOCAL_SECS, _ROW_SECS, strict=True))
    secs = Quantity(work.value + load + (low * high) ** 0.5, work.low + load + low, work.high + load + high, "measured")
    for each, speed in known:
        way["speed"].append({"model": each.name, "tokens_per_sec": speed.tokens_per_sec, "device": speed.device})
        way["speed"][-1] |= {"responses": speed.responses, "secs": speed.secs, "packed": speed.packed}
    gpu = any(speed.device != "cpu" for _, speed in known)
    hours = secs.times(1 / 3600)
    return [
        way
        | {"basis": "measured", "secs": secs, "gpu_hours": hours if gpu else None}
        | {"cost": hours.times(machine[1].hour) if machine else None}
    ]


def _remote(models: Sequence[_Model], asked: Asked, prices: Prices, surveyed: Survey) -> list[dict[str, Any]]:
    """The GPU that is named, or every one of the table: estimates, from its peak and an assumed share of it."""
    table = hardware()
    names = [asked.gpu] if asked.gpu is not None else list(table.gpus)
    start = (table.start_secs.low, table.start_secs.high)
    workers = asked.workers or 1
    shuffled = SHUFFLE_BYTES * surveyed.responses.high / 2**30 * prices.shuffle_gib
    ways = []
    for name in names:
        gpu = table.gpus[name]
        why = next((why for each in models if (why := refuse_large(name, gpu, each.memory)) is not None), None)
        why = why or _no_type(models, name)
        machine = prices.machine(asked.machine, name) if asked.machine or asked.gpu else prices.machine(None, name)
        way = {"where": name, "basis": "assumed", "speed": [], "secs": None, "gpu_hours": None, "workers": workers}
        way |= {"machine": machine[0] if machine else None, "cost": None, "fits": why is None, "why": why}
        if why is None:
            work = total_of([_gpu_secs(each, name) for each in models])
            hours = billed_hours(work, workers=workers, start=start)
            way |= {"secs": wall_secs(work, workers=workers, start=start), "gpu_hours": hours}
            way["cost"] = _cost(hours, machine[1], asked, shuffled) if machine else None
        ways.append(way)
    return ways


def _no_type(models: Sequence[_Model], gpu: str) -> str | None:
    """Why a GPU cannot run a model in its type; None where it can."""
    if hardware().gpus[gpu].bfloat16:
        return None
    return next((f"{gpu} only emulates bfloat16" for each in models if each.plan.model["dtype"] == "bfloat16"), None)


def _gpu_secs(model: _Model, gpu: str) -> Quantity:
    parameters = model.shape["computing_parameters"]
    return forward_secs(
        model.found.left_computed,
        parameters=parameters,
        peak_flops=hardware().gpus[gpu].peak_flops(model.plan.model["dtype"]),
        utilisation=hardware().utilisation_of(parameters),
    )


def _cost(hours: Quantity, machine: Machine, asked: Asked, shuffled: float) -> Quantity:
    """Money for worker hours and shuffled bytes. A machine of one GPU stands for each GPU that a worker asks for: all are billed, and
    one computes."""
    each = machine.hour * max(1, asked.gpus) / max(1, machine.gpus) if machine.gpu else machine.hour
    billed = hours.times(each)
    return Quantity(billed.value + shuffled / 2, billed.low, billed.high + shuffled, "assumed")


def _warnings(
    config: RunConfig, surveyed: Survey, models: Sequence[_Model], prices: Prices, *, ways: Sequence[dict[str, Any]]
) -> list[str]:
    found = []
    age = prices.age_days(datetime.now(UTC).date())
    if age > OLD_DAYS and any(way["cost"] is not None for way in ways):
        found.append(f"prices are of {prices.date}, {age} days old; give newer ones with --prices FILE")
    remote = any(way["basis"] == "assumed" for way in ways)
    if remote:
        found.append(
            "times and costs on GPUs are estimates from peak FLOP/s and an assumed utilisation: nothing was measured"
        )
    asked_auto = any(model.dtype == "auto" for model in config.models)
    if remote and asked_auto and any(each.plan.model["dtype"] == "float32" for each in models):
        found.append(
            "model.dtype=auto is float32 on this machine, and workers compute in it, too; for GPUs set model.dtype"
        )
    if surveyed.unreadable:
        found.append(f"{surveyed.unreadable:,} files could not be read and are left out (limits.skip_bad_files)")
    if not surveyed.whole and len(surveyed.blocks) < 2:
        found.append("one block of rows is all that could be drawn: intervals are guesses")
    return found
