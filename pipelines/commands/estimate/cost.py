"""Where a planned run may go, and what it takes there: this machine, measured, or GPUs of the table, estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipelines.commands.estimate.benchmark import Speed
from pipelines.commands.estimate.hardware import Machine, Prices, hardware, why_too_large
from pipelines.commands.estimate.model_estimate import ModelEstimate
from pipelines.commands.estimate.quantity import Quantity, total_of
from pipelines.commands.estimate.selection_size import SHUFFLE_BYTES
from pipelines.commands.estimate.survey import Survey
from pipelines.runtime.beam_options import RequestedMachine

_LOCAL_SECS = (2.0, 8.0)  # of a local run beside loading and forwards: Beam's graph
_ROW_SECS = (2e-5, 3e-4)  # and of each response: reading, selecting, exporting
_CORES_GAIN = (1.0, 1.1, 1.2)  # by workers that share the cores of one process; benchmarks/scaling.py
_UNEVEN = 1.15  # of workers with a GPU each, whose last pieces do not end together


def estimate_local(
    models: Sequence[ModelEstimate],
    speeds: Sequence[Speed | None],
    surveyed: Survey,
    asked: RequestedMachine,
    prices: Prices,
) -> list[dict[str, Any]]:
    """This machine, by a benchmark; without one its time is not known."""
    machine = prices.machine(asked.machine, asked.gpu) if asked.machine or asked.gpu else None
    way: dict[str, Any] = {"where": "this machine", "basis": "unknown", "speed": [], "secs": None, "gpu_hours": None}
    workers = asked.workers or 1
    way |= {"machine": machine[0] if machine else None, "workers": workers, "cost": None, "fits": None}
    idle = all(not each.found.left_computed.high for each in models)
    if not speeds and not idle:
        return [way]
    known = [(each, speed) for each, speed in zip(models, speeds, strict=bool(speeds)) if speed is not None]
    gpu = any(speed.device != "cpu" for _, speed in known)
    work = _over_workers(
        total_of([speed.time_for(each.found.left_computed) for each, speed in known]), workers, gpu=gpu
    )
    load = sum(speed.load_secs for _, speed in known)
    rows = surveyed.responses.value
    low, high = (start + rows * row for start, row in zip(_LOCAL_SECS, _ROW_SECS, strict=True))
    secs = Quantity(work.value + load + (low * high) ** 0.5, work.low + load + low, work.high + load + high, "measured")
    for each, speed in known:
        way["speed"].append({"model": each.name, "tokens_per_sec": speed.tokens_per_sec, "device": speed.device})
        way["speed"][-1] |= {"responses": speed.responses, "secs": speed.secs, "packed": speed.packed}
    hours = secs.times(1 / 3600)
    return [
        way
        | {"basis": "measured", "secs": secs, "gpu_hours": hours.times(workers) if gpu else None}
        | {"cost": hours.times(machine[1].hour) if machine else None}
    ]


def _over_workers(work: Quantity, workers: int, *, gpu: bool) -> Quantity:
    """Seconds of so many workers, of what one process was measured at: each has a GPU of its own, or its part of the cores."""
    if workers == 1:
        return work
    if gpu:
        each = work.times(1 / workers)
        return Quantity(each.value, each.low, each.high * _UNEVEN, each.basis)
    least, usual, most = _CORES_GAIN
    return Quantity(work.value / usual, work.low / most, work.high / least, work.basis)


def estimate_gpus(
    models: Sequence[ModelEstimate], asked: RequestedMachine, prices: Prices, surveyed: Survey
) -> list[dict[str, Any]]:
    """The GPU that is named, or every one of the table: estimates, from its peak and an assumed share of it."""
    table = hardware()
    names = [asked.gpu] if asked.gpu is not None else list(table.gpus)
    start = (table.start_secs.low, table.start_secs.high)
    workers = asked.workers or 1
    shuffled = SHUFFLE_BYTES * surveyed.responses.high / 2**30 * prices.shuffle_gib
    ways = []
    for name in names:
        gpu = table.gpus[name]
        why = next((why for each in models if (why := why_too_large(name, gpu, each.memory)) is not None), None)
        why = why or _why_no_dtype(models, name)
        machine = prices.machine(asked.machine, name) if asked.machine or asked.gpu else prices.machine(None, name)
        way: dict[str, Any] = {"where": name, "basis": "assumed", "workers": workers, "speed": []}
        way |= {"secs": None, "gpu_hours": None}
        way |= {"machine": machine[0] if machine else None, "cost": None, "fits": why is None, "why": why}
        if why is None:
            work = total_of([_gpu_secs(each, name) for each in models])
            hours = billed_hours(work, workers=workers, start=start)
            way |= {"secs": wall_secs(work, workers=workers, start=start), "gpu_hours": hours}
            way["cost"] = _cost(hours, machine[1], asked, shuffled) if machine else None
        ways.append(way)
    return ways


def _why_no_dtype(models: Sequence[ModelEstimate], gpu: str) -> str | None:
    """Why a GPU cannot run a model in its type; None where it can."""
    if hardware().gpus[gpu].bfloat16:
        return None
    return next((f"{gpu} only emulates bfloat16" for each in models if each.plan.model["dtype"] == "bfloat16"), None)


def _gpu_secs(model: ModelEstimate, gpu: str) -> Quantity:
    parameters = model.shape["computing_parameters"]
    return forward_secs(
        model.found.left_computed,
        parameters=parameters,
        peak_flops=hardware().gpus[gpu].peak_flops(model.plan.model["dtype"]),
        utilisation=hardware().utilisation_of(parameters),
    )


def _cost(hours: Quantity, machine: Machine, asked: RequestedMachine, shuffled: float) -> Quantity:
    """Money for worker hours and shuffled bytes. All GPUs that a worker asks for are billed, though only one of them computes."""
    each = machine.hour * max(1, asked.gpus) / max(1, machine.gpus) if machine.gpu else machine.hour
    billed = hours.times(each)
    return Quantity(billed.value + shuffled / 2, billed.low, billed.high + shuffled, "assumed")


def forward_secs(
    computed_tokens: Quantity, *, parameters: int, peak_flops: float, utilisation: tuple[float, float]
) -> Quantity:
    """Seconds of one GPU: 2 x parameters x tokens / (peak x utilisation), parameters without embeddings, attention not counted.

    The range is that of the utilisation, from low to high, times that of the tokens; the value is at their geometric mean.
    """
    low, high = utilisation
    flops = 2.0 * parameters / peak_flops
    return Quantity(
        computed_tokens.value * flops / math.sqrt(low * high),
        computed_tokens.low * flops / high,
        computed_tokens.high * flops / low,
        "assumed",
    )


def wall_secs(work: Quantity, *, workers: int, start: tuple[float, float]) -> Quantity:
    """Time of `work` seconds spread evenly over workers that take between `start` seconds to be there."""
    low, high = start
    return Quantity(
        work.value / workers + math.sqrt(low * high), work.low / workers + low, work.high / workers + high, work.basis
    )


def billed_hours(work: Quantity, *, workers: int, start: tuple[float, float]) -> Quantity:
    """Worker hours that are paid for: the work, and each worker's start."""
    return wall_secs(work, workers=workers, start=start).times(workers / 3600)
