"""The report on a run: one self-contained HTML file, from manifest.json, report.json, samples.parquet and run.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from markupsafe import Markup

from pipelines.report.pages import answer, base, conversations
from pipelines.report.pages.drift_table import drift_rows
from pipelines.report.pages.run_charts import charts
from pipelines.report.text import crop, number, rate
from pipelines.storage.canonical_json import Json

_PAGE = """\
{% extends "page" %}
{% block header %}
<h1>{{ title }}</h1>
{% include "answer" %}
{% endblock %}
{% block main %}
{% if drift %}
<section class="wide">
<h2>Since version {{ against }}</h2>
<div class="scroll" role="region" tabindex="0" aria-label="Since the previous version"><table>
<thead><tr><td></td><th scope="col">before</th><th scope="col">{{ "new rows" if grown else "now" }}</th></tr></thead>
<tbody>
{% for name, old, new in drift %}
<tr><th scope="row" class="name">{{ name }}</th><td>{{ old }}</td><td>{{ new }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endif %}
{% for section in samples %}
{{ section }}
{% endfor %}
{% for table in data_tables %}
<section class="wide">
<h2>{{ table.title }}</h2>
<div class="scroll"><table class="words"><tbody>
{% for name, value in table.rows %}
<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% endfor %}
{% endblock %}
"""

_FILES_NAMED = 20


def render(
    manifest: Json,
    report: Json,
    samples: Sequence[Json],
    run: Json | None,
    *,
    drift: Json | None = None,
    trial: Json | None = None,
) -> str:
    """Return the page for a run. It has no script and no external reference; texts of `samples` are escaped and cut."""
    counts = manifest["counts"]
    return base.render(
        _PAGE,
        title=f"Kept {counts['kept']:,} of {counts['scored']:,} responses",
        answer=answer.answer(manifest, report, drift or {}, trial),
        more={"answer": answer.TEMPLATE},
        drift=list(drift_rows(drift)) if drift else [],
        against="" if drift is None else drift["against"],
        grown=drift is not None and drift["rows"] == "new",
        charts=list(charts(manifest, report)),
        samples=[Markup(section) for section in conversations.sections(samples, report["unit"])],
        data_tables=list(_tables(manifest, report, run)),
    )


def _tables(manifest: Json, report: Json, run: Json | None) -> Iterator[dict[str, Any]]:
    if report.get("signals"):
        yield {"title": "Signals: means of kept and dropped responses", "rows": list(_signals(report["signals"]))}
    if manifest.get("alike"):
        yield {"title": "Similar texts", "rows": list(_alike(manifest["alike"]))}
    if run is not None and run["throughput"].get("rows"):
        yield {"title": "Throughput of the last run", "rows": list(_throughput(run))}
    yield {"title": "Provenance", "rows": list(_identity(manifest))}


def _signals(signals: Json) -> Iterator[tuple[str, str]]:
    for name, sides in signals.items():
        means = (
            f"{number(sides[side]['mean'])} of {sides[side]['responses']:,} {side}" for side in ("kept", "dropped")
        )
        yield crop(name), ", ".join(means)


def _alike(steps: Sequence[Json]) -> Iterator[tuple[str, str]]:
    for found in steps:
        texts = f"{found['of']}s"
        words = f"at a similarity of {found['similarity']:g}, no two {texts} are similar"
        if found["groups"]:
            groups = "1 group" if found["groups"] == 1 else f"{found['groups']:,} groups"
            words = (
                f"at a similarity of {found['similarity']:g}, {groups} of similar {texts}, the largest of "
                f"{found['largest']:,}; the best of each is kept, {found['dropped']:,} {texts} are dropped"
            )
        yield f"{found['step'] + 1}. {found['rule']}", words


def _throughput(run: Json) -> Iterator[tuple[str, str]]:
    rates = run["throughput"]
    yield "command", f"{run['command']}, {run['secs']:,.0f} s, finished {run['finished']}"
    yield (
        "scored",
        f"{rates['rows']:,} responses, {rates['tokens_read']:,} tokens, in {rates['forward_secs']:,.0f} s of forward passes",
    )
    yield "per second", f"{rate(rates['rows_per_sec'])} responses, {rate(rates['tokens_read_per_sec'])} tokens"
    yield "tokens read per token computed", f"{rates['sharing_ratio']:.2f}, by sharing prompts"
    yield "padding", f"{rates['padding_ratio']:.1%} of computed tokens"
    if rates["model_flops_utilisation"] is not None:
        yield "share of the device's peak", f"{rates['model_flops_utilisation']:.1%} of FLOP/s"


def _identity(manifest: Json) -> Iterator[tuple[str, str | Markup]]:
    model = manifest["model"]
    for member in model.get("members") or [model]:
        revision = f" at {member['revision']}" if member.get("revision") else ""
        yield "reward model", f"{crop(member['name'])}{revision}"
    for name, signal in manifest.get("signals", {}).items():
        kind = "cosine of prompt and response by" if "embedding" in signal else "reward model"
        source = f"column {signal['column']}" if "column" in signal else f"{kind} {signal['name']}"
        yield "signal", crop(f"{name}: {source}")
    for measure in manifest.get("measures", ()):
        for file in measure.get("files", ()):
            shared = f"{file['hits']:,} responses share {measure['ngram']} words with {file['name']}"
            yield "test prompts", crop(f"{shared} ({file['prompts']:,} prompts)")
    yield "fingerprint", manifest["fingerprint"]
    for key in ("weights", "tokenizer", "dtype", "max_length", "too_long", "scoring_version"):
        if key in model:
            value = model[key]
            hashes = (
                ", ".join(f"{name} {digest}" for name, digest in value.items()) if isinstance(value, Mapping) else ""
            )
            yield key.replace("_", " "), crop(hashes or str(value), 2_000)
    settings = yaml.safe_dump({"select": manifest["selection"]["select"]}, sort_keys=False, allow_unicode=True)
    yield "selection", Markup("<pre>{}</pre>").format(settings)
    yield "shape", manifest["selection"]["shape"]
    mapping = {key: value for key, value in manifest["mapping"].items() if value not in (None, [])}
    yield "columns", crop(", ".join(f"{key}: {value}" for key, value in mapping.items()), 400)
    inputs = manifest["inputs"]
    names = ", ".join(crop(file["key"], 80) for file in inputs[:_FILES_NAMED])
    more = f" and {len(inputs) - _FILES_NAMED:,} more" if len(inputs) > _FILES_NAMED else ""
    size = f"{sum(file['size'] for file in inputs):,} bytes"
    yield "inputs", f"{len(inputs):,} {'file' if len(inputs) == 1 else 'files'}, {size}: {names}{more}"
    if manifest["skipped_files"]:
        yield "skipped files", f"{len(manifest['skipped_files']):,} unreadable, named in manifest.json"
    yield "shards", f"{len(manifest['shards']):,}, {sum(shard['bytes'] for shard in manifest['shards']):,} bytes"
