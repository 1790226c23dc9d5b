"""The whole graph with a stub scorer, against the obvious answer computed row by row."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from support.corpora import TIMED, corpus_rows, write_jsonl
from support.stubs import StubFactory, loads, scored_rows, stub_reward

from pipelines import curate
from pipelines.commands.run import run_curation, run_scoring
from pipelines.corpus import Fragment, fragments
from pipelines.errors import ConfigError, ConflictError, InputError, ModelLoadError, RejectedError, StorageError
from pipelines.plan import make_plans
from pipelines.score.score_files import decode
from pipelines.select import selection as selection_module
from rm.conversations import from_prompt, response_hash


def run(config, **factory):
    return run_curation(config, scorer=StubFactory(**factory))


def tree(root: Path) -> dict[str, str]:
    """Every file below an output except the scores and those that tell times, by content."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in TIMED and "scores" not in path.relative_to(root).parts
    }


def expected_best(rows, keep=1):
    """The obvious best-of-N: (prompt, response) of the highest reward, ties by response hash."""
    groups = defaultdict(set)
    for row in rows:
        groups[row["prompt"]].add(row["response"])
    best = set()
    for prompt, responses in groups.items():
        order = sorted(responses, key=lambda text: (-stub_reward(from_prompt(prompt), text), response_hash(text)))
        best |= {(prompt, response) for response in order[:keep]}
    return best


def kept(out) -> list[tuple[str, str]]:
    table = pq.read_table(Path(out) / "data")
    if "messages" in table.column_names:
        return [(m[0]["content"], m[-1]["content"]) for m in table["messages"].to_pylist()]
    if "completion" in table.column_names:
        prompts, completions = table["prompt"].to_pylist(), table["completion"].to_pylist()
        return [(p[-1]["content"], c[0]["content"]) for p, c in zip(prompts, completions, strict=True)]
    return list(zip(table["prompt"].to_pylist(), table["response"].to_pylist(), strict=True))


def grouped(rows):
    groups = defaultdict(list)
    for row in rows:
        groups[row["prompt"]].append(row["response"])
    return [{"prompt": prompt, "responses": responses} for prompt, responses in groups.items()]


@pytest.fixture(scope="module")
def once(tmp_path_factory, configure):
    """A finished run over `corpus_rows` in `a.jsonl`, its scores apart, with the log of its scorer; and a copy of it all."""
    root = tmp_path_factory.mktemp("finished") / "there"
    path = write_jsonl(root / "a.jsonl", corpus_rows())
    run(configure(root, path, scores={"path": str(root / "scores")}), log=str(root / "log"))
    shutil.copytree(root, root.with_name("kept"))
    return root


@pytest.fixture
def finished(once):
    """That run, at the same place and as it was left."""
    shutil.rmtree(once)
    shutil.copytree(once.with_name("kept"), once)
    return once


@pytest.fixture
def again(finished, configure):
    """Runs the same command once more, with changes."""

    def once_more(*, out="out", **changes):
        changes["output"] = {"path": str(finished / out), **changes.get("output", {})}
        config = configure(finished, finished / "a.jsonl", scores={"path": str(finished / "scores")}, **changes)
        return run(config, log=str(finished / "log"))

    return once_more


