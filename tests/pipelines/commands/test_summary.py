from __future__ import annotations

import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.progress_bar import describe
from pipelines.commands.run import run_curation, run_scoring
from pipelines.runtime import progress
from pipelines.runtime.progress import Progress


def test_rates_and_time_left_count_from_the_first_scored_fragment():
    now = Progress(
        input_bytes=600, fragments=2, found=1, found_bytes=500, found_responses=50, scored=30, tokens=900,
        scored_bytes=250.0, since=100.0, total_bytes=1000,
    )  # fmt: skip
    share, words = describe(now, 110.0)
    assert share == pytest.approx(0.75)
    # 250 bytes in 10 s, 250 left
    assert words == "80 responses, 3 rows/s, 90 tokens/s, 0:10 left, 1 of 2 fragments were scored before"


def test_nothing_yet_and_nothing_known():
    assert describe(Progress(total_bytes=1000), 5.0) == (0.0, "0 responses")
    assert describe(Progress(input_bytes=5), 5.0)[0] == 0.0


def test_a_run_counts_what_it_scored_and_what_it_found(tmp_path, make_config):
    rows = corpus_rows()
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    config = make_config(path, input={"rows_per_fragment": 16})
    progress.reset()
    run_scoring(config, scorer=StubFactory())
    done = progress.current()
    assert (done.fragments, done.found, done.published) == (3, 0, 48)
    assert done.input_bytes == done.total_bytes == path.stat().st_size
    sorted((tmp_path / "out" / "scores").rglob("*.parquet"))[0].unlink()
    progress.reset()
    run_scoring(config, scorer=StubFactory())
    again = progress.current()
    assert (again.fragments, again.found, again.published) == (3, 2, 16)


def test_an_export_counts_its_rows_and_shows_the_time_left(tmp_path, make_config):
    now = Progress(stage="exporting", scored=90, to_export=40, exported=10, export_since=100.0, total_bytes=1000)
    assert describe(now, 105.0) == (0.25, "10 of 40 rows written, 2 rows/s, 0:15 left")
    assert describe(Progress(to_export=40, export_since=100.0), 105.0) == (0.0, "0 of 40 rows written")
    uploading = Progress(stage="uploading", to_export=40, exported=40, export_since=100.0)
    assert describe(uploading, 900.0) == (1.0, "40 of 40 rows written")
    progress.reset()
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()))
    outcome = run_curation(config, scorer=StubFactory())
    done = progress.current()
    assert done.exported == done.to_export == outcome.manifest["counts"]["kept"] > 0
    assert done.stage == "exporting"
