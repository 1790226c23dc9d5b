"""The numbers of report.json against the obvious way to get them, from the files of a run."""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.corpora import write_jsonl

from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.report import observations
from pipelines.report.pages import run as selection
from pipelines.report.pages import run_charts

PROMPTS, RESPONSES = 9, 6


def corpus():
    rows = []
    for p, r in itertools.product(range(PROMPTS), range(RESPONSES)):
        reward = ((p * 31 + r * 17) % 23 - 11) / 4 + r / 64
        rows.append(
            {
                "prompt": f"question {p}",
                "response": f"answer {p}-{r} " + "x" * ((p * 7 + r * 11) % 19),
                "source": "ab"[p % 2] if p % 3 else None,
                "reward": reward,
                "gold": None if (p + r) % 7 == 6 else (r * 5 + p) % 4 / 3,
            }
        )
    return rows


@pytest.fixture
def ran(tmp_path):
    """Runs a selection of the corpus: (rows with whether they were kept, report, manifest, samples, output)."""

    def run(steps, **report):
        rows = corpus()
        for number in range(3):
            write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
        config = RunConfig.model_validate(
            {
                "input": {"path": str(tmp_path / "in"), "carry": ["gold"], "rows_per_fragment": 7},
                "scores": {"column": "reward"},
                "select": steps,
                "output": {"path": str(tmp_path / "out")},
                "report": report,
            }
        )
        manifest = run_curation(config, scorer=None).manifest
        out = tmp_path / "out"
        kept = {text[-1]["content"] for text in pq.read_table(out / "data")["messages"].to_pylist()}
        for row in rows:
            row["kept"] = row["response"] in kept
        samples = pq.read_table(out / "samples.parquet").to_pylist()
        return rows, json.loads((out / "report.json").read_text()), manifest, samples, out

    return run


def by_prompt(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row)
    return list(groups.values())


def test_counts_sizes_and_sources(ran):
    rows, report, _, _, _ = ran([{"best_of_n": {"keep": 2}}])
    for side, kept in (("kept", True), ("dropped", False)):
        mine = [row for row in rows if row["kept"] == kept]
        length = sum(len(row["response"]) for row in mine)
        assert report["sides"][side] == {"rows": len(mine), "size": length, "characters": length}
    assert report["unit"] == "characters"
    expected = []
    for name in ("b", None, "a"):
        mine = [row for row in rows if row["source"] == name]
        sides = [[row for row in mine if row["kept"] == kept] for kept in (True, False)]
        sizes = [sum(len(row["response"]) for row in side) for side in sides]
        expected.append((name, False, *map(len, sides), *sizes))
    found = [
        tuple(one[key] for key in ("name", "others", "kept", "dropped", "kept_size", "dropped_size"))
        for one in report["sources"]
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)
    totals = [one["kept"] + one["dropped"] for one in report["sources"]]
    assert totals == sorted(totals, reverse=True)


def test_histogram_and_yield(ran):
    rows, report, _, _, _ = ran([{"threshold": {"min_reward": 0.5}}])
    bins = report["histogram"]
    edges = bins["edges"]
    for side, kept in (("kept", True), ("dropped", False)):
        mine = [row["reward"] for row in rows if row["kept"] == kept]
        assert bins[side] == np.histogram(mine, edges)[0].tolist()
        for one in bins["by_source"]:
            own = [row["reward"] for row in rows if row["kept"] == kept and row["source"] == one["name"]]
            assert one[side] == np.histogram(own, edges)[0].tolist()
    assert (bins["below"], bins["above"]) == (0, 0)
    width = edges[1] - edges[0]
    for point in report["yield"]:
        above = [row for row in rows if row["reward"] >= point["threshold"]]
        assert (point["rows"], point["size"]) == (len(above), sum(len(row["response"]) for row in above))
        assert abs(point["mean"] - statistics.mean(row["reward"] for row in above)) <= width
    assert report["yield"][0]["rows"] == len(rows)


