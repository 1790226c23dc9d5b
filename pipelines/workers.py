"""What every DoFn shares: errors that survive the way to the launcher, and the plan, loaded once per process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from pipelines.errors import BestkeptError
from pipelines.plan import Plan


@contextmanager
def carrying_errors() -> Iterator[None]:
    """Inside a DoFn: pack a `BestkeptError` into text that reaches the launcher through any runner."""
    try:
        yield
    except BestkeptError as error:
        raise RuntimeError(f"{error.message} {error.pack()}") from error


@lru_cache(maxsize=2)
def plan_at(path: str) -> Plan:
    """The frozen plan; plan files never change."""
    return Plan.load(path)
