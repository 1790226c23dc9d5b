"""Time and cost of a planned run: on this machine, from a benchmark, or on GPUs, from their peak and an assumed utilisation.

Each possible place is a mapping, as in `ways` of `bestkept plan --json`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pipelines.commands.estimate.benchmark import Speed
from pipelines.commands.estimate.hardware import Machine, Prices, hardware
from pipelines.commands.estimate.model_estimate import ModelEstimate
from pipelines.commands.estimate.quantity import Quantity, total_of
from pipelines.commands.estimate.survey import Survey
from pipelines.runtime.accelerators import why_too_old
from pipelines.runtime.beam_options import RequestedMachine

_LOCAL_SECS = (2.0, 8.0)  # of a local run, in addition to loading and forward passes: Beam's graph
_ROW_SECS = (2e-5, 3e-4)  # of each response: reading, selecting, exporting
_CORES_GAIN = (1.0, 1.1, 1.2)  # of workers that share the cores of one process, from benchmarks/scaling.py
_START_SHARE = 0.1  # of a worker's time that its start may take, when the number of workers is proposed
_UNEVEN = 1.15  # of workers with a GPU each, whose last pieces do not end together


def estimate_local(
    models: Sequence[ModelEstimate],
    speeds: Sequence[Speed | None],
    surveyed: Survey,
    request: RequestedMachine,
    prices: Prices,
) -> list[dict[str, Any]]:
    """Return this machine as the only way, with its time if `speeds` of a benchmark are given."""
    machine = prices.machine(request.machine, request.gpu) if request.machine or request.gpu else None
    way: dict[str, Any] = {"where": "this machine", "basis": "unknown", "speed": [], "secs": None, "gpu_hours": None}
    workers = request.workers or 1
    way |= {"machine": machine[0] if machine else None, "workers": workers, "devices": 1, "cost": None, "fits": None}
    idle = all(not model.forecast.left_computed.high for model in models)
    if not speeds and not idle:
        return [way]
    known = [(model, speed) for model, speed in zip(models, speeds, strict=bool(speeds)) if speed is not None]
    gpu = any(speed.device != "cpu" for _, speed in known)
    devices = max((speed.devices for _, speed in known), default=1)
    work = _over_workers(
        total_of([speed.time_for(model.forecast.left_computed) for model, speed in known]), workers, gpu=gpu
    )
    load = sum(speed.load_secs for _, speed in known)
    rows = surveyed.responses.value
    low, high = (start + rows * row for start, row in zip(_LOCAL_SECS, _ROW_SECS, strict=True))
    secs = Quantity(work.value + load + (low * high) ** 0.5, work.low + load + low, work.high + load + high, "measured")
    for model, speed in known:
        way["speed"].append({"model": model.name, "tokens_per_sec": speed.tokens_per_sec, "device": speed.device})
        way["speed"][-1] |= {"responses": speed.responses, "secs": speed.secs, "packed": speed.packed}
    hours = secs.times(1 / 3600)
    return [
        way
        | {"basis": "measured", "secs": secs, "gpu_hours": hours.times(workers * devices) if gpu else None}
        | {"devices": devices, "cost": hours.times(machine[1].hour) if machine else None}
    ]


def _over_workers(work: Quantity, workers: int, *, gpu: bool) -> Quantity:
    """Return the seconds that `workers` take for the `work` of one process: each has its own GPU, or a share of the cores."""
    if workers == 1:
        return work
    if gpu:
        part = work.times(1 / workers)
        return Quantity(part.value, part.low, part.high * _UNEVEN, part.basis)
    least, usual, most = _CORES_GAIN
    return Quantity(work.value / usual, work.low / most, work.high / least, work.basis)


def estimate_gpus(
    models: Sequence[ModelEstimate], request: RequestedMachine, prices: Prices, shuffle_bytes: float
) -> list[dict[str, Any]]:
    """Return the requested GPU as the only way, or every GPU of the table.

    A model that is spread over several GPUs of a worker takes the time of one: a batch passes through them one after the other.
    """
    table = hardware()
    names = [request.gpu] if request.gpu is not None else list(table.gpus)
    start = (table.start_secs.low, table.start_secs.high)
    workers = request.workers or 1
    shuffled = shuffle_bytes / 2**30 * prices.shuffle_gib
    ways = []
    for name in names:
        whys = (model.why_too_large(name, gpus=request.gpus) for model in models)
        why = next((why for why in whys if why is not None), None) or _why_unusable(models, name)
        devices = max((model.devices_on(name, gpus=request.gpus) for model in models), default=1)
        machine = (
            prices.machine(request.machine, name) if request.machine or request.gpu else prices.machine(None, name)
        )
        way: dict[str, Any] = {"where": name, "basis": "assumed", "workers": workers, "devices": devices, "speed": []}
        way |= {"secs": None, "gpu_hours": None, "proposed_workers": None}
        way |= {"machine": machine[0] if machine else None, "cost": None, "fits": why is None, "why": why}
        if why is None:
            work = total_of([_gpu_secs(model, name) for model in models])
            hours = billed_hours(work, workers=workers, start=start)
            way |= {"secs": wall_secs(work, workers=workers, start=start), "gpu_hours": hours.times(devices)}
            way["proposed_workers"] = propose_workers(work, start=start, most=request.workers)
            gpus = max(request.gpus, devices)
            way["cost"] = _cost(hours, machine[1], gpus=gpus, shuffled=shuffled) if machine else None
        ways.append(way)
    return ways


def propose_workers(work: Quantity, *, start: tuple[float, float], most: int | None) -> int:
    """Return the number of workers whose start takes about a tenth of their time, at most `most`."""
    low, high = start
    number = int(work.value * _START_SHARE / (1 - _START_SHARE) / math.sqrt(low * high))
    return max(1, number if most is None else min(number, most))


def _why_unusable(models: Sequence[ModelEstimate], gpu: str) -> str | None:
    """Return why torch does not support a GPU, or the GPU cannot run a model in its dtype; None if it can."""
    too_old = why_too_old(gpu)
    if too_old is not None:
        return too_old
    if hardware().gpus[gpu].bfloat16:
        return None
    half = (model for model in models if model.plan.model["dtype"] in ("bfloat16", "int8"))
    return next((f"{gpu} only emulates bfloat16" for _ in half), None)


def _gpu_secs(model: ModelEstimate, gpu: str) -> Quantity:
    parameters = model.shape["computing_parameters"]
    return forward_secs(
        model.forecast.left_computed,
        parameters=parameters,
        peak_flops=hardware().gpus[gpu].peak_flops(model.plan.model["dtype"]),
        utilisation=hardware().utilisation_of(parameters),
    )


def _cost(hours: Quantity, machine: Machine, *, gpus: int, shuffled: float) -> Quantity:
    """Return the price of worker hours and shuffled bytes; all GPUs of a worker are billed, although one computes at a time."""
    price = machine.hour * gpus / max(1, machine.gpus) if machine.gpu else machine.hour
    billed = hours.times(price)
    return Quantity(billed.value + shuffled / 2, billed.low, billed.high + shuffled, "assumed")


def forward_secs(
    computed_tokens: Quantity, *, parameters: int, peak_flops: float, utilisation: tuple[float, float]
) -> Quantity:
    """Return the seconds of one GPU: 2 x parameters x tokens / (peak x utilisation).

    Parameters exclude embeddings, and attention is not counted. The range is that of the utilisation times that of the tokens;
    the value uses the geometric mean of the utilisation.
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
    """Return the time of `work` seconds spread evenly over workers that take between `start` seconds to begin."""
    low, high = start
    return Quantity(
        work.value / workers + math.sqrt(low * high), work.low / workers + low, work.high / workers + high, work.basis
    )


def billed_hours(work: Quantity, *, workers: int, start: tuple[float, float]) -> Quantity:
    """Return the billed worker hours: the work, and each worker's start."""
    return wall_secs(work, workers=workers, start=start).times(workers / 3600)
