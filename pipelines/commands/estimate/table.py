"""The printed form of `bestkept plan`: a table that fits on one screen, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from pipelines.commands.printing import PlainConsole, format_duration
from pipelines.report import text
from pipelines.report.verdict import NO_VERDICT, label

_BASIS = {"at_most": "at most"}


def print_plan(plan: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the plan on standard output."""
    if as_json:
        sys.stdout.write(json.dumps(plan, allow_nan=False) + "\n")
        return
    console = PlainConsole()
    console.print(plan_table(plan))
    for line in plan["warnings"]:
        console.print(f"note: {line}", soft_wrap=True)


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return the plan as rows of (quantity, estimate, basis)."""
    table = Table(title="plan", title_justify="left")
    for name in ("", "estimate", "from"):
        table.add_column(name, overflow="fold")
    for part in (_corpus(plan), _models(plan), _sizes(plan), _ways(plan)):
        for row in part:
            table.add_row(*row)
        table.add_section()
    return table


def _corpus(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    corpus = plan["corpus"]
    yield "files", f"{corpus['files']:,}, {_size(corpus['bytes'])}", "listed"
    footers = f"{corpus['footers']:,} footers" if corpus["footers"] else f"{corpus['blocks']} blocks"
    where = "all rows read" if corpus["read"] == "whole" else footers
    for name in ("rows", "responses"):
        yield name, _number(corpus[name]), f"{_from(corpus[name])}: {where}"


def _models(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for model in plan["verdicts"]:
        name = f"verdict on {model['model']}" if len(plan["verdicts"]) > 1 else "verdict"
        known = model["evaluation"]
        yield name, NO_VERDICT if known is None else label(known), "-" if known is None else f"stored: {known['data']}"
    for model in plan["models"]:
        if len(plan["models"]) > 1:
            yield "model", model["name"], f"{model['parameters']:,} parameters, {model['dtype']}"
        scored, left = model["scored"], model["left"]
        sampled = f"{_from(model['tokens'])}: {model['sampled_responses']:,} tokenised"
        if scored["fragments"]["value"]:
            share = scored["responses"]["value"] / max(1.0, plan["corpus"]["responses"]["value"])
            value = (
                f"{_number(scored['responses'])} responses, {share:.0%}, in {_number(scored['fragments'])} fragments"
            )
            yield "already scored", value, _from(scored["responses"])
            yield "left", f"{_number(left['responses'])} responses", _from(left["responses"])
        yield "tokens", _number(model["tokens"]), sampled
        if scored["fragments"]["value"]:
            yield "tokens left", _number(left["tokens"]), _from(left["tokens"])
        saved = 1 - model["computed_share"]["value"]
        what = "shared prompts and equal texts" if model["shares_prompts"] else "equal texts"
        saved_text = f"{_number(left['computed_tokens'])}, {abs(saved):.1%} {'less' if saved >= 0 else 'more'}"
        if left["tokens"]["value"]:
            yield (
                "tokens computed",
                saved_text,
                f"{_from(model['computed_share'])}: {what if saved >= 0 else 'padding'}",
            )
        if model["colocate"] is not None:
            yield _colocate(model["colocate"])


def _colocate(both: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the row that compares the other setting of `score.colocate` with the configured one."""
    gain, on = both["gain"], both["configured"] == "prompt"
    other = both["off_computed_tokens" if on else "prompt_computed_tokens"]
    times = f"{gain:.2f} times {'as many' if on else 'fewer'}"
    bound = both["prompt_computed_tokens"]["basis"] == "at_most"
    where = "at least: prompts that the blocks have in common" if bound else f"{_from(other)}: prompts by their hash"
    return f"{'without' if on else 'with'} score.colocate", f"{other['value']:,.0f}, {times}", where


def _sizes(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    selection = plan["selection"]
    yield "score files", _size(plan["scores"]["bytes"]["value"]), "assumed: bytes a row"
    shuffle = selection["shuffle_bytes"]
    responses = plan["corpus"]["responses"]["high"]
    each = shuffle["high"] / responses if responses else 0.0
    yield "selection shuffles", _size(shuffle["high"]), f"{_from(shuffle)}: {each:,.0f} B a response"
    kept, size = selection["kept"], selection["output_bytes"]
    yield "kept", f"{kept['value']:,.0f}", f"{_from(kept)}: of {selection['prompts']['value']:,.0f} prompts"
    yield "output", _size(size["value"]), f"{_from(size)}: compressed text"


def _ways(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield all rows of the only way to run, or one line for each way with a price."""
    ways = plan["ways"]
    if len(ways) == 1:
        yield from _way(plan, ways[0])
        return
    money = plan["prices"]["currency"]
    for way in ways:
        if way["fits"] is False:
            yield way["where"], "does not run", way["why"]
        elif way["cost"]:
            where = f"{way['workers']} x {way['machine']}" if way["workers"] > 1 else way["machine"]
            where += f", {way['devices']} GPUs each" if way["devices"] > 1 else ""
            yield way["where"], f"{_range(way['cost'])} {money}", f"assumed: {where}"
    others = [way["where"] for way in ways if way["fits"] and not way["cost"]]
    if others:
        yield "GPUs without price", ", ".join(name.removeprefix("nvidia-") for name in others), "see --json"


def _way(plan: Mapping[str, Any], way: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    prices, secs, cost = plan["prices"], way["secs"], way["cost"]
    for speed in way["speed"]:
        rate = f"{text.rate(speed['tokens_per_sec']['value'])} tokens/s"
        yield "speed", rate, f"measured: {speed['responses']:,} responses in {speed['secs']:.0f} s on {speed['device']}"
    if secs is None:
        yield "time", "not known", "no benchmark was made"
        return
    where = way["where"]
    if way["workers"] > 1:
        where = f"{where}, {way['workers']} workers" if way["basis"] == "measured" else f"{way['workers']} x {where}"
    where += f", {way['devices']} GPUs each" if way["devices"] > 1 else ""
    time = f"{format_duration(secs['low'])} to {format_duration(secs['high'])}, about {format_duration(secs['value'])}"
    yield "time", time, f"{way['basis']}: {where}"
    if way["gpu_hours"]:
        yield "GPU-hours", _range(way["gpu_hours"]), way["basis"]
    if cost:
        source = f"{way['machine']}, prices of {prices['date']}, {prices['region']}"
        yield "cost", f"{_range(cost)} {prices['currency']}", source
    else:
        yield "cost", "not known", "no machine with a price"
    if plan["proposed"]:
        options = " ".join(f"--{name}={value}" for name, value in plan["proposed"].items())
        yield "score by", options, "assumed: workers spend a tenth of their time starting"


def _number(quantity: Mapping[str, Any]) -> str:
    """Return `1,234` or `1,234 ± 56 (4.5%)`, with the larger side of the range."""
    value = f"{quantity['value']:,.0f}"
    half = max(quantity["high"] - quantity["value"], quantity["value"] - quantity["low"])
    return value if half < 0.5 else f"{value} ± {half:,.0f} ({half / max(1.0, quantity['value']):.1%})"


def _from(quantity: Mapping[str, Any]) -> str:
    basis: str = quantity["basis"]
    return _BASIS.get(basis, basis)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def _range(quantity: Mapping[str, Any]) -> str:
    return f"{quantity['low']:,.2f} to {quantity['high']:,.2f}"
