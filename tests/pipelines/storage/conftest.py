"""No test of storage waits long for a store that does not answer."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _little_patience(little_patience: None) -> None:
    """See `services.stores`."""
