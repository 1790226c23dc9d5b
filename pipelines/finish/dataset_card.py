"""The dataset card: README.md of the output, as hubs and `datasets` read it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pyarrow as pa
import yaml

from pipelines.export.hf_features import features_of
from pipelines.export.output_columns import COLUMNS as _SHAPES
from pipelines.export.shards import OutputShard
from pipelines.export.train_test_split import TRAIN
from pipelines.report.trial import paragraph
from pipelines.report.verdict import lines_of

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
{%- for name, rows in splits.items() %}
| split `{{ name }}` | {{ rows }} rows |
{%- endfor %}
| mean reward | kept {{ number(mean.kept) }}, dropped {{ number(mean.dropped) }} |
| for comparison | random at equal {{ controls.equal }} {{ number(controls.random) }}, longest of each prompt {{ number(controls.longest) }} |
{%- if ensemble %}
| reward | {{ ensemble }}, fingerprint `{{ fingerprint }}` |
{%- endif %}
{%- for model in models %}
| reward model | `{{ model.name }}`{% if model.revision %} at `{{ model.revision }}`{% endif %}, fingerprint `{{ model.fingerprint }}`{% if ensemble %}, mean {{ number(model.mean) }}, standard deviation {{ number(model.std) }}{% endif %} |
{%- endfor %}
{%- for line, _ in verdicts %}
| its verdict | {{ line | replace("|", "\\|") }} |
{%- endfor %}

Settings:

```yaml
{{ settings }}```
{% for warning in warnings %}
**Mind:** {{ warning }}.
{% endfor %}
Columns: {{ columns }}. Rewards are {{ "made of standardised" if ensemble else "raw" }} model outputs; they compare responses to one prompt, not prompts.
"""


_BEFORE_TRIAL, _TRIAL = "| for comparison |", "| trial |"


def with_trial(card: str, trial: Mapping[str, Any] | None) -> str:
    """The card with the result of a trial (`bestkept trial`) in place of an earlier result; without either if `trial` is None."""
    lines = [line for line in card.splitlines(keepends=True) if not line.startswith(_TRIAL)]
    if trial is None:
        return "".join(lines)
    place = next((at + 1 for at, line in enumerate(lines) if line.startswith(_BEFORE_TRIAL)), len(lines))
    words = paragraph(trial).replace("|", "\\|")
    return "".join((*lines[:place], f"{_TRIAL} {words} |\n", *lines[place:]))


_TAGS = {"messages": ["sft"], "prompt_completion": ["sft"], "preference": ["preference", "dpo"], "original": []}
_THOUSANDS = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]


def render(
    manifest: Mapping[str, Any], shards: Sequence[OutputShard], schema: pa.Schema, *, license: str | None
) -> str:
    """The card for a manifest, its shards and their columns. It contains numbers and settings, but no row text."""
    header: dict[str, Any] = {
        "configs": [{"config_name": "default", "data_files": _data_files(shards)}],
        "dataset_info": _dataset_info(shards, schema),
        "size_categories": [_size_category(sum(shard.rows for shard in shards))],
        "tags": ["bestkept", *_TAGS[manifest["selection"]["shape"]]],
        "task_categories": ["text-generation"],
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
        verdicts=list(lines_of(manifest)),
        fingerprint=manifest["fingerprint"],
        settings=yaml.safe_dump(manifest["selection"], sort_keys=False),
        splits=manifest.get("splits", {}),
        columns=_columns(manifest["selection"], schema),
        number=lambda value: "-" if value is None else f"{value:.4f}",
    )


def _splits(shards: Sequence[OutputShard]) -> list[str]:
    """The splits with rows, `train` first: `datasets` loads nothing if one of the splits is empty."""
    return sorted({shard.split for shard in shards if shard.rows}, reverse=True) or [TRAIN]


def _data_files(shards: Sequence[OutputShard]) -> list[dict[str, str]]:
    return [{"split": name, "path": f"data/{name}-*"} for name in _splits(shards)]


def _dataset_info(shards: Sequence[OutputShard], schema: pa.Schema) -> dict[str, Any]:
    """The section that `datasets` writes for a data set that it uploads; it refuses to load any other number of rows."""
    features = features_of(schema)
    splits = [
        {
            "name": name,
            "num_bytes": sum(shard.memory_bytes for shard in shards if shard.split == name),
            "num_examples": sum(shard.rows for shard in shards if shard.split == name),
        }
        for name in _splits(shards)
    ]
    return {
        **({} if features is None else {"features": features}),
        "splits": splits,
        "download_size": sum(shard.bytes for shard in shards),
        "dataset_size": sum(split["num_bytes"] for split in splits),
    }


def _size_category(rows: int) -> str:
    """The Hub's name for a size, such as `1K<n<10K`; a bound belongs to the category that begins there."""
    passed = bisect_right([1000 * 10**power for power in range(len(_THOUSANDS))], rows)
    if passed == 0:
        return "n<1K"
    return f"n>{_THOUSANDS[-1]}" if passed == len(_THOUSANDS) else f"{_THOUSANDS[passed - 1]}<n<{_THOUSANDS[passed]}"


def _ensemble(model: Mapping[str, Any]) -> str | None:
    """A phrase for how the rewards of several models were combined; None for one model."""
    if "ensemble" not in model:
        return None
    settings = model["ensemble"]
    words = {
        "mean": "mean",
        "min": "least",
        "lower_bound": f"mean less {settings.get('penalty')} standard deviations",
    }
    return f"{words[settings['combine']]} of {len(model['members'])} models, each standardised over {model['responses']} responses"


def _columns(selection: Mapping[str, Any], schema: pa.Schema) -> str:
    more = [*selection["add"], *selection["include_columns"]]
    tools = ["tools"] if "tools" in schema.names and "tools" not in more and selection["shape"] != "original" else []
    names = ", ".join(f"`{name}`" for name in [*_SHAPES[selection["shape"]], *tools, *more])
    return f"those of the input, {names}" if selection["shape"] == "original" else names
