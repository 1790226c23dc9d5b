"""The import arrows, the absence of what must not be there, and the weight of `--help`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAGES = {"score", "colocate", "ensemble", "selection", "export", "observe", "finish"}
FROM_RM = {"rm.conversations", "rm.identity", "rm.scorer"}
MORE_DOORS = {
    "report/prompt_figures.py": {"rm.evaluate", "rm.preferences"},
    "training.py": {"rm.train"},
    "evaluation.py": {"rm.evaluate", "rm.preferences"},
    "hints.py": {"rm.preferences"},
    "inspection.py": {"rm.preview"},
    "preference_view.py": {"rm.preferences"},
    "forecast.py": {"rm.dry_run"},
}


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, inside functions too; not for type checking alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def top_level_imports(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        name
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 5
    return found


@pytest.mark.parametrize("path", modules("rm"), ids=lambda path: path.stem)
def test_rm_knows_neither_pipelines_nor_beam(path):
    assert not {name for name in imports(path) if name.split(".")[0] in ("pipelines", "apache_beam")}


@pytest.mark.parametrize("path", modules("pipelines"), ids=lambda path: path.stem)
def test_pipelines_take_only_the_three_doors_into_rm_and_no_torch(path):
    allowed = FROM_RM | MORE_DOORS.get(str(path.relative_to(ROOT / "pipelines")), set())
    used = {name for name in imports(path) if name.split(".")[0] == "rm"} - {"rm"}
    assert not {name for name in used if not any(name == door or name.startswith(door + ".") for door in allowed)}
    assert not {name for name in imports(path) if name.split(".")[0] in ("torch", "transformers")}
    lazy = {"rm.identity", "rm.scorer"}.union(*MORE_DOORS.values())
    assert not top_level_imports(path) & lazy, "these are imported lazily"


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_stages_do_not_import_each_other(stage):
    others = {f"pipelines.{other}" for other in STAGES - {stage}}
    assert not imports(ROOT / "pipelines" / f"{stage}.py") & others


def test_the_pure_parts_know_no_beam():
    beam = {path.stem for path in modules("pipelines") if any(name.startswith("apache_beam") for name in imports(path))}
    known = {
        "curate",
        "execution",
        "explain",
        "lean",
        "overlap",
        "partition",
        "passes",
        "rewrite",
        "runners",
        "skipped",
        "throughput",
    }
    assert beam == STAGES | known


def test_no_remote_code_no_pickle_no_unsafe_yaml():
    for path in [*modules("rm"), *modules("pipelines")]:
        text = path.read_text(encoding="utf-8")
        for forbidden in (
            "trust_remote_code=True",
            "yaml.load(",
            "torch.load(",
            "import pickle",
            "eval(",
            "shell=True",
        ):
            assert forbidden not in text.replace(".eval()", ""), f"{forbidden} in {path}"


def test_modules_stay_readable():
    for path in [*modules("rm"), *modules("pipelines")]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.name}"


def test_help_imports_neither_torch_nor_beam():
    command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert "typer" in loaded
    assert not loaded & {"torch", "apache_beam", "transformers", "pyarrow", "pydantic", "numpy"}
    commands = "run score select train evaluate inspect plan report config model latest clean"
    for command_name in commands.split():
        assert command_name in result.stdout
