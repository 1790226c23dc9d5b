"""What is made from the configuration models: every field says what it is, examples load, schemas fit the shipped files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel, Field

from pipelines.config import RunConfig, load
from pipelines.config.example import example, json_schema
from pipelines.config.settings_list import KINDS, meaning_of, model_in, sections, settings_of
from pipelines.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
REQUIRED = {
    "run": {"input": {"path": "corpus/*.parquet"}, "model": {"path": "reward-model"}, "output": {"path": "curated"}},
    "train": {
        "data": {"path": "preferences.jsonl"},
        "model": {"path": "Qwen/Qwen3-0.6B"},
        "output": {"path": "reward-model"},
    },
    "evaluate": {"model": {"path": "reward-model"}, "data": {"path": "preferences.jsonl"}},
}


def undocumented_fields(kind: type[BaseModel], path: Sequence[str] = ()) -> list[str]:
    """The fields, blocks included, without a docstring."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        if not meaning_of(field):
            found.append(".".join([*path, name]))
        inner = model_in(field.annotation)[0]
        if inner is not None:
            found += undocumented_fields(inner, [*path, name])
    return found


@pytest.mark.parametrize("command", KINDS)
def test_every_field_says_what_it_is(command):
    assert undocumented_fields(KINDS[command]) == []
    for row in settings_of(command):
        assert row.meaning.endswith(".") and len(row.first_sentence) > 2, row  # noqa: PT018


def test_the_test_above_sees_a_field_without_a_word():
    class Inner(BaseModel):
        said: int = Field(default=1, description="Something.")
        unsaid: int = 1

    class Outer(BaseModel):
        inner: list[Inner] | None = None

    assert undocumented_fields(Outer) == ["inner", "inner.unsaid"]


@pytest.mark.parametrize("command", KINDS)
def test_the_example_is_the_defaults_and_names_every_setting(command, tmp_path):
    path = tmp_path / "example.yaml"
    path.write_text(example(command))
    loaded = load(KINDS[command], str(path))
    assert loaded.model_dump() == KINDS[command].model_validate(REQUIRED[command]).model_dump()
    lines = [
        line.split("#", 1)[-1] if line.lstrip().startswith("#") else line for line in example(command).splitlines()
    ]
    words = {line.strip().removeprefix("- ").partition(":")[0] for line in lines}
    assert {row.name.rpartition(".")[2] for row in settings_of(command)} <= words


def test_what_the_example_has_in_comments_is_yaml_when_the_marks_go(tmp_path):
    """The ensemble, and every rule: without its mark each block has the settings at their defaults."""
    text = example("run")
    start = text.index("  # - threshold:")
    block = text[start : text.index("  # The best of the whole corpus")]
    lines = [line.replace("# ", "", 1) for line in block.splitlines()]
    (step,) = yaml.safe_load("\n".join(lines))
    assert step["threshold"] == {
        "min_reward": None,
        "reference": None,
        "min_probability": 0.5,
        "temperature": None,
        "min_z": None,
    }


@pytest.mark.parametrize("command", KINDS)
def test_the_schema_takes_the_example_and_no_unknown_key(command):
    schema = json.loads(json_schema(command))
    jsonschema.Draft202012Validator.check_schema(schema)
    values = yaml.safe_load(example(command))
    jsonschema.validate(values, schema)
    for wrong in ({**values, "unknown": 1}, {**values, "output": {"path": 3}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_fit_the_schema(path):
    command = "train" if path.stem.startswith("train") else "run"
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json_schema(command)))


def test_types_bounds_and_defaults_are_told():
    rows = {row.name: row for row in settings_of("run")}
    assert rows["input.path"].type == "text | list of text"
    assert rows["input.path"].default == "required"
    assert rows["output.shape"].type == "messages | prompt_completion | preference | original"
    assert rows["limits.max_rejected_fraction"].type == "number >= 0.0, <= 1.0"
    assert rows["limits.max_rejected_fraction"].default == "null"
    assert "Default: 0.001, but 5 rejected" in rows["limits.max_rejected_fraction"].meaning
    assert rows["select[].best_of_n.min_probability"].type == "number >= 0.5, < 1.0"
    assert rows["model.revision"].default == "null"
    assert rows["runner.options"].default == "{}"
    assert rows["input.rows_per_fragment"].first_sentence.startswith("Rows per score file")
    assert rows["input.rows_per_fragment"].meaning.endswith("Changing it rescores the corpus.")
    titles = [title for title, _ in sections("run")]
    assert titles[:3] == ["input", "model", "ensemble"]
    assert "select: top" in titles
    assert [title for title, _ in sections("evaluate")][-1] == "others"


def test_another_name_is_an_error():
    with pytest.raises(ConfigError, match="expected one of run, train, evaluate"):
        example("select")


def test_loading_says_what_is_closest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean 'mine.yaml'\?"):
        load(RunConfig, "mien.yaml")
    with pytest.raises(ConfigError, match="give the path of a YAML file"):
        load(RunConfig, "elsewhere/zzzz.yaml")


def test_every_step_stands_in_the_tables_of_what_it_can_do():
    from pipelines.config.rules import Step

    text = (ROOT / "docs" / "capabilities.md").read_text(encoding="utf-8")
    assert [name for name in Step.model_fields if f"`{name}:" not in text] == []
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(Step.model_fields)} kinds of step" in readme
