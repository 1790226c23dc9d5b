"""The base of every configuration model: unknown keys are errors, and paths hold no credentials."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from pipelines.errors import holds_userinfo


def refuse_userinfo(path: str) -> str:
    """`path`, unless it is a URL that carries a user name or password: then a `ValueError`."""
    if holds_userinfo(path):
        raise ValueError("URL holds credentials; give them through the environment instead")
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(refuse_userinfo)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
