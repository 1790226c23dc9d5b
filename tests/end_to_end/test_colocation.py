"""`score.colocate: prompt`: the same score files and the same output as without, whatever file a response lies in."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.corpora import SHARED, TIMED, corpus_rows, write_jsonl
from support.stubs import NamedFactory, StubFactory, StubScorer, loads, scored_rows

from pipelines.commands.run import default_scorer, run_curation, run_scoring
from pipelines.config import RunConfig
from pipelines.corpus import fragments
from pipelines.errors import ConfigError, InputError, ModelLoadError, StorageError
from pipelines.runtime import progress
from pipelines.score import colocation_transform, score_files
from pipelines.score.work import CorpusShard

ON: dict[str, Any] = {"score": {"colocate": "prompt"}}


def outputs(out: Path) -> dict[str, bytes]:
    """All files of an output, scores left out, that tell no times."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name not in TIMED)
    return {str(p.relative_to(out)): p.read_bytes() for p in files if "scores" not in p.relative_to(out).parts}


def score_paths(out: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((out / "scores").glob("*/*.parquet"))}


def run_output(configure, root: Path, path: Path | str, *, scorer: Any = None, **changes: Any) -> Path:
    """The output of a run."""
    root.mkdir(exist_ok=True)
    run_curation(configure(root, path, **changes), scorer=scorer or StubFactory(log=str(root / "log")))
    return root / "out"


def assert_same(plain: Path, regrouped: Path) -> None:
    """Score files and outputs, byte by byte."""
    assert score_paths(plain)
    assert {name: path.read_bytes() for name, path in score_paths(plain).items()} == {
        name: path.read_bytes() for name, path in score_paths(regrouped).items()
    }
    assert outputs(plain) == outputs(regrouped)


AWKWARD = [
    {"prompt": "one", "response": "a first reply"},
    {"prompt": None, "response": "to nothing"},
    {"prompt": "one", "response": None},
    {"prompt": "", "response": "to an empty prompt"},
    {"prompt": "two", "response": ""},
    {"prompt": "two", "response": "UNSCORABLE"},
    {"prompt": "one", "response": "a first reply"},
    {"prompt": "caf\u00e9", "response": "one prompt, written in two ways"},
    {"prompt": "cafe\u0301", "response": "one prompt, written in two ways"},
    {"prompt": [{"role": "user", "content": "one"}], "response": "the same prompt as a list"},
    {"prompt": [{"role": "system", "content": "be\0brief"}, {"role": "user", "content": "one"}], "response": "yes"},
    {"prompt": [{"role": "robot", "content": "one"}], "response": "of nobody"},
    {"prompt": 'quotes " and \\ and \n', "response": "\u2028 \U0001f600"},
    {"prompt": 7, "response": "to a number"},
    {"prompt": "x" * 3000, "response": "y" * 5000},
    *({"prompt": "many", "response": f"reply {number}"} for number in range(30)),
]
LIMITS = {"limits": {"max_rejected_fraction": 1.0}}


@pytest.mark.parametrize("rows_per_fragment", [1, 4, 2048])
def test_an_awkward_corpus_over_several_files(tmp_path, configure, rows_per_fragment):
    rows = [{**row, "source": f"s{number % 3}", "kind": number % 2} for number, row in enumerate(AWKWARD)]
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::4])
    (tmp_path / "in" / "4.jsonl").touch()
    with gzip.open(tmp_path / "in" / "5.jsonl.gz", "wt") as file:
        file.write("\n".join([*map(json.dumps, rows[::5]), "no JSON", "[]"]))
    changes = {"input": {"rows_per_fragment": rows_per_fragment, "carry": ["kind"]}, **LIMITS}
    plain = run_output(configure, tmp_path / "plain", tmp_path / "in", **changes)
    regrouped = run_output(configure, tmp_path / "on", tmp_path / "in", **changes, **ON)
    assert_same(plain, regrouped)
    distinct = {(repr(row["prompt"]), row["response"]) for row in rows}
    assert scored_rows(tmp_path / "on" / "log") < len(distinct) < scored_rows(tmp_path / "plain" / "log")