def test_best_of_n_end_to_end(tmp_path, make_config):
    rows = corpus_rows()
    config = make_config(write_jsonl(tmp_path / "in" / "a.jsonl", rows), input={"rows_per_fragment": 5})
    outcome = run(config)
    assert len(kept(tmp_path / "out")) == 12
    assert set(kept(tmp_path / "out")) == expected_best(rows)
    counts = outcome.manifest["counts"]
    assert (counts["read"], counts["scored"], counts["rejected_total"], counts["kept"]) == (48, 48, 0, 12)
    rewards = [float(stub_reward(from_prompt(row["prompt"]), row["response"])) for row in rows]
    best = [float(stub_reward(from_prompt(p), r)) for p, r in expected_best(rows)]
    mean = outcome.manifest["mean_reward"]
    assert mean["kept"] == pytest.approx(sum(best) / 12, abs=1e-12)
    assert mean["dropped"] == pytest.approx((sum(rewards) - sum(best)) / 36, abs=1e-12)
    table = pq.read_table(tmp_path / "out" / "data")
    for (prompt, response), reward in zip(kept(tmp_path / "out"), table["reward"].to_pylist(), strict=True):
        assert reward == float(stub_reward(from_prompt(prompt), response))


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz", "jsonl.zst", "list.parquet", "list.jsonl", "messages.jsonl"])
def test_every_source_gives_the_same_selection(tmp_path, make_config, kind):
    rows = corpus_rows()
    if kind.startswith("list"):
        rows_in = grouped(rows)
    elif kind.startswith("messages"):
        pairs = [(row["prompt"], row["response"]) for row in rows]
        rows_in = [
            {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": r}]} for p, r in pairs
        ]
    else:
        rows_in = rows
    path = tmp_path / "in" / f"a.{kind}"
    path.parent.mkdir()
    text = "".join(json.dumps(row) + "\n" for row in rows_in).encode()
    if kind.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows_in), path, row_group_size=5)
    else:
        compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(kind.rsplit(".", 1)[-1], lambda data: data)
        path.write_bytes(compress(text))
    run(make_config(path, input={"rows_per_fragment": 4}))
    assert set(kept(tmp_path / "out")) == expected_best(rows)


@pytest.mark.parametrize("shape", ["messages", "prompt_completion", "original"])
def test_shapes(tmp_path, make_config, shape):
    rows = corpus_rows(3)
    run(make_config(write_jsonl(tmp_path / "a.jsonl", rows), output={"shape": shape}))
    table = pq.read_table(tmp_path / "out" / "data")
    columns = {
        "messages": ["messages", "reward", "prompt_id", "source"],
        "prompt_completion": ["prompt", "completion", "reward", "prompt_id", "source"],
        "original": ["prompt", "response", "generator", "reward", "prompt_id", "response_index"],
    }
    assert table.column_names == columns[shape]
    assert set(kept(tmp_path / "out")) == expected_best(rows)
    if shape == "original":
        by_response = {row["response"]: row["generator"] for row in rows}
        assert all(by_response[row["response"]] == row["generator"] for row in table.to_pylist())


def test_an_empty_list_of_steps_keeps_every_row_in_input_order(tmp_path, make_config):
    rows = corpus_rows()
    run(make_config(write_jsonl(tmp_path / "a.jsonl", rows), select=[]))
    assert kept(tmp_path / "out") == [(row["prompt"], row["response"]) for row in rows]


@pytest.mark.parametrize(
    ("suffix", "rows_per_shard"),
    [
        *[("jsonl", 5), ("jsonl.gz", 7), ("jsonl", 100)],
        *[pytest.param(*pair, marks=pytest.mark.slow) for pair in [("jsonl.gz", 5), ("jsonl", 7), ("jsonl.gz", 100)]],
    ],
)
def test_shards_hold_the_rows_in_order_and_to_the_row(tmp_path, make_config, rows_per_shard, suffix):
    rows = corpus_rows()
    for number, part in enumerate([rows[:20], rows[20:41], rows[41:]]):
        path = write_jsonl(tmp_path / "in" / f"{number}.jsonl", part)
        if suffix == "jsonl.gz":
            path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    config = make_config(tmp_path / "in" / "*", select=[], output={"rows_per_shard": rows_per_shard})
    outcome = run(config)
    sizes = [shard["rows"] for shard in outcome.manifest["shards"]]
    assert sizes == [rows_per_shard] * (48 // rows_per_shard) + ([48 % rows_per_shard] if 48 % rows_per_shard else [])
    assert kept(tmp_path / "out") == [(row["prompt"], row["response"]) for row in rows]
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"train-{n:05d}-of-{len(sizes):05d}.parquet" for n in range(len(sizes))]


def test_nothing_kept_is_an_empty_data_set_that_loads(tmp_path, make_config):
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows(2)), select=[{"threshold": {"min_reward": 2.0}}])
    assert run(config).manifest["counts"]["kept"] == 0
    assert kept(tmp_path / "out") == []


def test_the_second_run_is_a_no_op(finished, again):
    before = tree(finished / "out")
    assert (again().already_complete, loads(finished / "log"), scored_rows(finished / "log")) == (True, 1, 48)
    assert tree(finished / "out") == before


