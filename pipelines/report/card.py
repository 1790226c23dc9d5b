"""The dataset card: README.md of the output, as hubs and `datasets` read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
import yaml

from pipelines.shapes import COLUMNS as _SHAPES

_CARD = """\
---
{{ header }}---

# Curated by bestkept

{{ counts.kept }} of {{ counts.scored }} scored responses {% if counts.prompts is not none %}to {{ counts.prompts }} prompts{% endif %}, kept by their reward.

| | |
|---|---|
| read | {{ counts.read }} responses |
| rejected | {{ counts.rejected_total }}{% for reason, n in rejected.items() %}{{ ": " if loop.first else ", " }}{{ reason }} {{ n }}{% endfor %} |
{%- if skipped_files %}
| skipped | {{ skipped_files | length }} files that could not be read, named in `manifest.json` |
{%- endif %}
| scored | {{ counts.scored }}, of which {{ counts.truncated }} truncated to the model's length |
{%- for step in steps %}
| after `{{ step.rule }}` | {{ step.rows }} responses{% if step.prompts is not none %} to {{ step.prompts }} prompts{% endif %} |
{%- endfor %}
| kept | {{ counts.kept }} responses to {{ counts.kept_prompts }} prompts |
| mean reward | kept {{ number(mean.kept) }}, dropped {{ number(mean.dropped) }} |
| for comparison | random at equal {{ controls.equal }} {{ number(controls.random) }}, longest of each prompt {{ number(controls.longest) }} |
{%- if ensemble %}
| reward | {{ ensemble }}, fingerprint `{{ fingerprint }}` |
{%- endif %}
{%- for model in models %}
| reward model | `{{ model.name }}`{% if model.revision %} at `{{ model.revision }}`{% endif %}, fingerprint `{{ model.fingerprint }}`{% if ensemble %}, mean {{ number(model.mean) }}, standard deviation {{ number(model.std) }}{% endif %} |
{%- endfor %}

Selection:

```yaml
{{ select }}```
{% for warning in warnings %}
**Mind:** {{ warning }}.
{% endfor %}
Columns: {{ columns }}. Rewards are {{ "made of standardised" if ensemble else "raw" }} model outputs; they compare responses to one prompt, not prompts.
"""


def render(manifest: Mapping[str, Any], *, license: str | None) -> str:
    """The card for a manifest. Holds numbers and settings, no row text."""
    header: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
        "tags": ["bestkept"],
    }
    if license is not None:
        header["license"] = license
    template = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined).from_string(_CARD)
    return template.render(
        header=yaml.safe_dump(header, sort_keys=True),
        counts=manifest["counts"],
        rejected=manifest["rejected"],
        steps=manifest["steps"],
        mean=manifest["mean_reward"],
        controls=manifest["controls"],
        warnings=manifest["warnings"],
        skipped_files=manifest["skipped_files"],
        models=manifest["model"].get("members") or [{**manifest["model"], "fingerprint": manifest["fingerprint"]}],
        ensemble=_ensemble(manifest["model"]),
        fingerprint=manifest["fingerprint"],
        select=yaml.safe_dump(manifest["selection"]["select"], sort_keys=False),
        columns=_columns(manifest["selection"]),
        number=lambda value: "-" if value is None else f"{value:.4f}",
    )


def _ensemble(model: Mapping[str, Any]) -> str | None:
    """How the rewards of several models became one; None of one model."""
    if "ensemble" not in model:
        return None
    settings = model["ensemble"]
    words = {
        "mean": "mean",
        "min": "least",
        "lower_bound": f"mean less {settings.get('penalty')} standard deviations",
    }
    return f"{words[settings['combine']]} of {len(model['members'])} models, each standardised over {model['responses']} responses"


def _columns(selection: Mapping[str, Any]) -> str:
    more = [*selection["add"], *selection["include_columns"]]
    names = ", ".join(f"`{name}`" for name in [*_SHAPES[selection["shape"]], *more])
    return f"those of the input, {names}" if selection["shape"] == "original" else names