def test_lists_of_responses_in_parquet_and_groups_by_columns(tmp_path, configure):
    rows = [
        {
            "prompt": f"p{n % 3}",
            "responses": [f"r{n} {i}" for i in range(n % 4)] + [None] * (n % 2),
            "topic": f"t{n % 2}",
        }
        for n in range(24)
    ]
    (tmp_path / "in").mkdir()
    for number in range(3):
        table = pa.Table.from_pylist(rows[number::3])
        pq.write_table(table, tmp_path / "in" / f"{number}.parquet", row_group_size=3)
    changes = {"input": {"rows_per_fragment": 2, "group_by": ["topic"]}, **LIMITS}
    plain = run_output(configure, tmp_path / "plain", tmp_path / "in", **changes)
    assert_same(plain, run_output(configure, tmp_path / "on", tmp_path / "in", **changes, **ON))


ROWS = st.lists(
    st.tuples(st.sampled_from(["p", "q", "caf\u00e9", "cafe\u0301", None]), st.integers(0, 5), st.integers(0, 3)),
    min_size=1,
    max_size=30,
)


@given(ROWS.filter(lambda rows: rows[0][0] is not None), st.integers(1, 6), st.integers(0, 3))
@settings(max_examples=8)
def test_whatever_file_a_row_lies_in(configure, rows, rows_per_fragment, bits):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        root = Path(folder)
        for prompt, response, file in sorted(rows, key=lambda row: row[2]):
            (root / "in").mkdir(exist_ok=True)
            with (root / "in" / f"{file}.jsonl").open("a") as stream:
                stream.write(json.dumps({"prompt": prompt, "response": f"reply {response}"}) + "\n")
        patch.setattr(colocation_transform, "bits_of", lambda plan: bits)
        patch.setattr(colocation_transform, "_MAX_HELD_BYTES", 300)
        changes = {"input": {"rows_per_fragment": rows_per_fragment}, **LIMITS}
        for name, more in (("plain", {}), ("on", ON)):
            (root / name).mkdir()
            scorer = StubFactory(log=str(root / name / "log"))
            run_scoring(configure(root / name, root / "in", **changes, **more), scorer=scorer)
        assert_same(root / "plain" / "out", root / "on" / "out")
        texts = {(prompt, response) for prompt, response, _ in rows if prompt is not None}
        assert scored_rows(root / "on" / "log") == len(texts), "each text once"


class WatchedScorer(StubScorer):
    """Notes the prompts of each call, and breaks after so many."""

    calls_seen: list[list[tuple[str, int]]] = []  # noqa: RUF012 - a test's own
    breaks_after: int | None = None

    def score(self, groups):
        if self.breaks_after is not None and len(self.calls_seen) >= self.breaks_after:
            raise StorageError("the device is lost")
        self.calls_seen.append([(prompt[-1][1], len(responses)) for prompt, responses in groups])
        return super().score(groups)


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(WatchedScorer, "calls_seen", [])
    monkeypatch.setattr(WatchedScorer, "breaks_after", None)
    return WatchedScorer


def factory(plan: Any) -> WatchedScorer:
    return WatchedScorer()


@pytest.fixture
def spread(tmp_path):
    """12 prompts with 4 responses, each response in a file of its own."""
    rows = corpus_rows()
    for number in range(4):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[12 * number : 12 * number + 12])
    return tmp_path / "in"


def test_the_model_sees_a_prompt_with_all_its_responses_at_once(tmp_path, configure, spread, watched, monkeypatch):
    monkeypatch.setattr(colocation_transform, "bits_of", lambda plan: 2)
    run_output(configure, tmp_path / "on", spread, scorer=factory, input={"rows_per_fragment": 9}, **ON)
    seen = [group for call in watched.calls_seen for group in call]
    assert sorted(seen) == sorted((f"prompt number {number}", 4) for number in range(12))
    assert max(sum(count for _, count in call) for call in watched.calls_seen) == 8, "two prompts fit into 9 responses"


def test_the_order_of_files_and_rows_decides_nothing(tmp_path, configure, watched):
    calls = []
    for name, order in (("a", 1), ("b", -1)):
        rows = corpus_rows()[::order]
        for number in range(4):
            write_jsonl(tmp_path / name / f"{number}.jsonl", rows[number::4])
        watched.calls_seen.clear()
        run_output(
            configure, tmp_path / f"on{name}", tmp_path / name, scorer=factory, input={"rows_per_fragment": 8}, **ON
        )
        calls.append(list(watched.calls_seen))
    assert calls[0] == calls[1], "the same batches, so the same rewards to the last bit"


