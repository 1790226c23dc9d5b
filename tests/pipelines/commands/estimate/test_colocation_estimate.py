"""`bestkept plan` on `score.colocate`: what it foresees either way is what a run then computes; tiny real models."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.colocated_texts import bundled
from support.corpora import write_jsonl

from pipelines.commands.estimate import colocation_estimate, survey, token_forecast
from pipelines.commands.estimate.colocation_estimate import colocated_share, cut_pieces
from pipelines.commands.estimate.estimate import PlanOptions, plan_run
from pipelines.commands.estimate.quantity import Quantity
from pipelines.commands.estimate.survey import BlockOfRows
from pipelines.commands.estimate.table import plan_table
from pipelines.commands.run import default_scorer, run_scoring
from pipelines.config import RunConfig
from pipelines.score import colocation
from rm.conversations import from_prompt

NO_BENCHMARK = PlanOptions(benchmark=False)


def spread_rows(prompts: int, files: int) -> list[list[dict[str, str]]]:
    """Files with one response to each prompt, one text twice."""
    draw = random.Random(1)
    texts = ["hot day " * draw.randint(2, 6) + f"number {number}" for number in range(prompts)]
    rows = [[{"prompt": p, "response": f"{n} is " + "good " * draw.randint(1, 4)} for p in texts] for n in range(files)]
    rows[1].append(rows[0][0])
    return rows


@pytest.fixture
def config(tmp_path, causal):
    def make(model: Path | None = None, *, prompts: int = 9, out: str = "out", **changes) -> RunConfig:
        for number, rows in enumerate(spread_rows(prompts, 4)):
            write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows)
        values = {
            "input": {"path": str(tmp_path / "in"), "rows_per_fragment": 12},
            "model": {"path": str(model or causal), "max_length": 128},
            "output": {"path": str(tmp_path / out)},
            **changes,
        }
        return RunConfig.model_validate(values)

    return make


def computed(settings: RunConfig) -> int:
    run_scoring(settings, scorer=default_scorer(settings))
    run = json.loads(Path(settings.scores_path, "run.json").read_text())
    return run["throughput"]["tokens_computed"]


def exact(quantity) -> float:
    assert quantity["basis"] == "exact"
    assert quantity["low"] == quantity["value"] == quantity["high"]
    return quantity["value"]


@pytest.mark.parametrize("kind", ["causal", "chat"])
def test_both_ways_are_foreseen_to_the_token(config, request, kind):
    model = request.getfixturevalue(kind)
    off = config(model)
    on = config(model, out="on", score={"colocate": "prompt"})
    [apart], [joined] = (plan_run(settings, options=NO_BENCHMARK)["models"] for settings in (off, on))
    assert apart["colocate"] | {"configured": "prompt"} == joined["colocate"]
    assert apart["colocate"]["configured"] is None
    found = (exact(apart["colocate"][name]) for name in ("off_computed_tokens", "prompt_computed_tokens"))
    without, with_it = found
    assert without == pytest.approx(computed(off))
    assert with_it == pytest.approx(computed(on))
    assert exact(apart["left"]["computed_tokens"]) == without
    assert exact(joined["left"]["computed_tokens"]) == with_it
    assert apart["colocate"]["gain"] == pytest.approx(without / with_it)
    assert apart["colocate"]["gain"] > 1.5


def test_it_is_shown_against_the_way_that_is_configured(config):
    def shown(settings: RunConfig) -> dict[str, tuple[str, str]]:
        table = plan_table(plan_run(settings, options=NO_BENCHMARK))
        cells = [[str(cell) for cell in column.cells] for column in table.columns]
        return {name: (value, where) for name, value, where in zip(*cells, strict=True)}

    off, on = config(), config(score={"colocate": "prompt"})
    [model] = plan_run(off, options=NO_BENCHMARK)["models"]
    both = model["colocate"]
    value, where = shown(off)["with score.colocate"]
    assert value == f"{both['prompt_computed_tokens']['value']:,.0f}, {both['gain']:.2f} times fewer"
    assert where == "exact: prompts by their hash"
    value, _ = shown(on)["without score.colocate"]
    assert value == f"{both['off_computed_tokens']['value']:,.0f}, {both['gain']:.2f} times as many"
    assert shown(on)["tokens computed"][0].startswith(f"{both['prompt_computed_tokens']['value']:,.0f}, ")


def test_a_model_that_shares_no_prompts_gains_nothing_and_nor_does_what_is_done(config, encoder):
    [model] = plan_run(config(encoder), options=NO_BENCHMARK)["models"]
    assert model["colocate"] is None
    done = config()
    computed(done)
    [model] = plan_run(done, options=NO_BENCHMARK)["models"]
    assert model["colocate"] is None


def test_a_sample_of_prompts_tells_of_all(config, monkeypatch):
    monkeypatch.setattr(token_forecast, "SHARING_BLOCKS", 10**6)  # those would be drawn at random
    settings = config(prompts=60)
    [whole] = plan_run(settings, options=NO_BENCHMARK)["models"]
    monkeypatch.setattr(colocation_estimate, "_PIECES", 10**6)
    [every] = plan_run(settings, options=NO_BENCHMARK)["models"]
    truth = exact(every["colocate"]["prompt_computed_tokens"])
    estimate = whole["colocate"]["prompt_computed_tokens"]
    assert estimate["basis"] == "sampled"
    assert estimate["low"] < truth < estimate["high"]
    assert estimate["value"] == pytest.approx(truth, rel=0.1)


def test_of_a_corpus_that_is_not_read_whole_it_is_a_bound(config, monkeypatch):
    settings = config(prompts=200)
    monkeypatch.setattr(colocation_estimate, "_PIECES", 10**6)
    [whole] = plan_run(settings, options=NO_BENCHMARK)["models"]
    truth = whole["colocate"]["gain"]
    monkeypatch.setattr(survey, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(survey, "BLOCKS", 6)
    monkeypatch.setattr(survey, "BLOCK_ROWS", 40)
    plan = plan_run(settings, options=NO_BENCHMARK)
    assert plan["corpus"]["read"] == "sample"
    [model] = plan["models"]
    both = model["colocate"]
    assert both["prompt_computed_tokens"]["basis"] == "at_most"
    assert both["prompt_computed_tokens"]["low"] == 0.0
    assert both["prompt_computed_tokens"]["value"] <= both["off_computed_tokens"]["value"]
    assert 1.0 <= both["gain"] < 1.1 * truth, "other prompts than all of them, so not quite"


class Counter:
    """A dry run with one token a character; the prompt of a group once."""

    packed, model = True, SimpleNamespace(causal=True)

    def count(self, groups):
        import numpy as np

        tokens = [np.array([len(prompt[-1][1]) + len(text) for text in texts]) for prompt, texts in groups]
        once = sum(len(prompt[-1][1]) + sum(map(len, set(texts))) for prompt, texts in groups)
        return tokens, SimpleNamespace(computed_tokens=once)


def block(file: int, pairs: list[tuple[str, str]]) -> BlockOfRows:
    rows = [
        SimpleNamespace(parsed=SimpleNamespace(prompt=from_prompt(prompt), responses=[text])) for prompt, text in pairs
    ]
    return BlockOfRows(file, 0, 0, len(rows), rows)


def test_the_share_by_hand():
    apart = Quantity.exact(1.0)
    blocks = [block(0, [("pppp", "a"), ("qq", "bb")]), block(1, [("pppp", "cc"), ("pppp", "a")])]
    share = colocated_share(blocks, Counter(), whole=True, responses=9, apart=apart)
    assert share == Quantity.exact((4 + 1 + 2 + 2 + 2) / (5 + 4 + 6 + 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(colocation_estimate, "_PIECES", 1)
        first = colocated_share(blocks, Counter(), whole=True, responses=2, apart=Quantity.exact(0.5))
        ratio = {"pppp": (4 + 1 + 2) / (5 + 4 + 2 + 1), "qq": 1.0}
        assert first.value in [pytest.approx(0.5 * each) for each in ratio.values()], "both ways of the first prompt"
        assert first.basis == "sampled"
    unread = colocated_share(blocks, Counter(), whole=False, responses=9, apart=Quantity.exact(0.5))
    assert unread == Quantity(0.5 * 11 / (5 + 4 + 2 + 1 + 4), 0.0, 0.5, "at_most")
    alone = [block(0, [("pppp", "a"), ("pppp", "b")]), block(1, [("qq", "cc")])]
    assert colocated_share(alone, Counter(), whole=True, responses=9, apart=apart) is apart
    unread = colocated_share(alone, Counter(), whole=False, responses=9, apart=apart)
    assert unread == Quantity(1.0, 0.0, 1.0, "at_most")


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=14), min_size=1, max_size=8), st.integers(1, 7))
def test_pieces_are_those_of_a_run(prompts, most):
    texts = [(f"p{number}", f"r{text}", 0) for number, own in enumerate(prompts) for text in own]
    run = [
        [(prompt, sorted(responses)) for prompt, responses in colocation.groups_in_texts(piece)]
        for piece in colocation.split_texts(colocation.Bucket.of(bundled(texts)).texts, responses=most)
    ]
    order = {prompt: number for number, (prompt, _) in enumerate(group for piece in run for group in piece)}
    groups = [(from_prompt(f"p{number}"), [f"r{text}" for text in own]) for number, own in enumerate(prompts)]
    groups.sort(key=lambda group: order[group[0]])
    told = list(cut_pieces(groups, responses=most))
    assert [[(prompt, len(set(own))) for prompt, own in piece] for piece in told] == [
        [(prompt, len(own)) for prompt, own in piece] for piece in run
    ]
    flat = sorted((prompt, text) for piece in told for prompt, own in piece for text in own)
    assert flat == sorted((prompt, text) for prompt, own in groups for text in own), "each as often as it was"