def test_best_of_n_by_gold_is_the_mean_over_all_draws(ran):
    rows, report, _, _, _ = ran([{"best_of_n": {}}], gold="gold")
    assert (report["gold"], report["best_of_n"]["measured_by"], report["whole"]) == ("gold", "gold", True)
    for point in report["best_of_n"]["points"]:
        n, values = point["n"], []
        for group in by_prompt(rows):
            known = [row for row in group if row["gold"] is not None]
            if len(known) >= n:
                draws = [max(draw, key=lambda row: row["reward"])["gold"] for draw in itertools.combinations(known, n)]
                values.append(statistics.mean(draws))
        assert point["model"]["value"] == pytest.approx(statistics.mean(values), rel=1e-6)
        assert point["prompts"] == len(values)
    means = {
        side: statistics.mean(row["gold"] for row in rows if row["kept"] == kept and row["gold"] is not None)
        for side, kept in (("kept", True), ("dropped", False))
    }
    assert {side: report["gold_means"][side] for side in means} == pytest.approx(means, rel=1e-6)
    assert report["gold_means"]["responses"] == sum(row["gold"] is not None for row in rows)


def test_margins_and_overlap(ran):
    rows, report, _, _, _ = ran([{"best_of_n": {"keep": 2}}])
    gaps, by_length, shortest, kept = [], 0, 0, 0
    for group in by_prompt(rows):
        best, second = sorted((row["reward"] for row in group), reverse=True)[:2]
        gaps.append(best - second)
        lengths = sorted({len(row["response"]) for row in group}, reverse=True)
        assert len(lengths) == len(group), "no ties of length in this corpus"
        by_length += sum(row["kept"] for row in group if len(row["response"]) in lengths[:2])
        shortest += sum(row["kept"] for row in group if len(row["response"]) in lengths[-2:])
        kept += sum(row["kept"] for row in group)
    assert (report["margins"]["prompts"], report["margins"]["temperature"]) == (PROMPTS, None)
    assert report["margins"]["median"] == pytest.approx(statistics.median(gaps), rel=1e-6)
    counted = np.histogram(np.minimum(gaps, report["margins"]["edges"][-1]), report["margins"]["edges"])[0]
    assert sum(report["margins"]["counts"]) == PROMPTS == int(counted.sum())
    assert report["overlap"] == pytest.approx(
        {"responses": kept, "longest": by_length / kept, "shortest": shortest / kept, "random": 2 / RESPONSES}, rel=1e-6
    )
    below = 0.1 * statistics.pstdev(row["reward"] for row in rows)
    share = sum(gap < below for gap in gaps) / PROMPTS
    assert report["margins"]["near_ties"] == pytest.approx({"below": below, "share": share}, rel=1e-6)


def test_samples_are_the_ones_they_say(ran):
    rows, _, _, samples, _ = ran([{"best_of_n": {}}], samples=4)
    reward = {row["response"]: row["reward"] for row in rows}
    kept = sorted((row["reward"] for row in rows if row["kept"]), reverse=True)
    dropped = sorted((row["reward"] for row in rows if not row["kept"]), reverse=True)

    def of(kind):
        mine = [one for one in samples if one["kind"] == kind]
        for one in mine:
            text = one["messages"][-1]["content"]
            assert (one["reward"], one["characters"]) == (np.float32(reward[text]), len(text))
            assert one["messages"][0]["content"] == f"question {text.split()[1].split('-')[0]}"
            assert one["kept"] == next(row["kept"] for row in rows if row["response"] == text)
        return mine

    assert [one["reward"] for one in of("top")] == [np.float32(value) for value in kept[:4]]
    assert [one["reward"] for one in of("bottom")] == [np.float32(value) for value in sorted(reward.values())[:4]]
    assert [one["reward"] for one in of("border")] == [np.float32(value) for value in [*kept[-2:], *dropped[:2]]]
    calls = []
    for group in by_prompt(rows):
        inside, outside = ([row["reward"] for row in group if row["kept"] == side] for side in (True, False))
        calls.append((abs(min(inside) - max(outside)), min(inside), max(outside)))
    close = of("close")
    found = [(one["kept"], one["reward"]) for one in close]
    assert [float(one["margin"]) for one in close[::2]] == pytest.approx([gap for gap, _, _ in sorted(calls)[:4]])
    assert [kept for kept, _ in found] == [True, False] * 4
    assert [one["number"] for one in close] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_without_samples_no_text_of_the_corpus_is_there(ran):
    _, _, _, samples, out = ran([{"best_of_n": {}}], samples=0)
    assert samples == []
    for name in ("report.html", "report.json"):
        assert "answer" not in (out / name).read_text()
        assert "question" not in (out / name).read_text()