def test_progress_counts_the_same(tmp_path, configure, spread):
    seen = []
    for name, changes in (("plain", {}), ("on", ON), ("on", ON | {"output": {"path": str(tmp_path / "again")}})):
        progress.reset()
        scores = {"scores": {"path": str(tmp_path / name / "scores")}}
        run_output(configure, tmp_path / name, spread, input={"rows_per_fragment": 5}, **{**changes, **scores})
        seen.append(replace(progress.current(), since=None, export_since=None))
    assert seen[0] == seen[1]
    assert (seen[1].fragments, seen[1].found, seen[1].published) == (12, 0, 48)
    assert (seen[2].fragments, seen[2].found, seen[2].published) == (12, 12, 0)
    assert seen[2].input_bytes == seen[1].input_bytes == sum(path.stat().st_size for path in spread.iterdir())


def test_one_prompt_with_very_many_responses(tmp_path, configure, watched):
    rows = [{"prompt": "p", "response": f"reply {number}"} for number in range(10_000)]
    rows.insert(5_000, {"prompt": "q", "response": "alone"})
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[number::3])
    plain = run_output(configure, tmp_path / "plain", tmp_path / "in")
    assert_same(plain, run_output(configure, tmp_path / "on", tmp_path / "in", scorer=factory, **ON))
    sizes = [sum(count for _, count in call) for call in watched.calls_seen]
    assert sum(sizes) == 10_001
    assert max(sizes) == 2048
    assert len(sizes) == 5


def test_what_is_scored_already_is_not_scored_again(tmp_path, configure, spread):
    log, root = tmp_path / "on" / "log", tmp_path / "on"
    changes = {"input": {"rows_per_fragment": 5}, "scores": {"path": str(tmp_path / "scores")}}
    run_output(configure, root, spread / "[01].jsonl", **changes)
    assert (scored_rows(log), loads(log)) == (24, 1)
    whole = {"output": {"path": str(tmp_path / "whole")}, **changes, **ON}
    run_output(configure, root, spread / "*.jsonl", **whole)
    assert (scored_rows(log), loads(log)) == (48, 2), "the other two files"
    (tmp_path / "scores").rename(tmp_path / "known")
    again = {"output": {"path": str(tmp_path / "again")}, **ON}
    again |= {"input": changes["input"], "scores": {"path": str(tmp_path / "own"), "also": [str(tmp_path / "known")]}}
    run_output(configure, root, spread / "*.jsonl", **again)
    assert (scored_rows(log), loads(log)) == (48, 2), "no model is loaded where all is there"
    assert not list((tmp_path / "own").glob("*/*.parquet"))
    plain = run_output(configure, tmp_path / "plain", spread / "*.jsonl", input={"rows_per_fragment": 5})
    for out in ("whole", "again"):
        assert outputs(tmp_path / out) == outputs(plain)


def test_half_a_unit_is_scored_already(tmp_path, configure, spread):
    out = run_output(configure, tmp_path / "on", spread, input={"rows_per_fragment": 5})
    before = {name: path.read_bytes() for name, path in score_paths(out).items()}
    footers = {name: score_files.decode(data)[1] for name, data in before.items()}
    gone = [name for name, footer in footers.items() if footer.fragment == 1 or footer.file_key == "2.jsonl"]
    for name in gone:
        score_paths(out)[name].unlink()
    run_scoring(
        configure(tmp_path / "on", spread, input={"rows_per_fragment": 5}, **ON),
        scorer=StubFactory(log=str(tmp_path / "log")),
    )
    assert {name: path.read_bytes() for name, path in score_paths(out).items()} == before
    missing = sum(footers[name].responses for name in gone)
    assert scored_rows(tmp_path / "log") == missing == 3 * 5 + 12, (
        "the last fragment of a unit is found though one before it is not"
    )


