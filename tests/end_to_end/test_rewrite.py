"""Large compressed JSONL, rewritten in parts before it is scored: the output is that of the file itself, to the byte."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from support.corpora import TIMED, corpus_rows
from support.stubs import StubFactory, loads, scored_rows

from pipelines.commands.explain.explain_transform import explain
from pipelines.commands.run import run_curation, run_scoring
from pipelines.corpus import files, rewrite, rewritten_copy
from pipelines.errors import BestkeptError, InputError, StorageError
from pipelines.plan import make_plans, with_absolute_paths
from pipelines.score.work import CorpusShard

LIMIT = 2_000  # of a row's bytes
SETTINGS = {
    "limits": {"max_rejected_fraction": 0.9, "max_row_bytes": LIMIT},
    "input": {"rows_per_fragment": 3},
    "output": {"rows_per_shard": 7},
}


def awkward() -> bytes:
    """49 rows and blank lines: a BOM, CRLF, broken JSON, bytes that are no text, too long ones, no newline at the end."""
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in corpus_rows(8, 5)]
    lines[0] = b"\xef\xbb\xbf" + lines[0]
    lines[7] += b"\r"
    lines[9:9] = [b"", b"   ", b"\r", b"\t"]
    lines[20:20] = [b"{broken", b"[1, 2]", b"\xff\xfe", b'{"prompt": "p"}', b"x" * (LIMIT + 1), b" " * (LIMIT + 1)]
    lines[30:30] = [json.dumps({"prompt": "é漢🎉", "response": "ü" * 300, "generator": "\u2028"}).encode()]
    lines[31:31] = [json.dumps({"prompt": "many", "response": "a\\nb\n\n", "extra": [1, {"a": None}]}).encode()]
    lines += [b"", b'{"prompt": "last", "response": "without a newline"}']
    return b"\n".join(lines)


def members(data: bytes, compress) -> bytes:
    """Three members, cut inside of lines."""
    third = len(data) // 3
    return b"".join(compress(part) for part in (data[:third], data[third : 2 * third], data[2 * third :]))


KINDS = {
    "jsonl.gz": gzip.compress,
    "jsonl.zst": zstandard.compress,
    "ndjson.gz": lambda data: members(data, gzip.compress),
    "json.zstd": lambda data: members(data, zstandard.compress),
}


@pytest.fixture
def large(monkeypatch):
    """Every compressed file is large, and its parts have 5 rows."""
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(rewritten_copy, "PART_ROWS", 5)


def run(config, **factory):
    return run_curation(config, scorer=StubFactory(**factory))


def outputs(root: Path) -> dict[str, str]:
    """Every file of an output by its content; of the manifest all but the hash of what fragments a file has."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name not in TIMED and "scores" not in path.relative_to(root).parts:
            data = path.read_bytes()
            if path.name == "manifest.json":
                manifest = json.loads(data)
                for each in manifest["inputs"]:
                    assert each.pop("content")
                data = json.dumps(manifest).encode()
            found[str(path.relative_to(root))] = hashlib.sha256(data).hexdigest()
    return found


def copy_of(config) -> Path:
    (name,) = {file.copy for file in make_plans(with_absolute_paths(config)).whole.files}
    return Path(name)


def parts_in(copy: Path) -> list[str]:
    return sorted(path.name for path in copy.iterdir())


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


SELECTIONS = {
    "all": {"select": []},
    "best": {"select": [{"best_of_n": {"keep": 1}}], "output": {"add": ["rank", "margin"], "test_fraction": 0.4}},
    "pairs": {"select": [{"pairs": {}}], "output": {"shape": "preference"}},
    "original": {"select": [{"top": {"fraction": 0.5}}], "output": {"shape": "original"}},
}


@pytest.mark.parametrize(("kind", "name"), zip(KINDS, SELECTIONS, strict=True))
def test_the_output_is_that_of_the_file_itself(tmp_path, configure, monkeypatch, kind, name):
    put(tmp_path / "in" / f"b.{kind}", KINDS[kind](awkward()))
    more = [json.dumps({"prompt": f"prompt number {n}", "response": f"other {n}"}).encode() for n in range(9)]
    put(tmp_path / "in" / f"a.{kind}", KINDS[kind](b"\n".join(more)))
    changes = SELECTIONS[name]
    own = {**SETTINGS, **changes, "output": {**SETTINGS["output"], **changes.get("output", {})}}
    found = []
    for root, most in ((tmp_path / "whole", 2**30), (tmp_path / "copied", 0)):
        monkeypatch.setattr(files, "LARGE_BYTES", most)
        monkeypatch.setattr(rewritten_copy, "PART_ROWS", 5)
        outcome = run(configure(root, tmp_path / "in", **own))
        assert (root / "out" / "scores" / "rewritten").exists() == (most == 0)
        found.append(outputs(root / "out"))
    assert outcome.manifest["counts"]["rows"] == 58
    assert outcome.manifest["first_rejected"][0][:3] == [f"b.{kind}", 0, 16]
    assert found[0] == found[1]
    assert {"manifest.json", "samples.parquet", "report.json", "rejected/00001.parquet"} <= found[0].keys()


