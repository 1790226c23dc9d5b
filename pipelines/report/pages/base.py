"""What all pages share: one self-contained HTML file without scripts, that refers to nothing outside itself."""

from __future__ import annotations

from typing import Any

import jinja2
from markupsafe import Markup

from pipelines.report.pages.style import STYLE
from pipelines.report.text import crop

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
<p class="serves">{{ chart.serves }}</p>
{{ chart.svg }}
{% if chart.note %}<p class="quiet">{{ chart.note }}</p>{% endif %}
</section>
{% endfor %}
{% block main %}{% endblock %}
</main>
</body>
</html>
"""


def render(template: str, **values: Any) -> str:
    """The page of a Jinja template that extends `page` and fills its blocks `header` and `main`; `values` hold `title` and
    `charts` (title, serves, svg and note of each), and what the template names. Text is escaped, `Markup` is
    not; the filter `crop` crops names."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"page": _BASE}), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["crop"] = crop
    return environment.from_string(template).render(style=Markup(STYLE), **values)
