"""The figures of drift as rows of a table, for the report of a version and for a comparison of two."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.report.text import crop, percent
from pipelines.storage.canonical_json import Json


def drift_rows(found: Json) -> Iterator[tuple[str, str, str]]:
    """Yield (figure, before, now) from the content of `drift.json`; if the corpus has grown, `now` covers only the new rows."""
    reward, responses = found["reward"], found["responses"]
    title = "responses: old rows, new rows" if found["rows"] == "new" else "responses"
    yield title, f"{responses['old']:,}", f"{responses['new']:,}"
    if reward is not None:
        yield "mean reward, from a histogram", f"{reward['old']:.4g}", f"{reward['new']:.4g}"
        if reward["shift"] is not None:
            yield "shift of the mean, in standard deviations of the old rewards", "", f"{reward['shift']:+.2f}"
        yield "Kolmogorov-Smirnov distance of the rewards", "", f"{reward['ks']:.3f}"
    pairs = [("mean characters", ["-" if value is None else f"{value:,.0f}" for value in found["characters"]])]
    pairs += [(f"rejected as {name}, %", list(map(percent, shares))) for name, shares in found["rejected"].items()]
    pairs += [
        (f"from the source {crop(name, 60)}, %", list(map(percent, shares)))
        for name, shares in found["sources"].items()
    ]
    for name, (old, new) in pairs:
        yield name, old, new
