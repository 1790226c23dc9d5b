"""JSON in one canonical form, its digest, and the type of a parsed document."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]
"""An object of a JSON document."""


def to_json(value: Mapping[str, Any]) -> bytes:
    """Canonical, readable JSON."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
