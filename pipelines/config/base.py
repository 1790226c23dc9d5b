"""What every configuration model shares."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

_URL = re.compile(r"([a-z0-9+.-]+)://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)
_USERINFO = re.compile(r"://[^/\s@]*(?::[^\s@]*)?@")


def refuse_userinfo(path: str) -> str:
    """`path`, unless it is a URL that carries a user name or password: then a `ValueError`."""
    if holds_userinfo(path):
        raise ValueError("URL holds credentials; give them through the environment instead")
    return path


def holds_userinfo(path: str) -> bool:
    """Whether a URL is of the form `scheme://user:password@host/...`; a password may hold slashes, as those of AWS do."""
    match = _URL.search(path)
    if match is None:
        return False
    scheme, first, rest = match.groups()
    port = scheme.lower() not in ("s3", "s3a", "gs", "gcs") and re.fullmatch(r"[^:]*:\d+", first)
    return "@" in first or (":" in first and "@" in rest and not port and not first.startswith("arn:"))


def hide_userinfo(text: str) -> str:
    """`text` with the credentials in its URLs starred out."""
    return _USERINFO.sub("://***@", text)


PathText = Annotated[str, Field(min_length=1), AfterValidator(refuse_userinfo)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
