"""Drift between two outputs: the new rows of the later one, compared with the rows of the earlier one. Pure.

Everything is computed from manifests and report numbers. If the later corpus contains all files of the earlier one and the
model is the same, the new rows are the difference of both counts; otherwise the whole of one corpus is compared with that of
the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipelines.storage.canonical_json import Json

_OTHERS = ("source", "(others)")
_UNITS = {
    "reward": "raw output of the reward model",
    "shift": "standard deviations of the old rewards",
    "ks": "share, 0 to 1",
    "rejected": "share of what was read",
    "kept": "share of what was scored",
    "characters": "characters",
    "sources": "share of what was scored",
}


def drift(old: tuple[Json, Json], new: tuple[Json, Json]) -> dict[str, Any]:
    """Compare two outputs, each its manifest and its report numbers.

    `reward` has both means, the `shift` of the mean in standard deviations of the old rewards, and `ks`, the largest distance
    between the distribution functions (Kolmogorov-Smirnov), from histograms: None where models differ or no row is new.
    `rejected` are shares of what was read, `kept` of what was scored, `sources` of the scored responses; `characters` are
    means. `units` names the units.
    """
    counts = _fold_sources([_counts(*output) for output in (old, new)])
    same_model = old[0]["fingerprint"] == new[0]["fingerprint"]
    grown = same_model and _files(old[0]).items() <= _files(new[0]).items()
    before, whole = counts
    after = whole - before if grown else whole
    reasons = sorted({name for part in (before, after) for kind, name in part if kind == "rejected"})
    return {
        "units": _UNITS,
        "rows": "new" if grown else "all",
        "responses": {"old": before["scored", ""], "new": after["scored", ""]},
        "reward": _reward(before, whole, grown=grown) if same_model else None,
        "rejected": _shares(before, after, [("rejected", name) for name in reasons], whole="read"),
        "rejected_shift": _rejected(after) - _rejected(before) if after["read", ""] else None,
        "kept": [manifest["counts"]["kept"] / max(1, manifest["counts"]["scored"]) for manifest in (old[0], new[0])],
        "characters": [_mean(part, "characters") for part in (before, after)],
        "sources": _shares(before, after, sorted(key for key in before | after if key[0] == "source"), whole="scored"),
    }


def _fold_sources(parts: list[Counter[tuple[str, Any]]]) -> list[Counter[tuple[str, Any]]]:
    """Count sources that one of the outputs does not list as others: each lists only its largest ones."""
    names = {key for part in parts for key in part if key[0] == "source" and key != _OTHERS}
    folded = {key for key in names if any(key not in part and _OTHERS in part for part in parts)}
    for part in parts:
        for key in folded & part.keys():
            part[_OTHERS] += part.pop(key)
    return parts


def _files(manifest: Json) -> dict[str, str]:
    return {file["key"]: file["content"] for file in manifest["inputs"]}


def _counts(manifest: Json, numbers: Json) -> Counter[tuple[str, Any]]:
    """Return all counts of an output by (kind, name)."""
    counts: Counter[tuple[str, Any]] = Counter()
    counts["read", ""], counts["scored", ""] = manifest["counts"]["read"], manifest["counts"]["scored"]
    counts.update({("rejected", name): count for name, count in manifest["rejected"].items()})
    for side in ("kept", "dropped"):
        counts["characters", ""] += numbers["sides"][side]["characters"]
    for row in numbers["sources"]:
        name = _OTHERS[1] if row["others"] else row["name"] or "(none)"
        counts["source", name] += row["kept"] + row["dropped"]
    if (bins := numbers["histogram"]) is not None:
        rows, edges = np.add(bins["kept"], bins["dropped"]).tolist(), bins["edges"]
        width = 2.0 ** round(np.log2((edges[-1] - edges[0]) / len(rows)))  # the edges in a report are rounded
        first = round(edges[0] / width)
        counts.update({("reward", (width, first + at)): count for at, count in enumerate(rows)})
    return counts


def _mean(counts: Counter[tuple[str, Any]], kind: str) -> float | None:
    return counts[kind, ""] / counts["scored", ""] if counts["scored", ""] else None


def _rejected(counts: Counter[tuple[str, Any]]) -> float:
    return sum(count for (kind, _), count in counts.items() if kind == "rejected") / max(1, counts["read", ""])


def _shares(
    before: Counter[tuple[str, Any]], after: Counter[tuple[str, Any]], keys: list[tuple[str, Any]], *, whole: str
) -> Mapping[str, list[float]]:
    return {key[1]: [part[key] / max(1, part[whole, ""]) for part in (before, after)] for key in keys}


def _reward(before: Counter[tuple[str, Any]], whole: Counter[tuple[str, Any]], *, grown: bool) -> dict[str, Any] | None:
    """Compare two histograms, whose bins begin at multiples of their powers of two.

    If the corpus has `grown`, only the new rows are compared with the old ones.
    """
    bins = [key[1] for part in (before, whole) for key in part if key[0] == "reward"]
    if not bins:
        return None
    width = max(width for width, _ in bins)
    places = [int(np.floor(at * fine / width)) for fine, at in bins]  # powers of two: exact
    first = min(places)
    table = np.zeros((2, 1 + max(places) - first))
    for side, part in zip(table, (before, whole), strict=True):
        for (kind, name), count in part.items():
            if kind == "reward":
                side[int(np.floor(name[1] * name[0] / width)) - first] += count
    if grown:  # below 0 where outliers were counted in the first or last bin of another range
        table[1] = np.maximum(table[1] - table[0], 0)
    totals = table.sum(axis=1)
    if not totals.all():
        return None
    middles = (first + np.arange(table.shape[1]) + 0.5) * width
    means = table @ middles / totals
    std = float(np.sqrt(table[0] @ (middles - means[0]) ** 2 / totals[0]))
    distance = np.abs(np.diff(np.cumsum(table, axis=1) / totals[:, None], axis=0)).max()
    shift = float(means[1] - means[0]) / std if std else None
    return {"old": float(means[0]), "new": float(means[1]), "std": std, "shift": shift, "ks": float(distance)}