def test_a_lost_shard_is_made_again_without_scoring(finished, again):
    before = tree(finished / "out")
    next((finished / "out" / "data").iterdir()).unlink()
    assert not again().already_complete
    assert (loads(finished / "log"), scored_rows(finished / "log")) == (1, 48)
    assert tree(finished / "out") == before


def test_another_selection_reuses_every_score(finished, again):
    again(out="other", select=[{"best_of_n": {"keep": 2}}])
    assert (loads(finished / "log"), scored_rows(finished / "log")) == (1, 48)
    assert set(kept(finished / "other")) == expected_best(corpus_rows(), keep=2)


def test_a_claim_without_output_is_taken_over(tmp_path, make_config):
    """What the error of a failed run advises, mend and run again, must work in the same place."""
    path = write_jsonl(tmp_path / "a.jsonl", [*corpus_rows(4), *[{"prompt": "p", "response": ""}] * 6])
    with pytest.raises(RejectedError):
        run(make_config(path))
    write_jsonl(path, corpus_rows(4))
    (tmp_path / "out" / "data").mkdir()  # as a run leaves it that is killed before its first shard
    run(make_config(path, select=[{"best_of_n": {"keep": 2}}]))
    assert set(kept(tmp_path / "out")) == expected_best(corpus_rows(4), keep=2)


def test_a_touched_input_joins_its_finished_output(finished, again):
    before = tree(finished / "out")
    os.utime(finished / "a.jsonl", (1, 1))
    assert not again().already_complete
    assert tree(finished / "out") == before
    assert scored_rows(finished / "log") == 48


def test_other_inputs_into_a_finished_output_are_a_conflict(finished, again):
    write_jsonl(finished / "a.jsonl", corpus_rows(13))
    with pytest.raises(ConflictError, match="other input files or model"):
        again()


def test_a_second_selection_into_the_same_output_is_a_conflict(finished, again):
    before = tree(finished / "out")
    with pytest.raises(ConflictError, match=r"other select or output settings.*choose another output\.path"):
        again(select=[])
    assert tree(finished / "out") == before


def test_a_changed_model_setting_rescores(finished, again):
    again(out="other", model={"max_length": 77})
    assert scored_rows(finished / "log") == 2 * 48


def test_a_grown_corpus_scores_only_what_is_new(tmp_path, make_config):
    scores, log = {"path": str(tmp_path / "scores")}, tmp_path / "log"
    rows = corpus_rows()
    write_jsonl(tmp_path / "in" / "b.jsonl", rows[:30])
    run(make_config(tmp_path / "in" / "*.jsonl", scores=scores), log=str(log))
    write_jsonl(tmp_path / "in" / "a.jsonl", rows[30:])
    run(make_config(tmp_path / "in" / "*.jsonl", scores=scores, output={"path": str(tmp_path / "o2")}), log=str(log))
    assert scored_rows(log) == 48
    assert set(kept(tmp_path / "o2")) == expected_best(rows)


def test_a_touched_file_is_rehashed_and_not_rescored(finished, again):
    os.utime(finished / "a.jsonl", (1, 1))
    again(out="o2")
    assert scored_rows(finished / "log") == 48
    assert (finished / "o2" / "data").exists()


def test_a_rewritten_file_is_scored_anew_beside_the_old_scores(tmp_path, make_config):
    log, scores = tmp_path / "log", {"path": str(tmp_path / "scores")}
    rows = corpus_rows()
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    fragments = {"rows_per_fragment": 16}
    run(make_config(path, scores=scores, input=fragments), log=str(log))
    rows[20] = {**rows[20], "response": "rewritten"}
    write_jsonl(path, rows)
    os.utime(path, (2, 2))
    run(make_config(path, scores=scores, input=fragments, output={"path": str(tmp_path / "o2")}), log=str(log))
    assert scored_rows(log) == 48 + 16, "only the fragment with the changed row"
    assert set(kept(tmp_path / "o2")) == expected_best(rows)


def test_files_listed_in_another_order_give_the_same_bytes(tmp_path, make_config):
    rows = corpus_rows()
    paths = [str(write_jsonl(tmp_path / "in" / f"{n}.jsonl", rows[n * 16 : (n + 1) * 16])) for n in range(3)]
    run(make_config(paths))
    run(make_config(paths[::-1], output={"path": str(tmp_path / "reversed")}))
    assert tree(tmp_path / "out") == tree(tmp_path / "reversed")