def test_every_part_is_a_unit_of_a_few_fragments_with_score_files_of_its_own(tmp_path, make_config, large):
    config = make_config(put(tmp_path / "a.jsonl.gz", gzip.compress(awkward())), **SETTINGS)
    run(config)
    (file,) = make_plans(config).whole.files
    units = files.split_units(file)
    assert [unit.number for unit in units] == list(range(1, 11))
    assert [(unit.start, unit.end) for unit in units] == [(n, min(n + 5, 49)) for n in range(0, 49, 5)]
    assert sum(unit.input_bytes for unit in units) == file.size
    assert files.is_seekable(file)
    score_files = list((tmp_path / "out" / "scores" / make_plans(config).whole.fingerprint).glob("*.parquet"))
    assert len(score_files) == 10 * 2  # fragments of 3 and 2 rows, and of 3 and 1
    assert parts_in(copy_of(config)) == [*(f"{n:06d}.parquet" for n in range(10)), "index.json"]


def test_only_large_compressed_json_lines_are_rewritten(tmp_path, make_config, monkeypatch):
    data = gzip.compress(awkward())
    put(tmp_path / "in" / "a.jsonl.gz", data)
    put(tmp_path / "in" / "b.jsonl.gz", gzip.compress(b'{"prompt": "p", "response": "r"}\n'))
    put(tmp_path / "in" / "c.jsonl", awkward())
    monkeypatch.setattr(files, "LARGE_BYTES", len(data))
    assert [file.copy for file in make_plans(make_config(tmp_path / "in")).whole.files] == [None] * 3
    monkeypatch.setattr(files, "LARGE_BYTES", len(data) - 1)
    plan = make_plans(make_config(tmp_path / "in")).whole
    assert [file.copy is None for file in plan.files] == [False, True, True]
    assert files.LARGE_BYTES < 256 * 2**20


def test_where_the_copy_lies_is_no_part_of_what_the_result_depends_on(tmp_path, make_config, monkeypatch):
    config = make_config(put(tmp_path / "a.jsonl.gz", gzip.compress(awkward())))
    plain = make_plans(config).whole
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    copied = make_plans(config).whole
    assert (plain.hash, plain.content_hash) == (copied.hash, copied.content_hash)
    assert type(copied).load(copied.save(str(tmp_path / "s"))).files == copied.files != plain.files


def test_a_second_run_and_other_selections_use_the_copy(tmp_path, make_config, large, monkeypatch):
    source, log = put(tmp_path / "a.jsonl.gz", gzip.compress(awkward())), tmp_path / "log"
    settings = {**SETTINGS, "scores": {"path": str(tmp_path / "scores")}}
    config = make_config(source, **settings)
    run_scoring(config, scorer=StubFactory(log=str(log)))
    scored = scored_rows(log)
    monkeypatch.setattr(rewrite, "_lines", None)  # whoever streams the file fails
    run(config, log=str(log))
    other = make_config(source, **{**settings, "select": [], "output": {"path": str(tmp_path / "other")}})
    assert run_curation(other, scorer=None).manifest["counts"]["kept"] == scored_rows(log) == scored
    prompt = json.loads((tmp_path / "other" / "report.json").read_text()) and _a_prompt(tmp_path / "other")
    assert explain(other, prompt)["prompt_id"] == prompt


def _a_prompt(out: Path) -> str:
    import pyarrow.parquet as pq

    found: str = pq.read_table(out / "data")["prompt_id"][0].as_py()
    return found


def test_a_file_that_changes_is_rewritten_beside_the_old_copy(tmp_path, make_config, large):
    source, log = tmp_path / "a.jsonl.gz", tmp_path / "log"
    settings = {**SETTINGS, "scores": {"path": str(tmp_path / "scores")}, "select": []}
    config = make_config(put(source, gzip.compress(awkward())), **settings)
    run(config, log=str(log))
    before, scored = copy_of(config), scored_rows(log)
    changed = awkward().replace(b"without a newline", b"that is another one")
    put(source, gzip.compress(changed))
    os.utime(source, (1, 1))
    config = make_config(source, **{**settings, "output": {"path": str(tmp_path / "new")}})
    run(config, log=str(log))
    assert copy_of(config) != before
    assert before.exists()
    assert scored_rows(log) - scored == 1  # the fragment of the last row
    assert "that is another one" in str(_texts(tmp_path / "new"))


