"""YAML and `key.sub=value` overrides → a validated configuration, or every mistake at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipelines.config.yaml_text import check_size, parse_yaml
from pipelines.errors import ConfigError, hide_credentials

Config = TypeVar("Config", bound=BaseModel)

_MOST_PROBLEMS = 20  # that an error names
_LONGEST = 300  # characters of a value in an error


def load(kind: type[Config], path: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file, with `key.sub=value` overrides (values are YAML) applied over it.

    Raises `ConfigError` with every mistake at once, each with its path, and a did-you-mean for unknown keys.
    """
    return validate(kind, read_values(kind, path), overrides, where=path)


def read_values(kind: type[BaseModel], path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, before validation as a `kind`. Raises `ConfigError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        close = _close_files(path) if isinstance(error, FileNotFoundError) else []
        remedy = f"did you mean {close[0]!r}?" if close else "give the path of a YAML file"
        text = f"cannot read the configuration {path!r}: {cause}; {remedy}"
        raise ConfigError(text) from error
    values = parse_yaml(text, where=path, remedy="check indentation, quotes and colons there")
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} contains {type(values).__name__}; expected a mapping with {', '.join(kind.model_fields)}"
        )
    return values


def validate(kind: type[Config], values: dict[str, Any], overrides: Sequence[str], *, where: str) -> Config:
    """Return the configuration in `values` with `overrides` applied over them; `where`, their origin, begins an error.

    Raises `ConfigError` like `load`.
    """
    for override in overrides:
        _override(values, override)
    check_size(values, where=where)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        places = _by_source(_by_place(error.errors()), [override.partition("=")[0] for override in overrides], where)
        problems = [
            f"{'' if number else f'{source}: '}{_describe(kind, problem)}"
            for source, same in places.items()
            for number, problem in enumerate(same)
        ]
        more = len(problems) - _MOST_PROBLEMS
        problems = [*problems[:_MOST_PROBLEMS], f"{more:,} more mistakes"] if more > 0 else problems
        raise ConfigError("; ".join(problems)) from error


def _by_source(
    problems: Iterable[dict[str, Any]], overrides: Sequence[str], where: str
) -> dict[str, list[dict[str, Any]]]:
    """Group problems by the source of their values: the file, or the command line, whose keys are `overrides`."""
    keys = [tuple(key.split(".")) for key in overrides]
    sources: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        place = tuple(
            part for part in problem["loc"] if isinstance(part, str)
        )  # one block may stand for a list of them
        overridden = any(place[: len(key)] == key for key in keys)
        sources.setdefault("command line" if overridden else where, []).append(problem)
    return sources


def _close_files(path: str) -> list[str]:
    """Return configurations with names similar to `path`: beside it, in the working directory, and in its `configs`."""
    given = Path(path)
    found: dict[str, str] = {}
    for directory in dict.fromkeys((given.parent, Path(), Path("configs"))):
        for suffix in ("*.yaml", "*.yml"):
            found.update({file.name: str(file) for file in sorted(directory.glob(suffix)) if file.name not in found})
    close = difflib.get_close_matches(given.name, list(found), n=1) or [
        name for name in found if given.name == Path(name).stem
    ]
    return [found[name] for name in close]


def _override(values: dict[str, Any], override: str) -> None:
    key, sign, text = override.partition("=")
    if not sign or not key:
        remedy = "; a configuration file comes before all settings" if override.endswith((".yaml", ".yml")) else ""
        raise ConfigError(f"override {_shown(override)} is not of the form key.sub=value{remedy}")
    *parents, last = key.split(".")
    target = values
    for parent in parents:
        child = target.setdefault(parent, {})
        if not isinstance(child, dict):
            remedy = f"; it is a list, give it whole: {parent}=[...]" if isinstance(child, list) else ""
            raise ConfigError(f"override {key!r}: {parent!r} is not a mapping in the configuration{remedy}")
        target = child
    target[last] = parse_yaml(text, where=f"override {_shown(override)}: the value", remedy="put it in quotes")


def _by_place(problems: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield problems by their place in the file: pydantic reports each form that a value may have, text or a list of texts,
    under its own name. If only the content of a form is wrong, that form was meant."""
    forms: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for problem in problems:
        tags = [at for at, part in enumerate(problem["loc"]) if isinstance(part, str) and "[" in part]
        place = tuple(part for part in problem["loc"] if not (isinstance(part, str) and "[" in part))
        union = place[: tags[0]] if tags else (*place, len(forms))
        forms.setdefault(union, []).append({**problem, "loc": place})
    for same in forms.values():
        fitting = [problem for problem in same if problem["type"] not in ("string_type", "list_type")]
        if len(same) == 1 or fitting:
            yield from fitting or same
        else:
            yield {**same[0], "msg": "expected text, or a list of texts"}


def _describe(kind: type[BaseModel], problem: Any) -> str:
    location, given = problem["loc"], problem["input"]
    path = _shortened(".".join(map(str, location)))
    if problem["type"] == "extra_forbidden":
        known = list(_keys_at(kind, location[:-1]))
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
        return f"unknown key {path!r}; {hint}"
    if problem["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
        close = difflib.get_close_matches(given, known, n=1) if isinstance(given, str) else []
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path} is {_shown(given)}: expected one of {', '.join(known)}{hint}"
    if problem["type"] == "missing":
        return f"{path} is missing; it is required"
    if problem["type"] == "model_type":
        keys = _shortened(", ".join(_keys_at(kind, location)), longest=1000)
        return f"{path} is {_shown(given)}: expected a mapping with some of the keys {keys}; write it as {path}: {{KEY: VALUE}}"
    message = _shortened(problem["msg"].removeprefix("Value error, "), longest=1000)
    if isinstance(given, dict | list) and problem["type"] == "value_error":  # about the combination of its fields
        return f"{path or 'configuration'}: {message}"
    return f"{path} is {_shown(given)}: {message}"


def _shown(value: Any) -> str:
    """Return a value as an error shows it: a short scalar as is, a long one abbreviated, and the type of anything else."""
    if isinstance(value, str):
        text = repr(hide_credentials(value))  # hidden before quoting, which makes its end harder to find
    elif isinstance(value, int) and value.bit_length() > 200:  # Python refuses to print thousands of digits
        text = f"an integer of {value.bit_length():,} bits"
    else:
        text = repr(value) if isinstance(value, int | float | None) else type(value).__name__
    return _shortened(text)


def _shortened(text: str, *, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 :]}"


def _keys_at(kind: Any, location: Sequence[int | str]) -> Iterator[str]:
    """Yield the field names of the model at `location` inside `kind`."""
    for part in location:
        if part not in getattr(kind, "model_fields", {}):  # an index in a list, or a key of a mapping
            continue
        kind = kind.model_fields[part].annotation
        kind = next((c for c in (kind, *_inner(kind)) if isinstance(c, type) and issubclass(c, BaseModel)), kind)
    yield from getattr(kind, "model_fields", {})


def _inner(annotation: Any) -> Iterator[Any]:
    for argument in getattr(annotation, "__args__", ()):
        yield argument
        yield from _inner(argument)
