"""The printed form of `bestkept inspect`: the mapping that `--json` prints, as tables and conversations.

Text of rows is shown unchanged, except that control characters become pictures and long texts lose their middle.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipelines.commands.printing import PlainConsole
from pipelines.storage.canonical_json import Json
from rm.conversations import describe_message

_SHOWN_CHARACTERS = 700
_RESPONSES_SHOWN = 3
_COMPARISONS_SHOWN = 6
_FILES_SHOWN = 5
_SPECIAL = "bold magenta"
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(127, 160), 65533
)
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def print_inspection(document: Json, *, as_json: bool) -> None:
    """Print an inspection on standard output: tables and conversations, or one JSON object."""
    if as_json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    console = PlainConsole()
    for part in render(document):
        console.print(part, soft_wrap=not isinstance(part, Table))


def render(document: Json) -> Iterator[RenderableType]:
    """Yield all parts in order: files, columns, then each view with its first conversations."""
    yield _files(document)
    yield _columns(document["columns"])
    views = {"corpus": document["corpus"], "preferences": document["preferences"]}
    if all(view["detected"] for view in views.values()):
        yield Text("These files can be read in both ways; each command reads them in its own.", style="bold")
    for name, view in views.items():
        yield Text()
        if view["detected"]:
            yield _corpus(view) if name == "corpus" else _preferences(view)
            for number, example in enumerate(view["first"], start=1):
                yield _example(example, number, document["model"])
        else:
            yield _refused(name, view)


def _files(document: Json) -> Table:
    files, rows, sample = document["files"], document["rows"], document["looked_at"]
    table = _table("inspected")
    paths = [document["path"]] if isinstance(document["path"], str) else document["path"]
    _add(table, "path", ", ".join(paths))
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in files["kinds"].items())
    _add(table, "files", f"{files['count']:,}, {format_size(files['bytes'])}: {kinds}")
    for file in files["first"][:_FILES_SHOWN]:
        _add(table, f"  {file['key']}", format_size(file["bytes"]))
    if files["count"] > _FILES_SHOWN:
        _add(table, "  ...", f"{files['count'] - _FILES_SHOWN:,} more")
    _add(table, "rows", f"{rows['count']:,}" if rows["exact"] else f"about {rows['count']:,}")
    _add(table, "looked at", sample["described"] + (f": {sample['rows']:,} rows" if sample["places"] else ""))
    return table


def _columns(columns: Sequence[Json]) -> Table:
    table = Table(title="columns, in the rows looked at", title_justify="left")
    for name in ("column", "holds", "read as", "null", "blank"):
        table.add_column(name, overflow="fold", justify="right" if name in ("null", "blank") else "left")
    for column in columns:
        cells = [column["name"], column["kind"] or "nothing", column["role"] or "-"]
        table.add_row(*map(visible, cells), f"{column['null']:,}", f"{column['blank']:,}")
    return table


def _corpus(view: Json) -> Table:
    table = _table(f"as a corpus, for bestkept run: {view['format']}")
    _add(table, "why", view["why"])
    _add(table, "to say the same", view["setting"])
    if view["response"]:
        _add(table, "response", f"{view['response']['taken']}: {view['response']['why']}")
    for other in view["others"]:
        _add(table, "could also be", f"{other['why']}: {other['setting']}")
    for note in view["notes"]:
        _add(table, "note", note)
    share = view["rejected_fraction"]
    total = sum(reason["responses"] for reason in view["rejected"].values())
    _add(table, "responses read", f"{view['responses_read']:,}")
    _add(table, "would be rejected", f"{total:,}" + (f" ({share:.2%})" if total else ""))
    for reason, rejected in view["rejected"].items():
        _add(table, f"  {reason}", f"{rejected['responses']:,}, first at {rejected['first']}")
    _add_figures(table, view)
    return table


def _preferences(view: Json) -> Table:
    table = _table(f"as preferences, for bestkept train: {view['format']}")
    _add(table, "why", view["why"])
    for other in view["others"]:
        _add(table, "could also be", f"{other['why']}: {other['setting']}")
    judged = view["judgements"]
    for note in view["notes"]:
        _add(table, "note", note)
    _add(table, "judged by", view["judged_by"])
    _add(table, "prompts", f"{judged['groups']:,}, with rows of one prompt merged")
    _add(table, "comparisons", f"{judged['comparisons']:,}" + (f", {judged['ties']:,} ties" if judged["ties"] else ""))
    if judged["labels"]:
        _add(table, "accepted or not", f"{judged['labels']:,}")
    _add(table, "rows used", f"{view['rows_used']:,}")
    for reason, count in view["rejected"].items():
        _add(table, f"  rejected: {reason}", f"{count:,}")
    _add_figures(table, view)
    return table


def _refused(name: str, view: Json) -> Text:
    command, article = {"corpus": ("run", "a corpus"), "preferences": ("train", "preferences")}[name]
    if view["ambiguous"]:
        return visible(f"Could be {article}, for bestkept {command}, with {' or '.join(view['settings'])}.")
    return visible(f"Not {article}, for bestkept {command}: {view['why']}.")


def _add_figures(table: Table, view: Json) -> None:
    figures, tokens = view["figures"], view["tokens"]
    rows = f"{figures['prompts']:,} prompts, {figures['responses']:,} responses"
    _add(table, "usable", rows)
    shares = [("with a system turn", "prompts_with_system"), ("of several turns", "prompts_of_several_turns")]
    for label, name in shares:
        if figures[name]:
            _add(table, f"  {label}", f"{figures[name]:,} prompts")
    for label, name in (
        ("responses per prompt", "responses_per_prompt"),
        ("prompt, characters", "prompt_characters"),
        ("response, characters", "response_characters"),
    ):
        _add(table, label, format_distribution(figures[name]))
    if tokens:
        for name in ("prompt", "response", "together"):
            _add(table, f"{name}, tokens", format_distribution(tokens[name]))
        share = tokens["over_max_length_fraction"]
        _add(
            table,
            f"over {tokens['max_length']:,} tokens",
            "-" if share is None else f"{tokens['over_max_length']:,} ({share:.2%})",
        )
        for reason, count in tokens["rejected"].items():
            _add(table, f"  rejected by the model: {reason}", f"{count:,}")
    _add(table, "rows with an earlier prompt", f"{figures['repeated_prompts']:,}")
    _add(table, "equal responses to one prompt", f"{figures['repeated_responses']:,}")


def _example(example: Json, number: int, model: Json | None) -> Group:
    parts = [Text(f"\n── {number}" + (f": {example['place']}" if "place" in example else ""), style="bold")]
    if example.get("tools"):
        parts.append(_message("tools", json.dumps(example["tools"], ensure_ascii=False)))
    for message in example["prompt"]:
        parts.append(_message(message["role"], describe_message(message)))
    responses = example["responses"]
    for at, response in enumerate(responses[:_RESPONSES_SHOWN], start=1):
        parts.append(_message("response" if len(responses) == 1 else f"response {at} of {len(responses):,}", response))
    if len(responses) > _RESPONSES_SHOWN:
        parts.append(Text(f"   ... {len(responses) - _RESPONSES_SHOWN:,} more responses"))
    parts += _judgements(example)
    if "as_read" in example and model is not None:
        parts.append(_as_read(example["as_read"], model, one_of_several=len(responses) > 1))
    return Group(*parts)


def _message(who: str, content: str) -> Text:
    return Text.assemble((f"{who}: ", "bold cyan"), visible(shortened(content)))


def _judgements(example: Json) -> list[Text]:
    verdicts = [
        f"{edge['preferred'] + 1} {'ties with' if edge['probability'] == 0.5 else 'beats'} {edge['other'] + 1}"
        + (f" (p {edge['probability']:.2f})" if edge["probability"] not in (0.5, 1.0) else "")
        for edge in example.get("comparisons", [])[:_COMPARISONS_SHOWN]
    ]
    verdicts += [f"{label['response'] + 1} accepted: {label['accepted']:g}" for label in example.get("labels", [])]
    more = len(example.get("comparisons", [])) - _COMPARISONS_SHOWN
    verdicts += [f"{more:,} more"] if more > 0 else []
    return [Text.assemble(("judged: ", "bold cyan"), ", ".join(verdicts))] if verdicts else []


def _as_read(read: Json, model: Json, *, one_of_several: bool) -> Text:
    """Return the text that the model reads; special tokens are coloured, and in brackets for output without colour."""
    if "rejected" in read:
        return Text(f"the model's template rejects it: {read['rejected']}", style="bold red")
    cut = f", cut to {model['max_length']:,}" if read["truncated"] else ""
    first = " (the first response)" if one_of_several else ""
    text = Text.assemble((f"as the model reads it{first}, {read['tokens']:,} tokens{cut}: ", "bold cyan"))
    for piece in read["pieces"]:
        if piece["special"]:
            text.append(f"⟦{piece['text']}⟧", style=_SPECIAL)
        else:
            text.append_text(visible(shortened(piece["text"])))
    return text


def shortened(content: str) -> str:
    """Return the content, without its middle if it is long."""
    if len(content) <= _SHOWN_CHARACTERS:
        return content
    head, tail = _SHOWN_CHARACTERS * 3 // 4, _SHOWN_CHARACTERS // 4
    return f"{content[:head]} [... {len(content) - head - tail:,} characters ...] {content[-tail:]}"


def visible(content: str) -> Text:
    """Return the content as text, not markup, with control characters as pictures: a row must not steer the terminal."""
    return Text(content.encode(errors="replace").decode().translate(_PICTURES))


def format_distribution(values: Json | None) -> str:
    """Return a distribution as `median 12, 95 % up to 80, at most 314`."""
    if values is None:
        return "-"
    return f"median {values['median']:,}, 95 % up to {values['p95']:,}, at most {values['max']:,}"


def format_size(count: int) -> str:
    """Return a number of bytes as `1.2 MB`, in powers of 1000."""
    value, unit = float(count), 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{count:,} bytes" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def _table(title: str) -> Table:
    table = Table(show_header=False, title=title, title_justify="left")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    return table


def _add(table: Table, name: str, value: str) -> None:
    table.add_row(visible(name), visible(value))
