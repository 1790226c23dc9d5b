"""The base of every configuration model: unknown keys are errors, and no value may contain credentials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pipelines.errors import CREDENTIALS, holds_credentials


def refuse_credentials(path: str) -> str:
    """Return `path`. Raises `ValueError` for a URL with a password or another secret."""
    if holds_credentials(path):
        raise ValueError(CREDENTIALS)
    return path


def _is_a_path(path: str) -> str:
    if "\0" in path:
        raise ValueError("a path must not contain a NUL character")
    if "://" not in path and any(len(name.encode()) > 255 for name in path.split("/")):
        raise ValueError("a name in a path must not exceed 255 bytes")
    return refuse_credentials(path)


PathText = Annotated[str, Field(min_length=1), AfterValidator(_is_a_path)]

LARGEST_INTEGER = 2**53 - 1  # JSON readers disagree about larger ones


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        """Check texts and numbers, including those in lists and mappings: a configuration is stored and printed in many
        places."""
        for scalar in _scalars(value):
            if isinstance(scalar, str) and holds_credentials(scalar):
                raise ValueError(CREDENTIALS)
            if isinstance(scalar, int) and abs(scalar) > LARGEST_INTEGER:
                raise ValueError(f"expected an integer of at most {LARGEST_INTEGER}")
        return value


def _scalars(value: Any) -> Iterator[Any]:
    """Yield all scalars in a value of plain types, including keys."""
    if isinstance(value, dict):
        yield from _scalars([*value, *value.values()])
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _scalars(item)
    else:
        yield value


def refuse_unused(rule: Strict, names: set[str], *, used: bool, by: str) -> None:
    """Raise `ValueError` if one of these fields is set and has no effect."""
    unused = sorted(names & rule.model_fields_set)
    if unused and not used:
        raise ValueError(f"{unused[0]} has no effect without {by}; remove it, or give {by}")
