"""The import rules of docs/architecture.md, what must not be in the code, and the weight of `--help`."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
STAGES = "score < select < export, report < finish"
PIPELINES = f"errors < config, storage < corpus, runtime < plan < {STAGES} < curate < commands < cli"
RM = (
    "hash_cache, messages, relevance_gap, splits, transcripts < repeats < conversations, identity < "
    "calibration_record, text, checkpoint, engine, preferences < scores, together < batches, forwards, scorer_memory < "
    "scorer, embedder, preview, evaluate < closing_token, dry_run, train, trial"
)
# Beside runtime/ and *transform.py; load_model for Beam's `Shared`.
BEAM = {"pipelines.curate", "pipelines.score.load_model"}
JOINS_TRANSFORMS = {"pipelines.curate", "pipelines.commands.explain.explain_transform"}
# torch, or a driver that not everybody has: imported inside the functions that use it.
HEAVY = ("rm", "huggingface_hub", "gcsfs", "google_crc32c", "aiohttp")
# What a worker without a model imports of rm.
LIGHT = ("rm.conversations", "rm.relevance_gap")
# Import inside functions: each command loads what it needs, and a worker answers before it loads Beam.
LATE = ("cli", "commands", "pipelines.score.workers.worker")


class Import(NamedTuple):
    """One import: the module that imports, the module or package that it imports, and whether a function does it."""

    source: str
    target: str
    in_function: bool


def layers(rule: str) -> dict[str, int]:
    """The rank of each unit of a rule such as `a < b, c < d`."""
    return {unit: rank for rank, units in enumerate(rule.split(" < ")) for unit in units.split(", ")}


def unit_of(module: str) -> str:
    """`pipelines.score.work` → `score`."""
    return module.split(".")[1]


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of `bestkept`, `pipelines` and `rm` by its name."""
    paths = [path for package in ("bestkept", "pipelines", "rm") for path in (root / package).rglob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imports(root: Path = ROOT) -> Iterator[Import]:
    """Every import of every module, but those for type checking alone; of a package's modules, the modules."""
    known = modules(root)
    for source, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node, in_function in _statements(tree, in_function=False):
            if isinstance(node, ast.Import):
                yield from (Import(source, alias.name, in_function) for alias in node.names)
            elif node.module:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    yield Import(source, name if name in known else node.module, in_function)


def _statements(node: ast.AST, *, in_function: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, in_function
        yield from _statements(child, in_function=in_function or isinstance(child, ast.FunctionDef))


def violations(root: Path = ROOT) -> Iterator[str]:
    """The rules, each import against each."""
    pipelines, rm = layers(PIPELINES), layers(RM)
    for source, target, in_function in imports(root):
        package, top, arrow = source.partition(".")[0], target.partition(".")[0], f"{source} imports {target}"
        if "." not in source:  # the packages themselves
            continue
        stage, of_stage = unit_of(source), target.endswith("transform") and unit_of(target) in layers(STAGES)
        if top == "bestkept" and package != "bestkept":
            yield f"{arrow}: bestkept stands above the others"
        if package == "rm" and top in ("pipelines", "apache_beam"):
            yield f"{arrow}: rm knows neither pipelines nor Beam"
        if (
            package == "rm"
            and top == "rm"
            and "." in target
            and unit_of(target) != stage
            and rm[unit_of(target)] >= rm[stage]
        ):
            yield f"{arrow}: not below it in rm"
        if package == "pipelines" and top in ("torch", "transformers"):
            yield f"{arrow}: only rm imports torch"
        if top == "apache_beam" and stage != "runtime" and not source.endswith("transform") and source not in BEAM:
            yield f"{arrow}: Beam only in runtime/ and in *transform.py"
        if package == top == "pipelines" and "." in target and unit_of(target) != stage:
            if pipelines[unit_of(target)] >= pipelines[stage]:
                yield f"{arrow}: not below it"
            if of_stage and source not in JOINS_TRANSFORMS:
                yield f"{arrow}: only curate.py joins transforms"
        if package == "pipelines" and top == "rm" and not in_function and target not in LIGHT:
            yield f"{arrow}: only {' and '.join(LIGHT)} are imported at the top"
        if in_function and package == "pipelines" and not {stage, source} & {*LATE} and top not in HEAVY:
            yield f"{arrow}: imported inside a function"


def test_imports_follow_the_rules():
    assert not list(violations())


def find_circle(root: Path = ROOT) -> list[str]:
    """Modules that import each other in a circle, the first twice; empty where there is no circle."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for source, target, _ in imports(root):
        if target in known and target != source and not source.startswith(target + "."):
            graph.setdefault(source, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_no_circle():
    assert find_circle() == []


def test_a_planted_circle_is_found(tmp_path):
    folder = tmp_path / "pipelines" / "storage"
    folder.mkdir(parents=True)
    (folder / "files.py").write_text("def remote():\n    from pipelines.storage import s3")
    (folder / "s3.py").write_text("from pipelines.storage.files import remote")
    assert set(find_circle(tmp_path)) == {"pipelines.storage.files", "pipelines.storage.s3"}


PLANTED = {
    "pipelines/storage/bad.py": ("from pipelines.config import RunConfig", "not below it"),
    "pipelines/corpus/bad.py": ("from pipelines.plan import Plan", "not below it"),
    "pipelines/select/bad.py": ("from pipelines.score.transform import ScoreCorpus", "only curate.py joins transforms"),
    "pipelines/export/bad.py": ("import apache_beam as beam", "Beam only in"),
    "pipelines/report/bad.py": ("import torch", "only rm imports torch"),
    "pipelines/finish/bad.py": ("def f():\n    import json", "inside a function"),
    "pipelines/score/bad.py": ("from rm.scorer import Scorer", "are imported at the top"),
    "pipelines/commands/bad.py": ("def f():\n    from bestkept import train", "above the others"),
    "rm/bad.py": ("import pipelines.plan", "rm knows neither"),
    "rm/text/bad.py": ("from rm.scorer import Scorer", "not below it in rm"),
}


@pytest.mark.parametrize("path", PLANTED)
def test_a_planted_violation_is_found(tmp_path, path):
    text, complaint = PLANTED[path]
    for module in modules().values():
        copy = tmp_path / module.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch()
    assert not list(violations(tmp_path))
    (tmp_path / path).write_text(text)
    (violation,) = violations(tmp_path)
    assert complaint in violation


def test_the_house_is_small():
    entries = [path for path in (ROOT / "pipelines").iterdir() if path.name != "__pycache__"]
    assert len([path for path in entries if path.is_dir()]) <= 10
    assert sorted(path.name for path in entries if path.is_file()) == [
        "__init__.py",
        "cli.py",
        "curate.py",
        "errors.py",
        "plan.py",
        "py.typed",
    ]


def test_no_remote_code_no_pickle_no_unsafe_yaml():
    forbidden = "trust_remote_code=True", "yaml.load(", "torch.load(", "import pickle", "eval(", "shell=True"
    for path in modules().values():
        text = path.read_text(encoding="utf-8").replace(".eval()", "")
        assert not [words for words in forbidden if words in text], path


@pytest.mark.parametrize("name", modules())
def test_modules_stay_readable(name):
    text = modules()[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first_word = (ast.get_docstring(node) or "").partition(" ")[0].rstrip(",")
            assert first_word not in ("What", "Where", "How", "Which", "Why", "Whether", "When", "Whoever"), getattr(
                node, "name", name
            )
        if isinstance(node, ast.Module):
            assert ast.get_docstring(node)


def test_help_imports_neither_torch_nor_beam_and_the_graph_no_torch():
    command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert "typer" in loaded
    assert not loaded & {"torch", "apache_beam", "transformers", "pyarrow", "pydantic", "numpy"}
    modules = "import sys, pipelines.score.transform, rm.scores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", modules], check=False, cwd=ROOT).returncode == 0, (
        "of a worker without a model"
    )
    commands = "run score select train evaluate inspect plan report config model latest clean"
    for command_name in commands.split():
        assert command_name in result.stdout