def test_names_of_files_decide_the_order_of_the_rows_and_not_which_are_kept(tmp_path, make_config):
    rows = corpus_rows()
    rows += [{**row, "response": "tied"} for row in rows[:12]] * 2  # equal rewards across files, too
    for number, name in enumerate("abc"):
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", rows[number::3])
    run(make_config(tmp_path / "in"))
    (tmp_path / "in" / "a.jsonl").rename(tmp_path / "in" / "z.jsonl")
    run(make_config(tmp_path / "in", output={"path": str(tmp_path / "o2")}))
    assert sorted(kept(tmp_path / "out")) == sorted(kept(tmp_path / "o2"))
    assert kept(tmp_path / "out") != kept(tmp_path / "o2"), "the order follows the names"


@pytest.mark.parametrize("partitions", [1, 5, 64])
def test_partitions_do_not_change_a_byte(finished, again, monkeypatch, partitions):
    monkeypatch.setattr(selection_module, "PARTITIONS", partitions)
    again(out="o2")
    assert tree(finished / "o2") == tree(finished / "out")


def test_read_is_scored_plus_rejected_and_rejects_are_named(tmp_path, make_config):
    rows = [*corpus_rows(4), {"prompt": "p", "response": ""}, {"prompt": None, "response": "x"}]
    rows += [{"prompt": "p", "response": "UNSCORABLE secret"}, {"prompt": "p", "response": "fine"}]
    path = write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    path.write_text(path.read_text() + '{"prompt": "cut off secret')
    config = make_config(path, limits={"max_rejected_fraction": 0.5}, input={"rows_per_fragment": 3})
    manifest = run(config).manifest
    counts = manifest["counts"]
    assert (counts["rows"], counts["read"], counts["scored"], counts["rejected_total"]) == (21, 21, 17, 4)
    assert manifest["rejected"] == {"bad_json": 1, "empty_response": 1, "nan_reward": 1, "null_prompt": 1}
    rejected = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert [(row["file"], row["place"], row["reason"]) for row in rejected] == [
        ("a.jsonl", "line 17", "empty_response"),
        ("a.jsonl", "line 18", "null_prompt"),
        ("a.jsonl", "line 19", "nan_reward"),
        ("a.jsonl", "line 21", "bad_json"),
    ]
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file() and "data" not in file.parts:
            assert b"secret" not in file.read_bytes()


def test_one_empty_sample_ends_no_run_of_a_small_corpus(tmp_path, make_config):
    path = write_jsonl(tmp_path / "a.jsonl", [*corpus_rows(4), {"prompt": "p", "response": ""}])
    assert run(make_config(path)).manifest["rejected"] == {"empty_response": 1}


def test_too_many_rejected_rows_end_before_select_and_cost_no_score(tmp_path, make_config):
    rows = [*corpus_rows(4), {"prompt": "p", "response": ""}]
    path, log = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "log"
    scores = {"path": str(tmp_path / "scores")}
    with pytest.raises(RejectedError, match=r"1 of 17 .*empty_response 1; first: a\.jsonl line 17 empty_response\)"):
        run(make_config(path, scores=scores, limits={"max_rejected_fraction": 0.01}), log=str(log))
    assert not (tmp_path / "out" / "data").exists()
    run(make_config(path, scores=scores, limits={"max_rejected_fraction": 0.1}), log=str(log))
    assert (loads(log), scored_rows(log)) == (1, 16)
    assert len(kept(tmp_path / "out")) == 4


def test_score_then_select(tmp_path, make_config):
    path, log = write_jsonl(tmp_path / "a.jsonl", corpus_rows()), tmp_path / "log"
    config = make_config(path)
    with pytest.raises(InputError, match=r"not scored yet.*bestkept score"):
        run_curation(config, scorer=None)
    outcome = run_scoring(config, scorer=StubFactory(log=str(log)))
    assert (outcome.totals["read"], outcome.totals["scored"]) == (48, 48)
    assert run_curation(config, scorer=None).manifest["counts"]["kept"] == 12
    assert set(kept(tmp_path / "out")) == expected_best(corpus_rows())
    assert loads(log) == 1


