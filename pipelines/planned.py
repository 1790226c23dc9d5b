"""How `bestkept plan` shows what it found: a table of one screen, or one JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_BASIS = {"at_most": "at most"}


def plan_shown(plan: Mapping[str, Any], *, as_json: bool) -> None:
    """On standard output."""
    if as_json:
        sys.stdout.write(json.dumps(plan, allow_nan=False) + "\n")
        return
    console = Console()
    console.print(plan_table(plan))
    for line in plan["warnings"]:
        console.print(Text(f"note: {line}"), soft_wrap=True)


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Rows of (what, how much, what that rests on)."""
    table = Table(title="plan", title_justify="left")
    for name in ("", "estimate", "from"):
        table.add_column(name, overflow="fold")
    for part in (_corpus(plan), _models(plan), _sizes(plan), _ways(plan)):
        for row in part:
            table.add_row(*map(Text, row))
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
    for model in plan["models"]:
        if len(plan["models"]) > 1:
            yield "model", model["name"], f"{model['parameters']:,} parameters, {model['dtype']}"
        scored, left = model["scored"], model["left"]
        sampled = f"{_from(model['tokens'])}: {model['sampled_responses']:,} responses tokenised"
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


def _sizes(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    selection = plan["selection"]
    yield "score files", _size(plan["scores"]["bytes"]["value"]), "assumed: bytes a row"
    shuffle = selection["shuffle_bytes"]
    yield "selection shuffles", _size(shuffle["high"]), f"{_from(shuffle)}: 48 bytes a response"
    kept, size = selection["kept"], selection["output_bytes"]
    yield "kept", f"{kept['value']:,.0f}", f"{_from(kept)}: of {selection['prompts']['value']:,.0f} prompts"
    yield "output", _size(size["value"]), f"{_from(size)}: text as zstandard leaves it"


def _ways(plan: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    money = plan["prices"]["currency"]
    for way in plan["ways"]:
        for speed in way["speed"]:
            rate = speed["tokens_per_sec"]
            measured = f"measured: {speed['responses']:,} responses in {speed['secs']:.0f} s on {speed['device']}"
            yield "speed", f"{rate['value']:,.0f} tokens/s", measured
        if way["fits"] is False:
            yield way["where"], "does not run", way["why"]
            continue
        if way["secs"] is None:
            yield "time", "not known", "no benchmark was made"
            continue
        alone = len(plan["ways"]) == 1
        where = way["machine"] or "no price"
        if way["workers"] > 1:
            where = f"{way['workers']} x {where}"
        time = f"{_duration(way['secs']['low'])} to {_duration(way['secs']['high'])}"
        hours = way["gpu_hours"]
        cost = way["cost"]
        price = f"{cost['low']:,.2f} to {cost['high']:,.2f} {money}" if cost else "not known"
        gpu = f"{_hours(hours['low'])} to {_hours(hours['high'])} GPU-hours" if hours else ""
        if alone:
            yield "time", f"{time} ({_duration(way['secs']['value'])})", f"{way['basis']}, {way['where']}"
            if gpu:
                yield "GPU-hours", gpu.removesuffix(" GPU-hours"), way["basis"]
            source = (
                f"{where}, prices of {plan['prices']['date']}, {plan['prices']['region']}"
                if cost
                else "no machine named"
            )
            yield "cost", price, source
        else:
            yield way["where"], f"{gpu}, {price}", f"assumed: {where}"


def _number(quantity: Mapping[str, Any]) -> str:
    """`1,234` or `1,234 ± 56`, of the larger side."""
    value = f"{quantity['value']:,.0f}"
    half = max(quantity["high"] - quantity["value"], quantity["value"] - quantity["low"])
    return value if half < 0.5 else f"{value} ± {half:,.0f} ({half / max(1.0, quantity['value']):.1%})"


def _from(quantity: Mapping[str, Any]) -> str:
    basis = quantity["basis"]
    return _BASIS.get(basis, basis)


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError


def _hours(hours: float) -> str:
    return f"{hours:,.1f}" if hours >= 1 else f"{hours:.2f}"


def _duration(secs: float) -> str:
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