def _texts(out: Path) -> list[str]:
    import pyarrow.parquet as pq

    return [messages[-1]["content"] for messages in pq.read_table(out / "data")["messages"].to_pylist()]


def test_another_limit_on_rows_has_another_copy(tmp_path, make_config, large):
    source = put(tmp_path / "a.jsonl.gz", gzip.compress(awkward()))
    copies_of = {copy_of(make_config(source, limits={"max_row_bytes": size})) for size in (LIMIT, LIMIT + 1)}
    assert len(copies_of) == 2


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from pipelines.commands.run import run_curation
from pipelines.config import RunConfig
from pipelines.corpus import files, rewritten_copy as copies
from support.stubs import StubFactory
files.LARGE_BYTES, copies.PART_ROWS = 0, 5
publish = copies.{where}
def dying(*args, **keywords):
    if {where!r} != "publish_part" or args[1] == 4:
        os.kill(os.getpid(), 9)
    publish(*args, **keywords)
copies.{where} = dying
run_curation(RunConfig.model_validate({values!r}), scorer=StubFactory())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "there"), [("publish_part", 4), ("publish_index", 10)])
def test_killed_in_the_middle_it_goes_on_and_gives_the_same(tmp_path, configure, large, monkeypatch, where, there):
    source = put(tmp_path / "a.jsonl.gz", gzip.compress(awkward()))
    run(configure(tmp_path / "calm", source, **SETTINGS))
    config = configure(tmp_path / "killed", source, **SETTINGS)
    tests = str(Path(__file__).parents[1])
    script = KILLED.format(tests=tests, where=where, values=config.model_dump(exclude_unset=True))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == -9
    copy = copy_of(config)
    assert parts_in(copy) == [f"{n:06d}.parquet" for n in range(there)]
    before = {path.name: path.stat().st_ino for path in copy.iterdir()}
    encoded = []
    encode = rewritten_copy._encode
    monkeypatch.setattr(rewritten_copy, "_encode", lambda table: encoded.append(1) or encode(table))
    run(config)
    assert len(encoded) == 10 - there
    assert {name: (copy / name).stat().st_ino for name in before} == before
    assert outputs(tmp_path / "killed" / "out") == outputs(tmp_path / "calm" / "out")


@pytest.fixture
def scored(tmp_path, make_config, large):
    """A configuration whose corpus is scored, with its copy."""
    source = put(tmp_path / "a.jsonl.gz", gzip.compress(awkward()))
    config = make_config(source, **SETTINGS, select=[])
    run_scoring(config, scorer=StubFactory())
    rewritten_copy.parts_of.cache_clear()
    rewritten_copy.spans.cache_clear()
    files._copy_units.cache_clear()
    return config


@pytest.mark.parametrize("lost", ["index.json", "000003.parquet", ""])
def test_what_is_removed_is_written_anew(tmp_path, scored, lost):
    copy = copy_of(scored)
    contents = {path.name: path.read_bytes() for path in copy.iterdir()}
    if lost:
        (copy / lost).unlink()
    else:
        shutil.rmtree(copy)
    run_curation(scored, scorer=None)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == contents
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_damaged_part_is_not_believed(tmp_path, scored):
    copy = copy_of(scored)
    path = copy / "000003.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    told = rf"^{path}, part of the copy of a compressed input, is missing or damaged; remove it .* run the same command again"
    with pytest.raises(StorageError, match=told):
        run_curation(scored, scorer=None)
    assert not (tmp_path / "out" / "manifest.json").exists()
    path.unlink()
    run_curation(scored, scorer=None)
    assert path.read_bytes() == whole


def test_a_damaged_part_is_mended_where_all_is_verified(tmp_path, scored):
    path = copy_of(scored) / "000003.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    config = scored.model_copy(update={"limits": scored.limits.model_copy(update={"verify": True})})
    run_curation(config, scorer=None)
    assert path.read_bytes() == whole