def flipped(data, position):
    return bytes(byte ^ (4 if at == position else 0) for at, byte in enumerate(data))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_score_file_is_noticed_and_scored_again(tmp_path, make_config, damage):
    path, log = write_jsonl(tmp_path / "a.jsonl", corpus_rows()), tmp_path / "log"
    config = make_config(path, input={"rows_per_fragment": 16})
    run_scoring(config, scorer=StubFactory(log=str(log)))
    score_file = sorted((tmp_path / "out" / "scores").rglob("*.parquet"))[1]
    data = score_file.read_bytes()
    if damage == "flip":
        position = next(at for at in range(len(data) // 3, len(data)) if decode(flipped(data, at)) is None)
        data = flipped(data, position)
    score_file.write_bytes({"flip": data, "cut": data[:-9], "empty": b""}[damage])
    run(config, log=str(log))
    assert scored_rows(log) == 48 + 16
    assert set(kept(tmp_path / "out")) == expected_best(corpus_rows())


@pytest.mark.parametrize(("old", "new"), [("answer", "Answer"), ("prompt n", "Prompt n")])
def test_an_input_that_changes_between_score_and_export_is_noticed(tmp_path, make_config, monkeypatch, old, new):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows())
    original = Fragment.content_hash
    text = path.read_text()

    def change_after_scoring(self):
        content = original(self)
        status = path.stat()
        path.write_text(text.replace(old, new))  # equal size, and equal modification time
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        monkeypatch.setattr(Fragment, "content_hash", original)
        return content

    monkeypatch.setattr(Fragment, "content_hash", change_after_scoring)
    with pytest.raises(InputError, match=r"a\.jsonl has changed since it was scored"):
        run(make_config(path))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_other_files_must_have_the_mapped_columns(tmp_path, make_config):
    pq.write_table(pa.Table.from_pylist(corpus_rows(2)), tmp_path / "a.parquet")
    pq.write_table(pa.table({"prompt": ["p"], "text": ["r"]}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet has no column 'response'"):
        run(make_config(tmp_path / "*.parquet"))


def test_a_foreign_shard_is_a_conflict_not_overwritten(tmp_path, make_config):
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()))
    shard = tmp_path / "out" / "data" / "train-00000-of-00001.parquet"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"somebody else's")
    with pytest.raises(ConflictError, match="other content"):
        run(config)
    assert shard.read_bytes() == b"somebody else's"


def test_an_unexpected_failure_is_a_storage_error_with_the_remedy(tmp_path, make_config):
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows(2)))
    with pytest.raises(StorageError, match=r"ZeroDivisionError at pipelines/[\w/]+\.py:\d+; .*same command again"):
        run_curation(config, scorer=lambda plan: 1 / 0)


def test_original_columns_of_unlike_json_rows_get_one_schema(tmp_path, make_config):
    extras = [1, 2.5, "three", {"four": 4}, None]
    rows = [{"prompt": f"p{n}", "response": "r", "extra": extra} for n, extra in enumerate(extras)]
    write_jsonl(tmp_path / "in" / "a.jsonl", rows[:2])
    write_jsonl(tmp_path / "in" / "b.jsonl", rows[2:])
    config = make_config(
        tmp_path / "in", select=[], output={"shape": "original", "rows_per_shard": 2}, input={"rows_per_fragment": 1}
    )
    run(config)
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out" / "data").iterdir())]
    assert len({table.schema.to_string() for table in tables}) == 1
    values = [value for table in tables for value in table["extra"].to_pylist()]
    assert values == ["1", "2.5", '"three"', '{"four": 4}', None]


