"""Our selections for `benchmarks/selection.py`: from score files only, and a whole run from them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from support.harness import COLLECTED, collect
from support.selection_data import export_config


def _select(root: Path, steps: list[Any]) -> tuple[float, Any]:
    import apache_beam as beam
    import numpy as np

    from pipelines.config import Limits, RunConfig
    from pipelines.runtime.beam_options import make_runner, pipeline_options
    from pipelines.runtime.transforms import Spread
    from pipelines.select.columns import unpack
    from pipelines.select.selection import Selection, needs_of
    from pipelines.select.transform import Select

    config = RunConfig.model_validate(
        {"input": {"path": "x"}, "model": {"path": "x"}, "output": {"path": "x"}, "select": steps}
    )
    needs = needs_of(config)
    descriptors = [text.encode() for text in json.loads((root / "descriptors.json").read_text())]
    began = time.perf_counter()
    pipeline = beam.Pipeline(runner=make_runner(config.runner), options=pipeline_options(config.runner, []))
    selection = Selection(tuple(config.select), needs, None, 16)
    selected = (
        pipeline
        | "Files" >> beam.Create(descriptors, reshuffle=False)
        | "Spread" >> Spread()
        | "Select" >> Select(selection, Limits(max_rejected_fraction=1.0), with_schemas=False)
    )
    _ = selected["kept"] | "Keep" >> beam.Map(collect)
    pipeline.run().wait_until_finish()
    secs = time.perf_counter() - began
    ids = [(k.file, unpack([k.kept], needs.kept).row) for k in COLLECTED]
    return secs, np.sort(np.concatenate([(np.int64(file) << 32) | row for file, row in ids]))


def ours_best(root: Path) -> Any:
    return _select(root, [{"best_of_n": {"min_candidates": 1}}])


def ours_top(root: Path) -> Any:
    return _select(root, [{"top": {"fraction": 0.1, "per": "source"}}])


def ours_where(root: Path) -> Any:
    """A reward combined from two numbers, conditions on it, the tokens and the source, then the best of each prompt."""
    steps = [
        {"reward": "reward - 0.0005 * response_tokens"},
        {"where": 'reward > -1 and 200 <= tokens <= 1000 and source not in ["source-1", "source-3"]'},
        {"best_of_n": {"min_candidates": 1}},
    ]
    return _select(root, steps)


def ours_export(root: Path) -> Any:
    """Run without the report, which no other tool writes."""
    return _export(root, report=False)


def ours_export_and_report(root: Path) -> Any:
    return _export(root, report=True)


def _export(root: Path, *, report: bool) -> Any:
    from pipelines.commands.run import run_curation

    out = f"out-{time.time_ns()}"
    config = export_config(root, out, report=report)
    began = time.perf_counter()
    outcome = run_curation(config, scorer=None)
    return time.perf_counter() - began, outcome.manifest["counts"]["kept"]  # type: ignore[index]
