"""The base of every configuration model: unknown keys are errors, and nothing in it holds credentials."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from pipelines.errors import CREDENTIALS, holds_credentials


def refuse_credentials(path: str) -> str:
    """`path`, unless it is a URL that carries a password or another secret: then a `ValueError`."""
    if holds_credentials(path):
        raise ValueError(CREDENTIALS)
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(refuse_credentials)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*")
    @classmethod
    def _holds_no_credentials(cls, value: Any) -> Any:
        """Texts, also those in lists and mappings: what a configuration holds is stored and printed in many places."""
        if any(map(holds_credentials, _texts(value))):
            raise ValueError(CREDENTIALS)
        return value


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value of plain types, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