def test_changed_group_keys_are_scored_anew(tmp_path, make_config):
    scores, log = {"path": str(tmp_path / "scores")}, tmp_path / "log"
    rows = [{"id": n % 2, "prompt": f"wording {n}", "response": f"r{n}"} for n in range(6)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    run(make_config(path, input={"group_by": ["id"]}, scores=scores), log=str(log))
    write_jsonl(path, [{**row, "id": n % 3} for n, row in enumerate(rows)])
    other = make_config(path, input={"group_by": ["id"]}, scores=scores, output={"path": str(tmp_path / "o2")})
    assert run(other, log=str(log)).manifest["counts"]["prompts"] == 3
    assert scored_rows(log) == 12


def test_an_added_column_is_exported_and_nothing_is_scored_again(finished, again):
    write_jsonl(finished / "a.jsonl", [{**row, "extra": n / 2} for n, row in enumerate(corpus_rows())])
    assert [again(out="o2", output={"shape": "original"}).already_complete for _ in range(2)] == [False, True]
    assert scored_rows(finished / "log") == 48
    table = pq.read_table(finished / "o2" / "data")
    by_response = {row["response"]: n / 2 for n, row in enumerate(corpus_rows())}
    assert [by_response[response] for response in table["response"].to_pylist()] == table["extra"].to_pylist()


def test_columns_that_scoring_does_not_read_do_not_move_fragments(tmp_path, make_config, monkeypatch):
    """Large, and not UTF-8: the fragments of export must be those of scoring all the same."""
    monkeypatch.setattr(fragments, "FRAGMENT_BYTES", 600)
    rows = corpus_rows(5)
    table = pa.Table.from_pylist(rows)
    large = pa.array(["x" * 3000] * len(rows))
    broken = pa.array([b"fine", b"\xff\xfe"] * (len(rows) // 2)).view(pa.string())
    table = table.append_column("large", large).append_column("broken", broken)
    pq.write_table(table, tmp_path / "a.parquet")
    config = make_config(tmp_path / "a.parquet", output={"shape": "original"}, limits={"max_row_bytes": 1024})
    manifest = run(config).manifest
    assert (manifest["counts"]["rejected_total"], manifest["counts"]["kept"]) == (0, 5)
    kept_rows = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert {row["large"] for row in kept_rows} == {"x" * 3000}
    assert {row["broken"] for row in kept_rows} <= {"fine", "\ufffd\ufffd"}


def test_odd_json_values_do_not_end_a_run(tmp_path, make_config):
    extras = [{}, {"deep": {}}, [{}], "\ud800", 2**60 + 1]
    rows = [{"prompt": f"p{n}", "response": "r", "source": "\ud800", "e": value} for n, value in enumerate(extras)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for size in (1, 5):
        out = tmp_path / f"out-{size}"
        config = make_config(
            path, select=[], output={"shape": "original", "path": str(out)}, input={"rows_per_fragment": size}
        )
        run(config)
        assert [json.loads(value) for value in pq.read_table(out / "data")["e"].to_pylist()] == extras


def test_our_own_output_can_be_an_input(tmp_path, make_config):
    path = write_jsonl(tmp_path / "a.jsonl", corpus_rows())
    for number in range(3):
        out = tmp_path / f"round-{number}"
        run(make_config(path, select=[], output={"shape": "original", "path": str(out)}))
        path = out / "data" / "*.parquet"
    assert {"reward", "bestkept_reward", "bestkept_bestkept_reward"} <= set(pq.read_table(out / "data").column_names)


def test_an_output_inside_its_input_is_refused(tmp_path, make_config):
    write_jsonl(tmp_path / "in" / "a.jsonl", corpus_rows())
    with pytest.raises(ConfigError, match="lies inside input"):
        run(make_config(tmp_path / "in", output={"path": str(tmp_path / "in" / "out")}))


def test_an_empty_part_file_does_not_decide_the_columns(tmp_path, make_config):
    write_jsonl(tmp_path / "in" / "a.jsonl", [])
    write_jsonl(tmp_path / "in" / "b.jsonl", corpus_rows())
    assert run(make_config(tmp_path / "in")).manifest["counts"]["kept"] == 12
    (tmp_path / "in" / "b.jsonl").write_text("")
    with pytest.raises(InputError, match="none has a usable row"):
        run(make_config(tmp_path / "in", output={"path": str(tmp_path / "o2")}))


def test_one_nan_is_a_rejected_row_and_all_nan_is_the_models_fault(tmp_path, make_config):
    path = write_jsonl(tmp_path / "a.jsonl", [*corpus_rows(4), {"prompt": "p", "response": "UNSCORABLE"}])
    config = make_config(path, input={"rows_per_fragment": 16}, limits={"max_rejected_fraction": 0.1})
    assert run(config).manifest["rejected"] == {"nan_reward": 1}
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": f"p{n}", "response": "UNSCORABLE"} for n in range(16)])
    with pytest.raises(ModelLoadError, match="NaN for every response"):
        run(make_config(path, output={"path": str(tmp_path / "o2")}))


def test_carried_columns_and_sources_are_in_the_score_files(tmp_path, make_config):
    rows = [{**row, "source": f"s{n % 2}", "n": n} for n, row in enumerate(corpus_rows(3))]
    config = make_config(write_jsonl(tmp_path / "a.jsonl", rows), input={"carry": ["generator", "n"]})
    run_scoring(config, scorer=StubFactory())
    (score_file,) = (tmp_path / "out" / "scores").rglob("*.parquet")
    table = pq.read_table(score_file)
    assert table["carry.generator"].to_pylist() == [row["generator"] for row in rows]
    assert table["carry.n"].to_pylist() == [str(row["n"]) for row in rows]
    assert table["source"].to_pylist() == [row["source"] for row in rows]


def test_group_by_columns_decides_who_competes(tmp_path, make_config):
    rows = [{"id": n % 2, "prompt": f"wording {n}", "response": f"r{n}"} for n in range(6)]
    config = make_config(write_jsonl(tmp_path / "a.jsonl", rows), input={"group_by": ["id"]})
    run(config)
    best = {
        max(
            (row for row in rows if row["id"] == i), key=lambda r: stub_reward(from_prompt(r["prompt"]), r["response"])
        )["response"]
        for i in (0, 1)
    }
    assert {response for _, response in kept(tmp_path / "out")} == best


def test_a_moved_corpus_keeps_its_scores_under_one_pattern(tmp_path, make_config):
    log, scores = tmp_path / "log", {"path": str(tmp_path / "scores")}
    write_jsonl(tmp_path / "one" / "a.jsonl", corpus_rows())
    run(make_config(tmp_path / "one" / "*.jsonl", scores=scores), log=str(log))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    run(make_config(tmp_path / "two" / "*.jsonl", scores=scores, output={"path": str(tmp_path / "o2")}), log=str(log))
    assert scored_rows(log) == 48


def test_globs_on_any_file_system_keep_keys_relative_to_their_root(tmp_path, make_config):
    import fsspec

    memory = fsspec.filesystem("memory")
    rows = corpus_rows()
    for number in range(3):
        local = write_jsonl(tmp_path / "in" / "deep" / f"{number}.jsonl", rows[number::3])
        memory.pipe_file(f"/corpus/deep/{number}.jsonl", local.read_bytes())
    run(make_config(tmp_path / "in" / "*" / "*.jsonl"))
    run(make_config("memory://corpus/*/*.jsonl", output={"path": str(tmp_path / "o2")}))
    assert tree(tmp_path / "out") | {"claim.json": ""} == tree(tmp_path / "o2") | {"claim.json": ""}
    keys = [entry["key"] for entry in json.loads((tmp_path / "o2" / "manifest.json").read_text())["inputs"]]
    assert keys == [f"deep/{number}.jsonl" for number in range(3)]


def test_memory_filesystem_gives_the_same_bytes_as_local_disk(finished, configure):
    import fsspec

    run(configure(finished, finished / "a.jsonl", output={"path": "memory://bucket/out"}))
    memory = fsspec.filesystem("memory")
    for name in ("manifest.json", "README.md", "data/train-00000-of-00001.parquet", "claim.json"):
        assert memory.cat(f"/bucket/out/{name}") == (finished / "out" / name).read_bytes()


@pytest.mark.parametrize("scorer", [StubFactory(), None], ids=["run", "select"])
def test_a_graph_is_built_without_the_plan(tmp_path, make_config, scorer):
    """Which lies where only workers may reach it. Beam looks at every attribute of a DoFn that it is given."""
    config = make_config(write_jsonl(tmp_path / "a.jsonl", corpus_rows()), limits={"skip_bad_files": True})
    plans = make_plans(config)
    paths = plans.save(str(tmp_path / "scores"))
    Path(paths.whole).unlink()
    pipeline = beam.Pipeline(runner=FnApiRunner())
    curate.build(pipeline, config, paths, plans.whole, scorer)
    steps = {step.unique_name for step in pipeline.to_runner_api().components.transforms.values()}
    assert {"Score/SplitUnits", "Select/ReadScores", "Export/WriteShards", "Finish/PublishManifest"} <= steps