def test_a_part_with_the_lines_of_another_is_not_believed(scored):
    copy = copy_of(scored)
    shutil.copy(copy / "000002.parquet", copy / "000003.parquet")
    with pytest.raises(StorageError, match="is missing or damaged"):
        run_curation(scored, scorer=None)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data.replace(b"[5, ", b"[4, ", 1), lambda _: b""]
)
def test_a_damaged_index_is_no_index(scored, damage):
    index = copy_of(scored) / "index.json"
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    assert index.read_bytes() != whole
    assert rewritten_copy.read_index(str(index.parent)) is None
    run_curation(scored, scorer=None)
    assert index.read_bytes() == whole


def test_verify_sees_that_the_file_is_not_what_was_rewritten(tmp_path, scored):
    source = Path(scored.input.path)
    status = source.stat()
    data = awkward().replace(b"answer 13 of", b"answer 31 of")
    changed = next(c for level in range(10) if len(c := gzip.compress(data, level)) == status.st_size)
    source.write_bytes(changed)
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    config = scored.model_copy(update={"limits": scored.limits.model_copy(update={"verify": True})})
    before = {path.name: path.read_bytes() for path in copy_of(scored).iterdir()}
    with pytest.raises(InputError, match=r"differs from its copy in .*, although its size and version are the same"):
        run_curation(config, scorer=None)
    assert {path.name: path.read_bytes() for path in copy_of(scored).iterdir()} == before


def test_an_explanation_writes_no_copy(tmp_path, scored):
    shutil.rmtree(copy_of(scored))
    with pytest.raises(InputError, match="whose units were scored, is gone; run `bestkept score` or `bestkept select`"):
        explain(scored, "0" * 32)
    assert not copy_of(scored).exists()


CUT = [
    lambda data: data[:-20],
    lambda data: data[: len(data) // 2],
    lambda data: data[:6] + b"\xff" * 40 + data[46:],
    lambda _: b"no",
]
FAST = [("jsonl.gz", 0), ("jsonl.zst", 1), ("jsonl.zst", 2), ("jsonl.gz", 3)]
SLOW = [("jsonl.zst", 0), ("jsonl.gz", 1), ("jsonl.gz", 2), ("jsonl.zst", 3)]


@pytest.mark.parametrize(("kind", "number"), [*FAST, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in SLOW)])
def test_a_bad_file_is_told_as_it_is_without_a_copy(tmp_path, configure, monkeypatch, kind, number):
    put(tmp_path / "in" / f"a.{kind}", KINDS[kind](awkward()))
    bad = put(tmp_path / "in" / f"b.{kind}", CUT[number](KINDS[kind](awkward())))
    told, skipped = [], []
    for root, most in ((tmp_path / "whole", 2**30), (tmp_path / "copied", 0)):
        monkeypatch.setattr(files, "LARGE_BYTES", most)
        monkeypatch.setattr(rewritten_copy, "PART_ROWS", 5)
        with pytest.raises(BestkeptError) as error:
            run(configure(root, tmp_path / "in", **SETTINGS))
        told.append((error.value.exit_code, error.value.message))
        config = configure(
            root, tmp_path / "in", **{**SETTINGS, "limits": {**SETTINGS["limits"], "skip_bad_files": True}}
        )
        skipped.append((run(config).manifest["skipped_files"], outputs(root / "out")))
    assert told[0] == told[1]
    assert (told[0][0], str(bad) in told[0][1]) == (3, True)
    assert skipped[0] == skipped[1]
    assert skipped[0][0][0]["key"] == bad.name
    for copy in (tmp_path / "copied" / "out" / "scores" / "rewritten").iterdir():
        assert (rewritten_copy.read_index(str(copy)) is None) == ("a." not in str(_told(copy)))


def _told(copy: Path) -> str:
    index = copy / "index.json"
    return json.loads(index.read_text())["file"] if index.exists() else ""


def test_a_file_without_rows_has_one_empty_unit(tmp_path, configure, monkeypatch):
    put(tmp_path / "in" / "a.jsonl.gz", gzip.compress(b"\n \n" * 9))
    put(tmp_path / "in" / "b.jsonl.gz", gzip.compress(awkward()))
    found = []
    for root, most in ((tmp_path / "whole", 2**30), (tmp_path / "copied", 0)):
        monkeypatch.setattr(files, "LARGE_BYTES", most)
        found.append(run(configure(root, tmp_path / "in", **SETTINGS)).manifest["inputs"])
        found[-1][1].pop("content")
    assert found[0] == found[1]
    assert [each["rows"] for each in found[0]] == [0, 49]


