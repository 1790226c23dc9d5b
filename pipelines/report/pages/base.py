"""The frame of all report pages: self-contained HTML without scripts or external references.

The style sheet serves light, dark and print, narrow and wide screens; no font or file comes from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from markupsafe import Markup

from pipelines.report.pages.glossary import glossary
from pipelines.report.text import crop

STYLE = """
:root { --ink: #1c2330; --quiet: #5b6472; --paper: #ffffff; --panel: #f6f7f9; --rule: #d9dde3;
  --model: #1f5fd0; --length: #b34f16; --random: #6f7887; --oracle: #23784a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --quiet: #9aa4b2; --paper: #14171c; --panel: #1c2027;
  --rule: #343a45; --model: #7fb0ff; --length: #f0975a; --random: #98a2b1; --oracle: #63c793; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.05rem; margin: 0 0 .25rem; }
p { margin: 0 0 .5rem; }
code, th, td, .legend span { unicode-bidi: isolate; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .9em; overflow-wrap: anywhere; }
.quiet, .serves { color: var(--quiet); font-size: .875rem; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin-top: 1.5rem; }
section { background: var(--panel); border: 1px solid var(--rule); border-radius: .5rem; padding: 1rem; min-width: 0; }
section.wide { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; }
svg text { font-size: 12px; fill: var(--quiet); }
svg text.over { stroke: var(--panel); stroke-width: 4; stroke-linejoin: round; paint-order: stroke; }
@media (max-width: 30rem) { svg text { font-size: 14px; } }
.grid { stroke: var(--rule); stroke-width: 1; }
.reference { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 4 3; }
.line { fill: none; stroke: var(--c); stroke-width: 2; }
.whisker { stroke: var(--c); stroke-width: 2.5; stroke-linecap: round; }
.dot { fill: var(--c); }
.band { fill: var(--c); opacity: .16; }
.shift { stroke: var(--c); stroke-width: 2; }
.bar { fill: var(--c); stroke: var(--panel); stroke-width: 1; }
.bar.over { fill-opacity: .35; stroke: var(--c); }
.model, .kept, .after { --c: var(--model); } .length { --c: var(--length); } .oracle { --c: var(--oracle); }
.random, .dropped, .before { --c: var(--random); }
.line.length, .line.dropped { stroke-dasharray: 7 3; } .line.random, .line.before { stroke-dasharray: 2 3; }
.line.oracle { stroke-dasharray: 9 3 2 3; }
.bar.length { fill-opacity: .55; stroke: var(--c); }
.bar.dropped, .bar.before { fill-opacity: .25; stroke: var(--c); } .bar.dropped.over { stroke-dasharray: 3 2; }
.dot.ring { fill: none; stroke: var(--c); stroke-width: 2; }
.dot.length, .dot.before, .dot.dropped { fill: var(--panel); stroke: var(--c); stroke-width: 2; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .875rem; }
.legend span { display: inline-flex; align-items: center; gap: .4rem; max-width: 100%; overflow-wrap: anywhere; }
.key { flex: none; width: .75rem; height: .75rem; border: 2px solid var(--c); border-radius: 50%; background: var(--c); }
.key.round.length, .key.round.before, .key.round.dropped { background: none; }
.key.box { border-width: 1px; border-radius: 2px; }
.key.box.length { background: color-mix(in srgb, var(--c) 55%, transparent); }
.key.box.before, .key.box.dropped { background: color-mix(in srgb, var(--c) 25%, transparent); }
.key.stroke { width: 1.5rem; height: 2px; border: 0; border-radius: 0; background: var(--c); }
.key.stroke.length, .key.stroke.dropped { background: repeating-linear-gradient(90deg, var(--c) 0 7px, transparent 7px 10px); }
.key.stroke.random, .key.stroke.before { background: repeating-linear-gradient(90deg, var(--c) 0 2px, transparent 2px 5px); }
.key.stroke.oracle { background: linear-gradient(90deg, var(--c) 0 9px, transparent 9px 12px, var(--c) 12px 14px,
  transparent 14px 17px, var(--c) 17px); }
.lead { max-width: 60rem; }
.rivals { margin: .75rem 0 .5rem; }
.rivals th, .rivals td { white-space: normal; } .rivals th:first-child { min-width: 7rem; }
.rivals tbody td { text-wrap: balance; }
footer { margin-top: 1.5rem; }
.glossary { columns: 22rem; column-gap: 2rem; font-size: .875rem; margin: 0; }
.glossary dt { font-weight: 600; break-after: avoid; }
.glossary dd { margin: 0 0 .5rem; color: var(--quiet); break-inside: avoid; }
.scroll { overflow-x: auto; --under: var(--panel); background:  /* a shade at an edge beyond which there is more */
  linear-gradient(to right, var(--under) 40%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--under) 40%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--rule), transparent) left / .75rem 100% no-repeat scroll,
  linear-gradient(to left, var(--rule), transparent) right / .75rem 100% no-repeat scroll; }