def test_broken_off_and_run_again(tmp_path, configure, spread, watched, monkeypatch):
    """Nothing is scored twice, whether it broke off while scoring or while score files were written."""
    monkeypatch.setattr(colocation_transform, "bits_of", lambda plan: 1)
    plain = run_output(configure, tmp_path / "plain", spread, input={"rows_per_fragment": 8})
    root, changes = tmp_path / "on", {"input": {"rows_per_fragment": 8}, **ON}
    watched.breaks_after = 3
    with pytest.raises(StorageError, match="the device is lost"):
        run_output(configure, root, spread, scorer=factory, **changes)
    out = root / "out"
    assert len(list(out.glob("scores/*/colocated/*/*.parquet"))) == 3
    assert not score_paths(out)
    watched.breaks_after = None
    written = colocation_transform.UnitScorer.score_unit

    def breaks(self, file_number, unit, found):
        if len(score_paths(out)) >= 3:
            raise StorageError("the disk is lost")
        return written(self, file_number, unit, found)

    monkeypatch.setattr(colocation_transform.UnitScorer, "score_unit", breaks)
    with pytest.raises(StorageError, match="the disk is lost"):
        run_output(configure, root, spread, scorer=factory, **changes)
    assert 0 < len(score_paths(out)) < len(score_paths(plain))
    monkeypatch.setattr(colocation_transform.UnitScorer, "score_unit", written)

    def no_model(plan):
        raise AssertionError("a model is loaded though all results are there")

    run_output(configure, root, spread, scorer=no_model, **changes)
    assert sum(count for call in watched.calls_seen for _, count in call) == 48
    assert_same(plain, out)


def test_a_damaged_piece_is_scored_again(tmp_path, configure, spread, watched):
    changes = {"input": {"rows_per_fragment": 16}, **ON}
    out = run_output(configure, tmp_path / "on", spread, scorer=factory, **changes)
    before = {name: path.read_bytes() for name, path in score_paths(out).items()}
    for path in score_paths(out).values():
        path.unlink()
    damaged = min(out.glob("scores/*/colocated/*/*.parquet"))
    data = bytearray(damaged.read_bytes())
    data[60] ^= 4
    damaged.write_bytes(data)
    watched.calls_seen.clear()
    run_scoring(configure(tmp_path / "on", spread, **changes), scorer=factory)
    assert [sum(count for _, count in call) for call in watched.calls_seen] == [16]
    assert {name: path.read_bytes() for name, path in score_paths(out).items()} == before


KILLER = """
import sys
sys.path.insert(0, {tests!r})
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig, load
from support.stubs import StubFactory
run_curation(load(RunConfig, {config!r}), scorer=StubFactory(log={log!r}, die_after=3))
"""


@pytest.mark.slow
def test_kill_9_then_the_same_command(tmp_path, configure, spread):
    log, tests = tmp_path / "log", str(Path(__file__).parents[1])
    plain = run_output(configure, tmp_path / "plain", spread, input={"rows_per_fragment": 8})
    config = configure(tmp_path, spread, input={"rows_per_fragment": 8}, **ON)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    script = KILLER.format(tests=tests, config=str(path), log=str(log))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert killed.returncode == -9
    assert scored_rows(log) == 3 * 8
    run_curation(config, scorer=StubFactory(log=str(log)))
    assert scored_rows(log) == 48
    assert_same(plain, tmp_path / "out")


def in_place(path: Path, data: bytes) -> None:
    """Other content, and nothing to see from outside."""
    status = path.stat()
    path.write_bytes(data)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_input_that_changes_in_between_is_noticed(tmp_path, configure, spread, watched, monkeypatch):
    scored = WatchedScorer.score

    def changes(self, groups):
        in_place(spread / "1.jsonl", (spread / "1.jsonl").read_bytes().replace(b"answer", b"Answer"))
        return scored(self, groups)

    monkeypatch.setattr(WatchedScorer, "score", changes)
    with pytest.raises(InputError, match=r"1\.jsonl has changed while it was scored.*; run the same command again"):
        run_output(configure, tmp_path / "on", spread, scorer=factory, **ON)
    monkeypatch.setattr(WatchedScorer, "score", scored)
    root = tmp_path / "again"
    assert_same(run_output(configure, tmp_path / "plain", spread), run_output(configure, root, spread, **ON))


def test_prompts_that_change_their_spelling_in_between_are_noticed(tmp_path, configure, watched, monkeypatch):
    """The content hash is of the canonical prompt; what the model read is the text."""
    path = write_jsonl(
        tmp_path / "in" / "a.jsonl", [{"prompt": unicodedata.normalize("NFD", "caf\u00e9"), "response": "r"}]
    )
    decomposed = path.read_bytes()
    write_jsonl(path, [{"prompt": "caf\u00e9", "response": "r"}])
    path.write_bytes(path.read_bytes().ljust(len(decomposed)))
    scored = WatchedScorer.score

    def changes(self, groups):
        in_place(path, decomposed)
        return scored(self, groups)

    monkeypatch.setattr(WatchedScorer, "score", changes)
    with pytest.raises(StorageError, match="has no result; run the same command again"):
        run_output(configure, tmp_path / "on", path, scorer=factory, **ON)