def test_a_file_that_changes_under_the_run_is_no_copy(tmp_path, make_config, large, monkeypatch):
    source = put(tmp_path / "a.jsonl.gz", gzip.compress(awkward()))
    config = make_config(source, **SETTINGS)
    publish = rewritten_copy.publish_part

    def change(*args, **keywords):
        os.utime(source, (5, 5))
        publish(*args, **keywords)

    monkeypatch.setattr(rewritten_copy, "publish_part", change)
    copy = copy_of(config)
    with pytest.raises(InputError, match=f"^input file {source} has changed since the run was planned"):
        run(config)
    assert "index.json" not in parts_in(copy)


def test_an_ensemble_rewrites_once(tmp_path, configure, large, monkeypatch):
    from support.stubs import NamedFactory

    models = []
    for name in ("mild", "stern"):
        shutil.copytree(_model(configure, tmp_path), tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llama", "name": name}))
        models.append({"path": str(tmp_path / name)})
    source = put(tmp_path / "a.jsonl.gz", gzip.compress(awkward()))
    base = configure(tmp_path, source, **SETTINGS)
    config = type(base).model_validate({**base.model_dump(exclude_unset=True), "model": models})
    streamed = []
    lines = rewrite._lines
    monkeypatch.setattr(rewrite, "_lines", lambda *args: streamed.append(1) or lines(*args))
    outcome = run_curation(config, scorer=NamedFactory(str(tmp_path / "log")))
    assert len(streamed) == 1
    assert outcome.manifest["counts"]["rows"] == 49


def _model(configure, root: Path) -> Path:
    return Path(configure(root, "x").models[0].path)


def test_a_second_call_of_a_finished_run_loads_nothing(tmp_path, make_config, large):
    config, log = make_config(put(tmp_path / "a.jsonl.gz", gzip.compress(awkward())), **SETTINGS), tmp_path / "log"
    run(config, log=str(log))
    assert run(config, log=str(log)).already_complete
    assert loads(log) == 1


@pytest.mark.parametrize("bad", [False, True])
def test_shares_have_parts_of_one_file(tmp_path, configure, large, bad):
    """Units are dealt out, so every share needs the copy, and all shares together score each row once."""
    put(tmp_path / "in" / "a.jsonl.gz", gzip.compress(awkward()))
    if bad:
        put(tmp_path / "in" / "b.jsonl.gz", gzip.compress(awkward())[:-9])
    settings = {**SETTINGS, "limits": {**SETTINGS["limits"], "skip_bad_files": bad}}
    whole = run(configure(tmp_path / "whole", tmp_path / "in", **settings))
    config = configure(tmp_path / "shares", tmp_path / "in", **settings)
    logs = [tmp_path / f"log-{index}" for index in range(3)]
    for index in (2, 0, 1):
        run_scoring(config, scorer=StubFactory(log=str(logs[index])), shard=CorpusShard(index, 3))
    counts = [scored_rows(log) for log in logs]
    assert sum(counts) == whole.manifest["counts"]["scored"]
    assert sum(count > 0 for count in counts) == (2 if bad else 3)  # the bad file is the whole work of one
    run_curation(config, scorer=None)
    assert outputs(tmp_path / "shares" / "out") == outputs(tmp_path / "whole" / "out")


@pytest.mark.slow
def test_workers_read_parts_of_one_file(tmp_path, configure, large, monkeypatch):
    from pipelines.runtime import machine

    monkeypatch.setattr(machine, "count_cores", lambda: 4)
    put(tmp_path / "in" / "a.jsonl.gz", gzip.compress(awkward()))
    put(tmp_path / "in" / "b.jsonl.gz", gzip.compress(awkward())[:-9])
    settings = {**SETTINGS, "limits": {**SETTINGS["limits"], "skip_bad_files": True}}
    run(configure(tmp_path / "alone", tmp_path / "in", **settings))
    (tmp_path / "pids").mkdir()
    config = configure(tmp_path / "both", tmp_path / "in", **settings, runner={"workers": 2})
    run_curation(config, scorer=StubFactory(log=str(tmp_path / "log"), pids=str(tmp_path / "pids"), meet=2))
    assert len(list((tmp_path / "pids").iterdir())) == 2
    assert outputs(tmp_path / "both" / "out") == outputs(tmp_path / "alone" / "out")


def test_colocation_reads_parts(tmp_path, configure, large):
    put(tmp_path / "in" / "a.jsonl.gz", gzip.compress(awkward()))
    found = []
    for name, changes in (("plain", {}), ("regrouped", {"score": {"colocate": "prompt"}})):
        run(configure(tmp_path / name, tmp_path / "in", **SETTINGS, **changes))
        found.append(outputs(tmp_path / name / "out"))
    assert found[0] == found[1]
