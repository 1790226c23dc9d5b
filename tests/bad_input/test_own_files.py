"""Runs whose input pattern could match, or has matched, what a run writes."""

from __future__ import annotations

import gzip
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.corpora import corpus_rows, write_jsonl
from support.stubs import StubFactory

from pipelines.commands.evaluate import run_evaluation
from pipelines.commands.run import run_curation, run_scoring
from pipelines.commands.train import run_training
from pipelines.config import EvaluateConfig, TrainConfig
from pipelines.corpus import files
from pipelines.corpus.own_files import places_of
from pipelines.errors import ConfigError, InputError
from pipelines.plan import make_plans
from pipelines.score.work import CorpusShard
from pipelines.storage.patterns import template_expression


def run(config):
    return run_curation(config, scorer=StubFactory())


def write_parquet(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def unnamed(root: Path, names) -> list[str]:
    """The files below a folder that none of the templates stands for."""
    known = re.compile("|".join(map(template_expression, names)))
    written = (str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name[0] != ".")
    return [name for name in written if not known.fullmatch(name)]


@pytest.mark.slow
@pytest.mark.parametrize("versions", [False, True])
def test_every_file_that_a_run_writes_is_known(tmp_path, make_config, monkeypatch, versions):
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    rows = [*corpus_rows(), {"prompt": "p", "response": None}]
    path = write_jsonl(tmp_path / "in" / "a.jsonl.gz", rows)
    path.write_bytes(gzip.compress(path.read_bytes()))
    config = make_config(
        path,
        output={"versions": versions, "test_fraction": 0.3, "path": str(tmp_path / "out")},
        scores={"path": str(tmp_path / "scores")},
        limits={"max_rejected_fraction": 0.5, "skip_bad_files": True},
        score={"colocate": "prompt"},
    )
    run(config)
    alone = config.model_copy(update={"score": type(config.score)()})
    run_scoring(alone, scorer=StubFactory(), shard=CorpusShard(1, 2))
    run_scoring(alone, scorer=StubFactory())
    output, scores = places_of(config)
    assert len(list((tmp_path / "out").rglob("*.parquet"))) >= 4
    assert len(list((tmp_path / "scores").rglob("*"))) > 8
    assert unnamed(tmp_path / "out", output.names) == []
    assert unnamed(tmp_path / "scores", scores.names) == []


@pytest.mark.parametrize(
    ("pattern", "changes", "word"),
    [
        (
            "{r}/**/*.parquet",
            {},
            r"^output\.path '{r}/nightly' is matched by input\.path '{r}/\*\*/\*\.parquet', as {r}/nightly/rej",
        ),
        ("{r}/**", {}, r"as {r}/nightly/claim\.json, and the next run would read its own output"),
        ("{r}/*/*/*.parquet", {}, "as {r}/nightly/rejected/00000"),
        ("{r}/*/data/*", {}, "as {r}/nightly/data/train-00000-of-00000"),
        ("{r}/nightly/data/*.parquet", {}, r"output\.path"),
        ("{r}/nightly/data", {}, r"output\.path"),
        ("{r}/nightly", {}, r"output\.path"),
        ("{r}", {}, r"lies inside input\.path '{r}'"),
        ("{r}/", {}, r"lies inside input\.path '{r}/'"),
        ("{r}/../{n}/**/*.parquet", {}, r"output\.path"),
        ("file://{r}/**/*.parquet", {}, r"output\.path"),
        ("{r}/n[i]ghtly/samples.parquet", {}, r"as {r}/nightly/samples\.parquet"),
        ("{r}/link/**/*.parquet", {}, r"output\.path"),
        (
            "{r}/*.parquet",
            {"output": {"path": "{r}/n.parquet"}},
            r"output\.path '{r}/n\.parquet' is matched by .*parquet', and",
        ),
        ("{r}/*/*/*/*.parquet", {}, r"scores\.path '{r}/nightly/scores' is matched by"),
        (
            "{r}/*/*/*.parquet",
            {"output": {"path": "{r}/a/b/c/d"}, "scores": {"path": "{r}/s"}},
            r"scores\.path '{r}/s'",
        ),
        (
            "{r}/*/*/*/*/*.parquet",
            {"output": {"path": "{r}/nightly", "versions": True}},
            r"versions/HASH/rejected/00000",
        ),
        ("{r}/**/*.json", {"output": {"versions": True, "path": "{r}/nightly"}}, r"as {r}/nightly/latest\.json"),
        ("{r}/run[1]/data/*", {"output": {"path": "{r}/run[1]"}}, r"output\.path '{r}/run\[1\]'"),
        (
            "{r}/**",
            {"output": {"path": "/o"}, "runner": {"options": {"temp_location": "{r}/tmp"}}},
            r"runner\.options\.temp_location",
        ),
    ],
)
def test_a_pattern_that_could_match_the_output_is_refused(tmp_path, make_config, pattern, changes, word):
    root = tmp_path / "r"
    write_jsonl(root / "a.jsonl", corpus_rows())
    (root / "link").symlink_to(root)

    def fill(value):
        if isinstance(value, dict):
            return {key: fill(inner) for key, inner in value.items()}
        return value.replace("{r}", str(root)).replace("{n}", "r") if isinstance(value, str) else value

    config = make_config(fill(pattern), **fill({"output": {"path": "{r}/nightly"}, **changes}))
    with pytest.raises(ConfigError) as raised:
        make_plans(config)
    assert re.search(word.replace("{r}", re.escape(str(root))), raised.value.message), raised.value.message


@pytest.mark.parametrize(
    ("pattern", "changes"),
    [
        ("*.jsonl", {}),
        ("*/*.jsonl", {}),
        ("**/*.jsonl", {}),
        ("sub/**", {}),
        ("s*/*", {}),
        ("*/*.jsonl", {"output": {"path": "sub"}}),
        ("sub", {"output": {"path": "sub-out"}}),
        ("**", {"output": {"path": "_out"}}),
        ("run[1]/*", {"output": {"path": "run1"}}),
        ("sub/*", {"output": {"path": "elsewhere"}, "scores": {"path": "scores"}}),
    ],
)
def test_a_pattern_that_cannot_match_the_output_is_taken(tmp_path, make_config, pattern, changes):
    write_jsonl(tmp_path / "a.jsonl", corpus_rows())
    write_jsonl(tmp_path / "sub" / "b.jsonl", corpus_rows())
    write_jsonl(tmp_path / "run[1]" / "b.jsonl", corpus_rows())
    placed = {
        name: {"path": str(tmp_path / value["path"])} for name, value in {"output": {"path": "out"}, **changes}.items()
    }
    config = make_config(f"{tmp_path}/{pattern}", **placed)
    planned = make_plans(config).whole.files
    for place in places_of(config):
        for name in place.names:
            file = Path(place.folder, name.replace("#", "0").replace("%", "a"))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
    assert make_plans(config).whole.files == planned


def test_objects_on_stores_are_compared_by_name(tmp_path, make_config):
    store = f"memory://{tmp_path.name}"
    MemoryFileSystem().pipe_file(
        f"/{tmp_path.name}/a.jsonl", write_jsonl(tmp_path / "a.jsonl", corpus_rows()).read_bytes()
    )
    with pytest.raises(ConfigError, match=r"output\.path 'memory:///.*/out' is matched by input\.path 'memory://"):
        make_plans(make_config(store, output={"path": f"memory:///{tmp_path.name}/out"}))
    make_plans(make_config(store, output={"path": f"/{tmp_path.name}/out"}))
    make_plans(make_config(f"{store}/*.jsonl", output={"path": f"{store}/out"}))


@pytest.fixture(scope="module")
def earlier(tmp_path_factory, configure) -> Path:
    """A folder with a corpus, and the output of an earlier run with its score files beside it."""
    root = tmp_path_factory.mktemp("earlier")
    path = write_parquet(root / "corpus" / "a.parquet", [*corpus_rows(), {"prompt": "p", "response": None}])
    limits = {"max_rejected_fraction": 0.5}
    run(configure(root, path, output={"path": str(root / "out"), "shape": "prompt_completion"}, limits=limits))
    return root


@pytest.mark.parametrize(
    ("pattern", "matched", "beside"),
    [
        ("{r}/**/*.parquet", "out/data/train-00000-of-00001.parquet", "out/manifest.json"),
        ("{r}/*/*.parquet", "out/samples.parquet", "out/manifest.json"),
        ("{r}/*/*/*.parquet", "out/data/train-00000-of-00001.parquet", "out/manifest.json"),
        ("{r}/out", "out/README.md", "out/manifest.json"),
        ("{r}/out/*", "out/README.md", "out/manifest.json"),
        ("{r}/out/rejected/*.parquet", "out/rejected/00000.parquet", "out/manifest.json"),
        (
            "{r}/out/scores/*/*.parquet",
            r"out/scores/[0-9a-f]{24}/[0-9a-f]{32}.parquet",
            "out/scores/plans/[0-9a-f]{32}.json",
        ),
    ],
)
def test_what_an_earlier_run_wrote_is_no_input(earlier, tmp_path, make_config, pattern, matched, beside):
    pattern = pattern.format(r=earlier)
    with pytest.raises(InputError) as raised:
        make_plans(make_config(pattern, output={"path": str(tmp_path / "new")}))
    root = re.escape(str(earlier))
    assert re.match(
        rf"input\.path {re.escape(repr(pattern))} matches {root}/{matched}, which bestkept wrote, as {root}/{beside} tells; "
        r"choose a pattern that does not match it(; to read the rows of that output, name its shards: "
        rf"{root}/out/data/\*\.parquet)?$",
        raised.value.message,
    ), raised.value.message


@pytest.mark.parametrize(
    "pattern",
    [
        "out/data/train-*.parquet",
        "out/data",
        "out/data/**",
        "*/data/*.parquet",
        "**/data/*",
        "out/data/train-00000-of-00001.parquet",
    ],
)
def test_shards_that_are_named_are_inputs(earlier, tmp_path, make_config, pattern):
    config = make_config(f"{earlier}/{pattern}", output={"path": str(tmp_path / "new")})
    assert [file.key.rpartition("/")[2] for file in make_plans(config).whole.files] == ["train-00000-of-00001.parquet"]


def test_an_output_is_curated_again(earlier, tmp_path, make_config):
    config = make_config(f"{earlier}/out/data/*.parquet", output={"path": str(tmp_path / "new")}, select=[])
    assert run(config).manifest["counts"]["kept"] == 12


def test_files_that_only_have_such_names_are_inputs(tmp_path, make_config):
    """As a data set of the Hub has them, and as other programs name their files."""
    for name in (
        "x/data/train-00000-of-00001.parquet",
        "samples.parquet",
        f"{'a' * 24}/{'b' * 32}.parquet",
        "rejected/00000.parquet",
    ):
        write_parquet(tmp_path / "in" / name, corpus_rows())
    (tmp_path / "in" / "x" / "manifest.json").write_text('{"files": []}')
    (tmp_path / "in" / "claim.json").write_text("[" * 10_000)
    os.mkfifo(tmp_path / "in" / "x" / "fifo")
    config = make_config(f"{tmp_path}/in/**/*.parquet", output={"path": str(tmp_path / "out")})
    assert len(make_plans(config).whole.files) == 4


@pytest.mark.parametrize(
    ("data", "heldout", "message"),
    [
        (
            "**/*.json",
            None,
            r"output\.path '.*/model' is matched by data\.path '.*/\*\*/\*\.json', as .*/model/config\.json",
        ),
        ("model/checkpoints/*/*.json", None, r"as .*/model/checkpoints/checkpoint-0/trainer_state\.json"),
        ("pairs.jsonl", "*/*.json", r"heldout\.path '.*/\*/\*\.json', as .*/model/config\.json"),
    ],
)
def test_training_does_not_read_its_own_model(tmp_path, data, heldout, message):
    values = {
        "data": {"path": f"{tmp_path}/{data}"},
        "model": {"path": "m"},
        "output": {"path": str(tmp_path / "model")},
    }
    values |= {} if heldout is None else {"heldout": {"path": f"{tmp_path}/{heldout}"}}
    with pytest.raises(ConfigError, match=message):
        run_training(TrainConfig.model_validate(values))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("**/*.json", r"output\.path '.*/results' is matched by data\.path '.*', as .*/results/evaluation\.json"),
        ("m*/*.json", r"model\.path '.*/model' is matched by data\.path '.*', as .*/model/calibration\.json"),
    ],
)
def test_an_evaluation_does_not_read_its_own_results(tmp_path, data, message):
    (tmp_path / "model").mkdir()
    values = {
        "data": {"path": f"{tmp_path}/{data}"},
        "model": {"path": str(tmp_path / "model")},
        "output": {"path": str(tmp_path / "results")},
    }
    with pytest.raises(ConfigError, match=message):
        run_evaluation(EvaluateConfig.model_validate(values))