@pytest.mark.slow
def test_files_that_cannot_be_read_are_skipped_as_a_whole(tmp_path, configure, spread, monkeypatch):
    monkeypatch.setattr(fragments, "FRAGMENT_BYTES", 200)
    whole = (spread / "1.jsonl").read_bytes()
    with gzip.open(spread / "5.jsonl.gz", "wb") as file:
        file.write(whole * 400)
    cut = (spread / "5.jsonl.gz").read_bytes()
    (spread / "5.jsonl.gz").write_bytes(cut[:-20])
    with pytest.raises(InputError, match=r"5\.jsonl\.gz"):
        run_output(configure, tmp_path / "bad", spread, **ON)
    skip = {"limits": {"skip_bad_files": True}}
    plain = run_output(configure, tmp_path / "plain", spread, **skip)
    regrouped = run_output(configure, tmp_path / "on", spread, **skip, **ON)
    assert outputs(plain) == outputs(regrouped)
    skipped = json.loads((regrouped / "manifest.json").read_text())["skipped_files"]
    assert [each["key"] for each in skipped] == ["5.jsonl.gz"]


def test_verify_finds_a_change_that_keeps_size_and_time(tmp_path, configure, spread):
    import os

    root, log = tmp_path / "on", tmp_path / "on" / "log"
    run_output(configure, root, spread, **ON)
    verified = {"limits": {"verify": True}, "output": {"path": str(root / "verified")}, **ON}
    verified["scores"] = {"path": str(root / "out" / "scores")}
    run_output(configure, root, spread, **verified)
    assert loads(log) == 1
    path = spread / "2.jsonl"
    times = path.stat()
    path.write_text(path.read_text().replace("answer", "Answer"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(InputError, match=r"limits\.verify"):
        run_output(configure, root, spread, **{**verified, "output": {"path": str(root / "third")}})


@pytest.mark.slow
def test_select_and_ensembles(tmp_path, configure, spread, stub_model):
    import shutil

    models = []
    for name in ("anna", "bo"):
        directory = tmp_path / "models" / name
        shutil.copytree(stub_model, directory)
        from safetensors.numpy import save_file

        weights = np.frombuffer(name.encode().ljust(16), dtype=np.float32)[None]
        save_file({"score.weight": weights}, directory / "model.safetensors")
        models.append({"path": str(directory)})
    logs = {}
    for name, changes in (("plain", {}), ("on", ON)):
        root = tmp_path / name
        root.mkdir()
        logs[name] = root / "log"
        values = {
            "input": {"path": str(spread), "rows_per_fragment": 5},
            "model": models,
            "output": {"path": str(root / "out")},
        }
        config = RunConfig.model_validate({**values, **changes})
        with pytest.raises(InputError, match="not scored yet"):
            run_curation(config, scorer=None)
        run_scoring(config, scorer=NamedFactory(str(logs[name])))
        run_curation(config, scorer=None)
    assert_same(tmp_path / "plain" / "out", tmp_path / "on" / "out")
    lines = [line.split() for line in logs["on"].read_text().splitlines()]
    assert {name: sum(int(count) for each, count in lines if each == name) for name in ("anna", "bo")} == {
        "anna": 48,
        "bo": 48,
    }


def test_a_broken_model_is_refused_before_anything_is_kept(tmp_path, configure):
    rows = [{"prompt": f"p{number}", "response": "UNSCORABLE"} for number in range(40)]
    path = write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    with pytest.raises(ModelLoadError, match="gives NaN for every response"):
        run_output(configure, tmp_path / "on", path, **ON)
    assert not list((tmp_path / "on").rglob("colocated"))


def test_without_a_model_it_is_refused():
    with pytest.raises(ValueError, match=r"score\.colocate is for scoring with a model, and scores\.column has none"):
        RunConfig.model_validate(
            {"input": {"path": "in"}, "output": {"path": "out"}, "scores": {"column": "reward"}, **ON}
        )


def test_workers_and_shards_see_parts_and_are_refused(configure, tmp_path, spread):
    with pytest.raises(
        ValueError, match=r"score\.colocate regroups the whole corpus in one process, and runner\.workers is 3"
    ):
        configure(tmp_path, spread, runner={"workers": 3}, **ON)
    with pytest.raises(ValueError, match=r"model\.too_long is truncate_group, and score\.colocate scores"):
        configure(tmp_path, spread, model={"path": "m", "too_long": "truncate_group"}, **ON)
    with pytest.raises(ConfigError, match=r"--shard scores files separately, and score\.colocate regroups the whole"):
        run_scoring(configure(tmp_path, spread, **ON), scorer=StubFactory(), shard=CorpusShard(0, 3))
    assert not (tmp_path / "out").exists()


# real models


def rewards(out: Path) -> np.ndarray:
    tables = [score_files.decode(path.read_bytes())[0] for path in score_paths(out).values()]
    return pa.concat_tables(tables)["reward"].to_numpy()


def assert_equal_but_for_rounding(plain: Path, regrouped: Path) -> None:
    """Names, footers and all columns of the score files; rewards within float32's rounding."""
    files, others = score_paths(plain), score_paths(regrouped)
    assert list(files) == list(others)
    for name, path in files.items():
        (table, footer), (other, own) = (score_files.decode(each.read_bytes()) for each in (path, others[name]))
        assert footer == own
        assert table.drop_columns(["reward"]).equals(other.drop_columns(["reward"]))
        assert table["reward"].is_valid().equals(other["reward"].is_valid())
        assert score_files.original_schema(table) == score_files.original_schema(other)
    ours, theirs = rewards(plain), rewards(regrouped)
    scale = np.nanmax(np.abs(ours)).astype(np.float32)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.nanstd(ours) + 8 * np.spacing(scale))


@pytest.mark.parametrize("kind", ["causal", "chat", "encoder"])
@pytest.mark.parametrize("too_long", ["truncate", "reject"])
def test_a_real_model_gives_the_same_rewards_and_computes_less(tmp_path, request, configure, kind, too_long):
    prompts = ["hot " * 12 + f"number {number} ?" for number in range(6)]
    rows = [{"prompt": p, "response": f"{n} the {w}"} for n, w in enumerate(["good", "bad", "day"]) for p in prompts]
    rows += [{"prompt": "q", "response": ""}, {"prompt": None, "response": "x"}, rows[0]]
    rows += [{"prompt": prompts[0], "response": "bad " * 60}]
    for number in range(3):
        write_jsonl(tmp_path / "in" / f"{number}.jsonl", rows[6 * number : 6 * number + 6] + rows[18:] * (number == 2))
    model = {"path": str(request.getfixturevalue(kind)), "dtype": "float32", "too_long": too_long}
    work = {}
    for name, changes in (("plain", {}), ("on", ON)):
        (tmp_path / name).mkdir()
        config = configure(tmp_path / name, tmp_path / "in", model=model, **LIMITS, **changes)
        run_curation(config, scorer=default_scorer(config))
        work[name] = json.loads((tmp_path / name / "out" / "run.json").read_text())["throughput"]
    assert_equal_but_for_rounding(tmp_path / "plain" / "out", tmp_path / "on" / "out")
    assert work["on"]["rows"] > 0
    if kind != "encoder":
        assert work["on"]["tokens_computed"] < 0.7 * work["plain"]["tokens_computed"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the real corpora are not part of the project")
def test_eight_files_by_model(tmp_path, causal, configure):
    """A few prompts of a corpus whose responses to one prompt lie in eight files, by generator."""
    import pyarrow.compute as pc

    (tmp_path / "in").mkdir()
    prompts = None
    for path in sorted((SHARED / "best_of_56").glob("*.parquet")):
        table = pq.read_table(path)
        prompts = prompts if prompts is not None else pa.array(sorted(set(table["prompt"].to_pylist()), key=len)[:6])
        table = table.filter(pc.is_in(table["prompt"], prompts))
        short = pc.utf8_slice_codeunits(table["response"], 0, 30)  # the model reads letters, and 128 of them
        table = table.set_column(table.schema.get_field_index("response"), "response", short)
        pq.write_table(table, tmp_path / "in" / path.name)
    computed = {}
    for name, changes in (("plain", {}), ("on", ON)):
        (tmp_path / name).mkdir()
        config = configure(tmp_path / name, tmp_path / "in", model={"path": str(causal), "dtype": "float32"}, **changes)
        run_curation(config, scorer=default_scorer(config))
        run = json.loads((tmp_path / name / "out" / "run.json").read_text())
        computed[name] = run["throughput"]["tokens_computed"]
    assert_equal_but_for_rounding(tmp_path / "plain" / "out", tmp_path / "on" / "out")
    assert computed["on"] < 0.9 * computed["plain"]
