"""An output in two splits: whole prompts, in place order, the same bytes whatever the run looked like."""

from __future__ import annotations

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.run import run_curation
from pipelines.select import selection as selection_module

SPLIT = {"test_fraction": 0.3, "rows_per_shard": 7}
KEEP_TWO = [{"best_of_n": {"keep": 2}}]


def run(config):
    return run_curation(config, scorer=StubFactory())


def rows_of(out, split="*") -> list[dict]:
    return [
        row for path in sorted((out / "data").glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


def data(out) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "data").iterdir())}


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "in" / "a.jsonl", corpus_rows(40))


@pytest.fixture
def both(tmp_path, corpus, make_config):
    """(the output as one, the output in two splits)"""
    run(make_config(corpus, select=KEEP_TWO, output={"path": str(tmp_path / "whole")}))
    outcome = run(make_config(corpus, select=KEEP_TWO, output=SPLIT))
    return tmp_path / "whole", tmp_path / "out", outcome.manifest


def test_every_prompt_is_whole_on_one_side_and_rows_stay_in_place_order(both):
    whole, out, manifest = both
    train, test = rows_of(out, "train"), rows_of(out, "test")
    test_prompts = {row["prompt_id"] for row in test}
    assert test_prompts
    assert not test_prompts & {row["prompt_id"] for row in train}
    everything = rows_of(whole)
    assert len(everything) == 80
    assert test == [row for row in everything if row["prompt_id"] in test_prompts]
    assert train == [row for row in everything if row["prompt_id"] not in test_prompts]
    assert manifest["splits"] == {"train": len(train), "test": len(test)}
    assert manifest["selection"]["test_fraction"] == 0.3
    assert manifest["selection"]["split_seed"] == 0
    shards = [-(-len(rows) // 7) for rows in (train, test)]
    names = [
        f"{split}-{at:05d}-of-{n:05d}.parquet"
        for split, n in zip(("train", "test"), shards, strict=True)
        for at in range(n)
    ]
    assert sorted(data(out)) == sorted(names)
    assert sorted(shard["name"] for shard in manifest["shards"]) == sorted(f"data/{name}" for name in names)


def test_without_the_setting_nothing_tells_of_splits(both):
    whole, _, _ = both
    manifest = json.loads((whole / "manifest.json").read_text())
    assert "splits" not in manifest
    assert not {"test_fraction", "split_seed"} & manifest["selection"].keys()
    assert set(manifest["shards"][0]) == {"name", "rows", "bytes", "xxh3_128"}
    assert [path.name for path in (whole / "data").iterdir()] == ["train-00000-of-00001.parquet"]


def test_the_bytes_depend_neither_on_partitions_nor_on_the_order_of_the_scores(
    both, tmp_path, corpus, make_config, monkeypatch
):
    _, out, _ = both
    monkeypatch.setattr(selection_module, "PARTITIONS", 3)
    output = {**SPLIT, "path": str(tmp_path / "again")}
    run(make_config(corpus, select=KEEP_TWO, output=output, input={"rows_per_fragment": 9}))
    assert data(tmp_path / "again") == data(out)


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
def test_every_source_gives_the_same_splits(both, tmp_path, make_config, kind):
    _, out, _ = both
    path = tmp_path / "other" / f"a.{kind}"
    path.parent.mkdir()
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(corpus_rows(40)), path, row_group_size=11)
    else:
        path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in corpus_rows(40)).encode()))
    run(make_config(path, select=KEEP_TWO, output={**SPLIT, "path": str(tmp_path / "again")}))
    for split in ("train", "test"):
        assert rows_of(tmp_path / "again", split) == rows_of(out, split)


def test_a_prompt_stays_on_its_side_when_the_corpus_grows(both, tmp_path, make_config):
    _, out, _ = both
    more = [*corpus_rows(90)[::-1], *corpus_rows(90, responses=1)]
    grown = write_jsonl(tmp_path / "grown" / "b.jsonl", more)
    run(make_config(grown, output={"test_fraction": 0.3, "path": str(tmp_path / "later")}))
    side = {row["prompt_id"]: split for split in ("train", "test") for row in rows_of(tmp_path / "later", split)}
    assert len(side) == 90
    assert all(side[row["prompt_id"]] == split for split in ("train", "test") for row in rows_of(out, split))


def test_another_seed_gives_other_test_prompts(both, tmp_path, corpus, make_config):
    _, out, _ = both
    run(make_config(corpus, output={**SPLIT, "split_seed": 1, "path": str(tmp_path / "other-seed")}))
    prompts = [{row["prompt_id"] for row in rows_of(path, "test")} for path in (out, tmp_path / "other-seed")]
    assert prompts[0] != prompts[1]


def test_both_responses_of_a_pair_are_on_the_side_of_their_prompt(both, tmp_path, make_config):
    _, out, _ = both
    paths = [
        write_jsonl(tmp_path / "pairs" / f"{n}.jsonl", corpus_rows(40)[n::3]) for n in range(3)
    ]  # sides in different files
    output = {"test_fraction": 0.3, "shape": "preference", "path": str(tmp_path / "pairs-out")}
    run(make_config([str(path) for path in paths], select=[{"pairs": {}}], output=output))
    side = {row["prompt_id"]: split for split in ("train", "test") for row in rows_of(out, split)}
    found = 0
    for split in ("train", "test"):
        for row in rows_of(tmp_path / "pairs-out", split):
            found += 1
            assert side[row["prompt_id"]] == split
            assert row["chosen_reward"] > row["rejected_reward"]
            assert row["chosen"][0]["content"] != row["rejected"][0]["content"]
    assert found == 40


@pytest.mark.parametrize(("fraction", "rows"), [(1e-9, {"train": 3, "test": 0}), (1 - 1e-9, {"train": 0, "test": 3})])
def test_a_split_without_rows_is_an_empty_shard_that_the_card_leaves_out(tmp_path, make_config, fraction, rows):
    import datasets

    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows(3))
    outcome = run(make_config(path, output={"test_fraction": fraction}))
    out = tmp_path / "out"
    full, empty = sorted(rows, key=rows.get, reverse=True)
    assert outcome.manifest["splits"] == rows
    assert f"the split {empty} has no rows" in outcome.manifest["warnings"][0]
    assert f"the split {empty} has no rows" in (out / "README.md").read_text()
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: split.num_rows for name, split in loaded.items()} == {full: 3}
    (shard,) = (out / "data").glob(f"{empty}-*")
    assert pq.read_table(shard).num_rows == 0
    assert pq.read_schema(shard) == pq.read_schema(next((out / "data").glob(f"{full}-*")))