header .scroll { --under: var(--paper); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; min-width: 50%; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 500; }
th.name { min-width: 8rem; white-space: normal; overflow-wrap: anywhere; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; }
.words th { width: 14rem; max-width: 40vw; padding-right: 1rem; }
thead th { color: var(--quiet); font-weight: 500; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 0; }
.warning { border-left: 3px solid var(--length); padding-left: .75rem; }
details { border-top: 1px solid var(--rule); padding: .5rem 0; }
summary { cursor: pointer; font-size: .875rem; overflow-wrap: anywhere; }
.turn { margin: .5rem 0; padding: .5rem .75rem; border-left: 3px solid var(--rule); }
.turn.assistant { border-left-color: var(--model); }
.turn b { color: var(--quiet); font-size: .75rem; font-weight: 500; }
.turn p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; unicode-bidi: isolate;
  overflow: hidden; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
.pair > div, .one > div { min-width: 0; }
.facts { font-size: .875rem; margin: .25rem 0 0; overflow-wrap: anywhere; }
.keep { color: var(--model); font-weight: 600; } .drop { color: var(--quiet); font-weight: 600; }
pre { margin: 0; font-size: .85em; white-space: pre-wrap; overflow-wrap: anywhere; }
.words td { overflow-wrap: anywhere; }
@media print { :root { font-size: 10pt; --ink: #000; --quiet: #444; --paper: #fff; --panel: #fff; --rule: #bbb; --model: #1f5fd0;
  --length: #a8470f; --random: #666; --oracle: #1d6b41; }
  body { max-width: none; padding: 0; font-size: 10pt; } section { break-inside: avoid; }
  .scroll { overflow: visible; background: none; }
  main { grid-template-columns: 1fr 1fr; }
  table { font-size: 7.5pt; } th, td { padding-right: .5rem; white-space: normal; } th.name { min-width: 0; }
  * { print-color-adjust: exact; } }
"""

_BASE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
{% block header %}{% endblock %}
</header>
<main>
{% for chart in charts %}
<section>
<h2>{{ chart.title }}</h2>
<p class="serves">This chart helps to decide {{ chart.serves }}</p>
{{ chart.svg }}
{% if chart.note %}<p class="quiet">{{ chart.note }}</p>{% endif %}
</section>
{% endfor %}
{% block main %}{% endblock %}
</main>
<!--glossary-->
</body>
</html>
"""


def render(template: str, *, more: Mapping[str, str] | None = None, **values: Any) -> str:
    """Return the page of a Jinja template that extends `page` and fills its blocks `header` and `main`.

    `values` contain `title` and `charts` (title, decision served, svg and note of each), and the names that the template
    uses; `more` contains the templates that it includes. Text is escaped, `Markup` is not; the filter `crop` crops names. The
    page ends with a glossary of its terms.
    """
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": _BASE, **(more or {})}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["crop"] = crop
    page = environment.from_string(template).render(style=Markup(STYLE), **values)
    return page.replace("<!--glossary-->", glossary(page))
