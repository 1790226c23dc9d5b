"""The public surface of `bestkept`: names, signatures, types, errors, docstrings, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import bestkept
from bestkept import rules
from pipelines import errors
from pipelines.config import Step

ROOT = Path(__file__).parents[2]
SIGNATURES = {
    "train": "(data: 'Any', *, model: 'Any', output: 'str | os.PathLike[str]', heldout: 'Data | float | None' = None, "
    "progress: 'bool' = False, **settings: 'Any') -> 'Trained'",
    "evaluate": "(model: 'Any', data: 'Data', *, output: 'str | os.PathLike[str] | None' = None, progress: 'bool' = False, "
    "**settings: 'Any') -> 'Evaluation'",
    "score": "(data: 'Data', model: 'Any', *, output: 'str | os.PathLike[str] | None' = None, progress: 'bool' = False, "
    "**settings: 'Any') -> 'Scores'",
    "select": "(scores: 'Scores | Data', rules: 'Sequence[Rule]', *, output: 'str | os.PathLike[str] | Mapping[str, Any] | None' "
    "= None, reward: 'str' = 'reward', progress: 'bool' = False, **settings: 'Any') -> 'Curated'",
    "curate": "(config: 'str | os.PathLike[str] | Mapping[str, Any] | RunConfig | None' = None, *, input: 'Data | None' = None, "
    "model: 'Any' = None, select: 'Sequence[Rule] | None' = None, output: 'str | os.PathLike[str] | Mapping[str, Any] | None' = "
    "None, progress: 'bool' = False, **settings: 'Any') -> 'Curated'",
    "RewardModel": "(path: 'str | os.PathLike[str]', **settings: 'Any') -> 'None'",
    "RewardModel.score": "(self, conversations: 'Any', responses: 'Any' = None, *, progress: 'bool' = False) -> 'Rewards'",
    "RewardModel.rank": "(self, prompt: 'Any', responses: 'Iterable[Any]', top_k: 'int | None' = None, *, "
    "return_documents: 'bool' = False) -> 'list[Ranked]'",
    "RewardModel.predict": "(self, pairs: 'Any', *, progress: 'bool' = False) -> 'Any'",
    "RewardModel.probability": "(self, prompts: 'Any', a: 'Any', b: 'Any', *, temperature: 'float | None' = None) -> 'Any'",
    "Trained.load": "(self, **settings: 'Any') -> 'RewardModel'",
    "Scores.to_pandas": "(self) -> 'pandas.DataFrame'",
    "Scores.to_dataset": "(self) -> 'datasets.Dataset'",
    "Curated.to_arrow": "(self, split: 'str' = 'train') -> 'pyarrow.Table'",
    "Curated.to_pandas": "(self, split: 'str' = 'train') -> 'pandas.DataFrame'",
    "Curated.to_dataset": "(self, split: 'str' = 'train') -> 'datasets.Dataset'",
}
FIELDS = {
    "Trained": "path prompts judgements rejected notes steps loss learning_rate heldout",
    "Evaluation": "verdict sentence warnings accuracy interval figures path",
    "Scores": "path table counts config",
    "Curated": "path manifest already_complete",
}
EXIT_CODES = {
    "ConfigError": 2,
    "InputError": 3,
    "RejectedError": 4,
    "StorageError": 5,
    "ConflictError": 6,
    "ModelLoadError": 7,
}


def resolve(name: str) -> object:
    found: object = bestkept
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_stable(name):
    assert str(inspect.signature(resolve(name))) == SIGNATURES[name]


def test_results_have_their_fields():
    for name, fields in FIELDS.items():
        public = [field for field in resolve(name).__dataclass_fields__ if not field.startswith("_")]
        assert public == fields.split()


def test_errors_are_those_of_the_command():
    for name, code in EXIT_CODES.items():
        kind = resolve(name)
        assert kind is getattr(errors, name)
        assert issubclass(kind, bestkept.BestkeptError)
        assert kind("x").exit_code == bestkept.Exit(code)


def test_names_are_found_and_listed():
    assert sorted(bestkept.__all__) == bestkept.__all__
    assert {*bestkept.__all__} <= {*dir(bestkept)}
    for name in bestkept.__all__:
        assert getattr(bestkept, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = bestkept.trian
    assert bestkept.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_rule_of_a_configuration_is_a_function():
    assert {*Step.model_fields} <= {*bestkept.__all__}
    assert all(getattr(bestkept, name) is getattr(rules, name) for name in Step.model_fields)


def test_importing_all_names_loads_neither_torch_nor_beam():
    program = f"from bestkept import {', '.join(bestkept.__all__)}\nimport sys\nprint(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "pydantic" in loaded
    assert not loaded & {"torch", "transformers", "apache_beam", "datasets", "pandas", "pyarrow", "typer"}


def test_the_package_is_typed_and_in_the_wheel():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
        "packages"
    ]
    assert packages == ["bestkept", "pipelines", "rm"]
    assert all((ROOT / name / "py.typed").exists() for name in packages)


def undocumented(tree: ast.Module) -> list[str]:
    """Public functions, classes, methods and fields of classes without a docstring."""
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(node.name)
        for at, member in enumerate(getattr(node, "body", ()) if isinstance(node, ast.ClassDef) else ()):
            if isinstance(member, ast.FunctionDef) and (
                not member.name.startswith("_") or member.name.startswith("__")
            ):
                missing += [] if ast.get_docstring(member) else [f"{node.name}.{member.name}"]
            if isinstance(member, ast.AnnAssign) and not str(member.target.id).startswith("_"):
                after = node.body[at + 1] if at + 1 < len(node.body) else None
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                missing += [] if said else [f"{node.name}.{member.target.id}"]
    return missing


@pytest.mark.parametrize("path", sorted((ROOT / "bestkept").glob("*.py")), ids=lambda path: path.stem)
def test_everything_public_has_a_docstring(path):
    assert undocumented(ast.parse(path.read_text(encoding="utf-8"))) == []


def test_the_test_above_sees_what_lacks_one():
    text = (
        '"""M."""\nclass A:\n    """A."""\n    x: int\n    y: int\n    """Y."""\n    def f(self): pass\ndef g(): pass\n'
    )
    assert undocumented(ast.parse(text)) == ["A.x", "A.f", "g"]


def test_numbers_are_documented_with_shape_and_unit():
    for name, words in {
        "RewardModel.score": ("float32 [responses]", "no unit", "NaN"),
        "RewardModel.predict": ("float32 [pairs]",),
        "RewardModel.probability": ("from 0 to 1", "float32 [n]"),
        "Scores.rewards": ("float32 [responses]", "order", "NaN"),
        "train": ("from 0 to 1",),
    }.items():
        text = inspect.getdoc(resolve(name))
        assert text is not None
        assert all(word in text for word in words), name