def test_no_report_where_none_is_asked_for(ran, tmp_path):
    with pytest.raises(FileNotFoundError):
        ran([{"best_of_n": {}}], write=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["report"] == []
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(("report", "samples"))]


def test_length_is_binned_and_corrected(ran):
    rows, report, _, _, _ = ran([{"best_of_n": {}}])
    bins = report["length"]["bins"]
    assert sum(one["responses"] for one in bins) == len(rows)
    assert sum(one["responses"] * one["reward"] for one in bins) == pytest.approx(
        sum(row["reward"] for row in rows), rel=1e-5
    )
    assert sum(one["responses"] * one["kept"] for one in bins) == pytest.approx(PROMPTS)
    lengths = [one["characters"] for one in bins]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [{"top": {"rows": 0}}],
        [{"threshold": {"min_reward": 99}}],
        [{"length_correction": {}}, {"top": {"fraction": 0.5}}],
        [{"random": {}}],
        [{"longest": {"keep": 3}}],
    ],
)
def test_every_selection_has_a_page(ran, steps):
    _, report, manifest, samples, out = ran(steps)
    page = (out / "report.html").read_text()
    assert page == selection.render(manifest, report, samples, json.loads((out / "run.json").read_text()))
    assert f"Kept {manifest['counts']['kept']:,} of {manifest['counts']['scored']:,} responses" in page
    assert not re.search(r"\b(nan|inf|None)\b", page)
    assert manifest["report"] == ["report.json", "samples.parquet"]
    assert not [value for value in _floats(report) if not math.isfinite(value)]


def _floats(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [one for part in value for one in _floats(part)]
    return [value] if isinstance(value, float) else []


def test_gold_is_compared_on_more_prompts_than_the_charts(ran, monkeypatch):
    monkeypatch.setattr(observations, "SAMPLE_ROWS", 2 * RESPONSES)
    rows, report, manifest, samples, _ = ran([{"best_of_n": {}}], gold="gold")
    assert (report["whole"], report["sample"]["prompts"]) == (False, 2)
    compared = report["gains"]
    assert (compared["whole"], compared["gold"]["prompts"]) == (True, PROMPTS)
    known = [row["gold"] for row in rows if row["kept"] and row["gold"] is not None]
    assert compared["gold"]["kept"] == report["gold_means"]["kept"] == pytest.approx(statistics.mean(known), rel=1e-6)
    assert report["best_of_n"]["points"][0]["prompts"] == PROMPTS
    page = selection.render(manifest, report, samples, None)
    assert "from a bootstrap over all 9 prompts with gold scores." in page
    assert "The chart is drawn from all 9 prompts with gold scores." in page
    assert "The chart is drawn from all 9 prompts with two or more gold scores." in page
    assert "random sample" not in page


def test_the_note_on_best_of_n_counts_the_prompts_of_its_curve(ran, monkeypatch):
    monkeypatch.setattr(observations, "SAMPLE_ROWS", 2 * RESPONSES)
    _, report, manifest, _, _ = ran([{"best_of_n": {}}], gold="gold")
    report["gains"]["gold"] = None  # as it is if no kept response has a gold score
    report["best_of_n"]["points"][0]["prompts"] = 5
    notes = {chart["title"]: chart["note"] for chart in run_charts.charts(manifest, report)}
    note = notes["Gain of the best of n, by gold score"]
    assert note.startswith("The chart is drawn from all 5 prompts with two or more gold scores. ")
